"""Who decides: one exact subject, whose last sequence guards every append of the scheduler (DESIGN: the log fences it)."""

from dataclasses import dataclass
from datetime import datetime

from kernel.clock import Clock
from kernel.errors import Conflict, Deposed
from kernel.log.port import Draft, EventLog, Guard
from kernel.log.seal import Cause, seal_fact
from schemas.facts.base import Fact
from schemas.facts.scheduler import SchedulerElected
from schemas.subjects import ELECTION


@dataclass(frozen=True, slots=True)
class Election:
    """The right to decide, until the next election."""

    sequence: int
    replica: str

    @property
    def guard(self) -> Guard:
        return Guard(ELECTION, self.sequence)


async def elect(log: EventLog, clock: Clock, replica: str) -> Election:
    """Become the one who decides. Raises Conflict when another was faster: try again, or stand by."""
    last = await log.last_sequence_of(ELECTION)
    draft = seal_fact(
        SchedulerElected(replica=replica),
        event_id=clock.new_id(),
        at=clock.now(),
        source=f"/muster/scheduler/{replica}",
        cause=Cause(actor=f"scheduler/{replica}"),
        guard=Guard(ELECTION, last),
    )
    (sequence,) = await log.append([draft])
    return Election(sequence, replica)


async def append_as_elected(
    log: EventLog, election: Election, clock: Clock, decided: list[tuple[Fact, Cause]], *, at: datetime | None = None
) -> tuple[list[Draft], tuple[int, ...]]:
    """Append the facts of one decision, all or none. Raises Deposed when another scheduler was elected meanwhile.

    `at`: when it was decided; now, if it isn't given.
    """
    at = at or clock.now()
    drafts = [
        seal_fact(
            fact,
            event_id=clock.new_id(),
            at=at,
            source=f"/muster/scheduler/{election.replica}",
            cause=cause,
            guard=election.guard,
        )
        for fact, cause in decided
    ]
    try:
        return drafts, await log.append(drafts)
    except Conflict as conflict:
        raise Deposed(f"election {election.sequence} of {election.replica} is over") from conflict
