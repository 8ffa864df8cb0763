"""A part is opened again as after a kill: by what lies in the directory alone."""

import errno
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.downloader.adapters import parts
from services.downloader.adapters.parts import DIRECTORY, HEADER_BYTES, Expected, Part, boot_id
from services.downloader.domain.blocks import KIB, LARGE_FILE, MIB, SMALL_BLOCK, Span
from tests.support.disks import a_disk, nearly_full

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
SIZE = 10 * SMALL_BLOCK + 100
WEIGHTS = Expected(SIZE, "sha256:aa")
THIS_START, NEXT_START = "4b1f", "5c2e"
NAME = "model.safetensors"
LEFT = [f"{NAME}.journal", f"{NAME}.part"]


@contextmanager
def opened(directory: Path, expected: Expected = WEIGHTS, boot: str = THIS_START) -> Generator[Part]:
    descriptor = os.open(directory, DIRECTORY)
    try:
        part = Part.open(descriptor, NAME, expected, boot)
        try:
            yield part
        finally:
            part.close()
    finally:
        os.close(descriptor)


def fill(part: Part, blocks: int, skip: int = 0) -> None:
    """So many blocks, after those that are left out."""
    skipped = part.take(skip * SMALL_BLOCK) if skip else None
    span = part.take(blocks * SMALL_BLOCK)
    assert span is not None
    write(part, span)
    if skipped is not None:
        part.give_back(skipped)


def write(part: Part, span: Span) -> None:
    os.pwrite(part.file, b"w" * span.left, span.position)
    part.filled(span, span.left)
    part.give_back(span)


def half_written(directory: Path, boot: str = THIS_START) -> None:
    with opened(directory, boot=boot) as part:
        fill(part, 3)
        fill(part, 2, skip=1)


def missing_in(directory: Path, expected: Expected = WEIGHTS, boot: str = THIS_START) -> int:
    with opened(directory, expected, boot) as part:
        return part.missing_bytes


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_written_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    half_written(tmp_path)
    with opened(tmp_path) as part:
        assert (part.contiguous, part.missing_bytes) == (3 * SMALL_BLOCK, SIZE - 5 * SMALL_BLOCK)
        hole, rest = part.take(SIZE), part.take(SIZE)
        assert hole is not None
        assert rest is not None
        assert (hole.start, hole.end) == (3 * SMALL_BLOCK, 4 * SMALL_BLOCK)
        assert (rest.start, rest.end) == (6 * SMALL_BLOCK, SIZE)
        write(part, hole)
        write(part, rest)
        assert part.is_complete
    with opened(tmp_path) as part:
        assert (part.is_complete, part.contiguous, part.missing_bytes) == (True, SIZE, 0)
    assert (tmp_path / f"{NAME}.part").read_bytes() == b"w" * SIZE


def test_part_of_a_block_counts_for_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as part:
        span = part.take(SIZE)
        assert span is not None
        part.filled(span, 2 * SMALL_BLOCK - 1)
        assert part.contiguous == SMALL_BLOCK
    assert missing_in(tmp_path) == SIZE - SMALL_BLOCK


def test_the_space_is_taken_before_the_first_byte(tmp_path: Path) -> None:
    with opened(tmp_path) as part:
        found = os.fstat(part.file)
    assert (found.st_size, found.st_blocks * 512 >= SIZE) == (SIZE, True)


def test_after_a_restart_of_the_machine_only_what_is_on_the_disk_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as part:
        fill(part, 3)
        part.sync()
        fill(part, 2)
    assert missing_in(tmp_path) == SIZE - 5 * SMALL_BLOCK
    assert missing_in(tmp_path, boot=NEXT_START) == SIZE - 3 * SMALL_BLOCK
    assert missing_in(tmp_path, boot=THIS_START) == SIZE - 3 * SMALL_BLOCK


def test_a_kill_while_the_journal_is_begun_does_not_make_old_bytes_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the machine's restart, and killed again between any two writes to the journal."""

    class Killed(BaseException):
        pass

    for writes in range(2):
        half_written(tmp_path)
        left = [writes]

        def write_until_killed(
            file: int, content: bytes, at: int, left: list[int] = left, really: Callable[..., int] = os.pwrite
        ) -> int:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return really(file, content, at)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", write_until_killed)
            with pytest.raises(Killed):
                missing_in(tmp_path, boot=NEXT_START)
        assert missing_in(tmp_path, boot=NEXT_START) == SIZE


def test_after_enough_bytes_they_are_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SYNC_BYTES", 2 * SMALL_BLOCK)
    with opened(tmp_path) as part:
        fill(part, 1)
        assert missing_in_journal(tmp_path, NEXT_START) == SIZE
        fill(part, 1)
    assert syncing() == []
    assert missing_in(tmp_path, boot=NEXT_START) == SIZE - 2 * SMALL_BLOCK


def syncing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"sync {NAME}"]


def missing_in_journal(directory: Path, boot: str) -> int:
    """Of a copy: opening changes it."""
    copy = directory / "copy"
    copy.mkdir()
    for name in LEFT:
        (copy / name).write_bytes((directory / name).read_bytes())
    return missing_in(copy, boot=boot)


def test_what_is_started_over_while_it_is_brought_to_the_disk_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def slow(file: int, really: Callable[[int], None] = os.fdatasync) -> None:
        begun.set()
        may_go_on.wait(10)
        really(file)

    with opened(tmp_path) as part:
        fill(part, 4)
        monkeypatch.setattr(os, "fdatasync", slow)
        syncing = threading.Thread(target=part.sync)
        syncing.start()
        begun.wait(10)
        part.start_over()
        may_go_on.set()
        syncing.join()
        assert part.missing_bytes == SIZE
    assert missing_in(tmp_path) == SIZE


def test_it_is_closed_after_what_is_on_its_way_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its descriptors, which belong to other files by then, would be written to."""
    monkeypatch.setattr(parts, "SYNC_BYTES", 1)
    may_go_on, asked = threading.Event(), list[int]()

    def slow(file: int, really: Callable[[int], None] = os.fdatasync) -> None:
        may_go_on.wait(10)
        asked.append(os.fstat(file).st_ino)
        really(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    descriptor = os.open(tmp_path, DIRECTORY)
    part = Part.open(descriptor, NAME, WEIGHTS, THIS_START)
    fill(part, 2)
    threading.Timer(0.1, may_go_on.set).start()
    part.close()
    os.close(descriptor)
    assert asked == [(tmp_path / f"{NAME}.part").stat().st_ino, (tmp_path / f"{NAME}.journal").stat().st_ino]


def test_a_disk_that_failed_behind_our_back_is_told_to_whoever_writes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SYNC_BYTES", 1)

    def fails(_file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path) as part:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fails)
            fill(part, 1)
            for thread in syncing():
                thread.join()
        with pytest.raises(OSError, match="Input/output error"):
            fill(part, 1)
        with pytest.raises(OSError, match="Input/output error"):
            part.sync()
    assert missing_in(tmp_path, boot=NEXT_START) == SIZE


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Expected(SIZE, "sha256:bb"), id="another digest"),
        pytest.param(Expected(SIZE + 1, "sha256:aa"), id="longer"),
        pytest.param(Expected(SIZE - SMALL_BLOCK, "sha256:aa"), id="shorter"),
    ],
)
def test_what_is_about_another_file_starts_anew(tmp_path: Path, other: Expected) -> None:
    half_written(tmp_path)
    assert missing_in(tmp_path, other) == other.size
    assert (tmp_path / f"{NAME}.part").read_bytes() == bytes(other.size)
    assert missing_in(tmp_path) == SIZE


def test_a_part_that_was_cut_off_starts_anew(tmp_path: Path) -> None:
    half_written(tmp_path)
    os.truncate(tmp_path / f"{NAME}.part", SIZE - 1)
    assert missing_in(tmp_path) == SIZE


def header(**changed: object) -> bytes:
    told = {"version": 1, "size": SIZE, "digest": "sha256:aa", "block_bytes": SMALL_BLOCK, "boot": THIS_START}
    return orjson.dumps(told | changed).ljust(HEADER_BYTES)


ALL_THERE = bytes([1] * 11)


def test_a_journal_as_it_is_written_here_is_understood(tmp_path: Path) -> None:
    half_written(tmp_path)
    (tmp_path / f"{NAME}.journal").write_bytes(header() + ALL_THERE)
    assert missing_in(tmp_path) == 0


@pytest.mark.parametrize(
    "journal",
    [
        pytest.param(b"", id="empty"),
        pytest.param(header()[:100], id="a piece of the header"),
        pytest.param(header(), id="no blocks"),
        pytest.param(header() + ALL_THERE[:-1], id="too few blocks"),
        pytest.param(header() + ALL_THERE + b"\1", id="too many blocks"),
        pytest.param(header() + ALL_THERE[:-1] + b"\3", id="a state that is none"),
        pytest.param(header(version=2) + ALL_THERE, id="another version"),
        pytest.param(header(block_bytes=0) + ALL_THERE, id="blocks of nothing"),
        pytest.param(header(block_bytes=-SMALL_BLOCK) + ALL_THERE, id="negative blocks"),
        pytest.param(header(block_bytes=SMALL_BLOCK + 1) + ALL_THERE, id="other blocks"),
        pytest.param(header(block_bytes=[]) + ALL_THERE, id="a list"),
        pytest.param(b"[]".ljust(HEADER_BYTES) + ALL_THERE, id="no object"),
        pytest.param(b"{}".ljust(HEADER_BYTES) + ALL_THERE, id="an empty object"),
        pytest.param(b"\xff" * HEADER_BYTES + ALL_THERE, id="no text"),
        pytest.param(bytes(HEADER_BYTES) + ALL_THERE, id="zeros"),
    ],
)
def test_a_damaged_journal_starts_anew(tmp_path: Path, journal: bytes) -> None:
    half_written(tmp_path)
    (tmp_path / f"{NAME}.journal").write_bytes(journal)
    assert missing_in(tmp_path) == SIZE


@settings(max_examples=60, deadline=None)
@given(journal=st.binary(max_size=600))
def test_any_journal_is_survived(tmp_path_factory: pytest.TempPathFactory, journal: bytes) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / f"{NAME}.part").write_bytes(bytes(SIZE))
    (directory / f"{NAME}.journal").write_bytes(journal)
    assert missing_in(directory) == SIZE


def test_a_file_of_nothing_is_complete(tmp_path: Path) -> None:
    assert missing_in(tmp_path, Expected(0, "git-sha1:e69d")) == 0


def test_large_files_have_large_blocks(tmp_path: Path) -> None:
    large = Expected(LARGE_FILE, "sha256:aa")
    with opened(tmp_path, large) as part:
        span = part.take(MIB)
        assert span is not None
        part.filled(span, MIB)
    assert missing_in(tmp_path, large) == LARGE_FILE - MIB
    assert (tmp_path / f"{NAME}.journal").stat().st_size == HEADER_BYTES + 256


def test_it_is_discarded_with_its_journal(tmp_path: Path) -> None:
    with opened(tmp_path) as part:
        assert left_in(tmp_path) == LEFT
        part.discard()
        part.discard()
        assert left_in(tmp_path) == []


@ROOT
def test_a_disk_without_room_is_told_before_the_first_byte_and_nothing_is_left(tmp_path: Path) -> None:
    with a_disk(tmp_path / "disk", 4 * MIB) as disk, nearly_full(disk, room=64 * KIB):
        before = descriptors()
        with pytest.raises(OSError, match="No space left") as told, opened(disk):
            pass
        assert descriptors() == before
        assert (told.value.errno, left_in(disk)) == (errno.ENOSPC, ["ballast"])


@ROOT
def test_a_disk_without_room_for_another_file_is_left_as_it_was(tmp_path: Path) -> None:
    with a_disk(tmp_path / "disk", 4 * MIB, inodes=2) as disk:
        with pytest.raises(OSError, match="No space left"), opened(disk):
            pass
        assert left_in(disk) == []


def test_what_is_there_is_kept_when_it_cannot_be_opened_this_time(tmp_path: Path) -> None:
    half_written(tmp_path)
    aside = tmp_path / "aside"
    (tmp_path / f"{NAME}.journal").rename(aside)
    (tmp_path / f"{NAME}.journal").mkdir()
    with pytest.raises(IsADirectoryError), opened(tmp_path):
        pass
    (tmp_path / f"{NAME}.journal").rmdir()
    aside.rename(tmp_path / f"{NAME}.journal")
    assert missing_in(tmp_path) == SIZE - 5 * SMALL_BLOCK


@pytest.mark.parametrize("suffix", [".part", ".journal"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_in_the_place_of_one_of_them_is_not_followed(tmp_path: Path, suffix: str, *, is_there: bool) -> None:
    secret = tmp_path / "secret"
    inside = tmp_path / "inside"
    inside.mkdir()
    if is_there:
        secret.write_bytes(b"not ours")
    (inside / f"{NAME}{suffix}").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links") as told, opened(inside):
        pass
    assert told.value.errno == errno.ELOOP
    assert (secret.read_bytes() if secret.exists() else None) == (b"not ours" if is_there else None)


def test_its_files_stay_in_the_directory_that_was_opened(tmp_path: Path) -> None:
    """Whatever has its name by now."""
    was, now = tmp_path / "models", tmp_path / "moved"
    was.mkdir()
    descriptor = os.open(was, DIRECTORY)
    was.rename(now)
    was.mkdir()
    part = Part.open(descriptor, NAME, WEIGHTS, THIS_START)
    assert (left_in(was), left_in(now)) == ([], LEFT)
    part.discard()
    part.close()
    os.close(descriptor)
    assert (left_in(was), left_in(now)) == ([], [])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = descriptors()
    half_written(tmp_path)
    (tmp_path / f"{NAME}.journal").unlink()
    (tmp_path / f"{NAME}.journal").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"), opened(tmp_path):
        pass
    assert descriptors() == before


def test_whoever_waits_for_bytes_is_woken_by_them(tmp_path: Path) -> None:
    with opened(tmp_path) as part:
        filling = threading.Timer(0.05, fill, (part, 2))
        filling.start()
        assert part.wait_until(lambda: part.contiguous == 2 * SMALL_BLOCK, 10)
        filling.join()
        assert not part.wait_until(lambda: part.is_complete, 0)


def test_a_start_of_this_machine_has_a_name() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
