"""Downloaders on a real bus, and in place of the scheduler a test, which says what they are to have and hears what they report."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import struct
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from schemas.assignment import Assigned, AssignedFile, Neighbour
from schemas.envelope import Envelope
from schemas.reports import FileReported, FileSeen, FilesProgress
from schemas.sources import HubSource, HuggingFace, file_id_of
from schemas.subjects import assigned
from services.downloader.adapters.store import home_parts
from tests.services.downloader.files import A_CONFIG, a_tensor
from tests.support.hub import Hub
from tests.support.stack import Stack

REPOSITORY = "org/tiny"
WEIGHTS = "model.safetensors"
MIB = 2**20
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def point_to(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    """All clients of this process, and of those that it starts, know this hub alone."""
    for name in (*PROXIES, *map(str.lower, PROXIES), "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setenv("HF_ENDPOINT", hub.url)
    patch.setenv("MODELSCOPE_ENDPOINT", hub.url)


def a_model(weight_bytes: int = 300_000, seed: int = 7, **config: object) -> dict[str, bytes]:
    """A repository that engines load: small files, and weights of so many bytes that nothing compresses."""
    return {
        "config.json": json.dumps({**A_CONFIG, **config}).encode(),
        "tokenizer.json": b'{"model": {}}' * 20,
        WEIGHTS: random_weights(weight_bytes, seed),
    }


def random_weights(weight_bytes: int, seed: int = 7) -> bytes:
    header = json.dumps({"w": a_tensor(0, weight_bytes)}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(weight_bytes)


def digest_of(files: Mapping[str, bytes]) -> str:
    lines = sorted(f"{name}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}" for name, content in files.items())
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Desk:
    """`directory`: of the bus and of all workers' data."""

    def __init__(self, stack: Stack, cache: Path) -> None:
        self.stack = stack
        self.cache = cache
        self.seen: dict[str, list[FileSeen]] = {}
        """By file: all that was reported."""
        self.progress: dict[str, list[FilesProgress]] = {}
        self._changed = asyncio.Event()
        self._seq = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def opened(cls, directory: Path, *, workers: int = 1) -> "AsyncGenerator[Desk]":
        async with Stack(directory / "stack", "", workers=workers) as stack:
            desk = cls(stack, directory / "cache")
            await stack.operator.subscribe("muster.reports.*.file.>", desk._heard)
            await stack.operator.subscribe("muster.progress.*", desk._heard_progress)
            yield desk

    async def _heard(self, message: Msg) -> None:
        report = FileReported.model_validate(Envelope.model_validate_json(message.data).data)
        self.seen.setdefault(report.file.file_id, []).append(report.file)
        self._changed.set()

    async def _heard_progress(self, message: Msg) -> None:
        told = FilesProgress.model_validate_json(message.data)
        self.progress.setdefault(told.worker_id, []).append(told)
        self._changed.set()

    # -- downloaders

    def settings(self, number: int = 0, **settings: Any) -> dict[str, Any]:
        return {"cache_dir": self.cache / str(number), "disk_reserve_bytes": 0, "stall_seconds": 10.0, **settings}

    async def start(self, number: int = 0, **settings: Any) -> None:
        await self.stack.start_downloader(number, **self.settings(number, **settings))

    async def stop(self, number: int = 0) -> None:
        await self.stack.stop(f"downloader-{number}")

    async def spawn(self, number: int = 0, **settings: Any) -> asyncio.subprocess.Process:
        return await self.stack.spawn("downloader", number=number, **self.settings(number, **settings))

    # -- what is wanted

    def file(self, source: HubSource, commit: str | None, number: int = 0, **fields: Any) -> AssignedFile:
        file_id = file_id_of(source, commit, self.stack.workers[number].id)
        return AssignedFile(file_id=file_id, source=source, commit=commit, wanted=fields.pop("wanted", 1), **fields)

    def neighbour(self, file: AssignedFile, number: int, address: str = "127.0.0.1", *, ready: bool) -> Neighbour:
        """Worker `number`, where the same files are."""
        worker_id = self.stack.workers[number].id
        file_id = file_id_of(file.source, file.commit, worker_id)
        return Neighbour(worker_id=worker_id, file_id=file_id, address=address, ready=ready)

    async def assign(self, number: int, *files: AssignedFile) -> None:
        worker_id = self.stack.workers[number].id
        document = Assigned(election=1, seq=next(self._seq), worker_id=worker_id, files=files)
        await self.stack.operator.publish(assigned(worker_id), document.model_dump_json().encode())
        await self.stack.operator.flush()

    # -- what became of it

    async def until(self, condition: Callable[[], object], what: object = "it", *, seconds: float = 40.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await self._changed.wait()
        except TimeoutError:
            told = {file_id: [each.phase for each in seen] for file_id, seen in self.seen.items()}
            raise AssertionError(f"{what} did not happen; reported: {told}") from None

    def last(self, file: AssignedFile) -> FileSeen | None:
        seen = [each for each in self.seen.get(file.file_id, ()) if each.wanted == file.wanted]
        return seen[-1] if seen else None

    def phases(self, file: AssignedFile) -> list[str]:
        """In their order, each once in a row."""
        return [phase for phase, _ in itertools.groupby(each.phase for each in self.seen.get(file.file_id, ()))]

    async def until_phase(self, file: AssignedFile, *phases: str, seconds: float = 40.0) -> FileSeen:
        def is_so() -> bool:
            last = self.last(file)
            if last is not None and last.phase == "failed" and "failed" not in phases:
                raise AssertionError([reason.model_dump() for reason in last.reasons])
            return last is not None and last.phase in phases

        await self.until(is_so, f"{file.file_id} {phases}", seconds=seconds)
        last = self.last(file)
        assert last is not None
        return last

    async def until_ready(self, file: AssignedFile, seconds: float = 40.0) -> FileSeen:
        return await self.until_phase(file, "ready", seconds=seconds)

    async def until_failed(self, file: AssignedFile, seconds: float = 40.0) -> FileSeen:
        return await self.until_phase(file, "failed", seconds=seconds)

    def home(self, file: AssignedFile, number: int = 0) -> Path:
        assert isinstance(file.source, HubSource)
        assert file.commit is not None
        return (self.cache / str(number)).joinpath(*home_parts(file.source, file.commit))

    def content(self, file: AssignedFile, number: int = 0) -> dict[str, bytes]:
        """All that lies there, but what is ours."""
        home = self.home(file, number)
        return {
            str(path.relative_to(home)): path.read_bytes()
            for path in sorted(home.rglob("*"))
            if path.is_file() and ".muster" not in path.parts
        }


def tiny(filename: str | None = None, revision: str = "main", name: str = REPOSITORY) -> HuggingFace:
    return HuggingFace(repo_id=name, filename=filename, revision=revision)


def left_on(disk: Path) -> list[str]:
    """Everything, by its path."""
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))
