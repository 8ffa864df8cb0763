"""Who may say what, on the real server with the configuration that Muster writes: two accounts, a worker's credentials."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from pydantic import SecretStr

from kernel.accounts import Principal, Role, new_seed, read_or_make_seed, render_server_config, worker_id_of
from kernel.bus import Bus, JetStreamError, NoAnswer
from kernel.clock import SystemClock
from kernel.edge import Edge
from kernel.errors import Unavailable
from kernel.log.jetstream import JetStreamLog
from kernel.log.streams import STREAMS
from kernel.settings import BusSettings
from schemas.ids import InstanceId, WorkerId
from schemas.reports import EngineReported, EngineSeen, Report
from schemas.subjects import ALL_FACTS, ELECTION, ask, assigned, beat
from tests.kernel.conftest import empty_streams
from tests.support.log_events import AT, Reader, a_draft, as_stored, created, everything, scaled, worker_ready
from tests.support.stack import Stack


def engine_reported(worker: str, *, attempt: int = 1) -> EngineReported:
    return EngineReported(
        worker_id=WorkerId(worker),
        boot_id="boot",
        counter=attempt,
        observed_at=AT,
        engine=EngineSeen(instance_id=InstanceId("i-1"), attempt=attempt, phase="healthy"),
    )


class StreamState(NamedTuple):
    """What must not change when something is refused."""

    messages: int
    last: int
    consumers: int

    def and_more(self, messages: int) -> "StreamState":
        return StreamState(self.messages + messages, self.last + messages, self.consumers)


async def streams(bus: Bus) -> dict[str, StreamState]:
    found: dict[str, StreamState] = {}
    for name in STREAMS:
        state = (await bus.js_api(f"STREAM.INFO.{name}"))["state"]
        found[name] = StreamState(state["messages"], state["last_seq"], state["consumer_count"])
    return found


class Ear:
    """Everything that is said on a subject while it listens."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._more = asyncio.Condition()

    @staticmethod
    @asynccontextmanager
    async def of(bus: Bus, subject: str) -> "AsyncGenerator[Ear]":
        ear = Ear()
        subscription = await bus.subscribe(subject, ear._hear)
        await bus.flush()
        try:
            yield ear
        finally:
            await subscription.unsubscribe()
            await bus.flush()

    async def until(self, count: int) -> list[tuple[str, bytes]]:
        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: len(self.heard) >= count)
        return self.heard

    async def _hear(self, message: Msg) -> None:
        async with self._more:
            self.heard.append((message.subject, message.data))
            self._more.notify_all()


async def refusal(of: Bus, action: Callable[[], Awaitable[object]]) -> str:
    """Violations arrive by themselves, some time after the call: the one that this action causes."""
    before = len(of.permission_violations)
    await action()
    await of.flush()
    async with asyncio.timeout(5):
        while len(of.permission_violations) == before:  # noqa: ASYNC110 - the bus tells nobody
            await asyncio.sleep(0.001)
    (violation,) = of.permission_violations[before:]
    return violation


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def core(shared: Stack) -> Bus:
    """May do everything. The streams hold a fact, an assignment of each worker and what the tests before have left."""
    await empty_streams(shared)
    await JetStreamLog(shared.operator).append([a_draft(created("first"))])
    for worker in shared.workers:
        await shared.operator.request(assigned(worker.id), f"for {worker.id}".encode(), timeout_seconds=5)
    return shared.operator


@pytest.fixture(scope="module")
def own(shared: Stack) -> WorkerId:
    return shared.workers[0].id


@pytest.fixture(scope="module")
def other(shared: Stack) -> WorkerId:
    return shared.workers[1].id


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def agent(shared: Stack) -> Bus:
    """The agent of the worker `own`."""
    return await shared.bus("agent", 0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def neighbour(shared: Stack) -> Bus:
    """The agent of the worker `other`."""
    return await shared.bus("agent", 1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(shared: Stack) -> dict[Role, Bus]:
    roles: tuple[Role, ...] = ("api", "scheduler", "observer")
    return {role: await shared.bus(role) for role in roles}


# -- what a worker can not do -------------------------------------------------------------------------------------------

STREAM_VERBS = (
    "INFO",
    "STREAM.NAMES",
    "STREAM.LIST",
    "STREAM.CREATE.X",
    "STREAM.INFO.FACTS",
    "STREAM.UPDATE.FACTS",
    "STREAM.DELETE.FACTS",
    "STREAM.PURGE.FACTS",
    "STREAM.MSG.GET.FACTS",
    "STREAM.MSG.GET.ASSIGNED",
    "STREAM.MSG.DELETE.FACTS",
    "STREAM.SNAPSHOT.FACTS",
    "CONSUMER.CREATE.FACTS",
    "CONSUMER.CREATE.FACTS.x.muster.facts.>",
    "CONSUMER.CREATE.REPORTS",
    "CONSUMER.CREATE.ASSIGNED",
    "CONSUMER.DURABLE.CREATE.FACTS.x",
    "CONSUMER.NAMES.FACTS",
    "CONSUMER.INFO.FACTS.x",
    "CONSUMER.DELETE.FACTS.x",
    "CONSUMER.MSG.NEXT.FACTS.x",
    "DIRECT.GET.FACTS",
    "DIRECT.GET.FACTS.muster.facts.>",
    "DIRECT.GET.ASSIGNED",
    "DIRECT.GET.ASSIGNED.muster.assigned.{other}",
    "DIRECT.GET.REPORTS",
)
NOT_FOR_AN_AGENT = (
    "muster.reports.{other}.instance.i-1.EngineReported",
    "muster.reports.{other}.worker.{other}.WorkerObserved",
    "muster.reports.{own}.file.f-1.FileReported",  # its own downloader's
    "muster.beat.{other}.agent",
    "muster.beat.{own}.downloader",
    "muster.facts.scheduler.instance.{own}.i-1.InstanceRunning",
    "muster.facts.api.model.-.m-1.ModelDeleted",
    ELECTION,
    "muster.assigned.{other}",
    "muster.assigned.{own}",
    "muster.ask.{other}.logs",
    "muster.ask.{own}.logs",
    "muster.ask.{own}.agent-log",
    "muster.ask.{own}.downloader-log",
    "muster.ask.{own}.relay",
    "muster.ask.{other}.relay",
    "muster.ask.{own}.pull",
    "muster.ask.{other}.pull",
    "muster.projected",
    "_INBOX_scheduler.abc.def",
    "_INBOX_{other}_agent.abc.def",
    "$KV.lease.scheduler",
    "$O.snapshots.C.x",
    "$JS.ACK.FACTS.x.1.1.1.1.0",
    "$SYS.REQ.SERVER.PING",
    *(f"$JS.API.{verb}" for verb in STREAM_VERBS),
)


@pytest.mark.parametrize("subject", NOT_FOR_AN_AGENT)
async def test_what_an_agent_may_not_say_reaches_nobody(
    agent: Bus, core: Bus, own: str, other: str, subject: str
) -> None:
    what = subject.format(own=own, other=other)
    before = await streams(core)
    body = b'{"last_by_subj": "muster.facts.>", "seq": 1, "name": "X", "stream_name": "FACTS", "config": {"name": "X"}}'

    async with Ear.of(core, ">") as ear:
        violation = await refusal(agent, lambda: agent.publish(what, body, reply=f"_INBOX_{own}_agent.abc.def"))
        await core.flush()

    assert violation == f'nats: permissions violation for publish to "{what.lower()}"'
    assert ear.heard == []
    assert await streams(core) == before


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "*",
        "muster.>",
        ALL_FACTS,
        "muster.reports.>",
        "muster.beat.*.*",
        "muster.assigned.*",
        "muster.assigned.{other}",
        "muster.ask.{other}.logs",
        "muster.ask.*.logs",
        "muster.ask.{own}.inspect",
        "muster.ask.{own}.downloader-log",
        "muster.ask.{other}.agent-log",
        "muster.ask.*.agent-log",
        "muster.ask.{other}.relay",
        "muster.ask.*.relay",
        "muster.ask.{other}.pull",
        "muster.ask.*.pull",
        "muster.ask.{own}.*",
        "muster.projected",
        "_INBOX.>",
        "_INBOX_scheduler.>",
        "_INBOX_api.>",
        "_INBOX_{other}_agent.>",
        "_INBOX_{own}_downloader.>",
        "$JS.>",
        "$SYS.>",
    ],
)
async def test_what_an_agent_may_not_hear_it_does_not(
    agent: Bus, core: Bus, own: str, other: str, subject: str
) -> None:
    what = subject.format(own=own, other=other)
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    violation = await refusal(agent, lambda: agent.subscribe(what, hear))
    for said in ("muster.projected", beat(other, "agent"), ask(other, "logs"), "_INBOX_scheduler.abc", "_INBOX.abc"):
        await core.publish(said, b"secret")
    await core.request(assigned(other), f"for {other}".encode(), timeout_seconds=5)
    await JetStreamLog(core).append([a_draft(created("a"))])
    await agent.flush()

    assert violation == f'nats: permissions violation for subscription to "{what.lower()}"'
    assert heard == []


@pytest.mark.parametrize(
    "reply",
    [
        "muster.facts.scheduler.instance.{own}.i-1.InstanceRunning",
        "muster.facts.api.model.-.m-1.ModelDeleted",
        "muster.assigned.{other}",
        "muster.reports.{other}.instance.i-1.EngineReported",
        "$JS.API.STREAM.PURGE.FACTS",
        "$JS.API.STREAM.DELETE.REPORTS",
    ],
)
async def test_the_answer_to_what_an_agent_says_lands_nowhere_in_the_core(
    agent: Bus, core: Bus, own: str, other: str, reply: str
) -> None:
    """In a single account the acknowledgement of a report became a fact."""
    report, answer_to = engine_reported(own), reply.format(own=own, other=other)
    before, facts = await streams(core), await everything(JetStreamLog(core))

    await agent.publish(report.subject, b"report", reply=answer_to)
    await agent.publish(beat(own, "agent"), b"beat", reply=answer_to)
    await agent.publish(f"$JS.API.DIRECT.GET.ASSIGNED.{assigned(own)}", b"", reply=answer_to)
    acknowledgement = await agent.request(report.subject, b"afterwards", timeout_seconds=5)

    assert orjson.loads(acknowledgement.data) == {"stream": "REPORTS", "seq": before["REPORTS"].last + 2}
    assert await streams(core) == before | {"REPORTS": before["REPORTS"].and_more(2)}
    assert await everything(JetStreamLog(core)) == facts
    for worker in (own, other):
        assert await stored_assignment(core, worker) == f"for {worker}".encode()


async def stored_assignment(bus: Bus, worker: str) -> bytes:
    message = await bus.request(f"$JS.API.DIRECT.GET.ASSIGNED.{assigned(worker)}", b"", timeout_seconds=5)
    return message.data


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Nats-Rollup": "sub"}, 10111),
        ({"Nats-Rollup": "all"}, 10111),
        ({"Nats-TTL": "1s"}, 10166),
        ({"Nats-Schedule": "@at 2026-01-01T00:00:00Z", "Nats-Schedule-Target": "muster.facts.api.x"}, 10188),
        ({"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "muster.assigned.w-1"}, 10188),
        ({"Nats-Expected-Stream": "FACTS"}, 10060),
        ({"Nats-Expected-Last-Sequence": "99"}, 10071),
        ({"Nats-Expected-Last-Subject-Sequence": "99"}, 10071),
        ({"Nats-Expected-Last-Msg-Id": "x"}, 10070),
        ({"Nats-Batch-Id": "x", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}, 10174),
        ({"Nats-Incr": "+1"}, 10168),
        ({"Nats-Stream-Source": "FACTS"}, 10227),
        ({"Nats-Marker-Reason": "Purge"}, None),
        ({"KV-Operation": "PURGE"}, None),
        (
            {
                "Nats-Expected-Last-Subject-Sequence": "0",
                "Nats-Expected-Last-Subject-Sequence-Subject": "muster.facts.>",
            },
            None,
        ),
    ],
    ids=str,
)
async def test_a_header_that_commands_the_server_is_refused_or_does_nothing(
    agent: Bus, neighbour: Bus, core: Bus, own: str, other: str, headers: dict[str, str], refused: int | None
) -> None:
    await neighbour.request(engine_reported(other).subject, b"neighbour's", timeout_seconds=5)
    await agent.request(engine_reported(own).subject, b"before", timeout_seconds=5)
    before = await streams(core)

    raw = await agent.request(engine_reported(own).subject, b"with headers", headers=headers, timeout_seconds=5)

    answer: dict[str, Any] = orjson.loads(raw.data)
    assert answer.get("error", {}).get("err_code") == refused
    assert await streams(core) == before | {"REPORTS": before["REPORTS"].and_more(0 if refused else 1)}


@pytest.mark.parametrize("only", [{}, {"Nats-Trace-Only": "true"}], ids=["traced", "only traced"])
@pytest.mark.parametrize(
    "where",
    [
        "muster.reports.{other}.instance.i-1.EngineReported",
        "muster.facts.api.model.-.m.ModelDeleted",
        "muster.assigned.{other}",
    ],
)
async def test_a_trace_of_a_report_can_not_be_sent_where_the_agent_may_not_speak(
    shared: Stack, core: Bus, own: str, other: str, where: str, only: dict[str, str]
) -> None:
    agent = await shared.bus("agent", 0)
    where = where.format(other=other)
    before = await streams(core)
    headers = {"Nats-Trace-Dest": where} | only

    violation = await refusal(agent, lambda: agent.publish(engine_reported(own).subject, b"x", headers=headers))

    assert violation == f'nats: permissions violation for publish to "{where.lower()}"'
    assert await streams(core) == before


async def test_an_id_that_another_worker_has_used_already_hides_no_report(
    agent: Bus, neighbour: Bus, core: Bus, own: str, other: str, tmp_path: Path
) -> None:
    class GuessedClock(SystemClock):
        def new_id(self) -> str:
            return "GUESSED"

    async def no_picture() -> Report:
        raise AssertionError

    before = (await streams(core))["REPORTS"]
    await agent.request(engine_reported(own).subject, b"mine", headers={"Nats-Msg-Id": "GUESSED"}, timeout_seconds=5)
    edge = Edge(neighbour, WorkerId(other), "agent", GuessedClock(), tmp_path / "state.json", no_picture)

    await edge.send(engine_reported(other))

    assert (await streams(core))["REPORTS"] == before.and_more(2)
    last = (await core.js_api("STREAM.MSG.GET.REPORTS", {"seq": before.last + 2}))["message"]
    assert last["subject"] == engine_reported(other).subject


# -- what a worker can do -----------------------------------------------------------------------------------------------


async def test_an_agents_report_is_stored_and_acknowledged_across_the_accounts(agent: Bus, core: Bus, own: str) -> None:
    before, violations = (await streams(core))["REPORTS"], len(agent.permission_violations)

    raw = await agent.request(engine_reported(own).subject, b"healthy", timeout_seconds=5)

    assert orjson.loads(raw.data) == {"stream": "REPORTS", "seq": before.last + 1}
    stored = (await core.js_api("STREAM.MSG.GET.REPORTS", {"seq": before.last + 1}))["message"]
    assert (stored["subject"], base64.b64decode(stored["data"])) == (engine_reported(own).subject, b"healthy")
    assert len(agent.permission_violations) == violations


async def test_a_downloader_reports_files_and_nothing_else(shared: Stack, core: Bus, own: str) -> None:
    downloader = await shared.bus("downloader", 0)
    before = (await streams(core))["REPORTS"]

    for subject in (f"muster.reports.{own}.file.f-1.FileReported", f"muster.reports.{own}.files.{own}.FilesObserved"):
        raw = await downloader.request(subject, b"", timeout_seconds=5)
        assert orjson.loads(raw.data)["stream"] == "REPORTS"
    for subject in (engine_reported(own).subject, f"muster.reports.{own}.worker.{own}.WorkerObserved"):
        assert subject.lower() in await refusal(downloader, lambda s=subject: downloader.publish(s, b""))
    assert (await streams(core))["REPORTS"] == before.and_more(2)


@pytest.mark.parametrize("role", ["agent", "downloader"])
async def test_a_worker_reads_its_own_assignment_and_hears_the_next_one(
    shared: Stack, core: Bus, own: str, other: str, role: Role
) -> None:
    edge = await shared.bus(role, 0)
    mine, others = f"for {own}".encode(), f"for {other}".encode()
    async with Ear.of(edge, assigned(own)) as ear:
        assert await stored_assignment(edge, own) == mine

        await core.request(assigned(other), others, timeout_seconds=5)
        await core.request(assigned(own), b"another", timeout_seconds=5)
        assert await ear.until(1) == [(assigned(own), b"another")]
        assert await stored_assignment(edge, own) == b"another"

        await core.request(assigned(own), mine, timeout_seconds=5)
        assert await ear.until(2) == [(assigned(own), b"another"), (assigned(own), mine)]
    assert edge.permission_violations == []


async def test_the_beats_of_a_worker_arrive_in_the_core_and_are_not_stored(
    shared: Stack, services: dict[Role, Bus], core: Bus, own: str
) -> None:
    agent, downloader = await shared.bus("agent", 0), await shared.bus("downloader", 0)
    before = await streams(core)

    async with Ear.of(services["scheduler"], "muster.beat.*.*") as ear:
        await agent.publish(beat(own, "agent"), b"1")
        await agent.flush()
        await downloader.publish(beat(own, "downloader"), b"2")

        assert await ear.until(2) == [(beat(own, "agent"), b"1"), (beat(own, "downloader"), b"2")]
    assert await streams(core) == before


@pytest.mark.parametrize(
    ("role", "verb"),
    [("agent", "logs"), ("agent", "agent-log"), ("downloader", "inspect"), ("downloader", "downloader-log")],
)
@pytest.mark.parametrize("asker", ["api", "scheduler"])
async def test_a_question_crosses_to_the_worker_and_its_answer_comes_back(
    shared: Stack, services: dict[Role, Bus], own: str, role: Role, verb: str, asker: Role
) -> None:
    edge = await shared.bus(role, 0)

    async def answer(message: Msg) -> None:
        await message.respond(b"you asked " + message.data)

    asked = await edge.subscribe(ask(own, verb), answer)
    await edge.flush()

    assert (await services[asker].request(ask(own, verb), b"why", timeout_seconds=5)).data == b"you asked why"
    await asked.unsubscribe()
    assert edge.permission_violations == []


async def test_an_answer_may_come_in_many_parts(shared: Stack, services: dict[Role, Bus], own: str) -> None:
    edge, api = await shared.bus("agent", 0), services["api"]

    async def answer(message: Msg) -> None:
        for part in range(20):
            await message.respond(str(part).encode())

    asked = await edge.subscribe(ask(own, "logs"), answer)
    await edge.flush()
    inbox = api.client.new_inbox()
    async with Ear.of(api, inbox) as ear:
        await api.publish(ask(own, "logs"), b"", reply=inbox)

        assert await ear.until(20) == [(inbox, str(part).encode()) for part in range(20)]
    await asked.unsubscribe()
    assert edge.permission_violations == []


async def test_a_worker_that_is_not_there_is_known_at_once(services: dict[Role, Bus], other: str) -> None:
    with pytest.raises(Unavailable, match="nobody answers on") as away:
        await services["scheduler"].request(ask(other, "logs"), b"", timeout_seconds=60)

    assert not isinstance(away.value, NoAnswer)  # which is how it would end after the 60 s


# -- a simulator --------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def simulator(shared: Stack) -> Bus:
    return await shared.bus("simulator")


MADE_UP = "w-madeup"


async def test_a_simulator_speaks_and_hears_for_workers_that_have_no_key(
    shared: Stack, services: dict[Role, Bus], core: Bus
) -> None:
    simulator = await shared.bus("simulator")
    before = await streams(core)
    subjects = [
        engine_reported(MADE_UP).subject,
        f"muster.reports.{MADE_UP}.worker.{MADE_UP}.WorkerObserved",
        f"muster.reports.{MADE_UP}.file.f-1.FileReported",
        f"muster.reports.{MADE_UP}.files.{MADE_UP}.FilesObserved",
    ]
    for subject in subjects:
        assert orjson.loads((await simulator.request(subject, b"", timeout_seconds=5)).data)["stream"] == "REPORTS"
    assert (await streams(core))["REPORTS"] == before["REPORTS"].and_more(4)
    async with Ear.of(services["scheduler"], "muster.beat.*.*") as ear:
        for role in ("agent", "downloader"):
            await simulator.publish(beat(MADE_UP, role), b"")
        assert await ear.until(2) == [(beat(MADE_UP, "agent"), b""), (beat(MADE_UP, "downloader"), b"")]
    async with Ear.of(simulator, "muster.assigned.*") as ear:
        await core.request(assigned(MADE_UP), b"do this", timeout_seconds=5)
        assert await ear.until(1) == [(assigned(MADE_UP), b"do this")]

    async def answer(message: Msg) -> None:
        await message.respond(message.subject.encode())

    for verb in ("inspect", "logs", "look"):
        subscription = await simulator.subscribe(ask("*", verb), answer)
        await simulator.flush()
        said = await services["scheduler"].request(ask(MADE_UP, verb), b"", timeout_seconds=5)
        assert said.data == ask(MADE_UP, verb).encode()
        await subscription.unsubscribe()
    assert simulator.permission_violations == []


NOT_FOR_A_SIMULATOR = (
    "muster.reports.{own}.instance.i-1.EngineReported",
    "muster.reports.{own}.worker.{own}.WorkerLeaving",
    "muster.reports.{other}.files.{other}.FilesObserved",
    "muster.beat.{own}.agent",
    "muster.beat.{other}.downloader",
    *(f"$JS.API.DIRECT.GET.ASSIGNED.muster.assigned.{which}" for which in ("{own}", MADE_UP, "*", ">")),
    "muster.assigned.{own}",
    "muster.assigned.w-madeup",
    "muster.ask.{own}.logs",
    "muster.ask.w-madeup.logs",
    "_INBOX_{own}_agent.abc.def",
    *(what for what in NOT_FOR_AN_AGENT if "{" not in what),
)


@pytest.mark.parametrize("subject", NOT_FOR_A_SIMULATOR)
async def test_what_a_simulator_may_not_say_reaches_nobody(
    simulator: Bus, core: Bus, own: str, other: str, subject: str
) -> None:
    what = subject.format(own=own, other=other)
    before = await streams(core)
    body = b'{"last_by_subj": "muster.facts.>", "seq": 1, "name": "X", "stream_name": "FACTS", "config": {"name": "X"}}'

    async with Ear.of(core, ">") as ear:
        violation = await refusal(simulator, lambda: simulator.publish(what, body, reply="_INBOX_simulator.abc.def"))
        await core.flush()

    assert violation == f'nats: permissions violation for publish to "{what.lower()}"'
    assert ear.heard == []
    assert await streams(core) == before


@pytest.mark.parametrize("everything", ["muster.assigned.*", "muster.assigned.>"])
async def test_what_is_for_a_worker_with_a_key_a_simulator_does_not_hear(
    simulator: Bus, services: dict[Role, Bus], core: Bus, own: str, other: str, everything: str
) -> None:
    async with Ear.of(simulator, everything) as ear, Ear.of(simulator, "muster.ask.*.logs") as asked:
        for worker in (own, other, MADE_UP):
            await core.request(assigned(worker), f"for {worker}".encode(), timeout_seconds=5)
            await core.publish(ask(worker, "logs"), worker.encode())
        assert await ear.until(1) == [(assigned(MADE_UP), b"for w-madeup")]
        assert await asked.until(1) == [(ask(MADE_UP, "logs"), MADE_UP.encode())]
        with pytest.raises(Unavailable, match="nobody answers on") as away:
            await services["scheduler"].request(ask(own, "logs"), b"", timeout_seconds=60)
        assert not isinstance(away.value, NoAnswer)


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "muster.>",
        "muster.assigned.{own}",
        "muster.ask.>",
        "muster.ask.*.*",
        "muster.ask.{own}.logs",
        "muster.reports.>",
        "muster.beat.*.*",
        ALL_FACTS,
        "_INBOX.>",
        "_INBOX_{own}_agent.>",
        "$JS.>",
    ],
)
async def test_what_a_simulator_may_not_hear_it_does_not(simulator: Bus, own: str, subject: str) -> None:
    what = subject.format(own=own)

    async def hear(_: Msg) -> None:
        raise AssertionError

    violation = await refusal(simulator, lambda: simulator.subscribe(what, hear))

    assert violation == f'nats: permissions violation for subscription to "{what.lower()}"'


@pytest.mark.parametrize(
    "reply",
    [
        "muster.facts.scheduler.instance.w-madeup.i-1.InstanceRunning",
        "muster.facts.api.model.-.m-1.ModelDeleted",
        "muster.assigned.{own}",
        "muster.reports.{own}.instance.i-1.EngineReported",
        "muster.beat.{own}.agent",
        "$JS.API.STREAM.PURGE.FACTS",
    ],
)
async def test_the_answer_to_what_a_simulator_says_lands_nowhere(
    simulator: Bus, core: Bus, own: str, reply: str
) -> None:
    before = await streams(core)

    async with Ear.of(core, ">") as ear:
        await simulator.publish(engine_reported(MADE_UP).subject, b"report", reply=reply.format(own=own))
        await simulator.publish(beat(MADE_UP, "agent"), b"", reply=reply.format(own=own))
        await simulator.request(engine_reported(MADE_UP).subject, b"afterwards", timeout_seconds=5)

    elsewhere = {subject for subject, _ in ear.heard if not subject.startswith("_R_.")}  # the server's own way back
    assert elsewhere == {engine_reported(MADE_UP).subject, beat(MADE_UP, "agent")}
    assert await streams(core) == before | {"REPORTS": before["REPORTS"].and_more(2)}


def test_without_a_simulator_nobody_speaks_for_others(tmp_path: Path) -> None:
    agent = Principal("agent", "UAGENT", WorkerId("w-1"))
    simulator = Principal("simulator", "USIMULATOR")

    without = render_server_config([agent], store_dir=tmp_path)
    with_one = render_server_config([agent, simulator], store_dir=tmp_path)

    assert "deny" not in without
    assert '"muster.reports.*.>"' not in without.partition("EDGE {")[2].partition("exports")[0]
    assert '"muster.reports.w-1.>"' in with_one


# -- the core among itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("api", worker_ready("w-1").subject),
        ("api", ELECTION),
        ("api", "muster.assigned.w-1"),
        ("api", "muster.reports.w-1.instance.i-1.EngineReported"),
        ("api", "muster.beat.w-1.agent"),
        ("api", "$JS.API.STREAM.DELETE.FACTS"),
        ("api", "$JS.API.STREAM.UPDATE.FACTS"),
        ("api", "$JS.API.STREAM.PURGE.FACTS"),
        ("api", "$JS.API.STREAM.MSG.DELETE.FACTS"),
        ("scheduler", scaled("m-1", 1).subject),
        ("scheduler", "muster.facts.api.model.~x.m-1.ModelCreated"),
        ("scheduler", "muster.reports.w-1.instance.i-1.EngineReported"),
        ("scheduler", "muster.beat.w-1.agent"),
        ("scheduler", "muster.projected"),
        ("scheduler", "muster.ask.w-1.relay"),
        ("scheduler", "muster.ask.w-1.pull"),
        ("scheduler", "$JS.API.STREAM.DELETE.FACTS"),
        ("scheduler", "$JS.API.STREAM.UPDATE.FACTS"),
        ("scheduler", "$JS.API.STREAM.MSG.DELETE.FACTS"),
        ("observer", scaled("m-1", 1).subject),
        ("observer", worker_ready("w-1").subject),
        ("observer", "muster.assigned.w-1"),
        ("observer", "muster.reports.w-1.instance.i-1.EngineReported"),
        ("observer", "muster.beat.w-1.agent"),
        ("observer", "muster.ask.w-1.logs"),
        ("observer", "muster.ask.w-1.relay"),
        ("observer", "muster.ask.w-1.pull"),
        ("observer", "muster.projected"),
        ("observer", "$KV.lease.scheduler"),
        ("observer", "$JS.API.STREAM.CREATE.X"),
        ("observer", "$JS.API.STREAM.DELETE.FACTS"),
        ("observer", "$JS.API.STREAM.PURGE.FACTS"),
    ],
)
async def test_each_service_says_only_what_it_owns(
    services: dict[Role, Bus], core: Bus, role: Role, subject: str
) -> None:
    before = await streams(core)

    violation = await refusal(services[role], lambda: services[role].publish(subject, b"{}"))

    assert violation == f'nats: permissions violation for publish to "{subject.lower()}"'
    assert await streams(core) == before


async def test_api_and_scheduler_state_their_own_facts(services: dict[Role, Bus], core: Bus) -> None:
    last = (await streams(core))["FACTS"].last

    await JetStreamLog(services["api"]).append(of_the_api := [a_draft(created("b")), a_draft(scaled("b", 2))])
    await JetStreamLog(services["scheduler"]).append(of_the_scheduler := [a_draft(worker_ready("w-1"))])

    stored = await JetStreamLog(core).read(ALL_FACTS, after=last)
    assert stored == as_stored([*of_the_api, *of_the_scheduler], first=last + 1)


@pytest.mark.parametrize("role", ["observer", "api", "scheduler"])
async def test_facts_can_be_read_followed_and_looked_up(shared: Stack, core: Bus, role: Role) -> None:
    last = (await streams(core))["FACTS"].last
    drafts = [a_draft(created("a")), a_draft(worker_ready("w-1")), a_draft(scaled("a", 2))]
    await JetStreamLog(core).append(drafts[:2])
    reading = await shared.bus(role)
    log = JetStreamLog(reading)
    reader = Reader(log.tail([ALL_FACTS], after=last))
    try:
        await reader.until(2)
        await JetStreamLog(core).append(drafts[2:])

        assert await reader.until(3) == as_stored(drafts, first=last + 1)
    finally:
        await reader.close()
    assert await log.last(ALL_FACTS) == as_stored(drafts, first=last + 1)[2]
    assert (await log.state()).last_sequence == last + 3
    await reading.flush()
    assert reading.permission_violations == []


@pytest.mark.parametrize("stream", ["FACTS", "ASSIGNED", "REPORTS"])
@pytest.mark.parametrize("into", ["muster.facts.api.model.-.m-1.ModelDeleted", "muster.assigned.w-1"])
async def test_an_observer_can_not_have_anything_delivered_where_it_may_not_speak(
    shared: Stack, agent: Bus, core: Bus, own: str, stream: str, into: str
) -> None:
    """A consumer delivers to any subject where somebody listens: from REPORTS this stored reports in FACTS."""
    await agent.request(engine_reported(own).subject, b"forged", timeout_seconds=5)
    observer = await shared.bus("observer")
    before = await streams(core)
    config = {"deliver_subject": into, "ack_policy": "none", "deliver_policy": "last"}
    create = {"stream_name": stream, "config": config}

    async def nothing(_: Msg) -> None: ...

    await observer.subscribe(into, nothing)
    with contextlib.suppress(JetStreamError, NoAnswer):
        await observer.js_api(f"CONSUMER.CREATE.{stream}", create, timeout_seconds=0.3)
    after = await streams(core)

    assert (after["FACTS"].last, after["ASSIGNED"].last) == (before["FACTS"].last, before["ASSIGNED"].last)


# -- keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [SecretStr(new_seed()), None], ids=["an unknown key", "no key"])
async def test_who_is_not_in_the_configuration_does_not_connect_and_is_told_why(
    shared: Stack, seed: SecretStr | None
) -> None:
    with pytest.raises(Unavailable, match=r"Authorization Violation|Connection reset"):
        await Bus.connect("stranger", BusSettings(servers=(shared.nats.url,), nkey_seed=seed), timeout_seconds=0.5)


def test_a_seed_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "agent.seed"

    first = read_or_make_seed(path)

    assert read_or_make_seed(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_or_make_seed(tmp_path / "other.seed") != first


def test_a_worker_is_its_key() -> None:
    assert worker_id_of("UABC") == worker_id_of("UABC")
    assert worker_id_of("UABC") != worker_id_of("UABD")
    assert WorkerId(worker_id_of("UABC")).startswith("w-")
