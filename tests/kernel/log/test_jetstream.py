"""The log on the real server: lost acknowledgements, kills, the fence, tails, provisioning."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from kernel.bus import Bus, JetStreamError, ServerTooOld
from kernel.errors import Conflict, Corrupt, Deposed, Unavailable
from kernel.log import jetstream, jetstream_tail
from kernel.log.election import Election, append_as_elected, elect
from kernel.log.jetstream import (
    BATCH_COMMIT,
    BATCH_ID,
    BATCH_SEQUENCE,
    EXPECTED_SEQUENCE,
    EXPECTED_SUBJECT,
    MSG_ID,
    JetStreamLog,
)
from kernel.log.names import look_up_name
from kernel.log.port import Draft, Guard
from kernel.log.seal import Cause
from kernel.log.streams import STREAMS, Drift, provision, raise_generation, verify
from kernel.settings import BusSettings
from schemas.facts import ModelCreated, ModelDeleted, ModelRenamed, ModelScaled, ModelUpdated, read
from schemas.facts.scheduler import SchedulerElected
from schemas.ids import ModelId
from schemas.subjects import ALL_FACTS, ELECTION, api_part_of, facts_under, name_token
from tests.support.log_events import (
    CLOCK,
    Reader,
    a_draft,
    as_stored,
    created,
    deleted,
    everything,
    part_of,
    scaled,
    worker_ready,
)
from tests.support.log_faults import (
    LateRequests,
    LostAcknowledgements,
    LostDeliveries,
    LostRequests,
    NoReads,
    OldServer,
)
from tests.support.stack import Stack, free_port

BATCHES = pytest.mark.parametrize("size", [1, 3])


def drafts_for(models: str, *, guarded: bool) -> list[Draft]:
    return [a_draft(scaled(m, 1), guard=Guard(part_of(m), 0) if guarded else None) for m in models]


# -- lost acknowledgements ----------------------------------------------------------------------------------------------


@BATCHES
@pytest.mark.parametrize("guarded", [True, False])
async def test_an_append_whose_acknowledgement_was_lost_is_neither_lost_nor_doubled(
    bus: Bus, log: JetStreamLog, size: int, guarded: bool
) -> None:
    before = a_draft(created("z"))
    await log.append([before])
    lossy = LostAcknowledgements(bus)
    drafts = drafts_for("abc"[:size], guarded=guarded)

    sequences = await JetStreamLog(lossy).append(drafts)

    assert len(lossy.lost) == 1
    assert sequences == tuple(range(2, 2 + size))
    assert await everything(log) == as_stored([before, *drafts])


@BATCHES
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("times", [1, 2])
async def test_an_append_that_was_lost_on_its_way_is_sent_again(
    bus: Bus, log: JetStreamLog, size: int, guarded: bool, times: int
) -> None:
    lossy = LostRequests(bus, times=times)
    drafts = drafts_for("abc"[:size], guarded=guarded)

    sequences = await JetStreamLog(lossy).append(drafts)

    assert lossy.lost == times
    assert sequences == tuple(range(1, 1 + size))
    assert await everything(log) == as_stored(drafts)


@BATCHES
@pytest.mark.parametrize("guarded", [True, False])
async def test_an_append_that_arrives_after_it_was_looked_for_is_neither_lost_nor_doubled(
    bus: Bus, log: JetStreamLog, size: int, guarded: bool
) -> None:
    slow = LateRequests(bus)
    drafts = drafts_for("abc"[:size], guarded=guarded)

    sequences = await JetStreamLog(slow).append(drafts)

    assert slow.arrived == 1
    assert sequences == tuple(range(1, 1 + size))
    assert await everything(log) == as_stored(drafts)


@BATCHES
async def test_a_writer_that_came_after_a_lost_acknowledgement_does_not_hide_what_was_stored(
    bus: Bus, log: JetStreamLog, size: int
) -> None:
    drafts = drafts_for("abc"[:size], guarded=True)
    other = a_draft(scaled("a", 9), guard=Guard(part_of("a"), 1))

    sequences = await JetStreamLog(LostAcknowledgements(bus, meanwhile=lambda: log.append([other]))).append(drafts)

    assert sequences == tuple(range(1, 1 + size))
    assert await everything(log) == as_stored([*drafts, other])


@BATCHES
async def test_a_writer_that_got_in_before_an_append_that_was_lost_on_its_way_makes_it_a_conflict(
    bus: Bus, log: JetStreamLog, size: int
) -> None:
    drafts = drafts_for("abc"[:size], guarded=True)
    other = a_draft(scaled("a", 9), guard=Guard(part_of("a"), 0))

    with pytest.raises(Conflict):
        await JetStreamLog(LostRequests(bus, meanwhile=lambda: log.append([other]))).append(drafts)

    assert await everything(log) == as_stored([other])


async def test_a_repetition_whose_acknowledgement_was_lost_still_has_its_first_sequence(
    bus: Bus, log: JetStreamLog
) -> None:
    lossy = LostAcknowledgements(bus, times=0)
    again = JetStreamLog(lossy)
    draft, other = a_draft(scaled("a", 1)), a_draft(scaled("b", 1))
    await again.append([draft])
    await again.append([other])
    lossy.times = 1

    assert await again.append([draft]) == (1,)

    assert len(lossy.lost) == 1
    assert await everything(log) == as_stored([draft, other])


async def test_an_append_that_can_not_be_looked_up_is_said_to_be_unknown_and_not_to_be_done(
    bus: Bus, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "RESOLVE_SECONDS", 0.3)
    draft = a_draft(scaled("a", 1))

    with pytest.raises(Unavailable, match="it is not known whether"):
        await JetStreamLog(NoReads(bus)).append([draft])

    assert await everything(log) == as_stored([draft])  # why it must not be said that it was not stored


async def test_a_log_that_is_away_is_unavailable(own: Stack) -> None:
    log = JetStreamLog(own.operator)
    await own.nats.stop()

    with pytest.raises(Unavailable):
        await log.append([a_draft(scaled("a", 1))])
    with pytest.raises(Unavailable):
        await log.last(ALL_FACTS)


# -- kill -9 under writes -----------------------------------------------------------------------------------------------


class Writer:
    """Writes to a model of its own, single facts and batches, and notes what was acknowledged at which sequence."""

    def __init__(self, bus: Bus, model: str) -> None:
        self._log = JetStreamLog(bus, acknowledgement_seconds=0.5)
        self._model = model
        self.acknowledged: dict[str, int] = {}

    async def write(self) -> None:
        last, number = 0, 0
        while True:
            size = 1 + number % 3
            number += 1
            drafts = [a_draft(scaled(self._model, number + n)) for n in range(size)]
            drafts[0] = a_draft(scaled(self._model, number), guard=Guard(part_of(self._model), last))
            try:
                sequences = await self._log.append(drafts)
            except (Unavailable, Conflict):
                last = await self._where_we_are()
            else:
                last = sequences[-1]
                ids = [draft.envelope.id for draft in drafts]
                self.acknowledged |= dict(zip(ids, sequences, strict=True))

    async def _where_we_are(self) -> int:
        while True:
            try:
                return await self._log.last_sequence_of(part_of(self._model))
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_every_acknowledged_append_survives_kills_of_the_server_exactly_once(
    own: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    writers = [Writer(await own.bus("api"), f"m{n}") for n in range(4)]
    tasks = [asyncio.create_task(writer.write()) for writer in writers]

    def done() -> int:
        return sum(len(writer.acknowledged) for writer in writers)

    try:
        for _ in range(3):
            enough = done() + 60
            async with asyncio.timeout(30):
                while done() < enough:  # noqa: ASYNC110 - the writers tell nobody
                    await asyncio.sleep(0.005)
            await own.nats.restart(kill=True)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert "was lost; looking whether it was stored" in caplog.text  # else no kill ever hit an append

    log = JetStreamLog(await own.bus("observer"))
    state = await log.state()
    reader = Reader(log.tail([ALL_FACTS], after=0))
    stored = await reader.until(state.last_sequence)
    await reader.close()
    assert [event.sequence for event in stored] == list(range(1, state.last_sequence + 1))
    by_id = {event.envelope.id: event.sequence for event in stored}
    assert len(by_id) == len(stored)
    for writer in writers:
        assert writer.acknowledged.items() <= by_id.items()


# -- the fence ----------------------------------------------------------------------------------------------------------


async def test_of_schedulers_that_want_to_be_elected_at_once_exactly_one_decides_afterwards(log: JetStreamLog) -> None:
    answers = await asyncio.gather(*(elect(log, CLOCK, f"s{n}") for n in range(8)), return_exceptions=True)

    elections = sorted((each for each in answers if isinstance(each, Election)), key=lambda each: each.sequence)
    assert {type(each) for each in answers} <= {Election, Conflict}
    stored = await everything(log)
    assert [(event.sequence, event.subject, read(event.envelope)) for event in stored] == [
        (each.sequence, ELECTION, SchedulerElected(replica=each.replica)) for each in elections
    ]
    for deposed in elections[:-1]:
        with pytest.raises(Deposed):
            await append_as_elected(log, deposed, CLOCK, [(worker_ready("w-1"), Cause())])
    _, sequences = await append_as_elected(log, elections[-1], CLOCK, [(worker_ready("w-1"), Cause())])
    assert sequences == (len(elections) + 1,)


async def test_a_scheduler_that_was_overtaken_while_it_was_being_elected_is_told(bus: Bus, log: JetStreamLog) -> None:
    class Overtaken(JetStreamLog):
        async def last_sequence_of(self, subject_filter: str) -> int:
            found = await super().last_sequence_of(subject_filter)
            await elect(log, CLOCK, "faster")
            return found

    with pytest.raises(Conflict):
        await elect(Overtaken(bus), CLOCK, "slower")

    assert [read(event.envelope) for event in await everything(log)] == [SchedulerElected(replica="faster")]


async def test_the_server_refuses_what_a_deposed_scheduler_sends(bus: Bus, log: JetStreamLog) -> None:
    old = await elect(log, CLOCK, "old")
    await elect(log, CLOCK, "new")
    before = await everything(log)

    for facts in ([worker_ready("w-1")], [worker_ready("w-1"), worker_ready("w-2")]):
        with pytest.raises(Deposed):
            await append_as_elected(log, old, CLOCK, [(fact, Cause()) for fact in facts])
    answer = await send_by_hand(bus, a_draft(worker_ready("w-3"), guard=old.guard))

    assert answer["error"]["err_code"] in jetstream.WRONG_LAST_SEQUENCE
    assert await everything(log) == before


@pytest.mark.parametrize("sent_before", [1, 2])
async def test_the_server_refuses_a_batch_that_was_open_when_its_scheduler_was_deposed(
    bus: Bus, log: JetStreamLog, sent_before: int
) -> None:
    old = await elect(log, CLOCK, "old")
    batch = [a_draft(worker_ready(f"w-{n}"), guard=old.guard) for n in range(3)]
    for n in range(sent_before):
        await send_by_hand(bus, batch[n], batch=batch[0].envelope.id, number=n + 1)
    new = await elect(log, CLOCK, "new")
    for n in range(sent_before, 2):
        await send_by_hand(bus, batch[n], batch=batch[0].envelope.id, number=n + 1)

    answer = await send_by_hand(bus, batch[2], batch=batch[0].envelope.id, number=3, commit=True)

    assert answer["error"]["err_code"] in jetstream.WRONG_LAST_SEQUENCE
    assert [event.subject for event in await everything(log)] == [ELECTION, ELECTION]
    _, sequences = await append_as_elected(log, new, CLOCK, [(worker_ready("w-0"), Cause())])
    assert sequences == (3,)


async def test_a_batch_that_was_open_is_stored_whole_when_nobody_else_was_elected(bus: Bus, log: JetStreamLog) -> None:
    """The one above shows something only if this holds."""
    election = await elect(log, CLOCK, "s")
    batch = [a_draft(worker_ready(f"w-{n}"), guard=election.guard) for n in range(3)]
    await send_by_hand(bus, batch[0], batch=batch[0].envelope.id, number=1)
    await send_by_hand(bus, batch[1], batch=batch[0].envelope.id, number=2)
    assert await log.last_sequence_of(ALL_FACTS) == 1

    answer = await send_by_hand(bus, batch[2], batch=batch[0].envelope.id, number=3, commit=True)

    assert (answer["seq"], answer["count"]) == (4, 3)
    assert (await everything(log))[1:] == as_stored(batch, first=2)


async def send_by_hand(
    bus: Bus, draft: Draft, *, batch: str | None = None, number: int = 1, commit: bool = False
) -> dict[str, Any]:
    """One message as the log sends it; what the server answers."""
    headers = {MSG_ID: draft.envelope.id}
    if draft.guard is not None:
        headers |= {EXPECTED_SEQUENCE: str(draft.guard.sequence), EXPECTED_SUBJECT: draft.guard.subject}
    if batch is not None:
        headers |= {BATCH_ID: batch, BATCH_SEQUENCE: str(number)} | ({BATCH_COMMIT: "1"} if commit else {})
    answer = await bus.request(draft.subject, draft.envelope.to_json(), headers=headers, timeout_seconds=5)
    return orjson.loads(answer.data) if answer.data else {}


# -- names --------------------------------------------------------------------------------------------------------------


async def test_of_200_who_want_a_name_at_once_exactly_one_has_it(shared: Stack, bus: Bus, log: JetStreamLog) -> None:
    replicas = [JetStreamLog(bus), JetStreamLog(await shared.bus("api"))]

    async def take(number: int) -> ModelId | None:
        """As the api does it: look, append under the name, look again when somebody was faster."""
        model, replica = ModelId(f"m-{number}"), replicas[number % 2]
        while True:
            name = await look_up_name(replica, "model", "llama")
            if name.bearer is not None:
                return None
            try:
                await replica.append([a_draft(llama(model), guard=name.guard)])
            except Conflict:
                continue
            return model

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(take(number) for number in range(200)))

    (winner,) = [answer for answer in answers if answer is not None]
    assert [event.subject for event in await everything(log)] == [llama(winner).subject]
    assert (await look_up_name(log, "model", "llama")).bearer == winner


async def test_who_has_lost_a_name_to_another_changes_nothing_more_under_it(log: JetStreamLog) -> None:
    """A writer that stood still while its model was deleted and the name taken anew."""
    first, second = llama(ModelId("m-1")), llama(ModelId("m-2"))
    await log.append([a_draft(first)])
    await log.append([a_draft(ModelDeleted(model_id=first.model_id, name="llama"))])
    await log.append([a_draft(second, guard=(await look_up_name(log, "model", "llama")).guard)])

    late = ModelScaled(model_id=first.model_id, name="llama", replicas=2)
    guard = Guard(api_part_of("model", "m-1", name_token("llama")), 1)
    with pytest.raises(Conflict):
        await log.append([a_draft(late, guard=guard)])

    assert (await look_up_name(log, "model", "llama")).bearer == "m-2"


async def test_two_models_that_want_each_others_name_both_keep_their_own(log: JetStreamLog) -> None:
    await log.append([a_draft(created("a"))])
    await log.append([a_draft(created("b"))])

    async def rename(model: str, to: str, sequence: int) -> None:
        gives_up = a_draft(
            ModelRenamed(model_id=ModelId(model), name=model, to=to), guard=Guard(part_of(model), sequence)
        )
        wanted = created(to).spec
        takes = ModelUpdated(model_id=ModelId(model), spec=wanted)
        await log.append([gives_up, a_draft(takes, guard=Guard(facts_under("model", to), 0))])

    for model, to, sequence in (("a", "b", 1), ("b", "a", 2)):
        with pytest.raises(Conflict):
            await rename(model, to, sequence)

    assert [(await look_up_name(log, "model", name)).bearer for name in "ab"] == ["a", "b"]


def llama(model: ModelId) -> ModelCreated:
    return ModelCreated(model_id=model, spec=created("llama").spec)


# -- tails --------------------------------------------------------------------------------------------------------------


async def test_a_tail_survives_a_kill_of_the_server(own: Stack) -> None:
    log = JetStreamLog(own.operator, acknowledgement_seconds=0.5)
    drafts = [a_draft(scaled("a", n)) for n in range(30)]
    tail = log.tail([ALL_FACTS], after=0)
    reader = Reader(tail)
    try:
        await log.append(drafts[:10])
        await reader.until(10)
        await own.nats.restart(kill=True)
        await until_stored(lambda: log.append(drafts[10:20]))
        await own.nats.restart(kill=True)
        await until_stored(lambda: log.append(drafts[20:]))

        assert await reader.until(30) == as_stored(drafts)
        assert tail.rebuilt > 1
    finally:
        await reader.close()


async def until_stored(append: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await append()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_tail_says_whether_its_next_batch_has_arrived(
    log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_tail, "MOST_IN_A_BATCH", 1)
    tail = log.tail([part_of("a")], after=0)
    batches = aiter(tail)
    try:
        assert not tail.has_more
        await log.append([a_draft(scaled("a", 1)), a_draft(scaled("a", 2))])
        async with asyncio.timeout(20):
            assert [event.sequence for event in await anext(batches)] == [1]
            while not tail.has_more:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)
            assert [event.sequence for event in await anext(batches)] == [2]
        await asyncio.sleep(2 * jetstream_tail.HEARTBEAT_SECONDS)  # what the server says of itself is no event
        assert not tail.has_more
    finally:
        await tail.close()


async def test_a_tail_knows_at_once_that_its_consumer_was_deleted(
    bus: Bus, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_tail, "SILENCE_SECONDS", 60)  # not by the silence that follows
    drafts = [a_draft(scaled("a", n)) for n in range(9)]
    tail = log.tail([ALL_FACTS], after=0)
    reader = Reader(tail)
    try:
        for n in (0, 3, 6):
            await log.append(drafts[n : n + 3])
            await reader.until(n + 3)
            (name,) = (await bus.js_api("CONSUMER.NAMES.FACTS"))["consumers"]
            await bus.js_api(f"CONSUMER.DELETE.FACTS.{name}")
        await log.append([end := a_draft(deleted("a"))])

        assert await reader.until(10) == as_stored([*drafts, end])
        assert tail.rebuilt == 4
    finally:
        await reader.close()


@pytest.mark.parametrize("lost", [(1,), (5,), (3, 4), (2, 6, 9)])
async def test_a_tail_that_misses_an_event_reads_it_again(bus: Bus, log: JetStreamLog, lost: tuple[int, ...]) -> None:
    drafts = [a_draft(scaled("a", n)) for n in range(20)]
    lossy = LostDeliveries(bus, *lost)
    tail = JetStreamLog(lossy).tail([ALL_FACTS], after=0)
    reader = Reader(tail)
    try:
        await log.append(drafts[:10])
        await log.append(drafts[10:])

        assert await reader.until(20) == as_stored(drafts)
        assert len(lossy.lost) == len(lost)
        assert 1 < tail.rebuilt <= 1 + len(lost)
    finally:
        await reader.close()


async def test_a_tail_of_a_stream_that_is_shorter_than_what_was_read_says_so(log: JetStreamLog) -> None:
    await log.append([a_draft(scaled("a", 1)), a_draft(scaled("a", 2))])
    reader = Reader(log.tail([ALL_FACTS], after=5))

    failure = await reader.failure()

    assert isinstance(failure, Corrupt)
    assert str(failure) == "FACTS ends at 2, but 5 was read from it: stop all writers and run `muster log restore`"
    await reader.close()


async def test_a_stream_that_is_replaced_by_an_emptier_one_under_a_tail_ends_it(bus: Bus, log: JetStreamLog) -> None:
    reader = Reader(log.tail([ALL_FACTS], after=0))
    await log.append([a_draft(scaled("a", 1)), a_draft(scaled("a", 2))])
    await reader.until(2)

    await bus.js_api("STREAM.DELETE.FACTS")
    await provision(bus)
    await log.append([a_draft(scaled("a", 3))])

    failure = await reader.failure()
    assert isinstance(failure, Corrupt)
    assert str(failure) == "FACTS ends at 1, but 2 was read from it: stop all writers and run `muster log restore`"
    await reader.close()


async def test_a_tail_reads_a_backlog_that_is_longer_than_what_it_asks_for_at_once(
    log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_tail, "REQUESTED", 40)
    monkeypatch.setattr(jetstream_tail, "MOST_IN_A_BATCH", 7)
    drafts = [a_draft(scaled("a", n)) for n in range(500)]
    await log.append(drafts)
    tail = log.tail([ALL_FACTS], after=0)
    sizes: list[int] = []
    stored = as_stored(drafts)
    async with asyncio.timeout(30):
        async for batch in tail:
            assert list(batch) == stored[sum(sizes) : sum(sizes) + len(batch)]
            sizes.append(len(batch))
            if sum(sizes) == len(drafts):
                break
    await tail.close()

    assert max(sizes) <= 7
    assert tail.rebuilt == 1


async def test_a_quiet_tail_is_not_made_anew_while_its_requests_come_and_go(
    log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_tail, "EXPIRES_SECONDS", 1)
    monkeypatch.setattr(jetstream_tail, "HEARTBEAT_SECONDS", 0.2)
    tail = log.tail([ALL_FACTS], after=0)
    reader = Reader(tail)
    try:
        await asyncio.sleep(1.0 + 2 * jetstream_tail.SILENCE_SECONDS / 3)  # a request has run out meanwhile
        await log.append(drafts := [a_draft(scaled("a", 1))])

        assert await reader.until(1) == as_stored(drafts)
        assert tail.rebuilt == 1
    finally:
        await reader.close()


async def test_a_tail_that_hears_nothing_makes_itself_anew(
    bus: Bus, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_tail, "SILENCE_SECONDS", 0.3)  # sooner than the first heartbeat
    tail = log.tail([ALL_FACTS], after=0)
    reader = Reader(tail)
    try:
        async with asyncio.timeout(20):
            while tail.rebuilt < 3:  # noqa: ASYNC110 - the tail tells nobody
                await asyncio.sleep(0.02)
        await log.append(drafts := [a_draft(scaled("a", 1))])
        assert await reader.until(1) == as_stored(drafts)
    finally:
        await reader.close()
    async with asyncio.timeout(20):
        while (await bus.js_api("CONSUMER.NAMES.FACTS")).get("consumers"):  # noqa: ASYNC110 - deleting has no answer
            await asyncio.sleep(0.02)


# -- provisioning -------------------------------------------------------------------------------------------------------


async def test_what_was_provisioned_is_verified_and_provisioning_again_changes_nothing(bus: Bus) -> None:
    await verify(bus)
    before = {name: (await bus.js_api(f"STREAM.INFO.{name}"))["config"] for name in STREAMS}

    await provision(bus)

    assert {name: (await bus.js_api(f"STREAM.INFO.{name}"))["config"] for name in STREAMS} == before


@pytest.mark.parametrize(
    ("stream", "setting", "found"),
    [
        ("FACTS", "max_age", 86_400 * 10**9),
        ("FACTS", "discard", "old"),
        ("FACTS", "duplicate_window", 10**9),
        ("FACTS", "compression", "none"),
        ("FACTS", "max_msgs", 1000),
        ("FACTS", "allow_direct", False),
        ("FACTS", "allow_atomic", False),
        ("FACTS", "allow_rollup_hdrs", True),
        ("FACTS", "subjects", ["muster.facts.api.>"]),
        ("ASSIGNED", "max_msgs_per_subject", 2),
        ("REPORTS", "allow_direct", True),
        ("REPORTS", "max_bytes", 2**20),
    ],
)
async def test_a_stream_that_is_not_as_provisioned_is_noticed_and_repaired(
    bus: Bus, stream: str, setting: str, found: object
) -> None:
    info = await bus.js_api(f"STREAM.INFO.{stream}")
    await bus.js_api(f"STREAM.UPDATE.{stream}", info["config"] | {setting: found})

    with pytest.raises(Drift) as drift:
        await verify(bus)

    said = (
        None if found is False and setting != "allow_direct" else found
    )  # the server leaves out most flags that are off
    assert drift.value.stream == stream
    assert drift.value.differences == {setting: (said, STREAMS[stream][setting])}
    assert f"{setting} is {said!r} and should be {STREAMS[stream][setting]!r}" in str(drift.value)
    await provision(bus)
    await verify(bus)


async def test_a_stream_that_the_server_will_not_repair_is_drift(bus: Bus) -> None:
    info = await bus.js_api("STREAM.INFO.FACTS")
    await bus.js_api("STREAM.UPDATE.FACTS", info["config"] | {"allow_msg_ttl": True})

    with pytest.raises(Drift) as drift:
        await provision(bus)

    assert (drift.value.stream, drift.value.differences) == ("FACTS", {"allow_msg_ttl": (True, False)})


async def test_provisioning_keeps_what_is_stored(bus: Bus, log: JetStreamLog) -> None:
    await log.append(drafts := [a_draft(scaled("a", 1))])
    info = await bus.js_api("STREAM.INFO.FACTS")
    await bus.js_api("STREAM.UPDATE.FACTS", info["config"] | {"duplicate_window": 10**9})

    await provision(bus)

    assert await everything(log) == as_stored(drafts)


async def test_a_missing_stream_is_unavailable_and_the_sentence_says_what_to_run(bus: Bus) -> None:
    await bus.js_api("STREAM.DELETE.ASSIGNED")

    with pytest.raises(Unavailable, match=r"stream ASSIGNED is not there .*run `muster migrate`"):
        await verify(bus)


async def test_a_generation_once_raised_stays_through_repairs(bus: Bus, log: JetStreamLog) -> None:
    before = await log.state()
    assert await raise_generation(bus) == 2
    info = await bus.js_api("STREAM.INFO.FACTS")
    await bus.js_api("STREAM.UPDATE.FACTS", info["config"] | {"duplicate_window": 10**9})
    await provision(bus)
    await verify(bus)
    after = await log.state()

    assert (before.generation, after.generation) == (1, 2)
    assert after.created == before.created


async def test_nobody_can_delete_a_fact(bus: Bus, log: JetStreamLog) -> None:
    await log.append(drafts := [a_draft(scaled("a", 1))])

    with pytest.raises(JetStreamError, match="not permitted"):
        await bus.js_api("STREAM.MSG.DELETE.FACTS", {"seq": 1})

    assert await everything(log) == as_stored(drafts)


@pytest.mark.parametrize("version", ["2.9.10", "2.11.11"])
async def test_a_server_that_is_too_old_is_refused_before_anything_is_asked_of_it(version: str) -> None:
    async with OldServer(version) as old:
        bus = await Bus.connect("test", BusSettings(servers=(old.url,)))
        try:
            for start in (verify, provision):
                with pytest.raises(ServerTooOld, match=f"nats-server {version} is too old: Muster needs 2.12"):
                    await start(bus)
            assert old.asked == []
        finally:
            await bus.close()


@pytest.mark.parametrize("version", ["2.12.0", "2.13.1", "3.0.0"])
async def test_a_server_that_is_new_enough_is_taken(version: str) -> None:
    async with OldServer(version) as server:
        bus = await Bus.connect("test", BusSettings(servers=(server.url,)))
        try:
            bus.check_version()
        finally:
            await bus.close()


async def test_no_server_at_all_is_unavailable_and_says_where_it_was_looked_for() -> None:
    url = f"nats://127.0.0.1:{free_port()}"

    with pytest.raises(Unavailable, match=f"no NATS server answers at {url}"):
        await Bus.connect("test", BusSettings(servers=(url,)), timeout_seconds=0.3)
