import json
import os
import re
from pathlib import Path

import psutil
import pytest

from kernel.accounts import new_seed
from kernel.settings import BadSettings
from schemas.models import Gpu, Inventory
from services.agent.adapters.inventory import read_inventory
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.adapters.probes.detection import Detector
from services.agent.process import AgentProcess
from services.agent.settings import AgentSettings
from tests.services.agent.test_installed import an_environment

BACKENDS = {"llama.cpp": "2026.10"}
GPU = {"index": 0, "vendor": "nvidia", "type": "cuda", "name": "H100", "memory_total": 80 * 2**30}
FOUND = Gpu.model_validate(GPU)


def a_file(directory: Path, described: object) -> Path:
    file = directory / "inventory.json"
    file.write_text(json.dumps(described), encoding="utf-8")
    return file


def test_the_machine_is_measured() -> None:
    machine = read_inventory(None, BACKENDS)
    assert machine == Inventory(
        os="linux",
        arch={"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        cpu_count=os.cpu_count() or 0,
        memory_total=psutil.virtual_memory().total,
        backends={"llama.cpp": "2026.10"},
    )


def test_a_file_says_what_the_machine_has_and_the_rest_is_measured(tmp_path: Path) -> None:
    file = a_file(tmp_path, {"memory_total": 2**40, "arch": "arm64", "gpus": [GPU]})
    measured = read_inventory(None, BACKENDS)
    assert read_inventory(file, BACKENDS) == measured.model_copy(
        update={"memory_total": 2**40, "arch": "arm64", "gpus": (Gpu.model_validate(GPU),)}
    )


def test_gpus_that_were_detected_are_reported(tmp_path: Path) -> None:
    found = (Gpu.model_validate(GPU),)
    assert read_inventory(None, BACKENDS, lambda: found).gpus == found
    assert read_inventory(a_file(tmp_path, {"memory_total": 2**40}), BACKENDS, lambda: found).gpus == found


@pytest.mark.parametrize("gpus", [[], [{**GPU, "index": 1, "name": "A100"}]])
def test_a_file_that_names_gpus_wins_and_no_driver_is_asked(gpus: list[object], tmp_path: Path) -> None:
    def ask() -> tuple[Gpu, ...]:
        raise AssertionError("a driver that hangs is why the file says so")

    inventory = read_inventory(a_file(tmp_path, {"gpus": gpus}), BACKENDS, ask)
    assert inventory.gpus == tuple(Gpu.model_validate(gpu) for gpu in gpus)


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_gpus_are_reported_the_same_on_every_processor(
    machine: str, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    inventory = read_inventory(None, BACKENDS, lambda: (Gpu.model_validate(GPU),))
    assert (inventory.arch, inventory.gpus) == (arch, (Gpu.model_validate(GPU),))


@pytest.mark.parametrize(
    ("described", "field"),
    [
        ({"cpu_count": 0}, "cpu_count is wrong"),
        ({"memory_total": "much"}, "memory_total is wrong"),
        ({"gpus": [GPU, {**GPU, "memory_total": -1}]}, "gpus.1.memory_total is wrong"),
        ({"gpus": [{"index": 0}]}, "gpus.0.vendor is wrong: Field required"),
        ({"gpus": 8}, "gpus is wrong"),
        ({"gpus": ["H100"]}, "gpus.0 is wrong"),
        ({"memory": 1}, "memory is no field: there are os, arch,"),
        ({"gpus": [{**GPU, "vram": 1}]}, "gpus.0.vram is no field: there are index, vendor,"),
        ([], "is not a JSON object"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_field(described: object, field: str, tmp_path: Path) -> None:
    file = a_file(tmp_path, described)
    with pytest.raises(BadSettings, match=f"^{re.escape(str(file))}:? {re.escape(field)}"):
        read_inventory(file, BACKENDS)


def test_a_file_that_is_missing_or_no_json_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"nowhere\.json can't be read: No such file or directory"):
        read_inventory(tmp_path / "nowhere.json", BACKENDS)
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadSettings, match=r"bad\.json is not JSON"):
        read_inventory(tmp_path / "bad.json", BACKENDS)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, ()),
        ({"llama_cpp_command": "llama-server"}, (FOUND,)),
        ({"runtime": "docker", "docker_host": "unix:///nowhere"}, (FOUND,)),
    ],
)
async def test_gpus_are_offered_where_an_engine_could_use_them(
    settings: dict[str, str], found: tuple[Gpu, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"agent_nkey_seed": new_seed(), "data_dir": tmp_path, "worker_ip": "127.0.0.1"}
    agent = AgentProcess(AgentSettings.model_validate(keys | settings), runtime=LocalProcessRuntime(tmp_path))

    def gpus(*_: object) -> tuple[Gpu, ...]:
        return (FOUND,)

    monkeypatch.setattr(Detector, "gpus", gpus)
    assert (await agent._inventory()).gpus == found  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("version", "found", "backends"),
    [
        ("0.32.0", (FOUND,), {"vLLM"}),
        ("0.32.0+cpu", (), {"vLLM", "llama.cpp"}),
    ],
    ids=["a build for GPUs", "a build for processors"],
)
async def test_a_vllm_of_the_machine_is_offered_with_what_it_can_use(
    version: str, found: tuple[Gpu, ...], backends: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in llama.cpp would be promised the GPUs and use none."""
    program = an_environment(tmp_path / "vllm", ("vllm", version))
    settings = {
        "agent_nkey_seed": new_seed(),
        "data_dir": tmp_path,
        "worker_ip": "127.0.0.1",
        "vllm_command": f"{program} -m vllm.entrypoints.openai.api_server",
    }
    agent = AgentProcess(AgentSettings.model_validate(settings), runtime=LocalProcessRuntime(tmp_path))

    def gpus(*_: object) -> tuple[Gpu, ...]:
        return (FOUND,)

    monkeypatch.setattr(Detector, "gpus", gpus)
    await agent._look_for_engines()  # pyright: ignore[reportPrivateUsage]
    inventory = await agent._inventory()  # pyright: ignore[reportPrivateUsage]
    assert (inventory.gpus, inventory.backends.keys()) == (found, backends)
    assert inventory.backends["vLLM"] == version


async def test_a_vllm_that_is_not_there_is_told_with_the_setting(tmp_path: Path) -> None:
    settings = {"agent_nkey_seed": new_seed(), "data_dir": tmp_path, "vllm_command": "/nonexistent/vllm serve"}
    agent = AgentProcess(AgentSettings.model_validate(settings), runtime=LocalProcessRuntime(tmp_path))
    with pytest.raises(BadSettings, match=r"MUSTER_VLLM_COMMAND is wrong: there is no program /nonexistent/vllm"):
        await agent._look_for_engines()  # pyright: ignore[reportPrivateUsage]
