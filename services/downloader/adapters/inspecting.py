"""Models are looked at in the sandbox: their headers are a stranger's. It reads a disk itself, and asks its parent for what
a hub holds.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from schemas.asks import ModelInspection
from schemas.reasons import InspectionFailed, ModelFileInvalid, Reason
from schemas.value import Value
from services.downloader.adapters.local_path import Disk
from services.downloader.adapters.remote_place import MOST_STEP, RemotePlace, is_path
from services.downloader.adapters.sandbox import Ask, Sandbox, SandboxLimit
from services.downloader.domain.inspection import Lies, inspect_together
from services.downloader.domain.listing import Listing, RemoteFile

Fetch = Callable[[str, int, int], Awaitable[bytes]]
"""Name in the repository, offset and length in bytes → exactly so many. Raises `OSError` when the hub fails."""

SECONDS: Final = 60.0
"""For all of a question, with the hub's answers."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    path: str
    """Absolute."""
    allowed_roots: tuple[Path, ...] = ()
    """As of `local_path.inspect_model`."""

    @property
    def called(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class InRepository:
    listing: Listing
    fetch: Fetch
    called: str
    """The repository, in reasons."""
    path: str = "."
    """In the repository: a directory, or a `.gguf` (the first of its shards)."""
    pickled: tuple[str, ...] = ()
    """Weights that an operator trusts although they are pickled."""


Where = OnDisk | InRepository


async def inspect_apart(
    sandbox: Sandbox,
    model: Where,
    adapters: Sequence[Where] = (),
    draft: Where | None = None,
    *,
    seconds: float = SECONDS,
) -> ModelInspection:
    """As `inspect_together`, whatever the headers do to who reads them."""
    all_of_it = (model, *adapters, *(() if draft is None else (draft,)))
    asked = _Asked(places=tuple(_told(where) for where in all_of_it), last_is_draft=draft is not None)

    async def answer(question: bytes) -> bytes:
        number, name, offset, length = _QUESTION.validate_json(question)
        where = all_of_it[number]
        if isinstance(where, OnDisk) or name not in where.listing.by_name or not 0 < length <= MOST_STEP:
            raise OSError(f"{name} is not to be had")
        return await where.fetch(name, offset, length)

    try:
        found = await sandbox.run_asking(inspect_here, asked.model_dump_json().encode(), answer, seconds)
        return ModelInspection.model_validate_json(found)
    except SandboxLimit as limit:
        return ModelInspection(reasons=(_reason(model.called, limit),))


def _reason(called: str, limit: SandboxLimit) -> Reason:
    if limit.again:
        return InspectionFailed(problem=f"{called}: {limit.problem}")
    return ModelFileInvalid(path=called, problem=f"it could not be looked at within bounds: {limit.problem}")


# What the child is told, and what it asks


class _Disk(Value):
    place: Literal["disk"] = "disk"
    path: str
    roots: tuple[str, ...]


class _Repository(Value):
    place: Literal["repository"] = "repository"
    path: str
    called: str
    commit: str
    files: tuple[tuple[str, int], ...]
    pickled: tuple[str, ...] = ()


class _Asked(Value):
    places: tuple[Annotated[_Disk | _Repository, Field(discriminator="place")], ...]
    """The model, its adapters and its draft."""
    last_is_draft: bool


_QUESTION: Final = TypeAdapter(tuple[int, str, int, int])
"""Number of the place, and the rest as of `Fetch`."""


def _told(where: Where) -> _Disk | _Repository:
    match where:
        case OnDisk():
            return _Disk(path=where.path, roots=tuple(map(str, where.allowed_roots)))
        case InRepository():
            files = tuple((file.name, file.size) for file in where.listing.files if is_path(file.name))
            return _Repository(
                path=where.path,
                called=where.called,
                commit=where.listing.commit,
                files=files,
                pickled=where.pickled,
            )


# In the child


def inspect_here(argument: bytes, ask: Ask) -> bytes:
    asked = _Asked.model_validate_json(argument)
    model, *others = [_lies(number, place, ask) for number, place in enumerate(asked.places)]
    draft = others.pop() if asked.last_is_draft else None
    return inspect_together(model, others, draft).model_dump_json().encode()


def _lies(number: int, told: _Disk | _Repository, ask: Ask) -> Lies:
    def read(name: str, offset: int, length: int) -> bytes:
        return ask(json.dumps([number, name, offset, length]).encode())

    match told:
        case _Disk():
            return Lies(PurePosixPath(told.path), Disk.under(tuple(map(Path, told.roots))))
        case _Repository():
            listing = Listing(told.commit, tuple(RemoteFile(name, size) for name, size in told.files))
            return Lies(PurePosixPath(told.path), RemotePlace(listing, read, called=told.called, pickled=told.pickled))
