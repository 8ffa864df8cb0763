"""Work handlers on FastStream, on a real stream of their own."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
import pytest
import pytest_asyncio
from faststream.nats import NatsBroker, NatsMessage
from nats.aio.msg import Msg
from pydantic import BaseModel, SecretStr

from kernel.bus import Bus, JetStreamError, NoAnswer
from kernel.errors import Conflict, Corrupt, Refused, Unavailable
from kernel.inbox import make_broker, watch_consumer, work
from kernel.settings import BusSettings
from tests.support.log_faults import FaultyBus
from tests.support.stack import Stack

STREAM: Final = {
    "name": "WORK",
    "subjects": ["work.>"],
    "storage": "memory",
    "max_age": 86_400 * 10**9,
    "max_msgs": 1000,
    "duplicate_window": 60 * 10**9,
    "description": "jobs",
    "allow_direct": True,
    "metadata": {"muster.generation": "7"},
}


class Job(BaseModel):
    number: int


@pytest_asyncio.fixture(loop_scope="session")
async def jobs(shared: Stack) -> AsyncGenerator[Bus]:
    """A stream that somebody else has provisioned."""
    await shared.operator.js_api("STREAM.CREATE.WORK", STREAM)
    yield shared.operator
    await shared.operator.js_api("STREAM.DELETE.WORK")


@pytest.fixture
def broker(shared: Stack) -> NatsBroker:
    seed = SecretStr(shared.seeds["operator"])
    settings = BusSettings(servers=(shared.nats.url,), nkey_seed=seed, inbox_prefix="_INBOX_operator")
    return make_broker("test work", settings)


@asynccontextmanager
async def started(broker: NatsBroker) -> AsyncGenerator[None]:
    await broker.start()
    try:
        yield
    finally:
        await broker.stop()


async def tell(bus: Bus, *bodies: bytes) -> None:
    for body in bodies:
        await bus.request("work.jobs", body, timeout_seconds=5)


def job(number: int) -> bytes:
    return orjson.dumps({"number": number})


async def settled(bus: Bus, count: int) -> dict[str, Any]:
    """The consumer, once so many messages are done with: acknowledged or terminated."""
    async with asyncio.timeout(30):
        while True:
            info = await bus.js_api("CONSUMER.INFO.WORK.worker")
            if info["ack_floor"]["stream_seq"] >= count:
                return info
            await asyncio.sleep(0.02)


@asynccontextmanager
async def terminated(bus: Bus) -> AsyncGenerator[asyncio.Queue[int]]:
    """Sequence of each message that a consumer of the stream refused for good, as the server announces it."""
    refused: asyncio.Queue[int] = asyncio.Queue()

    async def heard(message: Msg) -> None:
        refused.put_nowait(orjson.loads(message.data)["stream_seq"])

    subscription = await bus.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.WORK.worker", heard)
    await bus.flush()
    try:
        yield refused
    finally:
        await subscription.unsubscribe()


class Told:
    """What a handler was told, how often and when; it does what it is given to do."""

    def __init__(self, does: Callable[[Job, int], Awaitable[None]] | None = None) -> None:
        self.what: list[tuple[int, int]] = []
        """Number of the job, number of the delivery."""
        self.at: list[float] = []
        self._does = does

    async def __call__(self, job: Job, message: NatsMessage) -> None:
        deliveries = _delivery(message)
        self.what.append((job.number, deliveries))
        self.at.append(time.monotonic())
        if self._does is not None:
            await self._does(job, deliveries)


def _delivery(message: NatsMessage) -> int:
    raw = message.raw_message
    assert isinstance(raw, Msg)
    return raw.metadata.num_delivered or 0


def handled_by(broker: NatsBroker, told: Told, **settings: Any) -> None:
    @work(broker, "work.>", stream="WORK", durable="worker", **settings)
    async def _a_job(job: Job, message: NatsMessage) -> None:  # pyright: ignore[reportUnusedFunction] - the broker calls it
        await told(job, message)


async def test_work_that_is_done_is_acknowledged(jobs: Bus, broker: NatsBroker) -> None:
    told = Told()
    handled_by(broker, told)
    async with started(broker):
        await tell(jobs, job(1), job(2))
        info = await settled(jobs, 2)

    assert told.what == [(1, 1), (2, 1)]
    assert (info["num_ack_pending"], info["num_redelivered"], info["num_pending"]) == (0, 0, 0)


async def test_work_that_is_refused_is_never_told_again(jobs: Bus, broker: NatsBroker) -> None:
    async def refuse(job: Job, _delivery: int) -> None:
        if job.number == 1:
            raise Refused("no", "no")

    told = Told(refuse)
    handled_by(broker, told, ack_wait_seconds=0.5)
    async with terminated(jobs) as refused, started(broker):
        await tell(jobs, job(1), job(2))
        info = await settled(jobs, 2)
        assert await asyncio.wait_for(refused.get(), timeout=30) == 1
        assert refused.empty()

    assert told.what == [(1, 1), (2, 1)]
    assert (info["num_ack_pending"], info["num_redelivered"], info["num_pending"]) == (0, 0, 0)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"number": "many"}', b"\xff\xfe"])
async def test_what_can_not_be_read_is_refused_and_does_not_stand_in_the_way(
    jobs: Bus, broker: NatsBroker, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    handled_by(broker, told)
    async with terminated(jobs) as refused, started(broker):
        await tell(jobs, body, job(2))
        info = await settled(jobs, 2)
        assert await asyncio.wait_for(refused.get(), timeout=30) == 1
        assert refused.empty()

    assert told.what == [(2, 1)]
    assert (info["num_ack_pending"], info["num_redelivered"], info["num_pending"]) == (0, 0, 0)
    assert "worker can't read what came on work.>" in caplog.text


@pytest.mark.parametrize(
    ("trouble", "level"),
    [
        (Unavailable("Postgres is away"), "INFO"),
        (Conflict("somebody was faster"), "INFO"),
        (ValueError("unforeseen"), "ERROR"),
    ],
    ids=repr,
)
async def test_work_that_can_not_be_done_now_is_told_again_with_growing_delay(
    jobs: Bus, broker: NatsBroker, trouble: Exception, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_four_times(_job: Job, delivery: int) -> None:
        if delivery < 5:
            raise trouble

    told = Told(fail_four_times)
    handled_by(broker, told, backoff_seconds=(0.05, 0.15, 0.3))
    async with started(broker):
        await tell(jobs, job(1), job(2))
        await settled(jobs, 1)

    assert told.what[:5] == [(1, delivery) for delivery in (1, 2, 3, 4, 5)]
    gaps = [later - earlier for earlier, later in zip(told.at[:4], told.at[1:5], strict=True)]
    assert [gap >= delay for gap, delay in zip(gaps, (0.05, 0.15, 0.3, 0.3), strict=True)] == [True] * 4, gaps
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "kernel.inbox"][:4] == [
        (level, f"worker again in {delay} s: {trouble}") for delay in (0.05, 0.15, 0.3, 0.3)
    ]


async def test_slow_work_is_kept_alive(jobs: Bus, broker: NatsBroker) -> None:
    """It takes three times as long as the server would wait for a silent handler, and another hand is free to be told."""

    async def take_long(_job: Job, _delivery: int) -> None:
        await asyncio.sleep(3.0)

    told = Told(take_long)
    handled_by(broker, told, ack_wait_seconds=1.0, at_once=2)
    async with started(broker):
        await tell(jobs, job(1))
        info = await settled(jobs, 1)

    assert told.what == [(1, 1)]
    assert (info["num_ack_pending"], info["num_redelivered"]) == (0, 0)


@pytest.mark.parametrize("trouble", [None, Refused("no", "no"), Unavailable("not now")], ids=repr)
async def test_work_that_is_over_is_no_longer_kept_alive(
    jobs: Bus, broker: NatsBroker, trouble: Exception | None
) -> None:
    async def end(_job: Job, delivery: int) -> None:
        if trouble is not None and delivery == 1:
            raise trouble

    handled_by(broker, Told(end), backoff_seconds=(0.01,))
    async with started(broker):
        await tell(jobs, job(1))
        await settled(jobs, 1)

        ticking = [task for task in asyncio.all_tasks() if "_tick" in repr(task.get_coro())]
        await asyncio.wait(ticking, timeout=5) if ticking else None
        assert [task for task in ticking if not task.done()] == []


async def test_no_more_is_worked_on_at_once_than_was_said(jobs: Bus, broker: NatsBroker) -> None:
    now, most = 0, 0

    async def count(_job: Job, _delivery: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1

    told = Told(count)
    handled_by(broker, told, at_once=2)
    async with started(broker):
        await tell(jobs, *(job(number) for number in range(8)))
        await settled(jobs, 8)

    assert sorted(told.what) == [(number, 1) for number in range(8)]
    assert most == 2


async def test_what_contradicts_itself_is_not_acknowledged_and_is_called_critical(
    jobs: Bus, broker: NatsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async def find(_job: Job, _delivery: int) -> None:
        raise Corrupt("two truths")

    told = Told(find)
    handled_by(broker, told)
    async with started(broker):
        await tell(jobs, job(1))
        async with asyncio.timeout(30):
            while not told.what:  # noqa: ASYNC110 - the handler tells nobody
                await asyncio.sleep(0.01)
        info = await jobs.js_api("CONSUMER.INFO.WORK.worker")

    assert info["num_ack_pending"] == 1
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "kernel.inbox"] == [
        ("CRITICAL", "worker on work.>: two truths")
    ]


async def test_the_stream_stays_as_it_was_provisioned(jobs: Bus, broker: NatsBroker) -> None:
    before = (await jobs.js_api("STREAM.INFO.WORK"))["config"]
    handled_by(broker, Told(), ack_wait_seconds=20.0)
    async with started(broker):
        await tell(jobs, job(1))
        info = await settled(jobs, 1)

    assert (await jobs.js_api("STREAM.INFO.WORK"))["config"] == before
    assert before.items() >= {k: v for k, v in STREAM.items() if k != "metadata"}.items()
    config = info["config"]
    assert (config["ack_wait"], config["max_ack_pending"], config["max_deliver"]) == (20 * 10**9, 1, -1)


async def test_work_goes_on_after_an_outage_however_long(own: Stack) -> None:
    """Longer than a broker tries to reconnect unless it is told to go on: here two tries, a second apart."""
    await own.operator.js_api("STREAM.CREATE.WORK", STREAM | {"storage": "file"})
    settings = BusSettings(
        servers=(own.nats.url,), nkey_seed=SecretStr(own.seeds["operator"]), inbox_prefix="_INBOX_operator"
    )
    told = Told()
    broker = make_broker("test work", settings)
    handled_by(broker, told)
    async with started(broker):
        await tell(own.operator, job(1))
        await settled(own.operator, 1)
        port = own.nats.url.rpartition(":")[2]
        await own.nats.stop()
        await asyncio.sleep(4)
        await own.nats._start(120.0, ["-p", port])  # pyright: ignore[reportPrivateUsage] - `restart` gives no time between
        async with asyncio.timeout(30):
            while not own.operator.is_connected:  # noqa: ASYNC110 - it reconnects by itself
                await asyncio.sleep(0.01)
        await tell(own.operator, job(2))
        await settled(own.operator, 2)

    assert told.what == [(1, 1), (2, 1)]


async def test_a_broker_hears_answers_where_its_credentials_let_it(broker: NatsBroker) -> None:
    async with started(broker):
        assert (await broker.new_inbox()).startswith("_INBOX_operator.")


# -- the watchdog -------------------------------------------------------------------------------------------------------


class CountingBus(FaultyBus):
    """Counts what it is asked; the first two times nobody answers, the third time the server can't."""

    def __init__(self, healthy: Bus) -> None:
        super().__init__(healthy)
        self.asked = asyncio.Semaphore(0)
        self._asked = 0

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        self._asked += 1
        self.asked.release()
        if self._asked <= 2:
            raise NoAnswer("dropped by the test")
        if self._asked == 3:
            raise JetStreamError(10008, 503, "JetStream system temporarily unavailable")
        return await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)


async def test_a_consumer_that_was_deleted_is_noticed_and_an_outage_is_not_taken_for_it(jobs: Bus) -> None:
    config = {"durable_name": "worker", "ack_policy": "explicit"}
    await jobs.js_api("CONSUMER.CREATE.WORK.worker", {"stream_name": "WORK", "config": config})
    counting = CountingBus(jobs)
    watching = asyncio.create_task(watch_consumer(counting, "WORK", "worker", every_seconds=0.01))
    async with asyncio.timeout(30):
        for _ in range(5):
            await counting.asked.acquire()
    assert not watching.done()

    await jobs.js_api("CONSUMER.DELETE.WORK.worker")

    with pytest.raises(Unavailable, match="consumer worker of WORK was deleted"):
        await asyncio.wait_for(watching, timeout=30)


async def test_the_server_is_asked_no_more_often_than_was_said(jobs: Bus) -> None:
    counting = CountingBus(jobs)
    watching = asyncio.create_task(watch_consumer(counting, "WORK", "worker", every_seconds=3600))
    await asyncio.sleep(0.1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)

    assert counting.asked.locked()
