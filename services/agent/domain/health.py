"""Whether an engine is well: it loads, answers, is slow, hangs, or will never be ready. Time arrives as an argument.

Before its first answer an engine loads as long as it makes progress, however long that takes; without any it is unhealthy, and
after `start_timeout` it is given up. After its first answer one that does not answer any more is dead, unless its processes
work or wait for a processor: then it is slow, for a while.

What it wrote, and read from disk, is always progress. Time on a processor is too (compiling is silent), but not for ever: threads
that spin while they wait for something that never comes use a processor as well.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from schemas.reasons import Reason, StartTimeout
from services.agent.domain.diagnosis import evidence
from services.agent.domain.runtime import Activity

Answer = Literal["well", "not_well", "refused", "late", "not_asked"]
"""To one probe. `late`: nothing came in time. `not_asked`: the agent itself was held up, which says nothing of the engine."""
Phase = Literal["loading", "healthy", "unhealthy"]

PROBE_SECONDS: Final = 1.0
"""Between two probes of an engine that answers."""
PROBE_TIMEOUT_SECONDS: Final = 0.75
PROBE_STARTING_SECONDS: Final = 0.05
"""While nobody listens, which costs an engine nothing."""
AGAIN_SECONDS: Final = 0.1
"""After a probe that was not answered in time."""
AGAIN_AFTER_A_NO_SECONDS: Final = 0.65
"""… and after one that was answered at once, with anything but 200."""
UNANSWERED_SECONDS: Final = 1.3
"""So long without an answer, from the beginning of the first such probe, and it is dead: two that are late, three that are refused."""
SLOW_SECONDS: Final = 60.0
"""So long it may be slow before it is dead all the same."""
LOOK_SECONDS: Final = 10.0
"""Between two looks at what one does that has not answered yet."""
WORKS_SHARE: Final = 0.05
"""Of one processor: less is what idle threads use."""
READ_BYTES: Final = 2**20
SILENT_WORK_SECONDS: Final = 1800.0
"""So long time on a processor is progress with nothing written or read: the longest silent compilations take less."""
TOKENLESS: Final = 3
"""So many requests for one token in a row come to nothing, and it is dead although its processes work."""


@dataclass(frozen=True, slots=True)
class Health:
    since: float
    """When it began to be watched."""
    start_timeout_seconds: float
    """Without progress, before its first answer."""
    phase: Phase = "loading"
    has_answered: bool = False
    missing_since: float | None = None
    """Beginning of the first of the probes in a row that were not answered."""
    misses: int = 0
    activity: Activity | None = None
    """As it was last looked at."""
    looked_at: float = 0.0
    moved_at: float = 0.0
    """When it last made progress, of any kind."""
    wrote_at: float = 0.0
    """When it last wrote or read."""
    progressed: bool = False
    """This look found progress: that is told."""
    gave_up: bool = False
    """It will not be ready."""
    tokenless: int = 0
    """Requests for one token in a row that came to nothing."""

    @property
    def is_slow(self) -> bool:
        return self.phase == "healthy" and self.misses > 0


def at_first(now: float, start_timeout_seconds: float, activity: Activity | None) -> Health:
    return Health(now, start_timeout_seconds, activity=activity, looked_at=now, moved_at=now, wrote_at=now)


def rest_seconds(health: Health, answer: Answer) -> float:
    """Until the next probe."""
    if health.misses:
        if health.phase == "unhealthy":
            return PROBE_SECONDS
        return AGAIN_SECONDS if answer == "late" else AGAIN_AFTER_A_NO_SECONDS
    if health.phase == "loading":
        return AGAIN_AFTER_A_NO_SECONDS if answer == "not_well" else PROBE_STARTING_SECONDS
    return PROBE_SECONDS


def needs_look(health: Health, answer: Answer, now: float) -> bool:
    """Is what the engine's processes do to be looked at, before this answer is judged?"""
    if answer in ("well", "not_asked"):
        return False
    if health.has_answered:
        return True
    is_over = not health.gave_up and now - health.moved_at >= health.start_timeout_seconds
    return is_over or now - health.looked_at >= min(LOOK_SECONDS, health.start_timeout_seconds / 4)


def after(health: Health, answer: Answer, activity: Activity | None, now: float, began_at: float) -> Health:
    """`activity`: where `needs_look`; None: nobody can tell. `began_at`: when the probe was sent."""
    health = replace(health, progressed=False)
    if answer == "not_asked":
        return health
    if answer == "well":
        tokenless = health.tokenless if health.phase == "healthy" else 0
        return replace(
            health, phase="healthy", has_answered=True, missing_since=None, misses=0, gave_up=False, tokenless=tokenless
        )
    if health.has_answered:
        return _without_an_answer(health, answer, activity, now, began_at)
    if needs_look(health, answer, now):
        return _loading(health, activity, now)
    return health


def after_inference(health: Health, answer: Answer, *, works: bool, makes_tokens: bool) -> Health:
    """After a request for one token. `works`: its processes did, meanwhile. `makes_tokens`: for others, says its own count.

    A long queue is no illness. One that neither makes tokens nor works is dead at once.
    """
    if answer == "well" or makes_tokens:
        return replace(health, tokenless=0)
    tokenless = health.tokenless + 1
    if tokenless < TOKENLESS and (works or answer != "late"):
        return replace(health, tokenless=tokenless)
    return replace(health, tokenless=tokenless, phase="unhealthy")


def worked(before: Activity | None, now: Activity | None, seconds: float) -> bool:
    return _wrote(before, now) or _worked(before, now, seconds)


@dataclass(frozen=True, slots=True)
class IllReport:
    """What is told of an engine that is unhealthy."""

    reasons: tuple[Reason, ...] = ()
    """None: it stopped answering, or loads without showing any progress yet."""
    log_tail: tuple[str, ...] = ()


def ill_report(health: Health, log_tail: tuple[str, ...]) -> IllReport:
    reasons = (StartTimeout(after_seconds=health.start_timeout_seconds),) if health.gave_up else ()
    return IllReport(reasons, evidence(log_tail))


def _without_an_answer(
    health: Health, answer: Answer, activity: Activity | None, now: float, began_at: float
) -> Health:
    first = health.missing_since is None
    since = began_at if health.missing_since is None else health.missing_since
    seen = replace(health, missing_since=since, misses=health.misses + 1, activity=activity, looked_at=now)
    if first or now - since < UNANSWERED_SECONDS:
        return replace(
            seen, activity=activity if first else health.activity, looked_at=now if first else health.looked_at
        )
    works = worked(health.activity, activity, now - health.looked_at)
    if answer == "late" and works and now - since < SLOW_SECONDS:
        return seen
    return replace(seen, phase="unhealthy")


def _loading(health: Health, activity: Activity | None, now: float) -> Health:
    seen = replace(health, activity=activity, looked_at=now)
    if _wrote(health.activity, activity):
        return replace(seen, phase="loading", moved_at=now, wrote_at=now, progressed=True, gave_up=False)
    worked = _worked(health.activity, activity, now - health.looked_at)
    if worked and now - health.wrote_at < SILENT_WORK_SECONDS:
        return replace(seen, phase="loading", moved_at=now, progressed=True, gave_up=False)
    return replace(seen, phase="unhealthy", gave_up=now - health.moved_at >= health.start_timeout_seconds)


def _wrote(before: Activity | None, now: Activity | None) -> bool:
    if before is None or now is None:
        return False
    return before.log_mark != now.log_mark or abs(now.read_bytes - before.read_bytes) >= READ_BYTES


def _worked(before: Activity | None, now: Activity | None, seconds: float) -> bool:
    """Sums over processes also fall, when one ends."""
    if before is None or now is None or seconds <= 0:
        return False
    return abs(now.busy_seconds - before.busy_seconds) >= WORKS_SHARE * seconds
