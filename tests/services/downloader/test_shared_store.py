"""Workers that share one store, on a file system that all of them see: one fetches, the others wait for it."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from schemas.assignment import AssignedFile
from services.downloader import downloads
from services.downloader.adapters.store import LEASE
from services.downloader.domain.names import OURS
from tests.services.downloader.desk import MIB, REPOSITORY, WEIGHTS, Desk, a_model, left_on, point_to, tiny, warm
from tests.support.disks import a_disk
from tests.support.hub import Hub

THREE = range(3)


@pytest_asyncio.fixture(loop_scope="session", scope="module", autouse=True)
async def _warm() -> AsyncIterator[None]:
    async with warm():
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        point_to(running, monkeypatch)
        yield running


class SharedDesk(Desk):
    def settings(self, number: int = 0, **settings: Any) -> dict[str, Any]:
        del number
        return super().settings(0, store_is_shared=True, **settings)


@pytest_asyncio.fixture(loop_scope="session")
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(downloads, "SHARED_STORE_SECONDS", 0.2)
    async with SharedDesk.opened(tmp_path, workers=3) as opened:
        yield opened


def of_each(desk: Desk, commit: str) -> list[AssignedFile]:
    """As the scheduler says it: each of them asks the one that is to have it first."""
    first = desk.file(tiny(), commit)
    near = (desk.neighbour(first, 0, ready=False),)
    return [desk.file(tiny(), commit, number, neighbours=near if number else ()) for number in THREE]


async def test_one_fetches_and_all_are_ready(hub: Hub, desk: Desk) -> None:
    wanted = of_each(desk, hub.put(REPOSITORY, files := a_model(MIB)))
    for number in THREE:
        await desk.start(number)
    for number, file in enumerate(wanted):
        await desk.assign(number, file)
    ready = [await desk.until_ready(file) for file in wanted]
    assert {seen.model_path for seen in ready} == {str(desk.home(wanted[0]))}
    assert len({seen.digest for seen in ready}) == 1
    assert desk.content(wanted[0]) == files
    assert hub.bytes_sent(f"localhost.*{WEIGHTS}") == len(files[WEIGHTS])
    assert len(hub.requests(r"http://[\d.:]+/org/.*config.json")) == 1
    assert [name for name in left_on(desk.home(wanted[0]) / OURS) if not name.endswith((".json", ".holds"))] == []


async def test_when_the_one_that_fetches_is_killed_another_one_takes_over_and_goes_on(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LEASE_SECONDS", 1.0)
    files = a_model(12 * MIB)
    wanted = of_each(desk, hub.put(REPOSITORY, files))
    hub.fault(WEIGHTS, where="cdn", rate=2 * MIB)
    holder = await desk.spawn(0)
    await desk.assign(0, wanted[0])
    await desk.until(lambda: hub.bytes_sent(f"localhost.*{WEIGHTS}") > 3 * MIB, "some bytes")
    for number in (1, 2):
        await desk.start(number)
        await desk.assign(number, wanted[number])
        await desk.until_phase(wanted[number], "queued")
    holder.kill()
    await holder.wait()
    hub.clear_faults()
    for number in (1, 2):
        await desk.until_ready(wanted[number], seconds=15)
    assert desk.content(wanted[1]) == files
    assert hub.bytes_sent(f"localhost.*{WEIGHTS}") <= 1.05 * len(files[WEIGHTS])


async def test_one_whose_lease_was_taken_over_stops_and_waits_for_the_other(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LEASE_SECONDS", 0.8)
    wanted = of_each(desk, hub.put(REPOSITORY, files := a_model(4 * MIB)))
    hub.fault(WEIGHTS, where="cdn", rate=MIB)
    await desk.start(0)
    await desk.assign(0, wanted[0])
    await desk.until(lambda: hub.bytes_sent(f"localhost.*{WEIGHTS}") > MIB, "some bytes")
    lease = desk.home(wanted[0]) / OURS / LEASE
    lease.unlink()
    lease.write_bytes(b"w-other 1 0".ljust(256))  # it does not renew it: it has gone since
    sent = 0
    while (now := hub.bytes_sent(f"localhost.*{WEIGHTS}")) != sent:
        sent = now
        await asyncio.sleep(0.4)
    assert sent < len(files[WEIGHTS])
    hub.clear_faults()
    await desk.until_ready(wanted[0])
    assert desk.content(wanted[0]) == files


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes disks")
async def test_nothing_of_a_shared_store_makes_room(hub: Hub, desk: Desk) -> None:
    """Whether another worker uses it nobody knows."""
    old = desk.file(tiny(), hub.put(REPOSITORY, files := a_model(3 * MIB)))
    more = desk.file(tiny(name="org/more"), hub.put("org/more", a_model(8 * MIB, seed=2)))
    with a_disk(desk.cache / "0", 10 * MIB):
        await desk.start(0, evict="least_recently_used")
        await desk.assign(0, old)
        await desk.until_ready(old)
        await desk.assign(0, old, more)
        assert [reason.code for reason in (await desk.until_failed(more)).reasons] == ["not_enough_disk"]
        assert desk.content(old) == files
        await desk.stop(0)
