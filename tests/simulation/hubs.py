"""Models of a hub, in a share of the worlds: what the hub has and who reaches it, what machines fetch of it and from each other.

What a downloader does is mirrored from `services/downloader/downloads.py`: one job for each file resource, neighbours as they
were named when it began, then the hub; what is there is never fetched twice; what nobody uses is removed when room is needed.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from schemas.asks import ModelInspection
from schemas.assignment import AssignedFile, Neighbour
from schemas.ids import FileId, WorkerId
from schemas.models import ModelSpec, ModelWeights, Pinned
from schemas.reasons import ChecksumMismatch, HubUnreachable, Reason, RepositoryNotFound
from schemas.reports import FilePhase, FileSeen
from schemas.sources import HuggingFace, LocalPath, Source

if TYPE_CHECKING:
    from tests.simulation.worker import Downloader

GIB: Final = 2**30
SHARE: Final = 0.4
"""Of all worlds without gangs, those that have a hub."""
SIZES: Final = {"muster/a": GIB, "muster/b": 3 * GIB, "muster/c": 6 * GIB}
HOST: Final = "hub"
STILL_SECONDS: Final = 10.0
"""Between two reports of a download that goes on."""
ENDED: Final[tuple[FilePhase, ...]] = ("ready", "failed", "deleted")


def has_hub(seed: int) -> bool:
    """Drawn with dice of their own: the other worlds' histories are what they are without hubs."""
    return random.Random(f"hub {seed}").random() < SHARE


def a_source(dice: random.Random) -> HuggingFace:
    return HuggingFace(repo_id=dice.choice(tuple(SIZES)))


def a_spec(dice: random.Random, name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        replicas=dice.choice((0, 1, 1, 2, 3, 3)),
        source=a_source(dice),
        restart_on_error=dice.random() < 0.85,
        start_timeout_seconds=dice.choice((15.0, 25.0)),
        placement_strategy=dice.choice(("spread", "spread", "binpack")),
    )


def path_of(source: Source, commit: str | None) -> str:
    """Where such files lie, on each machine that has them."""
    return f"/cache/{source.label}/{commit}"


class Hub:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(f"hub of {seed}")
        self.commits = dict.fromkeys(SIZES, 1)
        self.is_down = False
        self.cut_off: set[WorkerId] = set()
        """Workers that can't reach it."""
        self.vanished: set[str] = set()
        """Repositories that it shows to nobody."""
        self.spoilt: set[str] = set()
        """… of which it sends something else than it says."""

    def heal(self) -> None:
        self.is_down = False
        self.cut_off.clear()
        self.vanished.clear()
        self.spoilt.clear()

    def commit_of(self, repo_id: str) -> str:
        return f"{self.commits[repo_id]:040x}"

    def refusal(self, worker_id: WorkerId, source: Source) -> Reason | None:
        if isinstance(source, LocalPath):
            raise TypeError(f"{source} is no hub's")
        if self.is_down or worker_id in self.cut_off:
            return HubUnreachable(host=HOST, problem="no route")
        return RepositoryNotFound(repository=source.repo_id) if source.repo_id in self.vanished else None

    def inspect(self, worker_id: WorkerId, source: Source) -> ModelInspection:
        refusal = self.refusal(worker_id, source)
        if refusal is not None or isinstance(source, LocalPath):
            return ModelInspection(reasons=() if refusal is None else (refusal,))
        size = SIZES[source.repo_id]
        pinned = (Pinned(source=source, commit=self.commit_of(source.repo_id), bytes=size),)
        weights = ModelWeights(format="gguf", weight_bytes=size, files=("m.gguf",), pinned=pinned)
        return ModelInspection(weights=weights)

    def trouble(self, worker_id: WorkerId, source: Source) -> Reason | None:
        """Why what it sent is not what was asked for; None: it is."""
        if (refusal := self.refusal(worker_id, source)) is not None or isinstance(source, LocalPath):
            return refusal
        if source.repo_id in self.spoilt:
            return ChecksumMismatch(path="m.gguf", expected="sha256:1", actual="sha256:2")
        return None


# -- what machines fetch ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Job:
    """One file resource, as `Downloads` works on it."""

    file: AssignedFile
    seen: FileSeen
    neighbours: list[Neighbour] | None = None
    """Whom it is still to ask; None: it has not begun."""
    ends_at: float | None = None
    """When what it fetches is there; None: it fetches nothing just now."""
    told_at: float = 0.0

    @property
    def has_ended(self) -> bool:
        return self.seen.phase in ENDED


class Fetches:
    """A downloader's jobs."""

    def __init__(self, downloader: "Downloader", hub: Hub) -> None:
        self.machine = downloader.machine
        self.jobs: dict[FileId, Job] = {}
        self._downloader = downloader
        self._hub = hub

    def assigned(self, files: Iterable[AssignedFile]) -> None:
        """`Downloads.wanted`."""
        wanted = {file.file_id: file for file in files if not isinstance(file.source, LocalPath)}
        for file_id in self.jobs.keys() - wanted.keys():
            del self.jobs[file_id]
        for file in wanted.values():
            job = self.jobs.get(file.file_id)
            if job is not None and (job.file.wanted, job.file.want) == (file.wanted, file.want):
                job.file = file
            else:
                self.jobs[file.file_id] = Job(file, _seen(file, "queued"))

    def look(self, now: float) -> None:
        for job in self.jobs.values():
            if job.has_ended:
                continue
            if job.file.want == "deleted":
                self._remove(job)
            else:
                self._go_on(job, now)
            if not job.has_ended and now - job.told_at >= STILL_SECONDS:
                self._say(job, job.seen.phase, now)

    def _go_on(self, job: Job, now: float) -> None:
        path = path_of(job.file.source, job.file.commit)
        if path in self.machine.store:
            self._ready(job, now)
        elif job.neighbours is None:
            job.neighbours = list(job.file.neighbours)
            self._say(job, "queued", now)
        elif job.neighbours:
            self._from_neighbour(job, job.neighbours, path, now)
        elif job.ends_at is None:
            job.ends_at = now + self._hub.dice.choice((0.1, 0.5, 1.0, 4.0))
            self._say(job, "downloading", now)
        elif now >= job.ends_at:
            trouble = self._hub.trouble(self.machine.id, job.file.source)
            if trouble is None:
                self.machine.store[path] = job.file.bytes or 1
                self._ready(job, now)
            else:
                self.machine.missed.add((job.file.file_id, job.file.wanted))
                self._say(job, "failed", now, reasons=(trouble,))

    def _from_neighbour(self, job: Job, neighbours: list[Neighbour], path: str, now: float) -> None:
        other = self.machine.world.neighbour(neighbours[0].worker_id)
        downloader = other.downloader
        there = None if downloader is None or downloader.fetches is None else downloader.fetches.jobs
        its = None if there is None else there.get(neighbours[0].file_id)
        reached = downloader is not None and downloader.link.up and self._downloader.link.up
        if not reached or its is None or its.seen.phase in ("failed", "deleted"):
            del neighbours[0]
            job.ends_at = None
        elif path not in other.store:  # it is still fetching it
            job.ends_at = None
        elif job.ends_at is None:
            job.ends_at = now + self._hub.dice.choice((0.1, 0.5, 2.0))
            self._say(job, "copying", now)
        elif now >= job.ends_at:
            self.machine.store[path] = job.file.bytes or 1
            self._ready(job, now)

    def _ready(self, job: Job, now: float) -> None:
        path = path_of(job.file.source, job.file.commit)
        self.machine.verified.add((job.file.file_id, job.file.wanted))
        self._say(job, "ready", now, bytes=self.machine.store[path], paths=(path,), model_path=path, digest=f"d-{path}")

    def _remove(self, job: Job) -> None:
        self._take_away(job)
        self._say(job, "deleted", self.machine.world.clock.seconds)

    def _take_away(self, job: Job) -> None:
        path = path_of(job.file.source, job.file.commit)
        self.machine.world.removes(self.machine, path)
        self.machine.store.pop(path, None)
        self.machine.removed.add((job.file.file_id, job.file.wanted))

    def evict(self, dice: random.Random) -> str:
        """`Downloads._evict`: something that nothing uses, as far as the newest assignment says, which it has read."""
        free = [job for _, job in sorted(self.jobs.items()) if job.seen.phase == "ready" and not job.file.in_use]
        if not free or not self._downloader.is_up_to_date:
            return f"{self.machine.id} has nothing to remove"
        job = dice.choice(free)
        self._remove(job)
        return f"{self.machine.id} removes {job.file.file_id} to make room"

    def _say(self, job: Job, phase: FilePhase, now: float, **more: Any) -> None:
        job.seen = _seen(job.file, phase).model_copy(update=more)
        job.told_at = now
        self._downloader.tell(job.seen)

    def seen(self) -> Iterator[FileSeen]:
        for job in self.jobs.values():
            yield job.seen


def _seen(file: AssignedFile, phase: FilePhase) -> FileSeen:
    return FileSeen(file_id=file.file_id, wanted=file.wanted, commit=file.commit, phase=phase, total=file.bytes)
