"""Makes the files of a worker what its assignment says: fetched, verified, kept, removed. One task for each file resource.

What is there already is never fetched twice: not after a restart, not for a second instance, not when a neighbour has it.
"""

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import Counter as Metric
from pydantic import ValidationError

from kernel.bus import Bus
from kernel.errors import Unavailable
from kernel.pace import Pace
from schemas.asks import AskShare, InspectModel, ModelInspection, ReadShared, Shared, SharedFile
from schemas.assignment import AssignedFile, Neighbour
from schemas.ids import FileId, WorkerId
from schemas.reasons import DownloadStalled, ModelFilesIncomplete, NotEnoughDisk, Reason
from schemas.reports import FilePhase, FileProgress, FileSeen, PartInFlight
from schemas.sources import HubSource, LocalPath
from schemas.subjects import ask
from services.downloader.adapters.fetching import Fetch, Line, Patience, Stalled, disk_trouble
from services.downloader.adapters.http_ranges import Location, Ranges, Rate
from services.downloader.adapters.hub import Hub, HubRefused
from services.downloader.adapters.neighbour import BusLine, Counter, location_at, reachable
from services.downloader.adapters.parts import Expected, Part
from services.downloader.adapters.store import Home, Lease, Store, home_parts
from services.downloader.domain.answers import NotFetched
from services.downloader.domain.blocks import MIB
from services.downloader.domain.manifest import Manifest, ManifestFile, key_of
from services.downloader.domain.names import TooManyFiles, UnsafeName, check_names
from services.downloader.domain.space import Removable, missing_bytes, refusal, to_remove
from services.downloader.looking import Looking
from services.downloader.settings import DownloaderSettings
from services.downloader.threads import ended, in_thread
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
HASHED_AT_ONCE: Final = 2
"""Models that are verified again at one time, after a restart of the machine."""
NEIGHBOUR_SECONDS: Final = 15.0
"""A neighbour answers within, also when it has nothing new to say."""
NEIGHBOUR_STALL_SECONDS: Final = 6.0
"""Without a byte from a neighbour for so long, the files are to be had elsewhere."""
NEWS_SECONDS: Final = 30.0
"""… and when the one that was to have them first does not answer, it is back within, or the assignment names another one."""
ASK_AGAIN_SECONDS: Final = 2.0
MOST_CHAIN: Final = 64
READERS: Final = 4
"""Neighbours that are read to over the bus at one moment."""
FETCHED_BYTES: Final = Metric(
    "muster_downloader_fetched_bytes_total", "Of files that were fetched and verified", ["origin"]
)
ENDS: Final = Metric(
    "muster_downloader_files_total", "File resources that became ready, failed or were deleted", ["phase", "code"]
)
ENDED: Final[tuple[FilePhase, ...]] = ("ready", "failed", "deleted")


class Failed(Exception):
    def __init__(self, *reasons: Reason) -> None:
        super().__init__("; ".join(reason.sentence() for reason in reasons))
        self.reasons = reasons


class NotThere(Exception):
    """The neighbour has it not, or not any more, or can't be reached."""


class Gone(NotThere):
    """The neighbour does not answer, or has given it up: another one may be named in its place."""


class LeaseLost(Exception):
    """Another worker has taken the store over: we were not heard of for too long."""


@dataclass(eq=False, slots=True)
class Job:
    """One file resource."""

    file: AssignedFile
    seen: FileSeen
    pace: Pace = field(default_factory=Pace)
    manifest: Manifest | None = None
    parts: dict[str, Part] = field(default_factory=dict[str, Part])
    """On their way just now."""
    is_admitted: bool = False
    """Room for it is promised: what it has not taken of the disk yet is not for others."""
    origin: str | None = None
    heard_at: float = 0.0
    """When a neighbour answered last that it is coming."""
    waits_for: tuple[WorkerId, ...] = ()
    """The neighbour that it waits for, and whom that one waits for, and so on."""
    task: asyncio.Task[None] | None = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its manifest is written."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever one more file of it is there, or it has ended."""
    assigned_anew: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever who else has it may have changed."""

    def told(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def assigned(self, file: AssignedFile) -> None:
        self.file = file
        self.assigned_anew.set()
        self.assigned_anew = asyncio.Event()

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
        self._patience = _patience(settings.stall_seconds)
        self._patience_with_neighbours = _patience(min(settings.stall_seconds, NEIGHBOUR_STALL_SECONDS))
        self._fetching = ThreadPoolExecutor(settings.downloads_at_once * SMALL_AT_ONCE, "fetching")
        self._hashing = ThreadPoolExecutor(HASHED_AT_ONCE, "hashing")
        self._reading = ThreadPoolExecutor(READERS, "reading")
        """Pools of their own: workers that take files from each other would wait for each other's threads."""
        self._homes: dict[tuple[str, str], asyncio.Lock] = {}
        """One at a time fetches into a repository's directory. Nobody waits for a neighbour with one of these."""
        self._leases: dict[tuple[str, str], asyncio.Lock] = {}
        """Of a store that is shared: who of us asks for its lease."""
        self._working: dict[FileId, set[asyncio.Task[None]]] = {}
        """Also those that were cancelled, and have not ended yet."""
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
                job.assigned(file)  # who waits for it, and who has it, may have changed
                continue
            if job is not None:
                self._end(job)
            job = self._jobs[file.file_id] = Job(file, _seen(file, "queued"))
            working = self._working.setdefault(file.file_id, set())
            job.task = tasks.create_task(self._after(tuple(working), job), name=f"file {file.file_id}")
            working.add(job.task)
            job.task.add_done_callback(functools.partial(self._has_ended, file.file_id))

    def seen(self) -> tuple[FileSeen, ...]:
        """Without the paths that whoever decides knows: a picture is one message, and a model has hundreds of files."""
        return tuple(
            job.seen if job.file.model_path is None else job.seen.model_copy(update={"paths": ()})
            for job in self._jobs.values()
        )

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

    def _has_ended(self, file_id: FileId, task: asyncio.Task[None]) -> None:
        working = self._working.get(file_id, set())
        working.discard(task)
        if not working:
            self._working.pop(file_id, None)

    async def _after(self, before: Sequence[asyncio.Task[None]], job: Job) -> None:
        """`before`: what was done for the same files, and has been told to end."""
        if before:
            await asyncio.wait(before)
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
        if phase in ENDED:
            ENDS.labels(phase, reasons[0].code if phase == "failed" and reasons else "").inc()
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
        if await self._is_here(job, source, commit, repair=False):
            return
        if job.manifest is None and job.file.model_path is not None and not job.file.in_use:
            # They were here, and nobody needs them: whoever removed them by hand does not want them fetched again.
            self._say(job, "deleted", reasons=(ModelFilesIncomplete(path=source.label, missing=("all files",)),))
            return
        self._say(job, "queued")
        while True:
            try:
                async with self._lease(source, commit):
                    async with self._home_lock(source, commit):
                        if await self._is_here(job, source, commit, repair=True):
                            return
                    await self._fetch_all(job, source, commit)
            except LeaseLost:
                log.warning("%s is fetched by another worker by now", source.label)
            else:
                return

    def _home_lock(self, source: HubSource, commit: str) -> asyncio.Lock:
        return self._homes.setdefault((f"{source.type}/{source.repo_id}", commit), asyncio.Lock())

    async def _is_here(self, job: Job, source: HubSource, commit: str, *, repair: bool) -> bool:
        """Whole and verified, as it is noted beside the files. `repair`: what was removed or changed by hand, and what a
        machine that failed may have lost, is looked at again, and noted.
        """
        manifest, home = await in_thread(self._read_manifest, source, commit)
        job.manifest = manifest
        if manifest is None or home is None:
            return False
        is_safe = manifest.is_synced or manifest.boot == self._boot
        if not is_safe or not await in_thread(self._sizes_are_right, manifest):
            if not repair:
                return False
            self._say(job, "verifying")
            stop = threading.Event()
            job.manifest = manifest = await in_thread(
                self._look_again, manifest, not is_safe, stop.is_set, stop=stop.set, pool=self._hashing
            )
        if not manifest.is_complete:
            return False
        await self._ready(job, home)
        return True

    async def _ready(self, job: Job, home: Path) -> None:
        manifest = job.known
        await in_thread(self._use, manifest)
        self._say(job, "ready", home=home)
        if manifest.is_synced:
            return
        if self._settings.store_is_shared:  # the others, on other machines, would verify all of it
            await self._sync(job, manifest)
        else:
            self._spawn(self._sync(job, manifest))

    async def _fetch_all(self, job: Job, source: HubSource, commit: str) -> None:
        asked: set[tuple[WorkerId, bool]] = set()
        job.heard_at = time.monotonic()
        while (neighbour := self._next_neighbour(job, asked)) is not None:
            asked.add((neighbour.worker_id, neighbour.ready))
            try:
                await self._fetch_from(job, source, commit, neighbour)
            except Gone as why:
                log.info("%s can't be had from %s: %s", job.file.file_id, neighbour.worker_id, why)
                if neighbour.ready or time.monotonic() - job.heard_at >= NEWS_SECONDS:
                    continue
                # Many wait for this one: if all of them asked the hub now, it would be asked as often.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN_SECONDS):
                        await job.assigned_anew.wait()
                asked.discard((neighbour.worker_id, neighbour.ready))
            except NotThere as why:
                log.info("%s can't be had from %s: %s", job.file.file_id, neighbour.worker_id, why)
            else:
                return
        await self._fetch_from_hub(job, source, commit)

    def _next_neighbour(self, job: Job, asked: set[tuple[WorkerId, bool]]) -> Neighbour | None:
        """As of the newest assignment: who has it may have changed since we began."""
        for each in job.file.neighbours if self._settings.from_neighbours else ():
            is_waited_for = not each.ready and self._settings.store_is_shared  # others wait for us already
            if (each.worker_id, each.ready) not in asked and not is_waited_for:
                return each
        return None

    async def _fetch_from_hub(self, job: Job, source: HubSource, commit: str) -> None:
        hub = self._hubs[source.type]
        job.origin = None
        self._say(job, "queued")
        async with self._home_lock(source, commit), self._turn(job):
            self._say(job, "listing")
            if job.manifest is None or not job.manifest.is_listed:
                found = await self._looking.find(source, commit)
                listed = Manifest.of(source, found.listing, found.selection)
                job.manifest = listed if job.manifest is None else _with_what_is_there(listed, job.manifest)
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
        line: Callable[[float, Callable[[int], None]], Line] = Ranges,
        patience: Patience | None = None,
    ) -> None:
        """One file, into its place. Raises NotFetched, OSError."""
        stop = threading.Event()
        found = await in_thread(self._found_in_place, job.known, file, stop.is_set, stop=stop.set, pool=self._hashing)
        if found is not None:
            await self._verified(job, file.name, found)
            return
        for number in range(TRIES):
            try:
                sha256 = await self._fetch_once(job, file, locate, line, patience or self._patience)
            except NotFetched as wrong:
                if wrong.way != "wrong" or number + 1 == TRIES:
                    if wrong.way == "wrong" or wrong.reason.code == "disk_full":
                        await in_thread(self._drop_part, job.known, file)
                    raise
                log.warning("%s of %s: %s", file.name, job.file.source.label, wrong)
                await asyncio.sleep(WAIT_SECONDS[min(number, len(WAIT_SECONDS) - 1)])
            else:
                await in_thread(self._settle, job.known, file.name)
                await self._verified(job, file.name, sha256)
                FETCHED_BYTES.labels("neighbour" if job.seen.phase == "copying" else "hub").inc(file.size)
                return

    async def _verified(self, job: Job, name: str, sha256: str) -> None:
        """It is in its place. Several may be at the same moment."""
        job.manifest = job.known.with_file(name, sha256=sha256, is_verified=True, boot=self._boot)
        async with job.writing:
            await in_thread(self._write_manifest, job.known)
        job.told()

    async def _fetch_once(
        self,
        job: Job,
        file: ManifestFile,
        locate: Callable[[], Location],
        line: Callable[[float, Callable[[int], None]], Line],
        patience: Patience,
    ) -> str:
        """Its SHA-256. What arrived before it failed stays, unless it is not the file's."""
        manifest = job.known
        part = await in_thread(self._open_part, manifest, file, undo=Part.close)
        job.parts[file.name] = part
        try:
            fetch = Fetch(
                part,
                file.remote,
                manifest.source.repo_id,
                manifest.commit,
                locate,
                connections=self._settings.connections,
                patience=patience,
                rate=self._rate,
                line=line,
            )
            digest = await in_thread(fetch.run, stop=fetch.stop, pool=self._fetching)
        except NotFetched as wrong:
            if wrong.reason.code in ("checksum_mismatch", "revision_changed"):
                part.start_over()
            raise
        finally:
            job.parts.pop(file.name, None)
            await in_thread(part.close)  # it waits for the disk
        if digest is None:
            raise AssertionError
        return digest

    # -- neighbours -----------------------------------------------------------------------------------------------------

    async def _fetch_from(self, job: Job, source: HubSource, commit: str, neighbour: Neighbour) -> None:
        """All of it from one neighbour, which may still be fetching it itself. Raises NotThere."""
        shared = await self._ask_share(neighbour, known=-1, waits=False)
        while shared.state == "coming" and not shared.files:
            self._say_waiting(job, neighbour)
            shared = await self._wait_share(job, neighbour, shared, known=-1)
        manifest = job.manifest = self._agreed(job, source, commit, shared)
        job.origin = neighbour.worker_id
        places = tuple(dict.fromkeys((*shared.addresses, neighbour.address)))
        address = await in_thread(reachable, places, shared.port)
        try:
            while True:
                there = {each.name for each in shared.files if each.is_there}
                if any(not file.is_verified and file.name in there for file in job.known.files):
                    async with self._home_lock(source, commit), self._turn(job), self._room(job):
                        self._say(job, "copying")
                        await self._each(job, functools.partial(self._copy, job, neighbour, shared, address))
                if all(file.is_verified for file in job.known.files):
                    break
                if shared.state == "whole":
                    raise NotThere("some of it is missing there")
                # No turn and no lock is held meanwhile: it may be ours that the neighbour waits for, with another model.
                shared = await self._wait_share(job, neighbour, shared, known=len(there))
                if shared.files and not _is_same(manifest, shared):  # none: it was started again
                    raise NotThere("it has something else by now")
        except NotFetched as failed:
            if failed.reason.code in ("disk_full", "disk_error"):
                raise
            raise NotThere(failed.reason.sentence()) from failed
        if job.file.digest is not None and job.known.digest != job.file.digest:
            raise NotThere("what it had is not what the fleet knows")
        await self._finish(job, source, commit)

    def _say_waiting(self, job: Job, neighbour: Neighbour) -> None:
        job.origin = neighbour.worker_id
        if job.seen.phase != "queued":
            self._say(job, "queued")

    async def _wait_share(self, job: Job, neighbour: Neighbour, shared: Shared, known: int) -> Shared:
        """Until it has more. Raises NotThere, also where some would wait for each other: one of them is not to."""
        chain = (neighbour.worker_id, *shared.waits_for)
        if self._worker_id in chain and self._worker_id == max(chain[: chain.index(self._worker_id) + 1]):
            raise NotThere("it waits for us")
        if self._settings.store_is_shared:  # others wait for us already
            raise NotThere("it is not all there yet")
        job.waits_for = chain[:MOST_CHAIN]
        try:
            answer = await self._ask_share(neighbour, known)
        finally:
            job.waits_for = ()
        if answer.state == "none":
            raise Gone("it has failed there")
        job.heard_at = time.monotonic()
        return answer

    def _agreed(self, job: Job, source: HubSource, commit: str, shared: Shared) -> Manifest:
        """What is to be had there, with what is here already. Raises NotThere."""
        try:
            manifest = _manifest_of(source, commit, shared)
        except (UnsafeName, TooManyFiles, ValidationError) as error:
            raise NotThere(str(error)[:200]) from error
        if manifest is None:
            raise Gone("it has none")
        if shared.state == "whole" and job.file.digest is not None and manifest.digest != job.file.digest:
            raise NotThere("what it has is not what the fleet knows")
        if job.manifest is None:
            return manifest
        if not job.manifest.is_listed:
            return _with_what_is_there(manifest, job.manifest)
        if not _is_same(job.manifest, shared):
            raise NotThere("what it has is not what the hub has listed")
        return job.manifest

    async def _copy(
        self, job: Job, neighbour: Neighbour, shared: Shared, address: str | None, file: ManifestFile
    ) -> None:
        """Raises NotFetched, NotThere."""
        told = next((each for each in shared.files if each.name == file.name), None)
        if told is None or not told.is_there:
            return
        if told.sha256 is None or file.sha256 not in (None, told.sha256):
            raise NotThere(f"{file.name} is another one there")
        known = file.model_copy(update={"sha256": told.sha256})
        patience = self._patience_with_neighbours
        directly = functools.partial(Ranges, by_proxies=False)
        by_bus = functools.partial(
            BusLine, self._bus, asyncio.get_running_loop(), neighbour.worker_id, neighbour.file_id
        )
        for _ in range(2):
            if address is None or shared.port is None or shared.ticket is None:
                break
            location = location_at(address, shared.port, neighbour.file_id, file.name, shared.ticket)
            try:
                await self._fetch(job, known, lambda location=location: location, directly, patience)
            except NotFetched as failed:
                if failed.reason.code in ("disk_full", "disk_error", "checksum_mismatch"):
                    raise
                if failed.reason.code != "hub_unauthorized":
                    break
            else:
                return
            shared = await self._ask_share(neighbour, known=-1, waits=False)  # a ticket does not last for ever
        await self._fetch(job, known, lambda: Location(""), by_bus, patience)

    async def _ask_share(self, neighbour: Neighbour, known: int, *, waits: bool = True) -> Shared:
        """Raises NotThere."""
        question = AskShare(file_id=neighbour.file_id, known=known, wait_seconds=NEIGHBOUR_SECONDS if waits else 0)
        try:
            answer = await self._bus.request(
                ask(neighbour.worker_id, "share"),
                question.model_dump_json().encode(),
                timeout_seconds=NEIGHBOUR_SECONDS + 5,
            )
            return Shared.model_validate_json(answer.data)
        except (Unavailable, ValidationError) as error:
            raise Gone(str(error)[:200]) from error

    async def share(self, question: AskShare, counter: Counter | None) -> Shared:
        """What this worker has of the files that a neighbour asks for, as soon as there is more than it knows. Without a
        counter, what there is goes through the bus.
        """
        deadline = time.monotonic() + question.wait_seconds
        while (job := self._shared_job(question.file_id)) is not None:
            left = deadline - time.monotonic()
            if job.seen.phase == "ready" or _files_there(job) > question.known or left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await job.changed.wait()
        if job is None:
            return Shared()
        manifest = job.manifest
        if manifest is None:
            return Shared(state="coming", waits_for=job.waits_for)
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
            port=None if counter is None else counter.port,
            ticket=None if counter is None else counter.ticket_for(question.file_id),
            waits_for=job.waits_for,
        )

    def _shared_job(self, file_id: FileId) -> Job | None:
        """None: there is nothing, and nothing is on its way."""
        job = self._jobs.get(file_id)
        if job is None or not self._settings.share or isinstance(job.file.source, LocalPath):
            return None
        return None if job.file.want == "deleted" or job.seen.phase in ("failed", "deleted") else job

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

    async def read_shared(self, question: ReadShared) -> bytes:
        """Exactly what was asked for; nothing where it is not to be had."""
        return await in_thread(self._read_shared, question, pool=self._reading)

    def _read_shared(self, question: ReadShared) -> bytes:
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
            refused, missing = await self._refusal(job)
            if refused is not None and await self._evict(job, missing):
                refused, missing = await self._refusal(job)
            if refused is not None:
                raise Failed(refused)
            job.is_admitted = True
        try:
            await in_thread(self._write_manifest, manifest)
            yield
        finally:
            job.is_admitted = False

    async def _refusal(self, job: Job) -> tuple[NotEnoughDisk | None, int]:
        """Why it does not fit, and by how much."""
        promised = [
            other.manifest
            for other in self._jobs.values()
            if other is not job and other.is_admitted and other.manifest is not None
        ]
        needed, others = await in_thread(self._needed_bytes, job.known), await in_thread(self._needed_by, promised)
        if not needed:
            return None, 0
        space, reserve = await in_thread(self._store.space), self._settings.disk_reserve_bytes
        missing = missing_bytes(needed, space.free_bytes, others, reserve)
        return refusal(needed, space.free_bytes, others, reserve), missing

    async def _evict(self, job: Job, missing: int) -> bool:
        """Remove what nobody uses, the longest unused first, if the operator lets us. What other workers use of a store
        that we share, we don't know.
        """
        if self._settings.evict != "least_recently_used" or self._settings.store_is_shared:
            return False
        needed = {
            _name_of(each)
            for each in self._jobs.values()
            if each.file.in_use or each is job or each.seen.phase not in ENDED
        }
        candidates = await in_thread(self._removable, needed)
        chosen = to_remove(missing, [each for each, _ in candidates])
        for each in chosen or ():
            manifest = next(manifest for other, manifest in candidates if other is each)
            log.info("%s is removed to make room: it was used last at %.0f", manifest.source.label, each.used_at)
            await in_thread(self._remove, manifest)
            for other in self._jobs.values():
                if other.seen.phase == "ready" and _name_of(other) == (manifest.key, manifest.commit):
                    other.manifest = None
                    self._say(other, "deleted")
        return bool(chosen)

    def _removable(self, needed: set[tuple[str, str | None]]) -> list[tuple[Removable, Manifest]]:
        """What is here of models that nobody needs, and what each would give back."""
        return [
            (Removable(f"{manifest.key}@{manifest.commit}", self._store.freed_by(manifest), at), manifest)
            for manifest, at in self._store.manifests()
            if (manifest.key, manifest.commit) not in needed
        ]

    async def _delete(self, job: Job) -> None:
        source = job.file.source
        if not isinstance(source, LocalPath):
            await in_thread(self._store.remove, source, job.file.commit)
        self._say(job, "deleted")

    # -- a store that is shared -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _lease(self, source: HubSource, commit: str) -> AsyncGenerator[None]:
        """Of a store that several workers share, one of them fetches; the others wait until all of it is there. Raises LeaseLost."""
        if not self._settings.store_is_shared:
            yield
            return
        async with self._leases.setdefault((f"{source.type}/{source.repo_id}", commit), asyncio.Lock()):
            with self._store.home(source, commit, create=True) as home:
                lease = Lease(home, self._worker_id, LEASE_SECONDS)
                async with _kept(lease) if await self._takes(lease, home, source) else contextlib.nullcontext():
                    yield

    async def _takes(self, lease: Lease, home: Home, source: HubSource) -> bool:
        """False: another worker has fetched it meanwhile. Raises LeaseLost."""
        try:
            while not await in_thread(lease.take):
                manifest = await in_thread(home.manifest, source)
                if manifest is not None and manifest.is_complete and manifest.is_synced:
                    return False
                await asyncio.sleep(SHARED_STORE_SECONDS)
        except FileNotFoundError as error:  # another worker has removed it all
            raise LeaseLost from error
        return True

    # -- in threads -------------------------------------------------------------------------------------------------------

    def _read_manifest(self, source: HubSource, commit: str) -> tuple[Manifest | None, Path | None]:
        try:
            with self._store.home(source, commit) as home:
                manifest = home.manifest(source)
                return (manifest if manifest is not None and manifest.commit == commit else None), home.path
        except FileNotFoundError:
            return None, None

    def _write_manifest(self, manifest: Manifest) -> None:
        with self._store.changing, self._home_of(manifest, create=True) as home:
            home.write_manifest(manifest)

    def _home_of(self, manifest: Manifest, *, create: bool = False) -> contextlib.AbstractContextManager[Home]:
        return self._store.home(manifest.source, manifest.commit, create=create)

    def _use(self, manifest: Manifest) -> None:
        self._store.use(manifest.source, manifest.commit)

    def _sizes_are_right(self, manifest: Manifest) -> bool:
        with self._home_of(manifest) as home:
            return all(home.size_of(file.name) == file.size for file in manifest.files if file.is_verified)

    def _look_again(self, manifest: Manifest, by_content: bool, stopped: Callable[[], bool]) -> Manifest:
        """What was noted as verified. What is not as it was is fetched again. Raises OSError."""
        with self._home_of(manifest) as home:
            for file in manifest.files:
                if not file.is_verified or (
                    home.size_of(file.name) == file.size
                    and (not by_content or home.digests(file.name, stopped)[0] == file.sha256)
                ):
                    continue
                log.warning("%s was damaged or removed, and is fetched again", file.name)
                manifest = manifest.with_file(file.name, sha256=file.sha256, is_verified=False)
            if by_content:
                home.sync([file.name for file in manifest.files if file.is_verified])
            safe = {"boot": self._boot, "is_synced": by_content and manifest.is_complete}
            manifest = manifest.model_copy(update=safe)
            home.write_manifest(manifest)
        return manifest

    def _found_in_place(self, manifest: Manifest, file: ManifestFile, stopped: Callable[[], bool]) -> str | None:
        """Its SHA-256, if it was fetched and we were killed before that was noted, or another choice of the same repository
        has it.
        """
        if file.sha256 is None and file.git_sha1 is None:
            return None
        with self._home_of(manifest) as home:
            if home.size_of(file.name) != file.size:
                return None
            sha256, git_sha1 = home.digests(file.name, stopped)
            if sha256 != file.sha256 if file.sha256 is not None else git_sha1 != file.git_sha1:
                return None
            home.drop_part(file.name)
        return sha256

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

    def _drop_part(self, manifest: Manifest, file: ManifestFile) -> None:
        with self._home_of(manifest) as home:
            home.drop_part(file.name)

    def _needed_bytes(self, manifest: Manifest) -> int:
        """Of the disk, beside what it has taken already."""
        missing = [file for file in manifest.files if not file.is_verified]
        needed = sum(file.size for file in missing)
        try:
            with self._home_of(manifest) as home:
                for file in missing:  # one that has become what it is to be is noted a moment later
                    taken = home.part_bytes([file.name]) or (file.size if home.size_of(file.name) == file.size else 0)
                    needed -= min(taken, file.size)
        except FileNotFoundError:
            pass
        return needed

    def _needed_by(self, manifests: Iterable[Manifest]) -> int:
        return sum(map(self._needed_bytes, manifests))

    def _remove(self, manifest: Manifest) -> None:
        self._store.remove(manifest.source, manifest.commit)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _sync(self, job: Job, manifest: Manifest) -> None:
        """Beside everything else: an engine may read what is in memory while it goes to the disk."""
        try:
            done = await in_thread(self._bring_to_disk, manifest)
        except OSError as error:
            log.warning("%s could not be brought to the disk: %s", manifest.source.label, error)
            return
        if done is not None and job.manifest == manifest:
            job.manifest = done

    def _bring_to_disk(self, manifest: Manifest) -> Manifest | None:
        """None: it is not what is here any more."""
        with self._home_of(manifest) as home:
            home.sync([file.name for file in manifest.files])
            with self._store.changing:
                if home.manifest(manifest.source) != manifest:
                    return None
                done = manifest.model_copy(update={"is_synced": True})
                home.write_manifest(done)
                return done

    async def close(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for pool in (self._fetching, self._hashing, self._reading):
            pool.shutdown(wait=False, cancel_futures=True)


def _patience(stall_seconds: float) -> Patience:
    """A connection to which nothing comes is made anew before all of it is given up."""
    return Patience(stall_seconds=stall_seconds, idle_seconds=min(Patience().idle_seconds, stall_seconds))


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


def _name_of(job: Job) -> tuple[str, str | None]:
    """What its files are called in the store."""
    return key_of(job.file.source), job.file.commit if job.manifest is None else job.manifest.commit


def _manifest_of(source: HubSource, commit: str, shared: Shared) -> Manifest | None:
    """What a neighbour says that there is. Names are checked again: it may be wrong."""
    if shared.state == "none" or not shared.files:
        return None
    names = {file.name for file in shared.files}
    check_names([file.name for file in shared.files])
    directory = shared.directory
    is_consistent = (
        names.issuperset(shared.weights)
        and (shared.model is None or shared.model in names)
        and (not directory or any(name.startswith(f"{directory}/") for name in names))
    )
    if not is_consistent:
        raise UnsafeName(shared.model or directory, "it is no file of the repository")
    return Manifest(
        source=source,
        commit=commit,
        files=tuple(ManifestFile(name=each.name, size=each.size, sha256=each.sha256) for each in shared.files),
        weights=shared.weights,
        model=shared.model,
        directory=directory,
    )


def _is_same(manifest: Manifest, shared: Shared) -> bool:
    """Of the files' names and sizes, and as far as digests are known."""
    told = {each.name: each for each in shared.files}
    return told.keys() == {file.name for file in manifest.files} and all(
        told[file.name].size == file.size
        and (None in (file.sha256, told[file.name].sha256) or told[file.name].sha256 == file.sha256)
        for file in manifest.files
    )


def _with_what_is_there(manifest: Manifest, known: Manifest) -> Manifest:
    """`known`: of which some is verified. What the new one says otherwise is fetched, or found in its place."""
    there = {file.name: file for file in known.files if file.is_verified}
    for file in manifest.files:
        mine = there.get(file.name)
        if mine is not None and mine.size == file.size and mine.sha256 == file.sha256:
            manifest = manifest.with_file(file.name, sha256=file.sha256, is_verified=True, boot=known.boot)
    return manifest


@contextlib.asynccontextmanager
async def _kept(lease: Lease) -> AsyncGenerator[None]:
    """The lease, as long as it takes. Raises LeaseLost where it was taken over; what went on under it has ended by then."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a lease is kept by a task")
    is_lost = False

    async def keep() -> None:
        nonlocal is_lost
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            try:
                if await in_thread(lease.renew):
                    continue
            except OSError as error:  # the file system may be back before anybody has missed us
                log.warning("the lease could not be renewed: %s", error)
                continue
            is_lost = True
            task.cancel()
            return

    keeping = asyncio.create_task(keep())
    try:
        yield
    except asyncio.CancelledError:
        if is_lost and task.uncancel() == 0:
            raise LeaseLost from None
        raise
    finally:
        keeping.cancel()
        await ended(keeping)
        with contextlib.suppress(OSError):
            await in_thread(lease.give_back)
