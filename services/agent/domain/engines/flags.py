"""Which of our flags an engine is given: those that the user did not give, in whatever spelling."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.parameters import names_in, split


@dataclass(frozen=True, slots=True)
class Flag:
    """One that we would pass. Each value is one argument, whatever it contains."""

    names: tuple[str, ...]
    """The first is the one that we pass; the others say the same, or exclude it."""
    values: tuple[str, ...] = ()


def flag(names: str | tuple[str, ...], *values: object) -> Flag:
    return Flag((names,) if isinstance(names, str) else names, tuple(str(value) for value in values))


def arguments(ours: Iterable[Flag], parameters: Sequence[str]) -> tuple[str, ...]:
    """Ours without those that the user gave, then the user's as they gave them: the last word is theirs."""
    given = names_in(parameters)
    argv: list[str] = []
    for each in ours:
        if given.isdisjoint(each.names):
            argv += (each.names[0], *each.values)
    return (*argv, *split(parameters))
