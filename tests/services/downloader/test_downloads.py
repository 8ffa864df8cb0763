"""A downloader on a real bus with a real hub: what it makes of its assignment, whatever becomes of it meanwhile."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from schemas.assignment import AssignedFile
from schemas.reasons import NotEnoughDisk
from services.downloader import downloads
from tests.services.downloader.desk import (
    MIB,
    REPOSITORY,
    WEIGHTS,
    Desk,
    a_model,
    digest_of,
    left_on,
    point_to,
    random_weights,
    tiny,
    warm,
)
from tests.support.disks import a_disk
from tests.support.hub import Hub

SLOW = 2 * MIB
"""Bytes a second."""
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FOUR, EIGHT, EYES = "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "mmproj-F16.gguf"


@pytest_asyncio.fixture(loop_scope="session", scope="module", autouse=True)
async def _warm() -> AsyncIterator[None]:
    async with warm():
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        point_to(running, monkeypatch)
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Desk.opened(tmp_path) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "WAIT_SECONDS", (0.05, 0.05))


def two_shards(mib: int) -> dict[str, bytes]:
    config = a_model(0)["config.json"]
    return {"config.json": config, **{name: random_weights(mib * MIB, seed) for seed, name in enumerate(SHARDS)}}


def quantized() -> dict[str, bytes]:
    return {name: random_weights(MIB, seed) for seed, name in enumerate((FOUR, EIGHT, EYES))}


async def some_bytes_are_here(desk: Desk, file: AssignedFile, at_least: int = 1) -> None:
    def are_here() -> bool:
        told = [each for told in desk.progress.values() for each in told[-1].files if each.file_id == file.file_id]
        return any(sum(part.bytes for part in each.parts) >= at_least for each in told)

    await desk.until(are_here, f"{at_least} bytes of {file.file_id}")


def open_files() -> list[str]:
    """Of this process."""
    found: list[str] = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this list
            found.append(str(descriptor.readlink()))
    return found


def manifest_of(home: Path) -> Path:
    (path,) = (home / ".muster").glob("*.json")
    return path


def parts_in(home: Path) -> list[str]:
    return [path.name for path in (home / ".muster").iterdir() if path.suffix in (".part", ".journal")]


# -- ready


async def test_files_that_are_wanted_become_ready_with_their_paths_and_digest(hub: Hub, desk: Desk) -> None:
    files = a_model()
    commit = hub.put(REPOSITORY, files)
    file = desk.file(tiny(), commit)
    await desk.start()
    await desk.assign(0, file)
    ready = await desk.until_ready(file)
    home = desk.home(file)
    assert desk.content(file) == files
    assert (ready.paths, ready.model_path) == ((str(home / WEIGHTS),), str(home))
    assert ready.digest == digest_of(files)
    assert ready.commit == commit
    assert ready.bytes == ready.total == sum(map(len, files.values()))
    assert desk.phases(file) == ["queued", "listing", "downloading", "verifying", "ready"]


async def test_a_file_that_nobody_pinned_is_as_its_branch_is_now(hub: Hub, desk: Desk) -> None:
    commit = hub.put(REPOSITORY, a_model())
    file = desk.file(tiny(), None)
    await desk.start()
    await desk.assign(0, file)
    assert (await desk.until_ready(file)).commit == commit
    await desk.assign(0, unpinned := file.model_copy(update={"want": "deleted", "wanted": 2}))
    await desk.until_phase(unpinned, "deleted")
    assert left_on(desk.cache / "0") == []


async def test_what_is_pinned_is_fetched_although_its_branch_has_moved(hub: Hub, desk: Desk) -> None:
    commit = hub.put(REPOSITORY, files := a_model())
    hub.put(REPOSITORY, a_model(seed=8))
    await desk.start()
    await desk.assign(0, file := desk.file(tiny(), commit))
    await desk.until_ready(file)
    assert desk.content(file) == files


async def test_what_is_ready_is_ready_after_a_restart_and_the_hub_is_not_asked(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model()))
    await desk.start()
    await desk.assign(0, file)
    before = await desk.until_ready(file)
    await desk.stop()
    hub.clear_log()
    desk.seen.clear()
    await desk.start()
    assert await desk.until_ready(file) == before
    assert hub.requests() == []


async def test_what_is_ready_is_ready_at_once_while_another_choice_of_the_repository_is_fetched(
    hub: Hub, desk: Desk
) -> None:
    commit = hub.put(REPOSITORY, quantized())
    four, eight = desk.file(tiny(FOUR), commit), desk.file(tiny(EIGHT), commit)
    await desk.start()
    await desk.assign(0, four)
    await desk.until_ready(four)
    await desk.stop()
    desk.seen.clear()
    hub.fault(EIGHT, where="cdn", rate=SLOW // 10)
    await desk.assign(0, eight)
    await desk.start()
    await some_bytes_are_here(desk, eight)
    await desk.assign(0, eight, four)
    await desk.until_ready(four)
    assert "ready" not in desk.phases(eight)


async def test_two_choices_of_one_repository_share_their_files(hub: Hub, desk: Desk) -> None:
    commit = hub.put(REPOSITORY, files := quantized())
    four, eight = desk.file(tiny(FOUR), commit), desk.file(tiny(EIGHT), commit)
    await desk.start()
    await desk.assign(0, four, eight)
    await desk.until_ready(four)
    await desk.until_ready(eight)
    assert desk.content(four) == files
    assert hub.bytes_sent(f"localhost.*{EYES}") == len(files[EYES])


# -- interrupted


async def test_a_downloader_that_was_killed_goes_on_where_it_was(hub: Hub, desk: Desk) -> None:
    files = a_model(12 * MIB)
    file = desk.file(tiny(), hub.put(REPOSITORY, files))
    hub.fault(WEIGHTS, where="cdn", rate=4 * MIB)
    process = await desk.spawn()
    await desk.assign(0, file)
    await some_bytes_are_here(desk, file, 5 * MIB)
    process.kill()
    await process.wait()
    hub.clear_faults()
    await desk.start()
    await desk.until_ready(file)
    assert desk.content(file) == files
    assert parts_in(desk.home(file)) == []
    assert hub.bytes_sent("safetensors") <= 1.05 * len(files[WEIGHTS])
    assert len(hub.requests("/api/models/")) == 1


@pytest.mark.parametrize("damage", ["removed", "truncated", "a link"])
async def test_what_was_damaged_by_hand_is_fetched_again_and_nothing_else(
    hub: Hub, desk: Desk, tmp_path: Path, damage: str
) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model()))
    await desk.start()
    await desk.assign(0, file)
    await desk.until_ready(file)
    await desk.stop()
    weights, elsewhere = desk.home(file) / WEIGHTS, tmp_path / "elsewhere"
    elsewhere.write_bytes(files[WEIGHTS])
    if damage == "truncated":
        os.truncate(weights, 1000)
    else:
        weights.unlink()
    if damage == "a link":
        weights.symlink_to(elsewhere)
    hub.clear_log()
    desk.seen.clear()
    await desk.start()
    await desk.until_ready(file)
    assert desk.content(file) == files
    assert not weights.is_symlink()
    assert hub.bytes_sent("localhost") == len(files[WEIGHTS])
    assert hub.requests("json") == []
    assert elsewhere.read_bytes() == files[WEIGHTS]


async def restart_of_the_machine(desk: Desk, file: AssignedFile, **noted: object) -> None:
    """As its power failing before all of it was on the disk."""
    await desk.stop()
    path = manifest_of(desk.home(file))
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "boot": "before", "is_synced": False, **noted}))
    desk.seen.clear()


async def test_after_a_restart_of_the_machine_what_was_not_on_the_disk_is_verified_again(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model()))
    await desk.start()
    await desk.assign(0, file)
    before = await desk.until_ready(file)
    await restart_of_the_machine(desk, file)
    hub.clear_log()
    await desk.start()
    assert await desk.until_ready(file) == before
    assert desk.phases(file) == ["queued", "verifying", "ready"]
    assert hub.requests() == []

    await restart_of_the_machine(desk, file)
    with (desk.home(file) / WEIGHTS).open("r+b") as lost:
        lost.seek(100_000)
        lost.write(bytes(4096))
    await desk.start()
    await desk.until_ready(file)
    assert desk.content(file) == files
    assert hub.requests("json") == []


async def test_after_a_restart_of_the_machine_in_the_middle_also_the_files_that_were_complete_are_verified_again(
    hub: Hub, desk: Desk
) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := two_shards(2)))
    hub.fault(SHARDS[1], where="cdn", rate=1000)
    await desk.start()
    await desk.assign(0, file)
    await desk.until(lambda: hub.requests(SHARDS[1]), "the second shard")
    await restart_of_the_machine(desk, file)
    with (desk.home(file) / SHARDS[0]).open("r+b") as lost:
        lost.write(bytes(4096))
    hub.clear_faults()
    await desk.start()
    await desk.until_ready(file)
    assert desk.content(file) == files


async def test_a_manifest_that_was_damaged_by_hand_costs_no_file(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model()))
    await desk.start()
    await desk.assign(0, file)
    before = await desk.until_ready(file)
    await desk.stop()
    manifest_of(desk.home(file)).write_bytes(b"{")
    hub.clear_log()
    desk.seen.clear()
    await desk.start()
    assert await desk.until_ready(file) == before
    assert desk.content(file) == files
    assert hub.requests("resolve") == []


# -- what a hub sends


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"corrupt": True}, "checksum_mismatch"),
        ({"truncate": 1000}, "size_mismatch"),
        ({"html": True}, "answer_is_no_file"),
        ({"change_revision": True}, "revision_changed"),
    ],
)
async def test_what_is_not_the_file_is_asked_for_three_times_and_nothing_is_left_of_it(
    hub: Hub, desk: Desk, fault: Mapping[str, Any], code: str
) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model()))
    hub.fault(WEIGHTS, where="hub" if "change_revision" in fault else "cdn", **fault)
    await desk.start()
    await desk.assign(0, file)
    failed = await desk.until_failed(file)
    assert [reason.code for reason in failed.reasons] == [code]
    assert len(hub.requests(f"resolve.*{WEIGHTS}")) == 3
    assert WEIGHTS not in desk.content(file)
    assert parts_in(desk.home(file)) == []


@pytest.mark.usefixtures("impatient")
async def test_what_was_damaged_once_is_fetched_once_more(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model()))
    hub.fault(WEIGHTS, where="cdn", corrupt=True, times=1)
    await desk.start()
    await desk.assign(0, file)
    await desk.until_ready(file)
    assert desk.content(file) == files


async def test_a_small_file_that_is_missing_fails_its_model_and_no_other(hub: Hub, desk: Desk) -> None:
    bad = desk.file(tiny(), hub.put(REPOSITORY, a_model()))
    good = desk.file(tiny(name="org/other"), hub.put("org/other", a_model(seed=2)))
    hub.fault("org/tiny/resolve.*json", status=404)
    await desk.start()
    await desk.assign(0, bad, good)
    assert [reason.code for reason in (await desk.until_failed(bad)).reasons] == ["model_files_incomplete"]
    await desk.until_ready(good)


async def test_a_download_to_which_nothing_comes_has_stalled(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model(2 * MIB)))
    hub.fault(WEIGHTS, where="cdn", stall_after=MIB)
    await desk.start(stall_seconds=1.0)
    await desk.assign(0, file)
    await some_bytes_are_here(desk, file)
    hub.fault(WEIGHTS, stall_after=0)
    failed = await desk.until_failed(file, seconds=20)
    assert failed.reasons[-1].code == "download_stalled"


# -- another wish


async def test_a_wish_that_is_made_again_is_tried_again(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model()))
    hub.fault("/api/models/", status=503)
    await desk.start()
    await desk.assign(0, file)
    assert [reason.code for reason in (await desk.until_failed(file)).reasons] == ["hub_error"]
    hub.clear_faults()
    await desk.assign(0, again := file.model_copy(update={"wanted": 2}))
    await desk.until_ready(again)


async def test_what_is_not_assigned_any_more_is_not_fetched_any_more_and_what_came_is_kept(
    hub: Hub, desk: Desk
) -> None:
    files = a_model(6 * MIB)
    file = desk.file(tiny(), hub.put(REPOSITORY, files))
    hub.fault(WEIGHTS, where="cdn", rate=SLOW)
    await desk.start()
    await desk.assign(0, file)
    await some_bytes_are_here(desk, file, 3 * MIB)
    await desk.assign(0)
    await asyncio.sleep(0.5)
    sent = hub.bytes_sent(WEIGHTS)
    await asyncio.sleep(0.7)
    assert hub.bytes_sent(WEIGHTS) == sent
    hub.clear_faults()
    await desk.assign(0, file)
    await desk.until_ready(file)
    assert desk.content(file) == files
    assert hub.bytes_sent(WEIGHTS) <= 1.1 * len(files[WEIGHTS])


async def test_deleting_what_is_being_fetched_leaves_nothing(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model(6 * MIB)))
    hub.fault(WEIGHTS, where="cdn", rate=SLOW // 4)
    await desk.start()
    await desk.assign(0, file)
    await some_bytes_are_here(desk, file, MIB)
    await desk.assign(0, deleted := file.model_copy(update={"wanted": 2, "want": "deleted"}))
    await desk.until_phase(deleted, "deleted", seconds=3)
    assert left_on(desk.cache / "0") == []


async def test_deleting_one_choice_keeps_the_files_of_another_one(hub: Hub, desk: Desk) -> None:
    commit = hub.put(REPOSITORY, files := quantized())
    four, eight = desk.file(tiny(FOUR), commit), desk.file(tiny(EIGHT), commit)
    await desk.start()
    await desk.assign(0, four, eight)
    await desk.until_ready(four)
    await desk.until_ready(eight)
    await desk.assign(0, deleted := four.model_copy(update={"wanted": 2, "want": "deleted"}), eight)
    await desk.until_phase(deleted, "deleted")
    assert desk.content(eight) == {name: files[name] for name in (EIGHT, EYES)}


async def test_deleting_one_choice_does_not_wait_until_another_one_was_fetched(hub: Hub, desk: Desk) -> None:
    commit = hub.put(REPOSITORY, files := quantized())
    four, eight = desk.file(tiny(FOUR), commit), desk.file(tiny(EIGHT), commit)
    await desk.start()
    await desk.assign(0, four)
    await desk.until_ready(four)
    hub.fault(EIGHT, where="cdn", rate=SLOW // 4)
    await desk.assign(0, eight, four)
    await some_bytes_are_here(desk, eight)
    await desk.assign(0, deleted := four.model_copy(update={"wanted": 2, "want": "deleted"}), eight)
    await desk.until_phase(deleted, "deleted", seconds=1.5)
    hub.clear_faults()
    await desk.until_ready(eight)
    assert desk.content(eight) == {name: files[name] for name in (EIGHT, EYES)}


async def test_wishes_that_change_quickly_end_in_the_last_one(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model(2 * MIB)))
    hub.fault(WEIGHTS, where="cdn", rate=SLOW)
    await desk.start()
    for wanted in range(1, 30):
        want = "ready" if wanted % 2 else "deleted"
        file = file.model_copy(update={"wanted": wanted, "want": want})
        await desk.assign(0, *([file] if wanted % 7 else []))
        await asyncio.sleep(0.02)
    await desk.until_ready(file)
    assert desk.content(file) == files
    assert parts_in(desk.home(file)) == []
    await desk.stop()
    assert [name for name in open_files() if str(desk.cache) in name] == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch ")] == []


# -- in which order, and how fast


async def test_what_most_instances_wait_for_is_fetched_first(hub: Hub, desk: Desk) -> None:
    names = ("org/first", "org/few", "org/many")
    files = [desk.file(tiny(name=name), hub.put(name, a_model(seed=len(name)))) for name in names]
    hub.fault("org/first.*safetensors", where="cdn", rate=100_000)
    first, few, many = (file.model_copy(update={"priority": at}) for at, file in zip((9, 1, 5), files, strict=True))
    await desk.start(downloads_at_once=1)
    await desk.assign(0, first)
    await some_bytes_are_here(desk, first)
    await desk.assign(0, first, few, many)
    await desk.until_phase(many, "queued")
    hub.clear_faults()
    for file in (first, few, many):
        await desk.until_ready(file)
    asked = [seen.path for seen in hub.requests("resolve.*safetensors")]
    assert ["many" in path for path in asked] == [False, True, False]


async def test_all_downloads_together_take_no_more_than_they_may(hub: Hub, desk: Desk) -> None:
    files = [
        desk.file(tiny(name=name), hub.put(name, a_model(MIB, seed=seed)))
        for seed, name in enumerate(("org/one", "org/two"))
    ]
    await desk.start(bytes_per_second=MIB // 2)
    began = time.monotonic()
    await desk.assign(0, *files)
    for file in files:
        await desk.until_ready(file)
    assert time.monotonic() - began > 3.5


# -- room

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes disks")


@needs_root
async def test_what_does_not_fit_is_refused_before_the_first_byte(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model(4 * MIB)))
    with a_disk(desk.cache / "0", 3 * MIB) as disk:
        await desk.start()
        await desk.assign(0, file)
        (reason,) = (await desk.until_failed(file)).reasons
        assert isinstance(reason, NotEnoughDisk)
        assert reason.needed_bytes == sum(map(len, files.values()))
        assert 2 * MIB < reason.free_bytes <= 3 * MIB
        assert hub.requests("resolve") == []
        assert left_on(disk) == []
        await desk.stop()


@needs_root
async def test_what_is_to_be_kept_free_is_kept_free(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model(4 * MIB)))
    with a_disk(desk.cache / "0", 8 * MIB):
        await desk.start(disk_reserve_bytes=5 * MIB)
        await desk.assign(0, file)
        (reason,) = (await desk.until_failed(file)).reasons
        assert isinstance(reason, NotEnoughDisk)
        assert reason.reserved_bytes == 5 * MIB
        await desk.stop()


@needs_root
async def test_room_that_is_promised_to_one_download_is_not_promised_to_another(hub: Hub, desk: Desk) -> None:
    first = desk.file(tiny(), hub.put(REPOSITORY, two_shards(3)))
    second = desk.file(tiny(name="org/second"), hub.put("org/second", a_model(5 * MIB)))
    hub.fault("tiny.*safetensors", where="cdn", rate=SLOW)
    with a_disk(desk.cache / "0", 10 * MIB):
        await desk.start()
        await desk.assign(0, first)
        await some_bytes_are_here(desk, first)
        await desk.assign(0, first, second)
        (reason,) = (await desk.until_failed(second)).reasons
        assert isinstance(reason, NotEnoughDisk)
        assert 3 * MIB <= reason.promised_bytes < 3.2 * MIB
        assert 6 * MIB < reason.free_bytes <= 7 * MIB
        await desk.until_ready(first)
        await desk.stop()


@needs_root
async def test_what_was_promised_is_still_promised_after_a_restart(hub: Hub, desk: Desk) -> None:
    first = desk.file(tiny(), hub.put(REPOSITORY, two_shards(3)))
    second = desk.file(tiny(name="org/second"), hub.put("org/second", a_model(5 * MIB)))
    hub.fault("tiny.*safetensors", where="cdn", rate=SLOW // 2)
    with a_disk(desk.cache / "0", 10 * MIB):
        await desk.start()
        await desk.assign(0, first)
        await some_bytes_are_here(desk, first)
        await desk.stop()
        desk.progress.clear()
        await desk.start()
        await some_bytes_are_here(desk, first)
        await desk.assign(0, first, second)
        (reason,) = (await desk.until_failed(second)).reasons
        assert isinstance(reason, NotEnoughDisk)
        assert 3 * MIB <= reason.promised_bytes < 3.2 * MIB
        hub.clear_faults()
        await desk.until_ready(first)
        await desk.stop()


@needs_root
async def test_a_disk_that_somebody_else_fills_fails_one_download_and_harms_no_other(hub: Hub, desk: Desk) -> None:
    unlucky = desk.file(tiny(), hub.put(REPOSITORY, files := two_shards(3)))
    other = desk.file(tiny(name="org/other"), hub.put("org/other", kept := a_model(4 * MIB)))
    hub.fault("safetensors", where="cdn", rate=SLOW)
    with a_disk(desk.cache / "0", 12 * MIB) as disk:
        await desk.start()
        await desk.assign(0, unlucky, other)
        await some_bytes_are_here(desk, unlucky)
        await some_bytes_are_here(desk, other)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - MIB))
        (reason,) = (await desk.until_failed(unlucky)).reasons
        assert reason.code == "disk_full"
        await desk.until_ready(other)
        assert desk.content(other) == kept
        assert parts_in(desk.home(unlucky)) == []
        (disk / "filler").unlink()
        hub.clear_faults()
        await desk.assign(0, again := unlucky.model_copy(update={"wanted": 2}), other)
        await desk.until_ready(again)
        assert desk.content(unlucky) == files
        assert hub.bytes_sent(SHARDS[0]) <= 1.05 * len(files[SHARDS[0]])
        await desk.stop()


@needs_root
async def test_what_nobody_has_used_for_longest_makes_room_and_what_is_in_use_never(hub: Hub, desk: Desk) -> None:
    names = ("org/used", "org/old", "org/older", "org/new")
    models = {name: a_model(3 * MIB, seed=seed) for seed, name in enumerate(names)}
    used, old, older, new = (desk.file(tiny(name=name), hub.put(name, models[name])) for name in names)
    used = used.model_copy(update={"in_use": True})
    with a_disk(desk.cache / "0", 10 * MIB):
        await desk.start(evict="least_recently_used")
        for at, ready in enumerate(((used,), (used, older), (used, older, old))):
            await desk.assign(0, *ready)
            await desk.until_ready(ready[-1])
            noted = manifest_of(desk.home(ready[-1]))
            await desk.until(lambda noted=noted: b'"is_synced":true' in noted.read_bytes(), "on the disk")
            os.utime(noted, (at, at))
        await desk.assign(0, used, older, old, new)
        await desk.until_ready(new)
        await desk.until_phase(older, "deleted")
        assert [last.phase for each in (used, old) if (last := desk.last(each))] == ["ready", "ready"]
        assert not desk.home(older).exists()
        assert desk.content(used) == models["org/used"]
        await desk.assign(0, used, old, huge := desk.file(tiny(name="org/huge"), hub.put("org/huge", a_model(9 * MIB))))
        assert [reason.code for reason in (await desk.until_failed(huge)).reasons] == ["not_enough_disk"]
        assert desk.content(old) == models["org/old"]
        await desk.stop()


# -- links


async def test_a_link_in_the_way_is_not_followed(hub: Hub, desk: Desk, tmp_path: Path) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (desk.cache / "0" / "huggingface").mkdir(parents=True)
    (desk.cache / "0" / "huggingface" / "org").symlink_to(elsewhere)
    await desk.start()
    await desk.assign(0, file)
    assert [reason.code for reason in (await desk.until_failed(file)).reasons] == ["disk_error"]
    assert left_on(elsewhere) == []
