"""The forms in which people write flags: `--a=b`, `--a b` in one string or two, `-c 4096`, `--a_b` for `--a-b`."""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final, Literal

_FLAG: Final = re.compile(r"--?[A-Za-z][\w.-]*")
"""A negative number (`-1`) is a value, and so is a lone dash."""
_ONE_STRING: Final = re.compile(rf"({_FLAG.pattern})\s+(.+)", re.DOTALL)
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")


def find(parameters: Sequence[str], names: Collection[str]) -> str | None:
    """The value of the last flag with one of these names (`("--ctx-size", "-c")`).

    `""` when the flag is given without a value, None when it isn't given.
    """
    wanted = {_plain(name) for name in names}
    found = None
    for name, value in _pairs(split(parameters)):
        if name in wanted:
            found = value
    return found


def names_in(parameters: Sequence[str]) -> frozenset[str]:
    """Of every flag that is given, as it is usually written: `--a-b` for `--a_b=c`, `--no-a-b` and `--a-b.c` alike."""
    found: set[str] = set()
    for name, _ in _pairs(split(parameters)):
        whole = name.partition(".")[0]
        found |= {name, whole, whole.replace("--no-", "--", 1) if whole.startswith("--no-") else whole}
    return frozenset(found)


def without(parameters: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """The parameters without the flags of these names and their values; all others stay as they were written."""
    wanted = {_plain(name) for name in names}
    kept: list[str] = []
    value_follows = False
    for parameter in parameters:
        match = _ONE_STRING.fullmatch(parameter)
        name, equals, _ = (match[1] if match else parameter).partition("=")
        is_flag = _FLAG.fullmatch(name) is not None
        if value_follows and not is_flag:
            value_follows = False
            continue
        value_follows = False
        if is_flag and _plain(name) in wanted:
            value_follows = not equals and match is None
            continue
        kept.append(parameter)
    return tuple(kept)


def formatted(parameters: Sequence[str], style: Literal["space", "equal"] | None) -> tuple[str, ...]:
    """Each flag and its value in the form that an engine reads: `--a b`, or `--a=b`; None: as they are written."""
    words = split(parameters)
    if style is None:
        return words
    found: list[str] = []
    for here, before in zip(words, ("", *words), strict=False):
        name, equals, value = here.partition("=")
        is_value = not _FLAG.fullmatch(name) and _FLAG.fullmatch(before) is not None
        if style == "space" and equals and _FLAG.fullmatch(name):
            found += (name, value)
        elif style == "equal" and is_value and found[-1] == before:
            found[-1] = f"{before}={here}"
        else:
            found.append(here)
    return tuple(found)


def whole_number(text: str) -> int | None:
    """A count as engines read it: `8`, not `8.0`, and nothing that no machine could hold."""
    return int(text) if _WHOLE.fullmatch(text.strip()) else None


def split(parameters: Sequence[str]) -> tuple[str, ...]:
    """`"--a b c"` in one string becomes the flag and one value, `"--a"` and `"b c"`; everything else stays as it is."""
    arguments: list[str] = []
    for parameter in parameters:
        match = _ONE_STRING.fullmatch(parameter)
        arguments.extend(match.groups() if match else (parameter,))
    return tuple(arguments)


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for here, following in pairwise((*arguments, "")):
        name, equals, value = here.partition("=")
        if not _FLAG.fullmatch(name):
            continue
        if equals:
            yield _plain(name), value
        else:
            yield _plain(name), "" if _FLAG.fullmatch(following.partition("=")[0]) else following


def _plain(name: str) -> str:
    return name.replace("_", "-")
