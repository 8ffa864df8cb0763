"""Machines as files describe them, and models of any weight."""

import json
from pathlib import Path
from typing import Any, Final

from schemas.asks import InspectModel
from schemas.models import ModelSpec
from schemas.sources import LocalPath
from schemas.wanted import wanted_of
from services.downloader.adapters.local_path import inspect_model
from services.scheduler.domain.takes import estimate_of
from tests.e2e.an_engine import COMMAND
from tests.services.downloader.files import A_LLAMA, Tensor, a_gguf, u32

MIB: Final = 2**20
GIB: Final = 2**30
QUICK: Final[dict[str, Any]] = {"llama_cpp_command": COMMAND}
"""Settings of an agent whose engines start in no time."""


def a_gpu(index: int, memory: int, *, used_by_others: int = 0) -> dict[str, Any]:
    return {
        "index": index,
        "vendor": "nvidia",
        "type": "cuda",
        "name": "A made-up GPU",
        "memory_total": memory,
        "memory_used_by_others": used_by_others,
    }


def a_machine(directory: Path, name: str, *, ram: int, gpus: tuple[dict[str, Any], ...] = (), **fields: Any) -> Path:
    """An inventory file; what it leaves out is measured."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"memory_total": ram, "gpus": list(gpus)} | fields))
    return path


def a_model(directory: Path, name: str, *, weights: int, context: int = 2048) -> Path:
    """A GGUF of this size that takes no disk: headers are true, weights a hole. llama.cpp is not to load it."""
    metadata = {**A_LLAMA, "llama.context_length": u32(context)}
    head = a_gguf(metadata, (Tensor(dimensions=(32, weights // 64)),), data_bytes=0)
    path = directory / f"{name}.gguf"
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + weights)
    return path


def takes(path: Path, context: int | None = None) -> int:
    """Bytes that this model takes with this context, its own unless given, by the scheduler's estimate (its tests say what that is)."""
    weights = inspect_model(InspectModel(source=LocalPath(path=str(path))), ()).weights
    assert weights is not None
    parameters = () if context is None else (f"--ctx-size={context}",)
    spec = ModelSpec(name="m", source=LocalPath(path=str(path)), backend_parameters=parameters)
    return estimate_of(spec, wanted_of(spec), weights).on_cpu.ram_bytes
