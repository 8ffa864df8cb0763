"""What every EventLog does: one suite for the log in memory and the log on the real server."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernel.errors import Conflict, Deposed
from kernel.log.election import append_as_elected, elect
from kernel.log.jetstream import JetStreamLog
from kernel.log.memory import MemoryLog
from kernel.log.names import NameState, look_up_name
from kernel.log.port import MOST_IN_AN_APPEND, Draft, EventLog, Guard, Position, Stored, subject_matches
from kernel.log.seal import Cause
from schemas.facts import ModelRenamed, read
from schemas.facts.base import Fact
from schemas.ids import ModelId
from schemas.subjects import ALL_FACTS, facts_about, facts_under
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
from tests.support.stack import Stack

BOTH = pytest.mark.parametrize("log_on", [MemoryLog, JetStreamLog], ids=["memory", "jetstream"], indirect=True)


@pytest.fixture
def log_on(request: pytest.FixtureRequest, log: JetStreamLog) -> EventLog:
    """An empty log of the kind that is asked for."""
    return MemoryLog() if request.param is MemoryLog else log


# -- appending ----------------------------------------------------------------------------------------------------------


@BOTH
async def test_an_append_gives_the_sequences_of_its_events_in_their_order(log_on: EventLog) -> None:
    one, two, three = a_draft(scaled("a", 1)), a_draft(scaled("b", 1)), a_draft(scaled("a", 2))

    assert await log_on.append([one]) == (1,)
    assert await log_on.append([two, three]) == (2, 3)
    assert await everything(log_on) == as_stored([one, two, three])


@BOTH
async def test_an_append_of_nothing_stores_nothing(log_on: EventLog) -> None:
    assert await log_on.append([]) == ()
    assert await everything(log_on) == []


@BOTH
async def test_what_is_stored_is_read_as_the_fact_that_was_stated(log_on: EventLog) -> None:
    fact = created("a", description="größer als “7 GiB” 🦙")
    draft = a_draft(fact)

    await log_on.append([draft])

    last = await log_on.last(fact.subject)
    assert last is not None
    assert last.envelope == draft.envelope
    assert read(last.envelope) == fact


@BOTH
async def test_an_append_has_no_more_events_than_a_batch_may_have(log_on: EventLog) -> None:
    drafts = [a_draft(scaled("a", n)) for n in range(MOST_IN_AN_APPEND + 1)]

    with pytest.raises(ValueError, match="at most 1000 events, not 1001"):
        await log_on.append(drafts)

    assert await everything(log_on) == []
    assert await log_on.append(drafts[:-1]) == tuple(range(1, MOST_IN_AN_APPEND + 1))


# -- guards -------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("guarded", [scaled("a", 1).subject, part_of("a"), facts_about("model", "a")])
async def test_an_append_happens_only_while_the_guarded_subject_is_where_its_writer_read_it(
    log_on: EventLog, guarded: str
) -> None:
    first = a_draft(scaled("a", 1), guard=Guard(guarded, 0))
    other = a_draft(scaled("b", 1))
    second = a_draft(scaled("a", 2), guard=Guard(guarded, 1))
    assert await log_on.append([first]) == (1,)
    assert await log_on.append([other]) == (2,)

    for stale in (0, 2, 3):
        with pytest.raises(Conflict):
            await log_on.append([a_draft(scaled("a", 9), guard=Guard(guarded, stale))])
    assert await everything(log_on) == as_stored([first, other])

    assert await log_on.append([second]) == (3,)
    assert await everything(log_on) == as_stored([first, other, second])


@BOTH
async def test_an_exact_guard_is_blind_to_other_facts_of_the_resource_and_a_wildcard_guard_is_not(
    log_on: EventLog,
) -> None:
    await log_on.append([a_draft(created("a"))])

    assert await log_on.append([a_draft(scaled("a", 1), guard=Guard(scaled("a", 1).subject, 0))]) == (2,)
    with pytest.raises(Conflict):
        await log_on.append([a_draft(deleted("a"), guard=Guard(part_of("a"), 1))])
    assert await log_on.append([a_draft(deleted("a"), guard=Guard(part_of("a"), 2))]) == (3,)


@BOTH
async def test_a_guard_may_look_at_another_subject_than_the_one_written(log_on: EventLog) -> None:
    await log_on.append([a_draft(created("a"))])

    with pytest.raises(Conflict):
        await log_on.append([a_draft(worker_ready("w-1"), guard=Guard(created("a").subject, 0))])
    assert await log_on.append([a_draft(worker_ready("w-1"), guard=Guard(created("a").subject, 1))]) == (2,)


@BOTH
async def test_of_many_writers_with_the_same_guard_exactly_one_wins(log_on: EventLog) -> None:
    drafts = [a_draft(scaled("a", n), guard=Guard(part_of("a"), 0)) for n in range(30)]

    outcomes = await asyncio.gather(*(log_on.append([draft]) for draft in drafts), return_exceptions=True)

    winners = [draft for draft, outcome in zip(drafts, outcomes, strict=True) if outcome == (1,)]
    assert [type(outcome) for outcome in outcomes].count(Conflict) == len(drafts) - 1
    assert await everything(log_on) == as_stored(winners)


# -- all or none --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("stale", [0, 1, 2, 3])
async def test_one_stale_guard_among_several_refuses_the_whole_append(log_on: EventLog, stale: int) -> None:
    before = [a_draft(scaled(model, 1)) for model in "abcd"]
    await log_on.append(before)

    def guarded(n: int, model: str) -> Draft:
        return a_draft(scaled(model, 2), guard=Guard(part_of(model), 0 if n == stale else n + 1))

    with pytest.raises(Conflict):
        await log_on.append([guarded(n, model) for n, model in enumerate("abcd")])

    assert await everything(log_on) == as_stored(before)


@BOTH
async def test_an_append_whose_guards_all_hold_is_stored_whole(log_on: EventLog) -> None:
    before = [a_draft(scaled(model, 1)) for model in "abc"]
    await log_on.append(before)
    together = [a_draft(scaled(model, 2), guard=Guard(part_of(model), n)) for n, model in enumerate("abc", start=1)]

    assert await log_on.append(together) == (4, 5, 6)

    assert await everything(log_on) == as_stored([*before, *together])


@BOTH
async def test_appends_of_several_events_never_interleave(log_on: EventLog) -> None:
    appends = [[a_draft(scaled(f"m{n}", k)) for k in range(5)] for n in range(12)]

    sequences = await asyncio.gather(*(log_on.append(drafts) for drafts in appends))

    stored = await everything(log_on)
    assert len(stored) == 60
    for drafts, numbers in zip(appends, sequences, strict=True):
        assert stored[numbers[0] - 1 : numbers[-1]] == as_stored(drafts, first=numbers[0])


# -- told twice ---------------------------------------------------------------------------------------------------------


@BOTH
async def test_an_event_that_is_appended_twice_is_stored_once_and_keeps_its_sequence(log_on: EventLog) -> None:
    draft, other = a_draft(scaled("a", 1)), a_draft(scaled("b", 1))
    await log_on.append([draft])
    await log_on.append([other])

    assert await log_on.append([draft]) == (1,)

    assert await everything(log_on) == as_stored([draft, other])


@BOTH
async def test_the_guard_is_looked_at_before_the_repetition(log_on: EventLog) -> None:
    """A writer that retries blindly is told Conflict although its event is there: so appends are resolved by reading."""
    draft = a_draft(scaled("a", 1), guard=Guard(part_of("a"), 0))
    await log_on.append([draft])

    with pytest.raises(Conflict):
        await log_on.append([draft])

    assert await everything(log_on) == as_stored([draft])


@BOTH
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_an_id_that_is_in_the_log_refuses_the_whole_batch(log_on: EventLog, position: int) -> None:
    known = a_draft(scaled("a", 1))
    await log_on.append([known])
    batch = [a_draft(scaled("b", 1)), a_draft(scaled("c", 1))]
    batch.insert(position, known)

    with pytest.raises(Conflict):
        await log_on.append(batch)

    assert await everything(log_on) == as_stored([known])


@BOTH
async def test_a_batch_that_is_appended_twice_is_refused_the_second_time(log_on: EventLog) -> None:
    batch = [a_draft(scaled("a", 1)), a_draft(scaled("b", 1))]
    await log_on.append(batch)

    with pytest.raises(Conflict):
        await log_on.append(batch)

    assert await everything(log_on) == as_stored(batch)


@BOTH
async def test_an_id_that_comes_twice_in_one_batch_refuses_it(log_on: EventLog) -> None:
    one = a_draft(scaled("a", 1))
    two = a_draft(scaled("b", 1), event_id=one.envelope.id)

    with pytest.raises(Conflict):
        await log_on.append([one, two])

    assert await everything(log_on) == []


# -- reading ------------------------------------------------------------------------------------------------------------


@BOTH
async def test_an_aggregate_is_read_in_order_and_without_its_neighbours(log_on: EventLog) -> None:
    drafts = [a_draft(fact) for fact in (created("a"), created("ab"), scaled("a", 2), worker_ready("a"), deleted("a"))]
    await log_on.append(drafts)
    stored = as_stored(drafts)
    a = [stored[0], stored[2], stored[4]]

    assert await log_on.read(part_of("a")) == a
    assert await log_on.read(part_of("a"), after=1) == a[1:]
    assert await log_on.read(part_of("a"), after=2, limit=1) == [stored[2]]
    assert await log_on.read(part_of("a"), limit=2) == a[:2]
    assert await log_on.read(part_of("a"), limit=0) == []
    assert await log_on.read(part_of("a"), after=5) == []
    assert await log_on.read(part_of("nobody")) == []


@BOTH
async def test_the_last_event_that_matches_is_found_and_none_is_none(log_on: EventLog) -> None:
    drafts = [a_draft(fact) for fact in (created("a"), scaled("a", 2), created("b"))]
    await log_on.append(drafts)

    assert await log_on.last(part_of("a")) == as_stored(drafts)[1]
    assert await log_on.last_sequence_of(part_of("a")) == 2
    assert await log_on.last(created("a").subject) == as_stored(drafts)[0]
    assert await log_on.last_sequence_of(ALL_FACTS) == 3
    assert await log_on.last(part_of("c")) is None
    assert await log_on.last_sequence_of(part_of("c")) == 0


@BOTH
async def test_the_state_tells_how_far_the_log_goes_and_stays_the_same_log(log_on: EventLog) -> None:
    empty = await log_on.state()
    await log_on.append([a_draft(scaled("a", 1)), a_draft(scaled("a", 2))])
    state = await log_on.state()

    assert (empty.generation, empty.last_sequence) == (1, 0)
    assert (state.generation, state.first_sequence, state.last_sequence) == (1, 1, 2)
    assert state.created == empty.created
    assert state.created.tzinfo is not None


# -- following ----------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_tail_gives_what_was_there_before_it_and_what_comes_after_in_order_and_once(log_on: EventLog) -> None:
    drafts = [a_draft(scaled("a", n)) for n in range(40)]
    await log_on.append(drafts[:10])
    reader = Reader(log_on.tail([ALL_FACTS], after=0))
    try:
        assert await reader.until(10) == as_stored(drafts[:10])
        for draft in drafts[10:20]:
            await log_on.append([draft])
        await log_on.append(drafts[20:])
        assert await reader.until(40) == as_stored(drafts)
    finally:
        await reader.close()


@BOTH
@pytest.mark.parametrize("after", [1, 7, 10, 12])
async def test_a_tail_begins_right_after_the_sequence_that_it_is_given(log_on: EventLog, after: int) -> None:
    drafts = [a_draft(scaled("a", n)) for n in range(14)]
    await log_on.append(drafts[:12])
    reader = Reader(log_on.tail([ALL_FACTS], after=after))
    try:
        await log_on.append(drafts[12:])
        assert await reader.until(14 - after) == as_stored(drafts)[after:]
    finally:
        await reader.close()


@BOTH
async def test_a_tail_with_filters_skips_all_else(log_on: EventLog) -> None:
    facts = (created("a"), worker_ready("w-1"), created("b"), scaled("a", 2), deleted("b"), scaled("b", 5))
    drafts = [a_draft(fact) for fact in facts]
    await log_on.append(drafts[:2])
    reader = Reader(log_on.tail([part_of("a"), "muster.facts.*.*.*.*.ModelDeleted"], after=1))
    try:
        for draft in drafts[2:]:
            await log_on.append([draft])
        await log_on.append([end := a_draft(scaled("a", 9))])
        stored = as_stored([*drafts, end])
        assert await reader.until(3) == [stored[3], stored[4], stored[6]]
    finally:
        await reader.close()


@BOTH
async def test_two_tails_know_nothing_of_each_other(log_on: EventLog) -> None:
    drafts = [a_draft(scaled("a", n)) for n in range(6)]
    await log_on.append(drafts[:4])
    readers = [Reader(log_on.tail([ALL_FACTS], after=after)) for after in (0, 3)]
    try:
        await log_on.append(drafts[4:])
        assert await readers[0].until(6) == as_stored(drafts)
        assert await readers[1].until(3) == as_stored(drafts)[3:]
    finally:
        for reader in readers:
            await reader.close()


# -- the election and names ---------------------------------------------------------------------------------------------


@BOTH
async def test_a_deposed_scheduler_appends_nothing_any_more(log_on: EventLog) -> None:
    old = await elect(log_on, CLOCK, "old")
    drafts, _ = await append_as_elected(log_on, old, CLOCK, [(worker_ready("w-1"), Cause())])
    new = await elect(log_on, CLOCK, "new")

    for facts in ([worker_ready("w-2")], [worker_ready("w-3"), worker_ready("w-4")]):
        with pytest.raises(Deposed):
            await append_as_elected(log_on, old, CLOCK, [(fact, Cause()) for fact in facts])

    more, sequences = await append_as_elected(
        log_on, new, CLOCK, [(worker_ready("w-5"), Cause()), (worker_ready("w-6"), Cause())]
    )
    assert sequences == (4, 5)
    stored = await everything(log_on)
    assert stored[1:2] == as_stored(drafts, first=2)
    assert stored[3:] == as_stored(more, first=4)


@BOTH
async def test_facts_of_others_never_depose_the_scheduler(log_on: EventLog) -> None:
    election = await elect(log_on, CLOCK, "s")
    await log_on.append([a_draft(created("a")), a_draft(scaled("a", 2))])

    _, sequences = await append_as_elected(log_on, election, CLOCK, [(worker_ready("w-1"), Cause())])

    assert sequences == (4,)


@BOTH
@pytest.mark.parametrize("freed_by", [deleted("Llama"), ModelRenamed(model_id=ModelId("Llama"), name="Llama", to="x")])
async def test_a_name_is_free_then_taken_then_free_again_whatever_its_case(log_on: EventLog, freed_by: Fact) -> None:
    free = await look_up_name(log_on, "model", "Llama")
    await log_on.append([taken := a_draft(created("Llama"), guard=free.guard)])
    held = await look_up_name(log_on, "model", "lLAMA")
    await log_on.append([freed := a_draft(freed_by, guard=held.guard)])
    again = await look_up_name(log_on, "model", "llama")

    subject = free.guard.subject
    assert [free, held, again] == [
        NameState(Guard(subject, 0), None, None),
        NameState(Guard(subject, 1), "Llama", *as_stored([taken])),
        NameState(Guard(subject, 2), None, *as_stored([freed], first=2)),
    ]
    assert (await look_up_name(log_on, "backend", "Llama")).guard.subject != subject


@BOTH
async def test_a_name_stays_taken_whatever_else_is_stated_of_its_bearer(log_on: EventLog) -> None:
    await log_on.append([a_draft(created("a"))])
    await log_on.append([later := a_draft(scaled("a", 2))])

    assert await look_up_name(log_on, "model", "a") == NameState(
        Guard(facts_under("model", "a"), 2), "a", *as_stored([later], first=2)
    )


@BOTH
async def test_a_name_whose_last_fact_a_newer_program_stated_is_taken(log_on: EventLog) -> None:
    known = a_draft(created("a"))
    await log_on.append([replace(known, subject=known.subject.replace("ModelCreated", "ModelOfTomorrow"))])

    assert (await look_up_name(log_on, "model", "a")).bearer == "a"


# -- positions and subjects: the pure part ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10**15), st.integers(0, 10**18))
def test_a_position_is_read_as_it_was_written(generation: int, sequence: int) -> None:
    assert Position.parse(str(Position(generation, sequence))) == Position(generation, sequence)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=50), st.from_regex(r"[-+0-9 _٣²]{0,12}", fullmatch=True)))
@example("")
@example("-")
@example("1-")
@example("-1")
@example("1--1")
@example("1-+1")
@example("1-1_0")
@example("1-٣")
@example("²-1")
@example("1-1\n")
@example(f"1-{'9' * 5000}")
def test_what_is_no_position_is_a_value_error_and_nothing_else(text: str) -> None:
    if re.fullmatch(r"[0-9]+-[0-9]+", text) is not None and len(text) <= 40:
        position = Position.parse(text)
        assert (position.generation, position.sequence) == tuple(map(int, text.split("-")))
    else:
        with pytest.raises(ValueError, match="not a position in the log") as refused:
            Position.parse(text)
        assert len(str(refused.value)) < 1000


TOKENS = st.sampled_from(["a", "b", "ab", "-"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)
FILTERS = st.tuples(
    st.lists(st.one_of(TOKENS, st.just("*")), max_size=4), st.one_of(TOKENS, st.sampled_from(["*", ">"]))
).map(lambda parts: ".".join([*parts[0], parts[1]]))


@settings(deadline=None)
@given(SUBJECTS, FILTERS)
def test_a_subject_matches_as_the_regular_expression_for_its_wildcards_says(subject: str, subject_filter: str) -> None:
    pattern = re.escape(subject_filter).replace(r"\*", r"[^.]+").replace(">", r".+")

    assert subject_matches(subject, subject_filter) == (re.fullmatch(pattern, subject) is not None)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def subjects_on_the_server(shared: Stack) -> AsyncIterator[frozenset[str]]:
    """A stream of its own with a message on each subject of up to three tokens."""
    tokens = ("a", "b", "ab", "-")
    subjects = {"matching." + ".".join(some) for n in (1, 2, 3) for some in itertools.product(tokens, repeat=n)}
    await shared.operator.js_api(
        "STREAM.CREATE.MATCHING", {"name": "MATCHING", "subjects": ["matching.>"], "storage": "memory"}
    )
    await asyncio.gather(*(shared.operator.request(subject, b"", timeout_seconds=5) for subject in subjects))
    yield frozenset(subjects)
    await shared.operator.js_api("STREAM.DELETE.MATCHING")


@settings(max_examples=150, deadline=None)
@given(subject_filter=FILTERS.map(lambda f: f"matching.{f}"))
async def test_a_subject_matches_as_the_server_says(
    shared: Stack, subjects_on_the_server: frozenset[str], subject_filter: str
) -> None:
    info = await shared.operator.js_api("STREAM.INFO.MATCHING", {"subjects_filter": subject_filter})

    found = set(info["state"].get("subjects") or ())
    assert found == {subject for subject in subjects_on_the_server if subject_matches(subject, subject_filter)}


def test_an_event_that_is_no_envelope_can_be_read_as_bytes_but_not_as_an_envelope() -> None:
    stored = Stored(1, created("a").subject, b'{"id": "x"}')

    with pytest.raises(ValueError, match="validation errors for Envelope"):
        _ = stored.envelope
