"""A vendor whose tool is asked."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.agent.adapters.probes.probe import Probed
from services.agent.adapters.probes.tool import Lookup, ToolFailed, environment, run
from services.agent.domain.accelerators.answers import Answers
from services.agent.domain.accelerators.reading import BadOutput, GpuReading, Problem
from services.agent.domain.accelerators.vendors import Vendor

TIMEOUT_SECONDS: Final = 15.0
"""For one question. `amd-smi` on a machine that is busy takes several seconds."""
KEPT_SECONDS: Final = 3600.0
"""How long an answer counts that does not change while a machine runs: UUIDs, links, versions, addresses."""


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    arguments: tuple[str, ...] = ()
    kept: bool = False
    """Asked once an hour."""
    tool: str | None = None
    """Another program of the vendor."""


def _nothing(_readings: tuple[GpuReading, ...]) -> tuple[Question, ...]:
    return ()


class ToolProbe:
    """`follow_up`: what is asked about each GPU that was found; a question that fails there is missing in what is told, no more."""

    def __init__(
        self,
        vendor: Vendor,
        questions: Sequence[Question],
        parse: Callable[[Answers], tuple[GpuReading, ...]],
        *,
        follow_up: Callable[[tuple[GpuReading, ...]], tuple[Question, ...]] = _nothing,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.vendor = vendor
        self.questions = tuple(questions)
        self.parse = parse
        self._follow_up = follow_up
        self.timeout_seconds = timeout_seconds
        self._kept: dict[str, tuple[float, str | None]] = {}
        self._left: subprocess.Popen[bytes] | None = None

    def read(self, lookup: Lookup) -> Probed:
        if self._left is not None:
            if self._left.poll() is None:
                return Probed(
                    problems=(self._problem(self.vendor.tool, "it still hangs in the driver and can't be killed"),)
                )
            self._left = None
        answers: dict[str, str] = {}
        failures: list[tuple[Problem, bool]] = []
        cost = self._ask(self.questions, lookup, answers, failures)
        try:
            readings = self.parse(answers)
            if further := self._follow_up(readings):
                cost += self._ask(further, lookup, answers, failures)
                readings = self.parse(answers)
        except BadOutput as error:
            self._kept.clear()
            tried = self._command(self.questions[0])
            return Probed(
                problems=tuple(problem for problem, _ in failures[:1]) or (self._problem(tried, str(error)),),
                cpu_seconds=cost,
            )
        return Probed(readings, tuple(problem for problem, hung in failures if hung), cost)

    def close(self) -> None:
        """Nothing runs between two questions."""

    def _ask(
        self,
        questions: Sequence[Question],
        lookup: Lookup,
        answers: dict[str, str],
        failures: list[tuple[Problem, bool]],
    ) -> float:
        """What it cost. `failures` gets what failed, and whether it hung; after one that hung, nothing else is asked."""
        cost = 0.0
        for question in questions:
            at, kept = self._kept.get(question.name, (float("-inf"), None))
            if question.kept and time.monotonic() - at < KEPT_SECONDS:
                if kept is not None:
                    answers[question.name] = kept
                continue
            tool = question.tool or self.vendor.tool
            path = lookup(tool, self.vendor.homes)
            if path is None:
                places = ", ".join(("PATH", *self.vendor.homes))
                failures.append((self._problem(tool, f"not found in {places}"), False))
                continue
            answer: str | None = None
            try:
                ran = run(
                    (path, *question.arguments), timeout_seconds=self.timeout_seconds, env=environment(self.vendor)
                )
                answer = answers[question.name] = ran.stdout
                cost += ran.cpu_seconds
            except ToolFailed as failed:
                failures.append((self._problem(self._command(question), str(failed)), failed.hung))
                cost += failed.cpu_seconds
                self._left = failed.left
                if failed.hung:
                    break
            if question.kept:
                self._kept[question.name] = (time.monotonic(), answer)
        return cost

    def _command(self, question: Question) -> str:
        return " ".join((question.tool or self.vendor.tool, *question.arguments))

    def _problem(self, tried: str, said: str) -> Problem:
        return Problem(self.vendor.label, tried, said, self.vendor.install)
