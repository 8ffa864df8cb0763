"""The downloader's shell: makes its worker's files look like the assignment says, answers what models weigh."""

import asyncio
import contextlib
import logging
from pathlib import Path

from faststream.nats import NatsBroker

from kernel.accounts import inbox_prefix
from kernel.bus import Bus
from kernel.clock import Clock, SystemClock
from kernel.edge import Edge
from kernel.inbox import make_broker
from kernel.process import retry_until_connected
from kernel.settings import BadSettings
from kernel.trail import Trail, Trailing
from schemas.asks import InspectModel, ModelInspection
from schemas.assignment import Assigned, AssignedFile
from schemas.ids import FileId, WorkerId
from schemas.reports import FileReported, FileSeen, FilesObserved
from schemas.subjects import ask
from services.downloader.adapters.local_path import inspect_model
from services.downloader.settings import DownloaderSettings

log = logging.getLogger(__name__)


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
        self._files: dict[FileId, FileSeen] = {}
        self._verifying: dict[FileId, asyncio.Task[None]] = {}
        self._edge: Edge | None = None
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

        await retry_until_connected("NATS", connect)
        bus = buses[0]
        state_file = self._settings.data_dir / "downloader" / "assigned.json"
        edge = self._edge = Edge(bus, self.worker_id, "downloader", self._clock, state_file, self._picture)
        broker = make_broker(f"downloader {self.worker_id} asks", bus_settings)
        self._answer_questions(broker)
        trail.answer(broker, self.worker_id)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await broker.start()
                self._why_not_ready = None
                tasks.create_task(edge.run(self._assigned))
        finally:
            with contextlib.suppress(Exception):
                await broker.stop()
            await bus.close()

    async def _assigned(self, document: Assigned) -> None:
        wanted = {file.file_id: file for file in document.files}
        for file_id in self._files.keys() - wanted.keys():
            del self._files[file_id]
        for file in wanted.values():
            known = self._files.get(file.file_id)
            if (known is None or known.wanted < file.wanted) and self._tasks is not None:
                if (before := self._verifying.pop(file.file_id, None)) is not None:
                    before.cancel()
                self._note(FileSeen(file_id=file.file_id, wanted=file.wanted, commit=file.commit, phase="verifying"))
                self._verifying[file.file_id] = self._tasks.create_task(self._verify(file))

    async def _verify(self, file: AssignedFile) -> None:
        """A local path is ready when all its files are there and as long as their headers say."""
        found = await self._inspect(InspectModel(source=file.source))
        if found.weights is None:
            seen = FileSeen(
                file_id=file.file_id, wanted=file.wanted, commit=file.commit, phase="failed", reasons=found.reasons
            )
        else:
            seen = FileSeen(
                file_id=file.file_id,
                wanted=file.wanted,
                commit=file.commit,
                phase="ready",
                bytes=found.weights.weight_bytes,
                total=found.weights.weight_bytes,
                paths=found.weights.files,
            )
        self._note(seen)

    def _note(self, seen: FileSeen) -> None:
        self._files[seen.file_id] = seen
        if self._edge is not None:
            self._edge.report(FileReported(**self._edge.identity(), file=seen))

    async def _picture(self) -> FilesObserved:
        if self._edge is None:
            raise RuntimeError("asked for a picture before the line was made")
        return FilesObserved(**self._edge.identity(), files=tuple(self._files.values()))

    def _answer_questions(self, broker: NatsBroker) -> None:
        @broker.subscriber(ask(self.worker_id, "inspect"), title="inspect")
        async def inspect(question: InspectModel) -> ModelInspection:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            return await self._inspect(question)

    async def _inspect(self, question: InspectModel) -> ModelInspection:
        return await asyncio.to_thread(inspect_model, question, self._roots)
