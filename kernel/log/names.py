"""A name is an aggregate: whoever appends under it with its last sequence has it (DESIGN: the log)."""

from dataclasses import dataclass

from kernel.log.port import EventLog, Guard, Stored
from schemas.facts import BY_TYPE
from schemas.subjects import facts_under, parse_fact_subject


@dataclass(frozen=True, slots=True)
class NameState:
    guard: Guard
    """What a taker, or who moves here, must append with."""
    bearer: str | None
    """The resource that has the name; None when it is free."""
    last: Stored | None
    """The last fact under the name, also when it is free again."""


async def look_up_name(log: EventLog, kind: str, name: str) -> NameState:
    """Who of this kind has this name now."""
    subject = facts_under(kind, name)
    last = await log.last(subject)
    if last is None:
        return NameState(Guard(subject, 0), None, None)
    where = parse_fact_subject(last.subject)
    known = BY_TYPE.get(where.type)
    is_free = known is not None and known.frees_name
    return NameState(Guard(subject, last.sequence), None if is_free else where.id, last)
