"""A name is an aggregate: whoever appends to it with its last sequence has it (DESIGN: the log)."""

from dataclasses import dataclass

from kernel.log.port import EventLog, Guard
from schemas.facts import NameFreed, NameTaken, read
from schemas.facts.names import name_hash
from schemas.subjects import name_taken


@dataclass(frozen=True, slots=True)
class NameState:
    guard: Guard
    bearer: str | None
    """The resource that has the name; None when it is free."""
    command_id: str | None
    """The command that took it."""


async def look_up_name(log: EventLog, of: str, name: str) -> NameState:
    """Who has this name now, and the guard that a taker or freer must append with."""
    subject = name_taken(of, name_hash(name))
    last = await log.last(subject)
    if last is None:
        return NameState(Guard(subject, 0), None, None)
    envelope = last.envelope
    fact = read(envelope)
    guard = Guard(subject, last.sequence)
    match fact:
        case NameTaken(bearer=bearer):
            return NameState(guard, bearer, envelope.commandid)
        case NameFreed():
            return NameState(guard, None, None)
        case _:
            raise AssertionError(f"{fact.type} on the subject of a name")
