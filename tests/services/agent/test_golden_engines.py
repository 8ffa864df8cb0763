"""What is started for every vendor and engine that there is, as files: tests/golden/engines/<vendor>/<engine>/<shape>.json.

After a change that is meant, `UPDATE_GOLDEN=1 pytest tests/services/agent/test_golden_engines.py` writes them anew.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from schemas.backends import CPU, built_in, info_of
from schemas.models import Launch
from services.agent.domain.containers import contained
from services.agent.domain.engines.command import ENGINES, command_of
from services.agent.domain.engines.start import Start
from services.agent.domain.gpu_access import VENDORS, AssignedGpu, How, gpu_access
from tests.services.agent.starts import a_launch, a_start

GOLDEN: Final = Path(__file__).parents[2] / "golden" / "engines"
IS_UPDATE: Final = os.environ.get("UPDATE_GOLDEN") == "1"
HOWS: Final[tuple[How, ...]] = ("process", "hook", "cdi", "nodes")
RUN_COMMAND: Final = "serve {{model_path}} --name={{model_name}} --listen {{worker_ip}}:{{port}} --gpus {{gpu_indexes}}"
FAMILIES: Final = {"cann": "Ascend910B2", "cuda": "hopper"}
GGUF: Final = "/models/qwen3-8b-q4_k_m.gguf"


def launch_on(kind: str, backend: str, gpus: int, nodes: int) -> Launch:
    """As placement makes it: tensor parallel inside a worker, a pipeline across, but MindIE's all tensor parallel."""
    info = info_of(built_in()[backend])
    fields: dict[str, Any] = {
        "backend_version": info.accelerators[kind] or info.newest,
        "image": f"example.org/{kind}:1",
    }
    flags: tuple[str, ...] = ()
    if backend in ("vLLM", "SGLang"):
        fields |= {"parallelism": {"tensor": gpus, "pipeline": nodes}, "categories": ("llm",), "memory_fraction": 0.9}
    elif backend == "MindIE":
        fields |= {"parallelism": {"tensor": gpus * nodes}, "memory_fraction": 0.9, "context_length": 8192}
    elif backend == "llama.cpp":
        fields["source"] = {"path": GGUF}
        flags = ("--ctx-size=8192",)
    else:
        fields["run_command"] = RUN_COMMAND
    return a_launch(backend, *flags, **fields)


def start_on(kind: str, backend: str, gpus: int, nodes: int, rank: int) -> Start:
    return a_start(
        launch_on(kind, backend, gpus, nodes),
        None if kind == CPU else kind,
        gpus=gpus,
        nodes=nodes,
        rank=rank,
        weights=(GGUF,) if backend == "llama.cpp" else (),
        interface="eth0",
        family=FAMILIES.get(kind),
        cache="/var/cache/muster",
        directory="/var/lib/muster/engines/i-1.1",
    )


def started(start: Start) -> dict[str, Any]:
    gpus = assigned_gpus(start.gpus)
    access = gpu_access(start.assigned.accelerator, gpus, "hook")
    return document(contained(start, command_of(start), start.launch.image or "", access))


def assigned_gpus(count: int) -> tuple[AssignedGpu, ...]:
    return tuple(AssignedGpu(index, uuid=f"GPU-{index}") for index in range(4, 4 + count))


def document(value: Any) -> dict[str, Any]:
    """Files that are JSON are shown as such."""
    told = json.loads(json.dumps(dataclasses.asdict(value)))
    if "files" in told:
        told["files"] = {path: json.loads(text) for path, text in told["files"].items()}
    return told


SHAPES: Final = {
    "one": (1, 1, 0),
    "several": (2, 1, 0),
    "multi_node_leader": (2, 2, 0),
    "multi_node_follower": (2, 2, 1),
}
"""GPUs of a worker, workers, rank."""


def cases() -> Iterator[tuple[str, str, str]]:
    for backend, definition in built_in().items():
        info = info_of(definition)
        for kind in info.accelerators:
            for shape, (gpus, nodes, _) in SHAPES.items():
                if (nodes == 1 or (info.distributes and kind != CPU)) and (gpus == 1 or kind != CPU):
                    yield kind, backend, shape


def check(path: Path, made: dict[str, Any]) -> None:
    if IS_UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert made == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "backend", "shape"), list(cases()))
def test_what_is_started_is_as_it_was(kind: str, backend: str, shape: str) -> None:
    check(GOLDEN / kind / backend / f"{shape}.json", started(start_on(kind, backend, *SHAPES[shape])))


@pytest.mark.parametrize("kind", [*VENDORS, CPU])
def test_the_ways_to_gpus_are_as_they_were(kind: str) -> None:
    accelerator = None if kind == CPU else kind
    made = {
        how: {str(count): document(gpu_access(accelerator, assigned_gpus(count), how)) for count in (1, 2)}
        for how in HOWS
    }
    check(GOLDEN / kind / "access.json", made)


def test_no_golden_file_is_left_over() -> None:
    wanted = {GOLDEN / kind / backend / f"{shape}.json" for kind, backend, shape in cases()}
    assert {path for path in GOLDEN.rglob("*.json") if path.name != "access.json"} == wanted


def test_there_is_an_engine_for_every_backend() -> None:
    assert set(ENGINES) == set(built_in())
