"""What a fact does to rows, and many facts' changes as one document.

A projection says for each fact which rows it puts, patches or drops. Within a batch the changes of one row are merged,
so that a batch of any size leaves the same rows (a property test says so for 1, 7 and 1000).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson
from sqlalchemy import Table

from schemas.facts.base import Fact
from schemas.value import Instant

_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""In JSON. PostgreSQL has no NUL in text: a row that can't be written would stop the projection for ever."""

Key = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Put:
    """The whole row; replaces one with the same key."""

    table: str
    row: Row


@dataclass(frozen=True, slots=True)
class Patch:
    """Some columns of a row that is there; nothing happens when it is not."""

    table: str
    key: Key
    columns: Row


@dataclass(frozen=True, slots=True)
class Drop:
    table: str
    key: Key


@dataclass(frozen=True, slots=True)
class PutChildren:
    """All rows of a table that belong to one parent; they replace the former ones. None at all: an empty tuple."""

    table: str
    parent: Key
    """Values of the first columns of the primary key."""
    rows: tuple[Row, ...]


Change = Put | Patch | Drop | PutChildren


@dataclass(frozen=True, slots=True)
class Happened:
    """A fact with what a projection may know of its event."""

    fact: Fact
    sequence: int
    at: Instant
    iso: str = field(init=False)
    """`at` as text, made once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "iso", self.at.isoformat())


class Projection(Protocol):
    @property
    def version(self) -> int:
        """Raised by hand whenever the same facts would give other rows: the read models are then rebuilt."""
        ...

    @property
    def tables(self) -> tuple[Table, ...]: ...

    def changes(self, happened: Happened) -> Iterable[Change]: ...


@dataclass(slots=True)
class _TableChanges:
    table: Table
    puts: dict[Key, Row] = field(default_factory=dict[Key, Row])
    patches: dict[Key, Row] = field(default_factory=dict[Key, Row])
    drops: dict[Key, None] = field(default_factory=dict[Key, None])
    parents: dict[Key, tuple[Row, ...]] = field(default_factory=dict[Key, tuple[Row, ...]])


class Batch:
    """The merged changes of many facts."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self._tables = {table.name: _TableChanges(table) for table in tables}
        self._keys = {table.name: tuple(c.name for c in table.primary_key.columns) for table in tables}

    def add(self, change: Change) -> None:
        of = self._tables[change.table]
        match change:
            case Put(table=name, row=row):
                key = tuple(row[column] for column in self._keys[name])
                of.drops.pop(key, None)
                of.patches.pop(key, None)
                of.puts[key] = row
            case Patch(key=key, columns=columns):
                if key in of.puts:
                    of.puts[key] = of.puts[key] | columns
                elif key not in of.drops:
                    of.patches[key] = of.patches.get(key, {}) | columns
            case Drop(name, key):
                of.puts.pop(key, None)
                of.patches.pop(key, None)
                of.drops[key] = None
                for parent, rows in of.parents.items():
                    if key[: len(parent)] == parent:
                        of.parents[parent] = tuple(
                            row for row in rows if tuple(row[c] for c in self._keys[name]) != key
                        )
            case PutChildren(parent=parent, rows=rows):
                of.drops = {key: None for key in of.drops if key[: len(parent)] != parent}
                of.puts = {key: row for key, row in of.puts.items() if key[: len(parent)] != parent}
                of.patches = {key: row for key, row in of.patches.items() if key[: len(parent)] != parent}
                of.parents[parent] = rows

    def to_json(self) -> str:
        """For a read schema's `apply`: `{table: {step: [row, …]}}`, with the steps that there are (`functions.py`)."""
        document = {name: steps for name, of in self._tables.items() if (steps := _steps(of, self._keys[name]))}
        text = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
        if rb"\u0000" in text:
            text = _NUL.sub(rb"\1\\ufffd", text)
        return text.decode()


def _steps(of: _TableChanges, keys: tuple[str, ...]) -> dict[str, list[Row]]:
    steps: dict[str, list[Row]] = {}
    if of.parents:
        parent_keys = keys[: len(next(iter(of.parents)))]
        steps[f"parents{len(parent_keys)}"] = [dict(zip(parent_keys, key, strict=True)) for key in of.parents]
        if rows := [row for children in of.parents.values() for row in children]:
            steps["children"] = rows
    if of.drops:
        steps["drops"] = [dict(zip(keys, key, strict=True)) for key in of.drops]
    if of.puts:
        steps["puts"] = list(of.puts.values())
    if of.patches:
        steps["patches"] = [dict(zip(keys, key, strict=True)) | columns for key, columns in of.patches.items()]
    return steps
