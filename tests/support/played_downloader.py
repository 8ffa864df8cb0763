"""A downloader that does what a test says: on the real bus, with the credentials and the line of a real one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from kernel.bus import Bus
from kernel.clock import SystemClock
from kernel.edge import Edge
from schemas.asks import InspectModel, ModelInspection
from schemas.assignment import Assigned, AssignedFile
from schemas.ids import FileId, WorkerId
from schemas.models import ModelWeights, Pinned
from schemas.reasons import Reason
from schemas.reports import FilePhase, FileProgress, FileReported, FileSeen, FilesObserved, FilesProgress
from schemas.sources import HubSource
from schemas.subjects import ask, progress
from tests.support.stack import Stack

COMMIT = "9f3c1e7a5b2d4c6e8f0a1b3c5d7e9f1a2b4c6d8e"


def weighs(source: HubSource, size: int, **fields: Any) -> ModelInspection:
    """What a downloader says of a GGUF on a hub."""
    pinned = (Pinned(source=source, commit=COMMIT, bytes=size),)
    told: dict[str, Any] = {"format": "gguf", "weight_bytes": size, "files": ("model.gguf",), "pinned": pinned}
    return ModelInspection(weights=ModelWeights.model_validate(told | fields))


class PlayedDownloader:
    def __init__(self, bus: Bus, worker_id: WorkerId, directory: Path) -> None:
        self.bus = bus
        self.worker_id = worker_id
        self.says: dict[str, ModelInspection] = {}
        """What it answers, by the label of a source; it is silent about others."""
        self.asked: list[str] = []
        self.assigned: dict[FileId, AssignedFile] = {}
        self._seen: dict[FileId, FileSeen] = {}
        self._edge = Edge(
            bus, worker_id, "downloader", SystemClock(), directory / f"{worker_id}-played.json", self._picture
        )

    @property
    def boot_id(self) -> str:
        return self._edge.boot_id

    async def run(self) -> None:
        await self.bus.subscribe(ask(self.worker_id, "inspect"), self._answer)
        await self.bus.flush()
        await self._edge.run(self._take)

    async def until_assigned(self, file_id: str, want: str = "ready") -> AssignedFile:
        for _ in range(600):
            file = self.assigned.get(FileId(file_id))
            if file is not None and file.want == want:
                return file
            await asyncio.sleep(0.05)
        raise AssertionError(f"{file_id} was never to be {want}; last: {self.assigned}")

    async def report(self, file_id: str, phase: FilePhase, *reasons: Reason, **fields: Any) -> None:
        """As an answer to the newest wish."""
        file = self.assigned[FileId(file_id)]
        seen = FileSeen(
            file_id=file.file_id, wanted=file.wanted, commit=file.commit, phase=phase, reasons=reasons, **fields
        )
        self._seen[seen.file_id] = seen
        self._edge.report(FileReported(**self._edge.identity(), file=seen))

    async def tell(self, *files: FileProgress, worker_id: WorkerId | None = None) -> None:
        """How far they are; `worker_id`: whose, if the body is to lie."""
        body = FilesProgress(worker_id=worker_id or self.worker_id, files=files)
        await self.bus.publish(progress(self.worker_id), body.model_dump_json().encode())

    async def _answer(self, message: Msg) -> None:
        question = InspectModel.model_validate_json(message.data)
        self.asked.append(question.source.label)
        if (found := self.says.get(question.source.label)) is not None:
            await message.respond(found.model_dump_json().encode())

    async def _take(self, document: Assigned) -> None:
        self.assigned = {file.file_id: file for file in document.files}
        self._seen = {file_id: seen for file_id, seen in self._seen.items() if file_id in self.assigned}

    async def _picture(self) -> FilesObserved:
        return FilesObserved(**self._edge.identity(), files=tuple(self._seen.values()))


@asynccontextmanager
async def a_played_downloader(stack: Stack, number: int = 0) -> AsyncGenerator[PlayedDownloader]:
    bus = await stack.bus("downloader", number)
    made = PlayedDownloader(bus, stack.workers[number].id, stack.directory)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
