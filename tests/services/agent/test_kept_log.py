"""An engine's log on disk: bounded, whole, and the same for a reader whether or not it was cut meanwhile."""

import gzip
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.agent.adapters.kept_log import READ_BYTES, KeptLog, Place
from services.agent.domain.runtime import LogPart
from tests.services.agent.engines import GUARD_SECONDS

SEGMENT = 64 * 1024
KEPT = 3
CHATTY = """
import sys
for number in range(int(sys.argv[1])):
    print(f"line {number:07} {'x' * (number % 90)}", flush=number % 50 == 0)
"""


def a_log(folder: Path, text: str = "", *, segments: int = KEPT) -> KeptLog:
    path = folder / "1.log"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    return KeptLog(path, SEGMENT, segments)


def numbered(first: int, end: int) -> str:
    return "".join(f"line {number:07}\n" for number in range(first, end))


def part(log: KeptLog, after: str | None, *, lines: int = 1000, ended: bool = False) -> LogPart:
    found = log.part(lines, after, ended=ended)
    assert found is not None
    return found


def everything(log: KeptLog, after: str = "") -> tuple[list[str], int, str]:
    lines: list[str] = []
    skipped = 0
    while (found := part(log, after)).lines:
        lines += found.lines
        skipped += found.skipped
        after = found.after
    return lines, skipped, after


def forget(path: Path, end: int) -> None:
    """As if it had been killed here."""
    del path, end


def taken_bytes(log: KeptLog) -> int:
    """Of the disk."""
    return sum(path.stat().st_blocks * 512 for path in log.path.parent.iterdir())


def test_no_line_of_a_chatty_engine_is_lost_to_a_reader_while_its_log_is_cut(tmp_path: Path) -> None:
    log, count = a_log(tmp_path, segments=10_000), 60_000
    with log.path.open("ab") as output:
        engine = subprocess.Popen([sys.executable, "-c", CHATTY, str(count)], stdout=output)
    read: list[str] = []
    after, most = "", 0
    ends = time.monotonic() + GUARD_SECONDS
    with engine:
        while (len(read) < count) and time.monotonic() < ends:
            log.rotate()
            most = max(most, log.path.stat().st_blocks * 512)
            found = part(log, after)
            assert found.skipped == 0
            read += found.lines
            after = found.after
    assert [line.split()[1] for line in read] == [f"{number:07}" for number in range(count)]
    assert engine.returncode == 0
    assert log.path.stat().st_size > 40 * SEGMENT
    assert most < 20 * SEGMENT


def test_what_a_log_takes_of_the_disk_is_bounded_and_the_newest_is_kept(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    for round_ in range(50):
        a_log(tmp_path, numbered(round_ * 2000, round_ * 2000 + 2000))
        log.rotate()
    assert log.path.stat().st_size == 100_000 * 13
    assert taken_bytes(log) < 6 * SEGMENT
    assert len(list(tmp_path.glob("*.gz"))) == KEPT
    assert log.tail(2) == ("line 0099998", "line 0099999")


def test_a_reader_that_comes_too_late_is_told_how_many_lines_it_missed(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    for round_ in range(50):
        a_log(tmp_path, numbered(round_ * 2000, round_ * 2000 + 2000))
        log.rotate()
    lines, skipped, _ = everything(log)
    assert skipped + len(lines) == 100_000
    assert lines == numbered(skipped, 100_000).splitlines()


def test_segments_are_plain_gzip_of_whole_lines(tmp_path: Path) -> None:
    log = a_log(tmp_path, numbered(0, 20_000))
    log.rotate()
    (first, *_) = sorted(tmp_path.glob("*.gz"), key=lambda path: int(path.name.split(".")[2].split("-")[0]))
    text = gzip.decompress(first.read_bytes()).decode()
    assert text.endswith("\n")
    assert text.startswith("line ")


def test_a_place_stays_the_same_when_the_log_is_cut_and_for_the_next_agent(tmp_path: Path) -> None:
    log = a_log(tmp_path, numbered(0, 12_000))
    after = part(log, "", lines=5000).after
    before = everything(log, after)
    log.rotate()
    assert list(tmp_path.glob("*.gz"))
    assert everything(a_log(tmp_path), after) == before


def test_an_agent_that_dies_before_the_space_is_given_back_has_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = a_log(tmp_path, numbered(0, 15_000))
    with monkeypatch.context() as patch:
        patch.setattr("services.agent.adapters.kept_log._give_back", forget)
        log.rotate()
    assert everything(log)[:2] == (numbered(0, 15_000).splitlines(), 0)
    (tmp_path / "1.log.part").write_bytes(b"half a segment")
    a_log(tmp_path, numbered(15_000, 30_000))
    log.rotate()
    lines, skipped, _ = everything(log)
    assert lines == numbered(skipped, 30_000).splitlines()


class CutWhileRead(KeptLog):
    def _from_segments(self, place: Place) -> tuple[Place, bytes]:
        found = super()._from_segments(place)
        self.rotate()
        return found


def test_what_is_cut_off_between_two_looks_is_not_read_as_zeros(tmp_path: Path) -> None:
    log = CutWhileRead(a_log(tmp_path, numbered(0, 15_000)).path, SEGMENT, KEPT)
    assert everything(log)[0] == numbered(0, 15_000).splitlines()


def test_the_line_that_is_being_written_is_told_when_it_is_whole_or_its_engine_gone(tmp_path: Path) -> None:
    log = a_log(tmp_path, "one\ntw")
    first = part(log, None)
    assert first.lines == ("one",)
    assert part(log, first.after).lines == ()
    assert part(log, first.after, ended=True).lines == ("tw",)
    a_log(tmp_path, "o\n")
    assert part(log, first.after).lines == ("two",)


def test_a_line_without_an_end_does_not_stop_the_others(tmp_path: Path) -> None:
    log = a_log(tmp_path, "x" * (READ_BYTES + 10) + "\nnext\n")
    first = part(log, "")
    assert [line[:3] for line in first.lines] == ["xxx"]
    assert [line[-4:] for line in part(log, first.after).lines] == ["xxxx", "next"]


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("", 3, ()),
        ("one\n", 3, ("one",)),
        ("one\ntwo\nthree\nfour\n", 2, ("three", "four")),
        ("\n\none\n", 2, ("", "one")),
        ("one\ntwo\nthr", 1, ("two",)),
    ],
)
def test_last_lines_are_whole_and_end_where_the_next_begin(
    tmp_path: Path, text: str, lines: int, expected: tuple[str, ...]
) -> None:
    log = a_log(tmp_path, text)
    found = part(log, None, lines=lines)
    assert found.lines == expected
    assert part(log, found.after).lines == ()


def test_the_lines_of_a_place_are_counted_from_the_beginning_of_the_log(tmp_path: Path) -> None:
    log = a_log(tmp_path, numbered(0, 50_000))
    log.rotate()
    assert part(log, None, lines=10).after == str(Place(50_000 * 13, 50_000))


def test_a_place_that_no_answer_named_is_the_beginning_or_the_end(tmp_path: Path) -> None:
    log = a_log(tmp_path, "one\n")
    assert part(log, "nonsense").lines == ("one",)
    assert part(log, "99999.7").lines == ()


def test_of_a_former_attempt_the_end_and_one_segment_stay(tmp_path: Path) -> None:
    log = a_log(tmp_path, numbered(0, 30_000))
    log.rotate()
    log.close(4096)
    (segment,) = tmp_path.glob("*.gz")
    assert gzip.decompress(segment.read_bytes()).endswith(b"\n")
    assert taken_bytes(log) < 2 * SEGMENT
    assert log.tail(1) == ("line 0029999",)
    lines, skipped, _ = everything(log)
    assert lines == numbered(skipped, 30_000).splitlines()
    log.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_a_log_that_is_not_there_nothing_is_told(tmp_path: Path) -> None:
    log = KeptLog(tmp_path / "1.log", SEGMENT, KEPT)
    assert (log.tail(5), log.part(5, None, ended=True), log.part(5, "", ended=True)) == ((), None, None)
