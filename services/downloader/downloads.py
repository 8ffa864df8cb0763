"""Makes the files of a worker what its assignment says: fetched, verified, kept, removed. One task for each file resource.

What is there already is never fetched twice: not after a restart, not for a second instance, not when a neighbour has it.
"""

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from kernel.bus import Bus
from kernel.errors import Unavailable
from kernel.pace import Pace
from schemas.asks import AskShare, InspectModel, ModelInspection, ReadShared, Shared, SharedFile
from schemas.assignment import AssignedFile, Neighbour
from schemas.ids import FileId, WorkerId
from schemas.reasons import DownloadStalled, Reason
from schemas.reports import FilePhase, FileProgress, FileSeen, PartInFlight
from schemas.sources import HubSource, LocalPath
from schemas.subjects import ask
from services.downloader.adapters.fetching import Fetch, Patience, Stalled, Stopped, disk_trouble
from services.downloader.adapters.http_ranges import Location, Ranges, Rate
from services.downloader.adapters.hub import Hub, HubRefused
from services.downloader.adapters.neighbour import BusLine, location_at, reachable
from services.downloader.adapters.parts import Expected, Part
from services.downloader.adapters.store import Home, Lease, Store, home_parts
from services.downloader.domain.answers import NotFetched
from services.downloader.domain.blocks import MIB
from services.downloader.domain.manifest import Manifest, ManifestFile, key_of
from services.downloader.domain.names import TooManyFiles, UnsafeName, check_names
from services.downloader.domain.space import Removable, missing_bytes, refusal, to_remove
from services.downloader.looking import Looking
from services.downloader.settings import DownloaderSettings
from services.downloader.turns import Turns

log = logging.getLogger(__name__)

TRIES: Final = 3
"""Times that something else than the file is taken for a mistake."""
WAIT_SECONDS: Final = (1.0, 3.0)
"""Before the next of them."""
SMALL_BYTES: Final = MIB
SMALL_AT_ONCE: Final = 4
"""Smaller files are fetched side by side: each takes a round trip, and hardly more."""
SHARED_STORE_SECONDS: Final = 2.0
"""Between two looks at a store that somebody else fetches into: a file system tells nobody what has changed."""
LEASE_SECONDS: Final = 20.0
NEIGHBOUR_SECONDS: Final = 15.0
"""A neighbour answers within, also when it has nothing new to say."""
ENDED: Final[tuple[FilePhase, ...]] = ("ready", "failed", "deleted")


class Failed(Exception):
    def __init__(self, *reasons: Reason) -> None:
        super().__init__("; ".join(reason.sentence() for reason in reasons))
        self.reasons = reasons


class NotThere(Exception):
    """The neighbour has it not, or not any more, or can't be reached."""


@dataclass(eq=False, slots=True)
class Job:
    """One file resource."""

    file: AssignedFile
    seen: FileSeen
    pace: Pace = field(default_factory=Pace)
    manifest: Manifest | None = None
    parts: dict[str, Part] = field(default_factory=dict[str, Part])
    """On their way just now."""
    unallocated: int = 0
    """Bytes that it was promised and has not taken of the disk yet."""
    origin: str | None = None
    task: asyncio.Task[None] | None = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its manifest is written."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever one more file of it is there, or it has ended."""

    def told(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def known(self) -> Manifest:
        """Once it has been listed."""
        if self.manifest is None:
            raise RuntimeError(f"{self.file.file_id} was not listed yet")
        return self.manifest

    @property
    def done_bytes(self) -> int:
        if self.manifest is None:
            return self.seen.bytes
        there = sum(file.size for file in self.manifest.files if file.is_verified)
        on_their_way = [part.expected.size - part.missing_bytes for part in list(self.parts.values())]
        return min(there + sum(on_their_way), self.manifest.size)

    def progress(self, at: float) -> FileProgress:
        done = self.done_bytes
        total = self.manifest.size if self.manifest is not None else self.file.bytes
        self.pace.counted(done, at)
        rate = self.pace.bytes_per_second
        files = self.manifest.files if self.manifest is not None else ()
        return FileProgress(
            file_id=self.file.file_id,
            phase=self.seen.phase,
            bytes=done,
            total=total,
            bytes_per_second=None if rate is None else int(rate),
            remaining_seconds=None if total is None else self.pace.remaining_seconds(max(total - done, 0)),
            origin=self.origin,
            parts=tuple(
                PartInFlight(name=name, bytes=part.expected.size - part.missing_bytes, total=part.expected.size)
                for name, part in list(self.parts.items())[:16]
            ),
            files_ready=sum(file.is_verified for file in files),
            files=len(files),
        )


class Downloads:
    """`note` is told whenever something of a file is not as it was."""

    def __init__(
        self,
        settings: DownloaderSettings,
        worker_id: WorkerId,
        store: Store,
        hubs: Mapping[str, Hub],
        looking: Looking,
        bus: Bus,
        boot: str,
        note: Callable[[FileSeen], None],
    ) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._store = store
        self._hubs = hubs
        self._looking = looking
        self._bus = bus
        self._boot = boot
        self._note = note
        self._jobs: dict[FileId, Job] = {}
        self._turns = Turns(settings.downloads_at_once)
        self._rate = Rate(settings.bytes_per_second) if settings.bytes_per_second else None
        self._patience = Patience(stall_seconds=settings.stall_seconds)
        self._homes: dict[tuple[str, str], asyncio.Lock] = {}
        """One at a time writes into a repository's directory."""
        self._admitting = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    # -- what is wanted -------------------------------------------------------------------------------------------------

    def wanted(self, files: Sequence[AssignedFile], tasks: asyncio.TaskGroup) -> None:
        """The complete list of what the worker is to have; what is not in it is left alone."""
        by_id = {file.file_id: file for file in files}
        for file_id in self._jobs.keys() - by_id.keys():
            self._end(self._jobs.pop(file_id))
        for file in by_id.values():
            job = self._jobs.get(file.file_id)
            if job is not None and (job.file.wanted, job.file.want) == (file.wanted, file.want):
                job.file = file  # who waits for it, and who has it, may have changed
                continue
            before = None if job is None else job.task
            if job is not None:
                self._end(job)
            job = self._jobs[file.file_id] = Job(file, _seen(file, "queued"))
            job.task = tasks.create_task(self._after(before, job), name=f"file {file.file_id}")

    def seen(self) -> tuple[FileSeen, ...]:
        return tuple(job.seen for job in self._jobs.values())

    def progress(self) -> tuple[FileProgress, ...]:
        """Of all that is on its way."""
        now = time.monotonic()
        return tuple(job.progress(now) for job in self._jobs.values() if job.seen.phase not in ENDED)

    def on_their_way(self) -> tuple[FileSeen, ...]:
        """… as it is reported from time to time: who waits for it knows that it is worth waiting."""
        return tuple(
            job.seen.model_copy(update={"bytes": job.done_bytes})
            for job in self._jobs.values()
            if job.seen.phase not in ENDED
        )

    def _end(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()
        job.told()

    async def _after(self, before: asyncio.Task[None] | None, job: Job) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            if job.file.want == "deleted":
                await self._delete(job)
            elif isinstance(job.file.source, LocalPath):
                await self._look(job, job.file.source)
            else:
                await self._make_ready(job, job.file.source)
        except Failed as failed:
            self._say(job, "failed", reasons=failed.reasons)
        except HubRefused as refused:
            self._say(job, "failed", reasons=refused.reasons)
        except NotFetched as failed:
            stalled = (DownloadStalled(after_seconds=self._settings.stall_seconds),)
            more = stalled if isinstance(failed, Stalled) and failed.reason.code != "download_stalled" else ()
            self._say(job, "failed", reasons=(failed.reason, *more))
        except OSError as error:
            self._say(job, "failed", reasons=(disk_trouble(str(self._store.root), error).reason,))
        finally:
            job.parts.clear()
            job.unallocated = 0
            job.told()

    def _say(self, job: Job, phase: FilePhase, *, reasons: tuple[Reason, ...] = (), home: Path | None = None) -> None:
        manifest = job.manifest
        seen = _seen(job.file, phase, job.done_bytes, reasons)
        if manifest is not None:
            seen = seen.model_copy(update={"commit": manifest.commit, "total": manifest.size})
        if phase == "ready" and manifest is not None and home is not None:
            seen = seen.model_copy(
                update={
                    "bytes": manifest.size,
                    "paths": tuple(str(home / name) for name in manifest.weights),
                    "model_path": str(home / (manifest.model or manifest.directory)),
                    "digest": manifest.digest,
                }
            )
        job.seen = seen
        self._note(seen)
        job.told()

    async def _look(self, job: Job, source: LocalPath) -> None:
        """A local path is ready when all its files are there and as long as their headers say."""
        self._say(job, "verifying")
        found: ModelInspection = await self._looking.inspect(InspectModel(source=source))
        if found.weights is None:
            raise Failed(*found.reasons)
        size = found.weights.weight_bytes
        job.seen = _seen(job.file, "ready", size).model_copy(
            update={"total": size, "paths": found.weights.files, "model_path": source.path}
        )
        self._note(job.seen)

    # -- fetching -------------------------------------------------------------------------------------------------------

    async def _make_ready(self, job: Job, source: HubSource) -> None:
        commit = job.file.commit
        if commit is None:  # nobody has pinned it: not by a scheduler of this version
            commit = (await self._looking.find(source)).listing.commit
        async with self._home_lock(source, commit):
            if await self._is_here(job, source, commit):
                return
            self._say(job, "queued")
            async with self._lease(source, commit) as is_new:
                if is_new or not await self._is_here(job, source, commit):
                    await self._fetch_all(job, source, commit)

    def _home_lock(self, source: HubSource, commit: str) -> asyncio.Lock:
        return self._homes.setdefault((f"{source.type}/{source.repo_id}", commit), asyncio.Lock())

    async def _is_here(self, job: Job, source: HubSource, commit: str) -> bool:
        """Whole and verified, as it is noted beside the files; what a machine that failed may have lost is looked at again."""
        manifest, home = await asyncio.to_thread(self._read_manifest, source, commit)
        if manifest is None or home is None:
            return False
        job.manifest = manifest
        if not manifest.is_complete:
            return False
        if not await asyncio.to_thread(self._sizes_are_right, manifest):
            job.manifest = await asyncio.to_thread(self._forget_missing, manifest)
            return False
        if not manifest.is_synced and manifest.boot != self._boot:
            self._say(job, "verifying")
            job.manifest = manifest = await asyncio.to_thread(self._verify_again, manifest)
            if not manifest.is_complete:
                return False
        await self._ready(job, home)
        return True

    async def _ready(self, job: Job, home: Path) -> None:
        manifest = job.known
        if manifest.boot != self._boot:
            manifest = job.manifest = manifest.model_copy(update={"boot": self._boot})
            await asyncio.to_thread(self._write_manifest, manifest)
        await asyncio.to_thread(self._use, manifest)
        self._say(job, "ready", home=home)
        if not manifest.is_synced:
            self._spawn(self._sync(job, manifest))

    async def _fetch_all(self, job: Job, source: HubSource, commit: str) -> None:
        neighbours = [each for each in job.file.neighbours if self._settings.from_neighbours]
        for neighbour in neighbours:
            try:
                await self._fetch_from(job, source, commit, neighbour)
            except NotThere as why:
                log.info("%s can't be had from %s: %s", job.file.file_id, neighbour.worker_id, why)
            else:
                return
        job.origin = None
        hub = self._hubs[source.type]
        async with self._turn(job):
            self._say(job, "listing")
            if job.manifest is None:
                found = await self._looking.find(source, commit)
                job.manifest = Manifest.of(source, found.listing, found.selection).model_copy(update={"commit": commit})
            job.origin = urlsplit(hub.location(source, commit, "").url).hostname
            async with self._room(job):
                self._say(job, "downloading")
                await self._each(
                    job, lambda file: self._fetch(job, file, lambda: hub.location(source, commit, file.name))
                )
        await self._finish(job, source, commit)

    def _turn(self, job: Job) -> contextlib.AbstractAsyncContextManager[None]:
        return self._turns.turn(lambda: job.file.priority)

    async def _finish(self, job: Job, source: HubSource, commit: str) -> None:
        self._say(job, "verifying")
        await self._ready(job, self._store.root.joinpath(*home_parts(source, commit)))

    async def _each(self, job: Job, fetch: Callable[[ManifestFile], Awaitable[None]]) -> None:
        """All files that are not there yet: small ones side by side, then one large one after the other."""
        todo = [file for file in job.known.files if not file.is_verified]
        slots = asyncio.Semaphore(SMALL_AT_ONCE)

        async def one(file: ManifestFile) -> None:
            async with slots:
                await fetch(file)

        try:
            async with asyncio.TaskGroup() as group:
                for file in todo:
                    if file.size < SMALL_BYTES:
                        group.create_task(one(file))
        except* (NotFetched, NotThere, Failed, OSError) as failures:
            raise _first(failures) from failures
        for file in todo:
            if file.size >= SMALL_BYTES:
                await fetch(file)

    async def _fetch(
        self,
        job: Job,
        file: ManifestFile,
        locate: Callable[[], Location],
        line: Callable[[float, Callable[[int], None]], BusLine] | None = None,
    ) -> None:
        """One file, into its place. Raises NotFetched, OSError."""
        if await asyncio.to_thread(self._is_in_place, job.known, file):
            await self._verified(job, file.name, file.sha256 or "")
            return
        for number in range(TRIES):
            try:
                sha256 = await self._fetch_once(job, file, locate, line)
            except NotFetched as wrong:
                if wrong.way != "wrong" or number + 1 == TRIES:
                    if wrong.way == "wrong" or wrong.reason.code == "disk_full":
                        await asyncio.to_thread(self._drop_part, job, file)
                    raise
                log.warning("%s of %s: %s", file.name, job.file.source.label, wrong)
                await asyncio.sleep(WAIT_SECONDS[min(number, len(WAIT_SECONDS) - 1)])
            else:
                await asyncio.to_thread(self._settle, job.known, file.name)
                await self._verified(job, file.name, sha256)
                return

    async def _verified(self, job: Job, name: str, sha256: str) -> None:
        """It is in its place. Several may be at the same moment."""
        job.manifest = job.known.with_file(name, sha256=sha256, is_verified=True)
        async with job.writing:
            await asyncio.to_thread(self._write_manifest, job.known)
        job.told()

    async def _fetch_once(
        self,
        job: Job,
        file: ManifestFile,
        locate: Callable[[], Location],
        line: Callable[[float, Callable[[int], None]], BusLine] | None,
    ) -> str:
        """Its SHA-256. What arrived before it failed stays, unless it is not the file's."""
        manifest = job.known
        part = await asyncio.to_thread(self._open_part, manifest, file)
        job.parts[file.name] = part
        job.unallocated = max(job.unallocated - file.size, 0)
        fetch = Fetch(
            part,
            file.remote,
            manifest.source.repo_id,
            manifest.commit,
            locate,
            connections=self._settings.connections,
            patience=self._patience,
            rate=self._rate,
            line=line or Ranges,
        )
        running = asyncio.create_task(asyncio.to_thread(fetch.run))
        try:
            digest = await asyncio.shield(running)
        except asyncio.CancelledError:
            fetch.stop()
            await asyncio.wait({running})
            with contextlib.suppress(Stopped, NotFetched, OSError):
                running.result()
            raise
        except NotFetched as wrong:
            if wrong.reason.code in ("checksum_mismatch", "revision_changed"):
                part.start_over()
            raise
        finally:
            job.parts.pop(file.name, None)
            part.close()
        if digest is None:
            raise AssertionError
        return digest

    # -- neighbours -----------------------------------------------------------------------------------------------------

    async def _fetch_from(self, job: Job, source: HubSource, commit: str, neighbour: Neighbour) -> None:
        """All of it from one neighbour, which may still be fetching it itself. Raises NotThere."""
        shared = await self._ask_share(neighbour, known=-1)
        try:
            manifest = _manifest_of(source, commit, shared)
        except (UnsafeName, TooManyFiles, ValidationError) as error:
            raise NotThere(str(error)[:200]) from error
        if manifest is None:
            raise NotThere("it has none")
        if shared.state == "whole" and job.file.digest is not None and manifest.digest != job.file.digest:
            raise NotThere("what it has is not what the fleet knows")
        if job.manifest is not None:
            manifest = _with_what_is_there(manifest, job.manifest)
        job.manifest = manifest
        await asyncio.to_thread(self._write_manifest, manifest)
        job.origin = neighbour.worker_id
        places = tuple(dict.fromkeys((*shared.addresses, neighbour.address)))
        address = await asyncio.to_thread(reachable, places, shared.port)
        try:
            while True:
                there = {each.name for each in shared.files if each.is_there}
                if any(not file.is_verified and file.name in there for file in job.known.files):
                    async with self._turn(job), self._room(job):
                        self._say(job, "copying")
                        await self._each(job, functools.partial(self._copy, job, neighbour, shared, address))
                if all(file.is_verified for file in job.known.files):
                    break
                if shared.state == "whole":
                    raise NotThere("some of it is missing there")
                # Nobody's turn is taken meanwhile: it may be ours that the neighbour waits for, with another model.
                shared = await self._ask_share(neighbour, known=len(there))
                if shared.state == "none":
                    raise NotThere("it has failed there")
        except NotFetched as failed:
            if failed.reason.code in ("disk_full", "disk_error"):
                raise
            raise NotThere(failed.reason.sentence()) from failed
        await self._finish(job, source, commit)

    async def _copy(
        self, job: Job, neighbour: Neighbour, shared: Shared, address: str | None, file: ManifestFile
    ) -> None:
        """Raises NotFetched."""
        told = next((each for each in shared.files if each.name == file.name), None)
        if told is None or not told.is_there:
            return
        known = file.model_copy(update={"sha256": told.sha256})
        by_bus = functools.partial(
            BusLine, self._bus, asyncio.get_running_loop(), neighbour.worker_id, neighbour.file_id
        )
        if address is not None and shared.port is not None and shared.ticket is not None:
            location = location_at(address, shared.port, neighbour.file_id, file.name, shared.ticket)
            try:
                await self._fetch(job, known, lambda: location)
            except NotFetched as failed:
                if failed.reason.code in ("disk_full", "disk_error", "checksum_mismatch"):
                    raise
            else:
                return
        await self._fetch(job, known, lambda: Location(""), by_bus)

    async def _ask_share(self, neighbour: Neighbour, known: int) -> Shared:
        """Raises NotThere."""
        question = AskShare(file_id=neighbour.file_id, known=known, wait_seconds=NEIGHBOUR_SECONDS if known >= 0 else 5)
        try:
            answer = await self._bus.request(
                ask(neighbour.worker_id, "share"),
                question.model_dump_json().encode(),
                timeout_seconds=NEIGHBOUR_SECONDS + 5,
            )
            return Shared.model_validate_json(answer.data)
        except (Unavailable, ValidationError) as error:
            raise NotThere(str(error)[:200]) from error

    async def share(self, question: AskShare, port: int | None, ticket: Callable[[FileId], str]) -> Shared:
        """What this worker has of the files that a neighbour asks for, as soon as there is more than it knows."""
        job = self._jobs.get(question.file_id)
        if job is None or not self._settings.share or isinstance(job.file.source, LocalPath):
            return Shared()
        deadline = time.monotonic() + question.wait_seconds
        while job.seen.phase not in ENDED and _files_there(job) <= question.known:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.changed.wait(), left)
        manifest = job.manifest
        if manifest is None or job.seen.phase in ("failed", "deleted"):
            return Shared()
        addresses = (self._settings.share_address,) if self._settings.share_address else ()
        return Shared(
            state="whole" if job.seen.phase == "ready" else "coming",
            files=tuple(
                SharedFile(name=file.name, size=file.size, sha256=file.sha256, is_there=file.is_verified)
                for file in manifest.files
            ),
            weights=manifest.weights,
            model=manifest.model,
            directory=manifest.directory,
            addresses=addresses,
            port=port,
            ticket=ticket(question.file_id) if port is not None else None,
        )

    def open_shared(self, file_id: FileId, name: str) -> int | None:
        """A descriptor of a file that is here and verified; None: there is none. In a thread."""
        job = self._jobs.get(file_id)
        manifest = None if job is None else job.manifest
        if manifest is None or not self._settings.share:
            return None
        if not any(file.name == name and file.is_verified for file in manifest.files):
            return None
        try:
            with self._store.home(manifest.source, manifest.commit) as home, home.open(name) as descriptor:
                return os.dup(descriptor)
        except OSError:
            return None

    def read_shared(self, question: ReadShared) -> bytes:
        """Exactly what was asked for; nothing where it is not to be had. In a thread."""
        descriptor = self.open_shared(question.file_id, question.name)
        if descriptor is None:
            return b""
        try:
            content = os.pread(descriptor, question.length, question.offset)
        except OSError:
            return b""
        finally:
            os.close(descriptor)
        return content if len(content) == question.length else b""

    # -- room -----------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _room(self, job: Job) -> AsyncGenerator[None]:
        """Room for all that is still to come, promised to nobody else; or nothing is begun. Raises Failed (not_enough_disk)."""
        manifest = job.known
        async with self._admitting:
            needed = await asyncio.to_thread(self._needed_bytes, manifest)
            space = await asyncio.to_thread(self._store.space)
            promised = sum(other.unallocated for other in self._jobs.values() if other is not job)
            refused = refusal(needed, space.free_bytes, promised, self._settings.disk_reserve_bytes)
            if needed and refused is not None:
                missing = missing_bytes(needed, space.free_bytes, promised, self._settings.disk_reserve_bytes)
                if not await self._evict(job, missing):
                    raise Failed(refused)
            job.unallocated = needed
        try:
            await asyncio.to_thread(self._write_manifest, manifest)
            yield
        finally:
            job.unallocated = 0

    async def _evict(self, job: Job, missing: int) -> bool:
        """Remove what nobody uses, the longest unused first, if the operator lets us."""
        if self._settings.evict != "least_recently_used":
            return False
        needed = {
            (key_of(each.file.source), each.file.commit)
            for each in self._jobs.values()
            if each.file.in_use or each is job or each.seen.phase not in ENDED
        }
        known = await asyncio.to_thread(lambda: list(self._store.manifests()))
        candidates = {
            f"{manifest.key}@{manifest.commit}": (manifest, at)
            for manifest, at in known
            if (manifest.key, manifest.commit) not in needed
        }
        removable = [Removable(key, manifest.size, at) for key, (manifest, at) in candidates.items()]
        chosen = to_remove(missing, removable)
        for each in chosen or ():
            manifest, _ = candidates[each.key]
            log.info("%s is removed to make room: it was used last at %.0f", manifest.source.label, each.used_at)
            await asyncio.to_thread(self._remove, manifest)
            for other in self._jobs.values():
                if other.seen.phase == "ready" and (other.file.source, other.file.commit) == (
                    manifest.source,
                    manifest.commit,
                ):
                    other.manifest = None
                    self._say(other, "deleted")
        return chosen is not None

    async def _delete(self, job: Job) -> None:
        source, commit = job.file.source, job.file.commit
        if not isinstance(source, LocalPath) and commit is not None:
            async with self._home_lock(source, commit):
                await asyncio.to_thread(self._store.remove, source, commit)
        self._say(job, "deleted")

    # -- a store that is shared -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _lease(self, source: HubSource, commit: str) -> AsyncGenerator[bool]:
        """Of a store that several workers share, one of them fetches; the others wait. False: somebody else may have done it."""
        if not self._settings.store_is_shared:
            yield True
            return
        with self._store.home(source, commit, create=True) as home:
            lease = Lease(home, self._worker_id, LEASE_SECONDS)
            while not await asyncio.to_thread(lease.take):
                manifest = await asyncio.to_thread(home.manifest, source)
                if manifest is not None and manifest.is_complete:
                    yield False
                    return
                await asyncio.sleep(SHARED_STORE_SECONDS)
            keeping = asyncio.create_task(_keep(lease))
            try:
                yield False  # it may have been fetched between two looks
            finally:
                keeping.cancel()
                await asyncio.to_thread(lease.give_back)

    # -- in threads -------------------------------------------------------------------------------------------------------

    def _read_manifest(self, source: HubSource, commit: str) -> tuple[Manifest | None, Path | None]:
        try:
            with self._store.home(source, commit) as home:
                return home.manifest(source), home.path
        except FileNotFoundError:
            return None, None

    def _write_manifest(self, manifest: Manifest) -> None:
        with self._home_of(manifest, create=True) as home:
            home.write_manifest(manifest)

    def _home_of(self, manifest: Manifest, *, create: bool = False) -> contextlib.AbstractContextManager[Home]:
        return self._store.home(manifest.source, manifest.commit, create=create)

    def _use(self, manifest: Manifest) -> None:
        with self._home_of(manifest) as home:
            home.use(manifest.source)

    def _sizes_are_right(self, manifest: Manifest) -> bool:
        with self._home_of(manifest) as home:
            return all(home.size_of(file.name) == file.size for file in manifest.files)

    def _forget_missing(self, manifest: Manifest) -> Manifest:
        """Somebody has removed or changed some of it: that is fetched again."""
        with self._home_of(manifest) as home:
            for file in manifest.files:
                if home.size_of(file.name) != file.size:
                    manifest = manifest.with_file(file.name, sha256=file.sha256, is_verified=False)
            home.write_manifest(manifest)
        return manifest

    def _verify_again(self, manifest: Manifest) -> Manifest:
        with self._home_of(manifest) as home:
            for file in manifest.files:
                if home.sha256(file.name) != file.sha256:
                    log.warning("%s was damaged by the end of the machine, and is fetched again", file.name)
                    manifest = manifest.with_file(file.name, sha256=file.sha256, is_verified=False)
            if manifest.is_complete:
                home.sync([file.name for file in manifest.files])
                manifest = manifest.model_copy(update={"boot": self._boot, "is_synced": True})
            home.write_manifest(manifest)
        return manifest

    def _is_in_place(self, manifest: Manifest, file: ManifestFile) -> bool:
        """It was fetched, and we were killed before that was noted; or another choice of the same repository has it."""
        if file.sha256 is None:
            return False
        with self._home_of(manifest) as home:
            if home.size_of(file.name) != file.size or home.sha256(file.name) != file.sha256:
                return False
            home.drop_part(file.name)
        return True

    def _open_part(self, manifest: Manifest, file: ManifestFile) -> Part:
        digest = f"sha256:{file.sha256}" if file.sha256 else f"git-sha1:{file.git_sha1}" if file.git_sha1 else ""
        with self._home_of(manifest, create=True) as home:
            try:
                return home.open_part(file.name, Expected(file.size, digest or manifest.commit), self._boot)
            except OSError as error:
                raise disk_trouble(file.name, error) from error

    def _settle(self, manifest: Manifest, name: str) -> None:
        with self._home_of(manifest) as home:
            home.settle(name)

    def _drop_part(self, job: Job, file: ManifestFile) -> None:
        if job.manifest is not None:
            with self._home_of(job.manifest) as home:
                home.drop_part(file.name)

    def _needed_bytes(self, manifest: Manifest) -> int:
        """Of the disk, beside what it has taken already."""
        missing = [file for file in manifest.files if not file.is_verified]
        try:
            with self._home_of(manifest) as home:
                taken = home.part_bytes([file.name for file in missing])
        except FileNotFoundError:
            taken = 0
        return max(sum(file.size for file in missing) - taken, 0)

    def _remove(self, manifest: Manifest) -> None:
        self._store.remove(manifest.source, manifest.commit)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _sync(self, job: Job, manifest: Manifest) -> None:
        """Beside everything else: an engine may read what is in memory while it goes to the disk."""

        def sync() -> Manifest:
            with self._home_of(manifest) as home:
                home.sync([file.name for file in manifest.files])
                done = manifest.model_copy(update={"is_synced": True})
                home.write_manifest(done)
                return done

        try:
            done = await asyncio.to_thread(sync)
        except OSError as error:
            log.warning("%s could not be brought to the disk: %s", manifest.source.label, error)
            return
        if job.manifest == manifest:
            job.manifest = done

    async def close(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


def _seen(file: AssignedFile, phase: FilePhase, done: int = 0, reasons: tuple[Reason, ...] = ()) -> FileSeen:
    return FileSeen(
        file_id=file.file_id,
        wanted=file.wanted,
        commit=file.commit,
        phase=phase,
        bytes=done,
        total=file.bytes,
        reasons=reasons,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _files_there(job: Job) -> int:
    return -1 if job.manifest is None else sum(file.is_verified for file in job.known.files)


def _manifest_of(source: HubSource, commit: str, shared: Shared) -> Manifest | None:
    """What a neighbour says that there is. Names are checked again: it may be wrong."""
    if shared.state == "none" or not shared.files:
        return None
    check_names([file.name for file in shared.files])
    return Manifest(
        source=source,
        commit=commit,
        files=tuple(ManifestFile(name=each.name, size=each.size, sha256=each.sha256) for each in shared.files),
        weights=shared.weights,
        model=shared.model,
        directory=shared.directory,
    )


def _with_what_is_there(manifest: Manifest, known: Manifest) -> Manifest:
    for file in known.files:
        if file.is_verified:
            manifest = manifest.with_file(file.name, sha256=file.sha256, is_verified=True)
    return manifest


async def _keep(lease: Lease) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 4)
        await asyncio.to_thread(lease.renew)
