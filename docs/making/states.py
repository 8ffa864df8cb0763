"""docs/reference/states.md: states as REST shows them, and how an instance moves between them."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Final

from docs.making.examples import example
from docs.making.lives import POLICY, Change, all_lives
from docs.making.words import GENERATED, table
from kernel.projections.changes import Happened, Patch, Put
from schemas.facts import FACTS
from schemas.facts.base import Fact
from services.api.projections.fleet import FleetProjection
from services.scheduler.domain.deadlines import seconds_in
from services.scheduler.domain.instance import Failed, Instance, Stopping

RESOURCES: Final = {"models": "Models", "workers": "Workers", "files": "Model files"}
FACT_ORDER: Final = {fact.type: position for position, fact in enumerate(FACTS)}
STATES: Final = ("pending", "scheduled", "downloading", "starting", "running", "error", "unreachable", "stopping")


def page() -> str:
    changes, seen = tried_out()
    names = rest_names(changes)
    return "\n".join(_lines(changes, seen, names))


@cache
def tried_out() -> tuple[frozenset[Change], dict[str, Instance]]:
    changes: set[Change] = set()
    seen: dict[str, Instance] = {}
    for world in all_lives():
        changes |= world.changes
        for kind, instance in world.seen.items():
            seen.setdefault(kind, instance)
    return frozenset(changes), seen


@cache
def stated() -> dict[tuple[str, str], str]:
    """(read model, fact) → the state that REST shows from then on; asked of the real projection."""
    found: dict[tuple[str, str], str] = {}
    for fact in FACTS:
        for change in FleetProjection().changes(Happened(example(fact), 1, datetime(2026, 1, 1, tzinfo=UTC))):
            match change:
                case Put(name, row) if "state" in row:
                    found[name, fact.type] = row["state"]
                case Patch(name, _, columns) if "state" in columns:
                    found[name, fact.type] = columns["state"]
                case _:
                    pass
    return found


def rest_names(changes: Iterable[Change]) -> dict[str, str]:
    """What the decider calls a state → what REST calls it."""
    names: dict[str, str] = {}
    for change in changes:
        state = stated().get(("instances", change.fact.type))
        if change.after is not None and state is not None and names.setdefault(change.after, state) != state:
            raise AssertionError(f"REST says {state} after {change.fact.type}, and {names[change.after]} elsewhere")
    return names


def moves(changes: Iterable[Change], names: dict[str, str]) -> list[tuple[str, str, list[str]]]:
    """From, to, and the facts that lead there; `[*]` is not there yet, or no more."""
    found: dict[tuple[str, str], list[type[Fact]]] = {}
    for change in changes:
        if change.before != change.after:
            edge = names[change.before] if change.before else "[*]", names[change.after] if change.after else "[*]"
            found.setdefault(edge, []).append(change.fact)
    order = {state: position for position, state in enumerate(("[*]", *STATES))}
    return [
        (*edge, sorted((fact.type for fact in facts), key=FACT_ORDER.__getitem__))
        for edge, facts in sorted(found.items(), key=lambda item: tuple(order[state] for state in item[0]))
    ]


def _lines(changes: frozenset[Change], seen: dict[str, Instance], names: dict[str, str]) -> Iterator[str]:
    yield GENERATED
    yield from (
        "# States",
        "",
        "As REST shows them (`state`), and the facts that lead there. What each fact carries: [events.md](events.md).",
        "",
        "## Instances",
        "",
        "Found by trying out the real decider (`services/scheduler/domain/core.py`) and fold (`fleet.py` beside it).",
        "",
        "```mermaid",
        "stateDiagram-v2",
    )
    for before, after, facts in moves(changes, names):
        yield f"    {before} --> {after}: {', '.join(facts)}"
    yield from ("```", "")
    kinds = {rest: kind for kind, rest in names.items()}
    yield from table(
        ("State", "May last, without progress", "Facts that end it"),
        ((f"`{state}`", _lasts(seen[kinds[state]]), _ends(state, changes, names)) for state in STATES),
    )
    yield from (
        "What happens when the time is over is stated too (`DeadlinePassed`). The times are settings and defaults:",
        "`services/scheduler/domain/policy.py`, `start_timeout_seconds` of the model.",
        "",
    )
    for resource, title in RESOURCES.items():
        yield from (f"## {title}", "")
        yield from table(("State", "After"), _states_of(resource))


def _lasts(instance: Instance) -> str:
    if isinstance(instance.state, Failed):
        base, most = POLICY.restart_base_seconds, POLICY.restart_most_seconds
        return f"until the next start: {base:g} s after a crash, doubled by each in a row, at most {most:g} s"
    if isinstance(instance.state, Stopping):
        drain, repeat = POLICY.drain_seconds, POLICY.stop_repeat_seconds
        return f"{repeat:g} s, then it is told again; before that at most {drain:g} s for the requests that it has"
    seconds = seconds_in(instance, POLICY)
    return "as long as it likes" if seconds is None else f"{seconds:g} s"


def _ends(state: str, changes: Iterable[Change], names: dict[str, str]) -> str:
    facts = {fact for before, after, facts in moves(changes, names) if before == state != after for fact in facts}
    return ", ".join(f"[{fact}](events.md#{fact.lower()})" for fact in sorted(facts, key=FACT_ORDER.__getitem__))


def _states_of(resource: str) -> Iterator[tuple[str, str]]:
    leading: dict[str, list[str]] = {}
    for (where, fact), state in stated().items():
        if where == resource:
            leading.setdefault(state, []).append(f"[{fact}](events.md#{fact.lower()})")
    for state, facts in leading.items():
        yield f"`{state}`", ", ".join(facts)
