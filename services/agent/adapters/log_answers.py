"""Answers to questions about engines' logs. A reader that follows asks again and again: nothing is kept of it in between."""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from schemas.asks import LogLines, TailLog
from services.agent.domain.runtime import ContainerRuntime, EngineId, LogPart

READERS: Final = 64
"""Questions that may wait at one time."""
ANSWER_BYTES: Final = 400_000
"""Of lines in one answer: as JSON they take at most twice as much, and a message at most 1 MB."""
LOOK_SECONDS: Final = 0.2
"""Between two looks at a log that somebody waits for."""


class LogAnswers:
    def __init__(self, runtime: ContainerRuntime, lives: Callable[[EngineId], bool]) -> None:
        """`lives`: this engine runs, or is about to."""
        self._runtime = runtime
        self._lives = lives

    async def answer(self, question: TailLog, known: Collection[int]) -> LogLines:
        """`known`: attempts of this instance that the agent takes care of."""
        kept = await self._runtime.kept_logs(question.instance_id)
        attempt = question.attempt or max((*known, *kept), default=0)
        if attempt not in known and attempt not in kept:
            return LogLines(found=False)
        engine = EngineId(question.instance_id, attempt)
        if question.follow:
            return await self._follow(engine, question)
        lines = await self._runtime.log_tail(engine, question.lines)
        return LogLines(found=True, attempt=attempt, lines=_newest(lines))

    async def _follow(self, engine: EngineId, question: TailLog) -> LogLines:
        ends = asyncio.get_running_loop().time() + question.wait_seconds
        while True:
            lives = self._lives(engine)  # looked at before its last lines are
            part = await self._runtime.log_part(engine, question.lines, question.after)
            part = part or LogPart((), question.after or "")  # it has written nothing yet
            if part.lines or not lives or asyncio.get_running_loop().time() >= ends:
                return LogLines(
                    found=True,
                    attempt=engine.attempt,
                    lines=part.lines,
                    after=part.after,
                    skipped=part.skipped,
                    ended=not lives and not part.lines,
                )
            await asyncio.sleep(LOOK_SECONDS)


def _newest(lines: tuple[str, ...]) -> tuple[str, ...]:
    """As many of the last ones as a message has room for."""
    room, kept = ANSWER_BYTES, 0
    for line in reversed(lines):
        room -= len(line.encode())
        if room < 0:
            break
        kept += 1
    return lines[len(lines) - kept :]
