import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.downloader.adapters.http_ranges import CHUNK
from services.downloader.domain import blocks as module
from services.downloader.domain.blocks import (
    BLOCK,
    LARGE_FILE,
    LONGEST_SPAN,
    MIB,
    MISSING,
    SHORTEST_SPAN,
    SMALL_BLOCK,
    SYNCED,
    WORTH_DIVIDING,
    WRITTEN,
    Blocks,
    Span,
    block_bytes_of,
    span_bytes,
)

WORTH = 24
"""In place of WORTH_DIVIDING, so that small files are divided too."""


class Connections(RuleBasedStateMachine):
    """Several of them fetch one file, in any order; beside it a set of the bytes that were written since it was taken."""

    spans = Bundle[Span]("spans")

    @initialize(
        data=st.data(),
        block_bytes=st.integers(1, 8),
        size=st.integers(0, 120),
    )
    def begin(self, data: st.DataObject, block_bytes: int, size: int) -> None:
        count = -(-size // block_bytes)
        there = data.draw(st.lists(st.sampled_from([MISSING] * 4 + [WRITTEN, SYNCED]), min_size=count, max_size=count))
        self.was = bytes(there)
        self.blocks = Blocks(size, block_bytes, bytearray(there))
        self.written = {byte for byte in range(size) if there[byte // block_bytes]}
        self.held: list[Span] = []

    @rule(target=spans, most_bytes=st.sampled_from([1, 7, 20, 50, 120]))
    def take(self, most_bytes: int) -> Span:
        before = {id(span): (span.position, span.end) for span in self.held}
        free = self._missing() - self._held()
        span = self.blocks.take(most_bytes)
        if span is None:
            assert not free
            assert all(end - position < WORTH for position, end in before.values())
            return Span(0, 0, 0)
        assert span.left > 0
        assert span.position == span.start
        assert span.start % self.blocks.block_bytes == 0
        if free:
            assert span.start == min(free)
            assert span.end - span.start < most_bytes + self.blocks.block_bytes
            assert set(range(span.start, span.end)) <= free
        else:
            (divided,) = [each for each in self.held if each.end != before[id(each)][1]]
            position, end = before[id(divided)]
            assert end - position == max(end - position for position, end in before.values())
            assert (divided.position, divided.end, span.end) == (position, span.start, end)
            assert abs(divided.left - span.left) <= 2 * self.blocks.block_bytes
        self.held.append(span)
        return span

    @rule(span=spans, data=st.data())
    def fill(self, span: Span, data: st.DataObject) -> None:
        if span not in self.held or span.left == 0:
            return
        count = data.draw(st.integers(1, span.left))
        start = span.position
        missing = self._missing()
        first, last = self.blocks.fill(span, count)
        self.written |= set(range(start, start + count))
        assert {byte // self.blocks.block_bytes for byte in missing - self._missing()} <= set(range(first, last))

    @rule(span=consumes(spans))
    def give_back(self, span: Span) -> None:
        if span in self.held:
            self.blocks.give_back(span)
            self.held.remove(span)
            complete = self._complete()
            self.written = {byte for byte in self.written if byte // self.blocks.block_bytes in complete} | {
                byte for held in self.held for byte in range(held.start, held.position)
            }

    @rule()
    def sync(self) -> None:
        upto = bytes(self.blocks.there)
        self.blocks.synced(upto)
        assert bytes(self.blocks.there) == upto.replace(bytes([WRITTEN]), bytes([SYNCED]))

    @precondition(lambda self: hasattr(self, "blocks"))
    @invariant()
    def equals_what_was_written(self) -> None:
        blocks, complete = self.blocks, self._complete()
        assert {block for block, state in enumerate(blocks.there) if state} == complete
        assert blocks.missing_bytes == len(self._missing())
        assert blocks.contiguous == min(self._missing(), default=blocks.size)
        assert blocks.is_complete == (not self._missing())

    @precondition(lambda self: hasattr(self, "blocks"))
    @invariant()
    def nobody_fetches_what_somebody_else_does(self) -> None:
        ahead = [byte for span in self.held for byte in range(span.position, span.end)]
        assert len(ahead) == len(set(ahead))
        assert not set(ahead) & {byte for byte in self.written if byte // self.blocks.block_bytes in self._complete()}

    def teardown(self) -> None:
        """Whoever still has a span fills it, and new ones are taken until there are none: then the file is there."""
        if not hasattr(self, "blocks"):
            return
        held = [*self.held]
        while held or (span := self.blocks.take(50)) is not None:
            span = held.pop() if held else span  # pyright: ignore[reportPossiblyUnboundVariable, reportUnboundVariable]
            if span.left:
                self.blocks.fill(span, span.left)
            self.blocks.give_back(span)
        assert self.blocks.is_complete
        assert self.blocks.missing_bytes == 0
        assert all(now for now in self.blocks.there)
        assert all(now == SYNCED for now, was in zip(self.blocks.there, self.was, strict=True) if was == SYNCED)

    def _held(self) -> set[int]:
        return {byte for span in self.held for byte in range(span.start, span.end)}

    def _complete(self) -> set[int]:
        size, block_bytes = self.blocks.size, self.blocks.block_bytes
        return {
            block
            for block in range(self.blocks.count)
            if all(byte in self.written for byte in range(block * block_bytes, min((block + 1) * block_bytes, size)))
        }

    def _missing(self) -> set[int]:
        complete = self._complete()
        return {byte for byte in range(self.blocks.size) if byte // self.blocks.block_bytes not in complete}


def test_whatever_connections_take_fill_give_back_and_divide_no_byte_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_DIVIDING", WORTH)
    run_state_machine_as_test(Connections, settings=settings(max_examples=250, stateful_step_count=25, deadline=None))


def test_a_file_of_nothing_is_complete() -> None:
    blocks = Blocks(0, SMALL_BLOCK)
    assert (blocks.is_complete, blocks.contiguous, blocks.missing_bytes, blocks.take(1)) == (True, 0, 0, None)


def test_states_of_another_number_of_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 blocks, not 2"):
        Blocks(5, 2, bytearray(2))


def test_what_was_written_after_the_copy_is_not_on_the_disk() -> None:
    blocks = Blocks(4, 1)
    span = blocks.take(4)
    assert span is not None
    blocks.fill(span, 2)
    upto = bytes(blocks.there)
    blocks.fill(span, 1)
    blocks.synced(upto)
    assert bytes(blocks.there) == bytes([SYNCED, SYNCED, WRITTEN, MISSING])


def test_a_connection_that_has_a_chunk_in_its_hands_does_not_write_into_what_was_taken_from_it() -> None:
    """It is told of its new end only when it looks, and it may have received a chunk by then."""
    assert WORTH_DIVIDING // 2 - BLOCK >= 2 * CHUNK


@given(size=st.integers(0, 1 << 45), connections=st.integers(1, 64))
def test_a_span_is_neither_too_short_nor_too_long(size: int, connections: int) -> None:
    asked = span_bytes(size, connections)
    assert SHORTEST_SPAN <= asked <= LONGEST_SPAN
    if SHORTEST_SPAN < asked < LONGEST_SPAN:
        assert asked == size // (4 * connections)


def test_blocks_are_small_enough_for_the_file() -> None:
    assert block_bytes_of(20 * MIB) == SMALL_BLOCK
    assert block_bytes_of(LARGE_FILE - 1) == SMALL_BLOCK
    assert block_bytes_of(LARGE_FILE) == BLOCK
