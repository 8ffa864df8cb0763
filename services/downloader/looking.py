"""What models weigh: answered from the headers of their files, wherever they lie, before anything is fetched."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from schemas.asks import InspectModel, ModelInspection
from schemas.models import ModelWeights, Pinned
from schemas.reasons import (
    FilesAmbiguous,
    ModelFileInvalid,
    ModelFilesIncomplete,
    NoFileMatches,
    Reason,
    RemoteCodeNotAllowed,
    RevisionChanged,
    UnsafeFormat,
    WeightsUnknown,
)
from schemas.sources import HubSource, LocalPath, Source
from services.downloader.adapters.http_ranges import Interrupted, Ranges
from services.downloader.adapters.hub import Hub, HubRefused
from services.downloader.adapters.inspecting import InRepository, OnDisk, Where, inspect_apart
from services.downloader.adapters.sandbox import Sandbox
from services.downloader.domain import selection
from services.downloader.domain.answers import Asked, NoRanges, NotFetched
from services.downloader.domain.blocks import MIB
from services.downloader.domain.listing import Listing, RemoteFile
from services.downloader.domain.selection import Selection, select, select_pickled
from services.downloader.threads import in_thread

LISTED_FOR_SECONDS: Final = 30.0
"""A listing is not asked for again within: who looks at a model fetches it next."""
MOST_KEPT: Final = 32
WHOLE_BYTES: Final = 32 * MIB
"""Of a file of which the hub sends no parts, so much is fetched to look at a part."""
MOST_WHOLE_BYTES: Final = 2 * WHOLE_BYTES
"""… and so much of all of them is kept."""
IDLE_SECONDS: Final = 15.0
TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Found:
    """Of a repository, what was asked for."""

    listing: Listing
    selection: Selection

    @property
    def size(self) -> int:
        return sum(file.size for file in self.selection.files)


class Looking:
    def __init__(
        self, hubs: Mapping[str, Hub], sandbox: Sandbox, roots: tuple[Path, ...], trusted: frozenset[str]
    ) -> None:
        self._hubs = hubs
        self._sandbox = sandbox
        self._roots = roots
        self._trusted = trusted
        self._listed: dict[tuple[Source, str | None], tuple[float, Listing]] = {}

    async def find(self, source: HubSource, commit: str | None = None) -> Found:
        """What of the repository is to be fetched, as of the commit, or of what its revision names now. Raises HubRefused."""
        listing = await self._list(source, commit)
        if commit is not None and listing.commit != commit:
            raise HubRefused(RevisionChanged(path=source.repo_id, expected=commit, actual=listing.commit))
        try:
            return Found(listing, self._select(listing, source))
        except selection.Unselectable as problem:
            raise HubRefused(_reason(source, problem)) from problem

    def _select(self, listing: Listing, source: HubSource) -> Selection:
        """Raises an `Unselectable`."""
        try:
            return select(listing, source.filename)
        except selection.UnsafeFormat:
            if source.filename is not None or f"{source.repo_id}@{listing.commit}" not in self._trusted:
                raise
            return select_pickled(listing)

    async def inspect(self, question: InspectModel) -> ModelInspection:
        with _Reading(self._hubs) as reading:
            try:
                model, *adapters = [
                    await self._where(source, reading) for source in (question.source, *question.adapters)
                ]
                draft = None if question.draft is None else await self._where(question.draft, reading)
            except HubRefused as refused:
                return ModelInspection(reasons=refused.reasons)
            answer = await inspect_apart(self._sandbox, model, adapters, draft)
            if answer.weights is None:
                return answer if reading.failure is None else ModelInspection(reasons=(reading.failure,))
        if (refused := self._code(question.source, reading, answer.weights)) is not None:
            return ModelInspection(reasons=(refused,))
        pinned = tuple(reading.pinned)
        return ModelInspection(weights=answer.weights.model_copy(update={"pinned": pinned}))

    def _code(self, source: Source, reading: "_Reading", weights: ModelWeights) -> Reason | None:
        """A model that brings programs of its own, which an engine would run."""
        if isinstance(source, LocalPath) or not weights.remote_code:
            return None
        commit = next(each.commit for each in reading.pinned if each.source == source)
        if f"{source.repo_id}@{commit}" in self._trusted:
            return None
        return RemoteCodeNotAllowed(repository=source.repo_id, commit=commit)

    async def _where(self, source: Source, reading: "_Reading") -> Where:
        """Raises HubRefused."""
        if isinstance(source, LocalPath):
            return OnDisk(source.path, self._roots)
        found = await self.find(source)
        reading.pinned.append(Pinned(source=source, commit=found.listing.commit, bytes=found.size))
        chosen = Listing(found.listing.commit, found.selection.files)
        path = found.selection.model or found.selection.directory or "."

        async def fetch(name: str, offset: int, length: int) -> bytes:
            return await reading.fetch(source, chosen, chosen.by_name[name], offset, length)

        pickled = found.selection.weights if found.selection.format == "pickle" else ()
        return InRepository(chosen, fetch, source.repo_id, path, pickled)

    async def _list(self, source: HubSource, commit: str | None) -> Listing:
        """Raises HubRefused."""
        now = time.monotonic()
        key = (source.model_copy(update={"filename": None}), commit)
        known = self._listed.get(key)
        if known is not None and now - known[0] < LISTED_FOR_SECONDS:
            return known[1]
        listing = await self._hubs[source.type].list(source, commit)
        while len(self._listed) >= MOST_KEPT:
            self._listed.pop(next(iter(self._listed)))
        self._listed[key] = (now, listing)
        self._listed[key[0], listing.commit] = (now, listing)
        return listing


class _Reading:
    """Of one question: its connections, and what went wrong."""

    def __init__(self, hubs: Mapping[str, Hub]) -> None:
        self._hubs = hubs
        self._ranges = Ranges(IDLE_SECONDS)
        self._pool = ThreadPoolExecutor(1, "looking")
        self._whole: dict[str, bytes] = {}
        self.pinned: list[Pinned] = []
        self.failure: Reason | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False)  # nobody is in there any more
        self._ranges.close()

    async def fetch(self, source: HubSource, listing: Listing, file: RemoteFile, offset: int, length: int) -> bytes:
        """Raises OSError."""
        try:
            return await in_thread(
                self._fetch, source, listing, file, offset, length, stop=self._ranges.interrupt, pool=self._pool
            )
        except NotFetched as refused:
            self.failure = refused.reason
            raise OSError(refused.reason.sentence()) from refused
        except Interrupted as interrupted:
            raise OSError(str(interrupted)) from interrupted

    def _fetch(self, source: HubSource, listing: Listing, file: RemoteFile, offset: int, length: int) -> bytes:
        key = f"{source.label}/{file.name}"
        if (whole := self._whole.get(key)) is not None:
            return whole[offset : offset + length]
        at = self._hubs[source.type].location(source, listing.commit, file.name)
        for number in range(TRIES):
            asked = Asked(file, source.repo_id, listing.commit, offset, min(offset + length, file.size))
            try:
                return self._ranges.read(at, asked)
            except NoRanges:
                if file.size > WHOLE_BYTES:
                    raise OSError(f"{file.name} is sent as a whole only, and has {file.size} bytes") from None
                asked = Asked(file, source.repo_id, listing.commit, 0, file.size)
                if sum(map(len, self._whole.values())) + file.size > MOST_WHOLE_BYTES:
                    self._whole.clear()
                self._whole[key] = self._ranges.read(at, asked)
                return self._whole[key][offset : offset + length]
            except (Interrupted, NotFetched) as failed:
                final = isinstance(failed, NotFetched) and failed.way != "again"
                if final or number + 1 == TRIES:
                    raise
                time.sleep(0.3 * (number + 1))
        raise AssertionError


def _reason(source: HubSource, problem: selection.Unselectable) -> Reason:
    repository = source.repo_id
    match problem:
        case selection.NothingMatches(pattern=pattern, available=available):
            return NoFileMatches(repository=repository, pattern=pattern, available=available)
        case selection.Ambiguous(models=models):
            return FilesAmbiguous(repository=repository, models=models)
        case selection.UnsafeFormat(formats=formats):
            return UnsafeFormat(repository=repository, formats=formats)
        case selection.ShardsMissing(names=missing):
            return ModelFilesIncomplete(path=repository, missing=missing[:32])
        case selection.NoWeights():
            return WeightsUnknown(path=repository)
        case _:
            return ModelFileInvalid(path=repository, problem=str(problem))
