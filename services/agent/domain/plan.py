"""From an assignment to what must be started and stopped. Pure and level-triggered: the same document twice changes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.assignment import Assigned, AssignedInstance
from services.agent.domain.runtime import EngineId


@dataclass(frozen=True, slots=True)
class Plan:
    accept: tuple[AssignedInstance, ...]
    """Seen for the first time."""
    start: tuple[AssignedInstance, ...]
    stop: tuple[EngineId, ...]
    forget: tuple[EngineId, ...]
    """Ended, and no longer assigned."""


def plan(
    document: Assigned, running: Iterable[EngineId], accepted: Iterable[EngineId], ended: Iterable[EngineId]
) -> Plan:
    """`running`: has a process; `accepted`: waits for its files; `ended`: exited by itself and is still assigned."""
    wanted = {EngineId(instance.instance_id, instance.attempt): instance for instance in document.instances}
    running, accepted, ended = set(running), set(accepted), set(ended)

    def in_order(engines: set[EngineId]) -> tuple[EngineId, ...]:
        return tuple(sorted(engines - wanted.keys(), key=lambda engine: (engine.instance_id, engine.attempt)))

    known = running | accepted | ended
    return Plan(
        accept=tuple(instance for engine, instance in wanted.items() if engine not in known),
        start=tuple(
            instance
            for engine, instance in wanted.items()
            if instance.want == "running" and engine not in running and engine not in ended
        ),
        stop=in_order(running),
        forget=in_order(accepted | ended),
    )


def worker_ports(text: str) -> range | None:
    """`40000-40063` as a range; None for `0`. Raises ValueError."""
    if text.strip() == "0":
        return None
    low, dash, high = text.partition("-")
    first, last = int(low), int(high if dash else low)
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text!r} is not a range of ports; one looks like 40000-40063")
    return range(first, last + 1)
