"""The downloader's shell: makes its worker's files look like the assignment says, answers what models weigh, shares what is there."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final, Literal

from faststream.nats import NatsBroker

from kernel.accounts import inbox_prefix
from kernel.bus import Bus
from kernel.clock import Clock, SystemClock
from kernel.edge import Edge
from kernel.errors import Unavailable
from kernel.inbox import make_broker
from kernel.process import retry_until_connected
from kernel.settings import BadSettings
from kernel.trail import Trail, Trailing
from schemas.asks import AskShare, InspectModel, ModelInspection, ReadShared, Shared
from schemas.assignment import Assigned
from schemas.ids import WorkerId
from schemas.reports import FileReported, FileSeen, FilesObserved, FilesProgress
from schemas.subjects import ask, progress
from services.downloader.adapters import huggingface, modelscope
from services.downloader.adapters.hub import Account, Hub
from services.downloader.adapters.huggingface import HuggingFaceHub
from services.downloader.adapters.modelscope import ModelScopeHub
from services.downloader.adapters.neighbour import Counter
from services.downloader.adapters.parts import boot_id
from services.downloader.adapters.sandbox import Sandbox
from services.downloader.adapters.store import Store
from services.downloader.downloads import READERS, Downloads
from services.downloader.looking import Looking
from services.downloader.settings import DownloaderSettings

log = logging.getLogger(__name__)

ASKED_AT_ONCE: Final = 64
"""Neighbours whose questions are answered at one time: an answer may wait for something new."""
INSPECTED_AT_ONCE: Final = 8

PROGRESS_SECONDS: Final = 0.5
"""Between two words about how far everything is."""
REPEAT_SECONDS: Final = 4.0
"""After which it is said again, as long as something is on its way: who does not hear it for longer thinks that nothing is."""
STILL_SECONDS: Final = 10.0
"""… and between two reports about it, which are kept for a while: whoever waits for files knows that they still come."""


class DownloaderProcess:
    name = "downloader"

    def __init__(self, settings: DownloaderSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._why_not_ready: str | None = "connecting"
        if not settings.worker_id:
            raise BadSettings("MUSTER_WORKER_ID is missing: whose files are these?")
        self.worker_id = WorkerId(settings.worker_id)
        self._roots = tuple(Path(root) for root in settings.local_model_dirs.split(":") if root)
        self._edge: Edge | None = None
        self._downloads: Downloads | None = None
        self._counter: Counter | None = None
        self._tasks: asyncio.TaskGroup | None = None

    def not_ready(self) -> str | None:
        return self._why_not_ready

    async def run(self) -> None:
        with Trailing(self.name, self._settings) as trail:
            await self._run(trail)

    async def _run(self, trail: Trail) -> None:
        seed = self._settings.downloader_nkey_seed or self._settings.nats_nkey_seed
        settings = self._settings.model_copy(update={"nats_nkey_seed": seed})
        bus_settings = settings.bus(inbox_prefix=inbox_prefix("downloader", self.worker_id))
        buses: list[Bus] = []

        async def connect() -> None:
            buses.append(await Bus.connect(f"downloader {self.worker_id}", bus_settings, timeout_seconds=3))

        store = self._open_store()
        await retry_until_connected("NATS", connect)
        bus = buses[0]
        sandbox = Sandbox()
        hubs = self._hubs(sandbox)
        looking = Looking(hubs, sandbox, self._roots, settings.trusted)
        downloads = self._downloads = Downloads(
            settings, self.worker_id, store, hubs, looking, bus, boot_id(), self._note
        )
        state_file = self._settings.data_dir / "downloader" / "assigned.json"
        edge = self._edge = Edge(bus, self.worker_id, "downloader", self._clock, state_file, self._picture)
        broker = make_broker(f"downloader {self.worker_id} asks", bus_settings)
        self._answer_questions(broker, looking, downloads)
        trail.answer(broker, self.worker_id)
        try:
            if settings.share:
                self._counter = self._open_counter(downloads)
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await broker.start()
                self._why_not_ready = None
                tasks.create_task(edge.run(self._assigned))
                tasks.create_task(self._tell_progress(bus, downloads))
        finally:
            with contextlib.suppress(Exception):
                await broker.stop()
            await downloads.close()
            if self._counter is not None:
                await asyncio.to_thread(self._counter.close)
            await sandbox.close()
            await bus.close()

    def _open_store(self) -> Store:
        """Raises BadSettings."""
        try:
            return Store(self._settings.cache, self.worker_id if self._settings.store_is_shared else None)
        except OSError as error:
            raise BadSettings(f"MUSTER_CACHE_DIR is wrong: {self._settings.cache}: {error.strerror}") from error

    def _open_counter(self, downloads: Downloads) -> Counter | None:
        try:
            return Counter(downloads.open_shared, self._settings.share_port)
        except OSError as error:  # files still go through the bus
            log.warning("others can't take files at port %d: %s", self._settings.share_port, error.strerror)
            return None

    def _hubs(self, sandbox: Sandbox) -> dict[str, Hub]:
        def account(kind: Literal["huggingface", "model_scope"], usual: str) -> Account:
            endpoint, token = self._settings.account(kind)
            return Account(endpoint or usual, token)

        return {
            "huggingface": HuggingFaceHub(account("huggingface", huggingface.ENDPOINT), sandbox),
            "model_scope": ModelScopeHub(account("model_scope", modelscope.ENDPOINT), sandbox),
        }

    async def _assigned(self, document: Assigned) -> None:
        if self._downloads is not None and self._tasks is not None:
            self._downloads.wanted(document.files, self._tasks)

    def _note(self, seen: FileSeen) -> None:
        if self._edge is not None:
            self._edge.report(FileReported(**self._edge.identity(), file=seen))

    async def _picture(self) -> FilesObserved:
        if self._edge is None or self._downloads is None:
            raise RuntimeError("asked for a picture before the line was made")
        return FilesObserved(**self._edge.identity(), files=self._downloads.seen())

    async def _tell_progress(self, bus: Bus, downloads: Downloads) -> None:
        """For whoever looks, when there is something new; and now and then as reports."""
        told: FilesProgress | None = None
        loop = asyncio.get_running_loop()
        reported_at = told_at = loop.time()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            now = FilesProgress(worker_id=self.worker_id, files=downloads.progress()[:64])
            is_late = now.files and loop.time() - told_at >= REPEAT_SECONDS
            if is_late or (now != told and (now.files or (told is not None and told.files))):
                told, told_at = now, loop.time()
                with contextlib.suppress(Unavailable):
                    await bus.publish(progress(self.worker_id), now.model_dump_json().encode())
            if loop.time() - reported_at >= STILL_SECONDS:
                reported_at = loop.time()
                for seen in downloads.on_their_way():
                    self._note(seen)

    def _answer_questions(self, broker: NatsBroker, looking: Looking, downloads: Downloads) -> None:
        @broker.subscriber(ask(self.worker_id, "inspect"), title="inspect", max_workers=INSPECTED_AT_ONCE)
        async def inspect(question: InspectModel) -> ModelInspection:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            return await looking.inspect(question)

        @broker.subscriber(ask(self.worker_id, "share"), title="share", max_workers=ASKED_AT_ONCE)
        async def share(question: AskShare) -> Shared:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            return await downloads.share(question, self._counter)

        @broker.subscriber(ask(self.worker_id, "share-bytes"), title="share-bytes", max_workers=READERS)
        async def share_bytes(question: ReadShared) -> bytes:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            return await downloads.read_shared(question)
