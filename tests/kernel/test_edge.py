"""A worker's line to the core, with a worker's credentials on the real server."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path

import orjson
import pytest
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kernel import edge as edge_module
from kernel.bus import Bus, NoAnswer
from kernel.clock import SystemClock
from kernel.edge import Edge
from kernel.errors import Unavailable
from kernel.telemetry import span
from schemas.assignment import Assigned
from schemas.ids import InstanceId, WorkerId
from schemas.models import Inventory
from schemas.reasons import ImageNotPulled
from schemas.reports import EngineReported, EngineSeen, FilesObserved, Report, WorkerObserved
from schemas.subjects import assigned, beat
from tests.support.log_faults import FaultyBus
from tests.support.stack import Stack

INVENTORY = Inventory(os="linux", arch="x86_64", cpu_count=2, memory_total=2**30)


class Worker:
    """An edge of the agent of worker 0, with all that it was assigned and all pictures that were made of it."""

    def __init__(self, bus: Bus, worker_id: WorkerId, directory: Path) -> None:
        self.edge = Edge(bus, worker_id, "agent", SystemClock(), directory / "state" / "assigned.json", self._picture)
        self.may_look = asyncio.Event()
        """Until then a picture that was begun is not done."""
        self.may_look.set()
        self.assigned: list[tuple[int, int]] = []
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        task = asyncio.create_task(self.edge.run(self._on_assigned))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until_assigned(self, count: int) -> list[tuple[int, int]]:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.assigned) >= count)
        return list(self.assigned)

    def reports(self, attempt: int) -> None:
        engine = EngineSeen(instance_id=InstanceId("i-1"), attempt=attempt, phase="loading")
        self.edge.report(EngineReported(**self.edge.identity(), engine=engine))

    async def _on_assigned(self, document: Assigned) -> None:
        async with self._changed:
            self.assigned.append((document.election, document.seq))
            self._changed.notify_all()

    async def _picture(self) -> Report:
        identity = self.edge.identity()
        await self.may_look.wait()
        return WorkerObserved(**identity, name="w", address="127.0.0.1", agent_version="1", inventory=INVENTORY)


@pytest.fixture
async def agent(shared: Stack) -> Bus:
    return await shared.bus("agent", 0)


@pytest.fixture
def worker_id(shared: Stack) -> WorkerId:
    return shared.workers[0].id


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "BEAT_SECONDS", 0.02)


async def assign(bus: Bus, worker_id: str, election: int, seq: int, *, to: str | None = None) -> None:
    document = Assigned(election=election, seq=seq, worker_id=WorkerId(worker_id))
    await bus.request(assigned(to or worker_id), document.model_dump_json().encode(), timeout_seconds=5)


async def reported(bus: Bus, until: Callable[[list[tuple[str, int]]], bool]) -> list[tuple[str, int]]:
    """Type and counter of each report in the stream, in order, once they are as wanted."""
    async with asyncio.timeout(30):
        while True:
            found: list[tuple[str, int]] = []
            last = (await bus.js_api("STREAM.INFO.REPORTS"))["state"]["last_seq"]
            for seq in range(1, last + 1):
                message = (await bus.js_api("STREAM.MSG.GET.REPORTS", {"seq": seq}))["message"]
                envelope = orjson.loads(base64.b64decode(message["data"]))
                found.append((envelope["type"], envelope["data"]["counter"]))
            if until(found):
                return found
            await asyncio.sleep(0.02)


async def test_a_password_in_what_went_wrong_is_not_reported(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    problem = ImageNotPulled(image="i", problem="proxyconnect: http://user:p%40ss@proxy:3128 refused")
    engine = EngineSeen(instance_id=InstanceId("i-1"), attempt=1, phase="exited", reasons=(problem,))
    await worker.edge.send(EngineReported(**worker.edge.identity(), engine=engine))
    last = (await bus.js_api("STREAM.INFO.REPORTS"))["state"]["last_seq"]
    message = (await bus.js_api("STREAM.MSG.GET.REPORTS", {"seq": last}))["message"]
    envelope = orjson.loads(base64.b64decode(message["data"]))
    (told,) = envelope["data"]["engine"]["reasons"]
    assert told["problem"] == "proxyconnect: http://***@proxy:3128 refused"


# -- what is assigned ---------------------------------------------------------------------------------------------------


async def test_the_assignment_is_read_at_start_and_followed_live(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    await assign(bus, worker_id, 1, 10)
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        assert await worker.until_assigned(1) == [(1, 10)]
        await assign(bus, worker_id, 1, 11)
        await assign(bus, worker_id, 2, 5)

        assert await worker.until_assigned(3) == [(1, 10), (1, 11), (2, 5)]


async def test_a_worker_that_nothing_was_ever_assigned_to_waits_for_the_first(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        await heard_beats(bus, worker_id, 2)
        await reported(bus, lambda found: len(found) == 1)
        await assign(bus, worker_id, 1, 10)

        assert await worker.until_assigned(1) == [(1, 10)]
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [], "nothing is not unreadable"


async def test_an_older_assignment_changes_nothing_not_even_after_a_restart(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    await assign(bus, worker_id, 3, 10)
    async with worker.running():
        await worker.until_assigned(1)
        for older in ((3, 9), (2, 99), (3, 10)):
            await assign(bus, worker_id, *older)
        await assign(bus, worker_id, 3, 11)
        assert await worker.until_assigned(2) == [(3, 10), (3, 11)]
        await assign(bus, worker_id, 3, 10)  # what a deposed scheduler may leave behind

    again = Worker(agent, worker_id, tmp_path)
    assert (again.edge.election, again.edge.seq) == (0, 0), "what this boot has taken up"
    async with again.running():
        await heard_beats(bus, worker_id, 2)
        await assign(bus, worker_id, 3, 11)
        await assign(bus, worker_id, 4, 1)

        assert (await again.until_assigned(1))[-1] == (4, 1)
        assert (3, 10) not in again.assigned


async def test_after_a_restart_the_newest_assignment_is_taken_up_again(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    await assign(bus, worker_id, 1, 10)
    for _ in range(2):
        worker = Worker(agent, worker_id, tmp_path)
        async with worker.running():
            assert await worker.until_assigned(1) == [(1, 10)]


@pytest.mark.parametrize("state", [b"", b"not json", b"[]", b'{"election": 1}', b'{"election": "x", "seq": null}'])
async def test_a_damaged_memory_of_the_newest_assignment_is_as_none(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, state: bytes
) -> None:
    path = tmp_path / "state" / "assigned.json"
    path.parent.mkdir()
    path.write_bytes(state)
    await assign(bus, worker_id, 1, 10)

    worker = Worker(agent, worker_id, tmp_path)

    async with worker.running():
        assert await worker.until_assigned(1) == [(1, 10)]
    assert orjson.loads(path.read_bytes()) == {"election": 1, "seq": 10}


class Deaf(FaultyBus):
    """Nothing that is said live reaches it."""

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        subscription = await super().subscribe(subject, callback, queue=queue)
        await subscription.unsubscribe()
        return subscription


async def test_an_assignment_that_was_not_heard_is_read(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "REREAD_SECONDS", 0.05)
    await assign(bus, worker_id, 1, 10)
    worker = Worker(Deaf(agent), worker_id, tmp_path)
    async with worker.running():
        await worker.until_assigned(1)
        await assign(bus, worker_id, 1, 11)

        async with asyncio.timeout(30):
            while worker.assigned[-1] != (1, 11):
                await worker.until_assigned(len(worker.assigned) + 1)
    assert worker.assigned == sorted(worker.assigned)
    assert set(worker.assigned) == {(1, 10), (1, 11)}


class HardOfReading(Deaf):
    """Its first reading of the assignment fails, too."""

    failed = 0

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        if subject.startswith("$JS.API.DIRECT.GET.") and not self.failed:
            self.failed += 1
            raise NoAnswer("dropped by the test")
        return await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)


async def test_an_assignment_that_could_not_be_read_is_soon_tried_again(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "REREAD_SECONDS", 3600)
    await assign(bus, worker_id, 1, 10)
    reading = HardOfReading(agent)
    worker = Worker(reading, worker_id, tmp_path)
    async with worker.running():
        assert await worker.until_assigned(1) == [(1, 10)]
    assert reading.failed == 1


async def test_what_is_read_again_is_done_again_since_the_state_may_have_drifted(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "REREAD_SECONDS", 0.05)
    await assign(bus, worker_id, 1, 10)
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        assert set(await worker.until_assigned(3)) == {(1, 10)}


async def test_what_an_assignment_asks_for_is_done_to_its_end_however_long_it_takes(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than until the next reading."""
    monkeypatch.setattr(edge_module, "REREAD_SECONDS", 0.05)
    worker = Worker(agent, worker_id, tmp_path)
    cut_off: list[int] = []
    done: asyncio.Queue[int] = asyncio.Queue()

    remembered: list[tuple[int, int]] = []

    async def take_long(document: Assigned) -> None:
        after_a_kill = Worker(agent, worker_id, tmp_path).edge
        remembered.append(after_a_kill.newest)
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            cut_off.append(document.seq)
            raise
        done.put_nowait(document.seq)

    await assign(bus, worker_id, 1, 1)
    task = asyncio.create_task(worker.edge.run(take_long))
    try:
        async with asyncio.timeout(30):
            assert await done.get() == 1
            await assign(bus, worker_id, 1, 2)
            while await done.get() != 2:
                pass
        assert cut_off == []
        assert (remembered[0], remembered[-1]) == ((1, 1), (1, 2)), "a kill in the middle lets no older one in"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_not_an_assignment_of_this_worker_changes_nothing(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        await heard_beats(bus, worker_id, 2)
        await assign(bus, "w-other", 9, 9, to=worker_id)
        for body in (b"", b"not json", b"{}", b'{"election": "x", "seq": 1, "worker_id": "w"}'):
            await bus.request(assigned(worker_id), body, timeout_seconds=5)
        await assign(bus, worker_id, 1, 1)

        assert await worker.until_assigned(1) == [(1, 1)]
    assert caplog.text.count("the assignment can't be read and changes nothing") >= 4


# -- what is reported ---------------------------------------------------------------------------------------------------


async def heard_beats(bus: Bus, worker_id: str, count: int, *, role: str = "agent") -> list[dict[str, object]]:
    """So many beats in a row: whatever the edge does first is done, and its connection works."""
    beats: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def heard(message: Msg) -> None:
        beats.put_nowait(orjson.loads(message.data))

    subscription = await bus.subscribe(beat(worker_id, role), heard)
    try:
        async with asyncio.timeout(30):
            return [await beats.get() for _ in range(count)]
    finally:
        await subscription.unsubscribe()


async def test_beats_tell_the_boot_and_count_up(agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        beats = await heard_beats(bus, worker_id, 3)

    first = beats[0]["counter"]
    assert isinstance(first, int)
    assert beats == [{"boot_id": worker.edge.boot_id, "counter": first + n} for n in range(3)]
    assert Worker(agent, worker_id, tmp_path).edge.boot_id != worker.edge.boot_id


class Struggling(FaultyBus):
    """What it is used for fails in turn, as often as was said; `away` lasts until it is cleared."""

    def __init__(self, healthy: Bus, *troubles: Exception | bytes, lost_beats: int = 0) -> None:
        super().__init__(healthy)
        self.troubles = list(troubles)
        self.lost_beats = lost_beats
        self.away = False
        self.tried = asyncio.Event()

    async def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        if self.lost_beats:
            self.lost_beats -= 1
            raise Unavailable("NATS is away")
        await super().publish(subject, payload, headers, reply)

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        if subject.startswith("muster.reports."):
            self.tried.set()
            if self.away:
                raise Unavailable("NATS is away")
            if self.troubles:
                trouble = self.troubles.pop(0)
                if isinstance(trouble, bytes):
                    return Msg(self.client, data=trouble)
                raise trouble
        return await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)


async def test_beats_go_on_after_an_outage(agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path) -> None:
    worker = Worker(Struggling(agent, lost_beats=3), worker_id, tmp_path)
    heard = asyncio.create_task(heard_beats(bus, worker_id, 2))
    await bus.flush()
    async with worker.running():
        assert [beat["counter"] for beat in await heard] == [4, 5]


async def test_a_report_is_an_event_with_its_source_and_its_trace(shared: Stack, bus: Bus, tmp_path: Path) -> None:
    worker_id = shared.workers[0].id
    downloader = await shared.bus("downloader", 0)

    async def picture() -> Report:
        return FilesObserved(**edge.identity())

    edge = Edge(downloader, worker_id, "downloader", SystemClock(), tmp_path / "state.json", picture)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with span("test", traceparent=traceparent):
        await edge.send(await picture())

    message = (await bus.js_api("STREAM.MSG.GET.REPORTS", {"seq": 1}))["message"]
    assert message["subject"] == f"muster.reports.{worker_id}.files.{worker_id}.FilesObserved"
    assert b"content-type: application/cloudevents+json" in base64.b64decode(message["hdrs"])
    envelope = orjson.loads(base64.b64decode(message["data"]))
    assert envelope["source"] == f"/muster/downloader/{worker_id}"
    assert envelope["traceparent"].split("-")[1] == traceparent.split("-")[1]

    async def nothing(_document: Assigned) -> None:
        pass

    task = asyncio.create_task(edge.run(nothing))
    beats = await heard_beats(bus, worker_id, 2, role="downloader")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [beat["boot_id"] for beat in beats] == [edge.boot_id] * 2


@pytest.mark.parametrize(
    "trouble",
    [Unavailable("nobody answers"), NoAnswer("timed out"), b'{"error": {"description": "no space left"}}'],
    ids=repr,
)
async def test_a_report_is_sent_until_it_is_acknowledged(
    agent: Bus,
    bus: Bus,
    worker_id: WorkerId,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception | bytes,
) -> None:
    monkeypatch.setattr(edge_module, "AGAIN_SECONDS", 0.01)
    worker = Worker(Struggling(agent, trouble, trouble, trouble), worker_id, tmp_path)
    async with worker.running():
        await reported(bus, lambda found: len(found) == 1)
        worker.reports(1)
        found = await reported(bus, lambda found: len(found) == 2)

    assert found == [("WorkerObserved", 1), ("EngineReported", 2)]


async def test_a_report_that_no_message_can_hold_stands_in_nobodys_way(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        await reported(bus, lambda found: len(found) == 1)
        huge = EngineSeen(instance_id=InstanceId("i-1"), attempt=1, phase="exited", log_tail=("x" * 10_000,) * 120)
        worker.edge.report(EngineReported(**worker.edge.identity(), engine=huge))
        worker.reports(2)
        found = await reported(bus, lambda found: len(found) == 2)

    assert found == [("WorkerObserved", 1), ("EngineReported", 3)]
    assert "EngineReported is not sent: " in caplog.text


async def test_the_complete_picture_is_sent_every_minute(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edge_module.PICTURE_SECONDS == 60
    monkeypatch.setattr(edge_module, "PICTURE_SECONDS", 0.05)
    async with Worker(agent, worker_id, tmp_path).running():
        await reported(bus, lambda found: len(found) >= 3)


async def test_a_picture_that_is_wanted_while_one_is_made_is_made_too(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    worker.may_look.clear()
    async with worker.running():
        await heard_beats(bus, worker_id, 2)
        worker.edge.want_picture()
        worker.may_look.set()
        found = await reported(bus, lambda found: len(found) == 2)

    assert found == [("WorkerObserved", 1), ("WorkerObserved", 2)]


async def test_the_complete_picture_is_sent_at_start_when_wanted_and_after_an_election(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    async with worker.running():
        await reported(bus, lambda found: len(found) == 1)
        worker.edge.want_picture()
        await reported(bus, lambda found: len(found) == 2)
        await assign(bus, worker_id, 5, 1)
        await reported(bus, lambda found: len(found) == 3)
        await assign(bus, worker_id, 5, 2)  # of the same election
        await worker.until_assigned(2)
        await heard_beats(bus, worker_id, 2)
        worker.reports(1)
        found = await reported(bus, lambda found: len(found) == 4)

    assert found == [("WorkerObserved", 1), ("WorkerObserved", 2), ("WorkerObserved", 3), ("EngineReported", 4)]


async def test_the_picture_after_an_election_shows_what_was_assigned_already_done(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path
) -> None:
    worker = Worker(agent, worker_id, tmp_path)
    may_act = asyncio.Event()

    async def act(_document: Assigned) -> None:
        await may_act.wait()
        worker.reports(1)

    task = asyncio.create_task(worker.edge.run(act))
    await reported(bus, lambda found: len(found) == 1)
    await assign(bus, worker_id, 5, 1)
    await heard_beats(bus, worker_id, 3)
    may_act.set()
    found = await reported(bus, lambda found: len(found) == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert found == [("WorkerObserved", 1), ("EngineReported", 2), ("WorkerObserved", 3)]


async def test_reports_keep_their_order_through_an_outage_and_a_picture_follows(own: Stack, tmp_path: Path) -> None:
    operator = own.operator
    worker = Worker(await own.bus("agent", 0), own.workers[0].id, tmp_path)
    async with worker.running():
        await reported(operator, lambda found: len(found) == 1)
        for attempt in range(1, 11):
            worker.reports(attempt)
        await own.nats.restart(kill=True)
        for attempt in range(11, 21):
            worker.reports(attempt)
        async with asyncio.timeout(30):
            while not operator.is_connected:  # noqa: ASYNC110 - it reconnects by itself
                await asyncio.sleep(0.01)
        found = await reported(
            operator, lambda found: len({each for each in found if each[0] == "WorkerObserved"}) == 2
        )

    once = [each for each, _ in groupby(found)]  # a lost acknowledgement may have it told twice in a row
    assert [each for each in once if each[0] == "EngineReported"] == [("EngineReported", n) for n in range(2, 22)]
    assert [each for each in once if each[0] == "WorkerObserved"] == [("WorkerObserved", 1), ("WorkerObserved", 22)]
    assert once[-1] == ("WorkerObserved", 22)


async def test_when_too_many_reports_wait_the_complete_picture_takes_their_place(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "MOST_UNSENT", 5)
    worker = Worker(agent, worker_id, tmp_path)
    for attempt in range(1, 7):
        worker.reports(attempt)  # nothing is sent yet
    async with worker.running():
        worker.reports(7)
        found = await reported(bus, lambda found: len(found) == 2)

    assert found == [("EngineReported", 7), ("WorkerObserved", 8)]


async def test_after_an_outage_in_which_too_many_reports_waited_the_complete_picture_is_told(
    agent: Bus, bus: Bus, worker_id: WorkerId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "MOST_UNSENT", 5)
    struggling = Struggling(agent)
    struggling.away = True
    worker = Worker(struggling, worker_id, tmp_path)
    async with worker.running():
        await asyncio.wait_for(struggling.tried.wait(), timeout=30)  # the first picture is on its way
        for attempt in range(1, 7):
            worker.reports(attempt)
        struggling.away = False
        found = await reported(bus, lambda found: len(found) == 2)

    assert found == [("WorkerObserved", 1), ("WorkerObserved", 8)]
