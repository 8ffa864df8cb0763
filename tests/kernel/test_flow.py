"""The law of a relayed stream, on links that lose, double and reorder, with readers of any pace."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.flow import PART, WINDOW, Flow, StreamBroken
from kernel.relay import SILENCE_SECONDS, Channel
from schemas.relay import Frame, RelayBroken, Said, decode, encode, encode_total

STREAM = bytes(16)
WRITE, READ, DELIVER, ANSWER = "write", "read", "deliver", "answer"
STEPS = st.lists(st.sampled_from((WRITE, READ, DELIVER, ANSWER)), max_size=300)
SIZES = st.lists(st.integers(1, 3 * PART), min_size=1, max_size=40)


@dataclass
class Link:
    """A writer, a reader, and what is on its way between them. The content counts up, so that a gap shows."""

    writer: Flow = field(default_factory=Flow)
    reader: Flow = field(default_factory=Flow)
    there: deque[Said] = field(default_factory=deque[Said])
    back: deque[Said] = field(default_factory=deque[Said])
    waiting: deque[bytes] = field(default_factory=deque[bytes])
    received: bytearray = field(default_factory=bytearray)
    written: bytearray = field(default_factory=bytearray)

    def write(self, size: int) -> None:
        size = min(size, PART, self.writer.room)
        if size == 0:
            return
        content = bytes((len(self.written) + n) % 251 for n in range(size))
        self.written += content
        self.there.append(Said(Frame.DATA, STREAM, self.writer.says(size), content))

    def deliver(self) -> None:
        if self.there:
            said = self.there.popleft()
            self.reader.hears(said)
            self.waiting.append(said.content)

    def read(self) -> None:
        if self.waiting:
            part = self.waiting.popleft()
            self.received += part
            if (total := self.reader.takes(len(part))) is not None:
                self.back.append(Said(Frame.GRANT, STREAM, self.reader.says(), encode_total(total)))

    def answer(self) -> None:
        if self.back:
            self.writer.hears(self.back.popleft())

    def step(self, step: str, size: int) -> None:
        match step:
            case "write":
                self.write(size)
            case "read":
                self.read()
            case "deliver":
                self.deliver()
            case _:
                self.answer()

    def drain(self) -> None:
        while self.there or self.waiting or self.back:
            self.deliver()
            self.read()
            self.answer()


@given(SIZES, STEPS)
def test_all_arrives_in_order_and_never_more_than_a_window_waits(sizes: list[int], steps: list[str]) -> None:
    link = Link()
    for turn, step in enumerate(steps):
        link.step(step, sizes[turn % len(sizes)])
        assert link.reader.held <= WINDOW
        assert sum(map(len, link.waiting)) + sum(len(said.content) for said in link.there) <= WINDOW
    link.drain()
    assert link.received == link.written
    assert link.writer.room > WINDOW // 2, "who has read everything has granted more"


@given(SIZES, st.integers(0, 30), st.sampled_from(("lost", "doubled", "swapped")))
def test_a_frame_that_is_lost_doubled_or_out_of_turn_breaks_it_before_anything_wrong_is_read(
    sizes: list[int], position: int, fault: str
) -> None:
    link = Link()
    for size in sizes:
        link.write(size)
    link.there.append(Said(Frame.END, STREAM, link.writer.says()))
    frames = list(link.there)
    position %= len(frames) - 1  # the last one's loss is a silence
    match fault:
        case "lost":
            del frames[position]
        case "doubled":
            frames.insert(position, frames[position])
        case _:
            frames[position], frames[position + 1] = frames[position + 1], frames[position]
    link.there = deque(frames)
    with pytest.raises(StreamBroken) as broken:
        link.drain()
    assert broken.value.code == "frames_lost"
    assert link.written.startswith(link.received)


def test_a_reader_that_takes_nothing_stops_the_writer() -> None:
    link = Link()
    for _ in range(100):
        link.write(PART)
        link.deliver()
    assert (link.writer.room, link.reader.held) == (0, WINDOW)


def test_a_writer_that_sends_more_than_it_was_granted_is_cut_off() -> None:
    reader = Flow()
    for number in range(WINDOW // PART):
        reader.hears(Said(Frame.DATA, STREAM, number, bytes(PART)))
    with pytest.raises(StreamBroken) as broken:
        reader.hears(Said(Frame.DATA, STREAM, WINDOW // PART, b"x"))
    assert broken.value.code == "too_much"


def test_a_body_that_goes_on_after_its_end_is_cut_off() -> None:
    reader = Flow()
    reader.hears(Said(Frame.END, STREAM, 0))
    with pytest.raises(StreamBroken) as broken:
        reader.hears(Said(Frame.DATA, STREAM, 1, b"x"))
    assert broken.value.code == "too_much"


@given(st.sampled_from(Frame), st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_a_frame_travels_unchanged(kind: Frame, stream: bytes, number: int, content: bytes) -> None:
    said = Said(kind, stream, number, content)
    assert decode(encode(said)) == said


@given(st.binary(max_size=40))
def test_what_is_no_frame_is_a_value_error(message: bytes) -> None:
    try:
        decode(message)
    except ValueError:
        return
    assert len(message) >= 25


# -- channels -----------------------------------------------------------------------------------------------------------


def a_pair() -> tuple[Channel, Channel]:
    """Two ends; what one says the other has heard."""
    ends: list[Channel] = []

    async def to_the_second(frame: bytes) -> None:
        ends[1].hear(decode(frame))

    async def to_the_first(frame: bytes) -> None:
        ends[0].hear(decode(frame))

    ends += [Channel(STREAM, to_the_second), Channel(STREAM, to_the_first)]
    return ends[0], ends[1]


async def test_a_writer_waits_for_a_slow_reader_and_all_of_it_arrives() -> None:
    writer, reader = a_pair()
    body = bytes(range(256)) * (5 * WINDOW // 256)

    async def write() -> None:
        await writer.send(body)
        await writer.say(Frame.END)

    writing = asyncio.create_task(write())
    received = bytearray()
    async for part in reader.parts():
        assert reader.held_bytes <= WINDOW
        received += part
        await asyncio.sleep(0)
    await writing
    assert received == body


async def test_what_came_before_it_broke_is_read_and_then_it_raises() -> None:
    writer, reader = a_pair()
    await writer.send(b"first")
    await writer.leave("engine_broke", "it exited")
    parts = reader.parts()
    assert await anext(parts) == b"first"
    with pytest.raises(StreamBroken, match="it exited") as broken:
        await anext(parts)
    assert broken.value.code == "engine_broke"
    with pytest.raises(StreamBroken):
        await reader.say(Frame.HEAD)


async def test_who_waits_for_room_is_told_that_the_reader_has_left() -> None:
    writer, reader = a_pair()
    writing = asyncio.create_task(writer.send(bytes(2 * WINDOW)))
    await asyncio.sleep(0)
    await reader.leave("left")
    with pytest.raises(StreamBroken) as broken:
        await writing
    assert broken.value.code == "left"


async def test_an_end_that_says_nothing_is_given_up() -> None:
    said: list[Said] = []

    async def publish(frame: bytes) -> None:
        said.append(decode(frame))

    channel = Channel(STREAM, publish)
    begun = asyncio.get_running_loop().time()
    await channel.beat(begun + SILENCE_SECONDS / 2)
    assert [(each.kind, channel.is_broken) for each in said] == [(Frame.BEAT, False)]
    await channel.beat(begun + SILENCE_SECONDS + 60)
    assert RelayBroken.model_validate_json(said[-1].content).code == "silent"
    with pytest.raises(StreamBroken):
        await channel.head()


@pytest.mark.parametrize("said", [Said(Frame.GRANT, STREAM, 0, b"x"), Said(Frame.BROKEN, STREAM, 0, b"{")], ids=str)
async def test_a_frame_that_can_not_be_read_breaks_it(said: Said) -> None:
    channel, _ = a_pair()
    channel.hear(said)
    with pytest.raises(StreamBroken) as broken:
        await channel.head()
    assert broken.value.code == "frames_lost"
