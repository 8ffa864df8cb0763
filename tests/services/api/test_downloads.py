"""How far files are: what was heard last of each worker, and all of them together."""

import pytest

from schemas.ids import FileId, WorkerId
from schemas.reports import FileProgress, FilesProgress
from schemas.subjects import progress
from services.api.adapters.progress import Progress
from services.api.domain.downloads import Fetched, far, summed

WORKER = WorkerId("w-1")
FILE = FileId("f-1")


class Heard:
    """What is heard at which second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.progress = Progress(None, lambda: self.now)  # pyright: ignore[reportArgumentType] - nothing is listened to

    def hear(self, *files: FileProgress, worker: WorkerId = WORKER, sender: str = WORKER) -> None:
        body = FilesProgress(worker_id=worker, files=files).model_dump_json().encode()
        self.progress.hear(progress(sender), body)


def fetching(size: int, **fields: object) -> FileProgress:
    return FileProgress.model_validate({"file_id": FILE, "phase": "downloading", "bytes": size} | fields)


def test_the_newest_is_known_and_nothing_when_it_is_old() -> None:
    heard = Heard()
    heard.hear(fetching(1))
    heard.now = 9
    heard.hear(fetching(2))
    heard.now = 19
    assert heard.progress.of(WORKER, FILE) == fetching(2)
    heard.now = 19.1
    assert heard.progress.of(WORKER, FILE) is None


def test_what_is_no_longer_told_is_no_longer_known() -> None:
    heard = Heard()
    heard.hear(fetching(1))
    heard.hear()
    assert heard.progress.of(WORKER, FILE) is None


def test_only_who_the_subject_names_is_believed() -> None:
    heard = Heard()
    heard.hear(fetching(1), sender="w-2")
    assert heard.progress.of("w-2", FILE) is None
    heard.hear(fetching(2), worker=WorkerId("w-2"), sender="w-2")
    heard.progress.hear(progress(WORKER), b"nonsense")
    assert heard.progress.of(WORKER, FILE) is None


def test_workers_that_are_silent_are_forgotten() -> None:
    heard = Heard()
    for number in range(100):
        heard.hear(fetching(1), worker=WorkerId(f"w-{number}"), sender=f"w-{number}")
    heard.now = 60
    heard.hear(fetching(1))
    assert len(heard.progress._heard) == 1  # pyright: ignore[reportPrivateUsage]


def test_the_total_is_what_the_downloader_says_else_what_was_wanted() -> None:
    assert far(Fetched("wanted", None, 10, fetching(3)))["total"] == 10
    assert far(Fetched("wanted", None, 10, fetching(3, total=12)))["total"] == 12
    assert far(Fetched("wanted", None, 10))["bytes"] is None


def test_what_is_ready_is_there_whatever_was_heard_last() -> None:
    ready = far(Fetched("ready", 10, 10, fetching(3, bytes_per_second=5, origin="hf.co")))
    assert (ready["bytes"], ready["phase"], ready["bytes_per_second"], ready["origin"]) == (10, None, None, None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], None),
        ([Fetched("wanted", None, 10)], (0, 10, None, None)),
        ([Fetched("wanted", None, 10, fetching(4, bytes_per_second=2)), Fetched("ready", 10, 10)], (14, 20, 2, 3.0)),
        ([Fetched("wanted", None, None, fetching(4, bytes_per_second=2))], (4, None, 2, None)),
        ([Fetched("wanted", None, 10, fetching(4, bytes_per_second=0))], (4, 10, 0, None)),
        ([Fetched("wanted", None, 10, fetching(12, bytes_per_second=2))], (12, 10, 2, 0.0)),
    ],
)
def test_all_together_are_known_as_far_as_each_is(
    files: list[Fetched], expected: tuple[int, int | None, int | None, float | None] | None
) -> None:
    told = summed(files)
    assert (None if told is None else tuple(told.values())) == expected
