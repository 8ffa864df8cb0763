"""What is made of what was seen of a machine, and what is seen of one."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from kernel.accounts import new_seed
from services.agent.adapters.examination import Places, examine, within
from services.agent.domain.accelerators.reading import GpuReading, Problem
from services.agent.domain.accelerators.vendors import ASCEND, NVIDIA
from services.agent.domain.checkup import DockerSeen, Finding, Seen, Wanted, exit_code, family_of, findings, toolkit_of
from tests.support.stack import Stack

GIB = 2**30
H100 = GpuReading("nvidia", "cuda", 0, "NVIDIA H100", memory_total_bytes=80 * GIB, driver_version="575.57")
NPU = GpuReading("ascend", "cann", 3, "Ascend 910B2", memory_total_bytes=64 * GIB)
MACHINE = Seen(
    kernel="6.1",
    distribution="debian 12",
    memory_bytes=64 * GIB,
    data_dir="/var/lib/muster",
    disk_free_bytes=500 * GIB,
    docker=DockerSeen("27.1", ("nvidia", "runc"), live_restore=True),
    engines={"vLLM": "/usr/bin/vllm"},
    ports="40000-40063",
    ports_free=64,
    nats="nats://10.0.0.1:4222",
    clock_is_set=True,
)
IN_CONTAINERS = Wanted("docker")


def of(subject: str, seen: Seen, wanted: Wanted = IN_CONTAINERS) -> Finding:
    (found,) = [each for each in findings(seen, wanted) if each.subject == subject]
    return found


def test_a_machine_where_all_is_well() -> None:
    found = findings(replace(MACHINE, readings=(H100,)), IN_CONTAINERS)
    assert {each.severity for each in found} == {"good"}
    assert exit_code(found) == 0
    assert of("GPU 0", replace(MACHINE, readings=(H100,))).said == "NVIDIA H100, 80.0 GiB, driver 575.57"


def test_without_gpus_all_is_well_too() -> None:
    found = findings(MACHINE, IN_CONTAINERS)
    assert exit_code(found) == 0
    assert of("GPUs", MACHINE).severity == "note"


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"os": "darwin"}, "machine"),
        ({"arch": "riscv64"}, "machine"),
        ({"data_dir_problem": "/x can't be written to"}, "disk"),
        ({"docker": DockerSeen(problem="refused")}, "Docker Engine"),
        ({"ports_free": 0}, "engine ports"),
        ({"ports_problem": "no range"}, "engine ports"),
        ({"nats_problem": "no NATS server answers"}, "NATS"),
        ({"settings_problem": "MUSTER_RUNTIME is wrong"}, "settings"),
    ],
)
def test_where_no_agent_works_the_exit_code_is_2(change: dict[str, Any], subject: str) -> None:
    seen = replace(MACHINE, **change)
    assert of(subject, seen).severity == "broken"
    assert exit_code(findings(seen, IN_CONTAINERS)) == 2


def test_what_is_there_and_can_not_be_used_is_1_and_says_what_to_install_here() -> None:
    problem = Problem("NVIDIA", "NVML (libnvidia-ml.so.1)", "not found", NVIDIA.install)
    seen = replace(MACHINE, gpu_problems=(problem,), distribution="ubuntu 24.04 debian")
    found = of("GPUs of NVIDIA", seen)
    assert found.remedy == f"{NVIDIA.install} Here: ubuntu-drivers install --gpgpu"
    assert exit_code(findings(seen, IN_CONTAINERS)) == 1
    other = replace(seen, gpu_problems=(Problem("Ascend", "npu-smi", "not found", ASCEND.install),))
    assert of("GPUs of Ascend", other).remedy == ASCEND.install


@pytest.mark.parametrize(
    ("reading", "handover", "change", "said", "remedy"),
    [
        (H100, "hook", {}, "container runtime nvidia", ""),
        (
            H100,
            "hook",
            {"docker": DockerSeen("27.1", ("runc",))},
            "no container runtime nvidia",
            "apt-get install nvidia-container-toolkit; nvidia-ctk runtime configure --runtime=docker; systemctl restart docker",
        ),
        (H100, "cdi", {"cdi_kinds": ("nvidia.com/gpu",)}, "CDI specification nvidia.com/gpu", ""),
        (
            H100,
            "cdi",
            {},
            "no CDI specification nvidia.com/gpu",
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ),
        (NPU, "nodes", {}, "device nodes", ""),
        (
            NPU,
            "nodes",
            {"missing_nodes": ("/dev/davinci3",)},
            "no device nodes",
            "not there: /dev/davinci3; load the driver's kernel module",
        ),
    ],
)
def test_how_containers_get_the_gpus(
    reading: GpuReading, handover: Any, change: dict[str, Any], said: str, remedy: str
) -> None:
    seen = replace(MACHINE, readings=(reading,), **change)
    label = "NVIDIA" if reading is H100 else "Ascend"
    found = of(f"{label} in containers", seen, Wanted("docker", handover))
    assert (found.said, found.remedy) == (said, remedy)
    assert found.severity == ("lacking" if remedy else "good")


def test_engines_as_processes_need_no_docker_engine() -> None:
    seen = replace(MACHINE, docker=DockerSeen(problem="no such socket"), readings=(H100,))
    found = findings(seen, Wanted("process"))
    assert exit_code(found) == 0
    assert of("Docker Engine", seen, Wanted("process")).severity == "note"
    none = replace(seen, engines={}, llama_cpp_problem="the bundled one needs AVX2")
    assert exit_code(findings(none, Wanted("process"))) == 2
    assert exit_code(findings(replace(none, engines={"vLLM": "/usr/bin/vllm"}), Wanted("process"))) == 1


@pytest.mark.parametrize(
    ("distribution", "family", "installs"),
    [
        ("debian 12", "debian", "apt-get install"),
        ("ubuntu 24.04 debian", "ubuntu", "apt-get install"),
        ("rocky 9 rhel centos fedora", "redhat", "dnf install"),
        ("opensuse-leap 15.6 suse opensuse", "suse", "zypper install"),
        ("nixos", "other", "install"),
    ],
)
def test_distributions(distribution: str, family: str, installs: str) -> None:
    assert family_of(distribution) == family
    assert toolkit_of("amd", family_of(distribution)).startswith(f"{installs} amd-container-toolkit; ")


# -- what is seen -----------------------------------------------------------------------------------------------------


def test_a_look_that_hangs_or_fails_keeps_nobody() -> None:
    hung = threading.Event()
    began = time.monotonic()
    assert within(0.2, hung.wait, otherwise=None) is None
    assert time.monotonic() - began < 20
    hung.set()
    assert within(5, lambda: 1 // 0, 7) == 7


def test_a_machine_is_looked_at(tmp_path: Path, taken_port: int) -> None:
    root = tmp_path / "root"
    (root / "etc/cdi").mkdir(parents=True)
    (root / "var/run/cdi").mkdir(parents=True)
    (root / "etc/cdi/nvidia.yaml").write_text("---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: []\n")
    (root / "var/run/cdi/amd.json").write_text('{"cdiVersion": "0.6.0", "kind": "amd.com/gpu", "devices": []}')
    (root / "etc/os-release").write_text(
        'PRETTY_NAME="Rocky"\nID="rocky"\nVERSION_ID="9.4"\nID_LIKE="rhel centos fedora"\n'
    )
    seen = examine(tmp_path / "data", f"{taken_port}-{taken_port}", "127.0.0.1", "unix:///nowhere.sock", Places(root))
    assert seen.cdi_kinds == ("amd.com/gpu", "nvidia.com/gpu")
    assert family_of(seen.distribution) == "redhat"
    assert (seen.ports_free, seen.ports_problem) == (0, None)
    assert seen.docker is not None
    assert seen.docker.problem is not None
    assert seen.docker.problem.startswith("/nowhere.sock: ")
    assert seen.disk_free_bytes is not None
    assert not (tmp_path / "data").exists(), "a doctor leaves nothing behind"


@pytest.mark.parametrize("ports", ["many", "70000-70001", "5-4"])
def test_ports_that_are_none_are_said_to_be_so(ports: str, tmp_path: Path) -> None:
    assert examine(tmp_path, ports, "127.0.0.1", "unix:///nowhere.sock", Places(tmp_path)).ports_problem is not None


def doctor(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    return subprocess.run(
        [sys.executable, "-m", "services.agent", "doctor", *arguments],
        env=base | {"MUSTER_DATA_DIR": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_doctor_works_where_nothing_else_runs(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", MUSTER_NATS_SERVERS="nats://127.0.0.1:9", MUSTER_AGENT_NKEY_SEED="nonsense")
    told = orjson.loads(done.stdout)
    subjects = {each["subject"]: each for each in told["findings"]}
    assert done.returncode == told["exit_code"] == 2
    assert subjects["NATS"]["said"].startswith("MUSTER_AGENT_NKEY_SEED is no seed of an NKey")
    assert subjects["llama.cpp (bundled)"]["severity"] == "good"
    assert done.stderr == ""


def test_the_command_says_the_same(tmp_path: Path) -> None:
    base = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    command = [str(Path(sys.executable).with_name("muster")), "agent", "doctor", "--json"]
    done = subprocess.run(
        command, env=base | {"MUSTER_DATA_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=90, check=False
    )
    told = orjson.loads(done.stdout)
    assert told["exit_code"] == done.returncode
    assert {"machine", "processor", "memory", "disk", "NATS"} <= {each["subject"] for each in told["findings"]}


def test_a_wrong_setting_is_a_finding_and_a_wrong_option_is_refused(tmp_path: Path) -> None:
    done = doctor(tmp_path, MUSTER_RUNTIME="podman")
    assert done.returncode == 2
    assert "BROKEN   settings: MUSTER_RUNTIME is wrong" in done.stdout
    assert doctor(tmp_path, "--yaml").returncode == 2


async def test_a_server_that_takes_the_workers_key_is_good_and_one_that_does_not_is_told(
    stack: Stack, tmp_path: Path
) -> None:
    async def nats_as(seed: str) -> dict[str, Any]:
        environment = {"MUSTER_NATS_SERVERS": stack.nats.url, "MUSTER_AGENT_NKEY_SEED": seed}
        done = await asyncio.to_thread(doctor, tmp_path, "--json", **environment)
        (found,) = [each for each in orjson.loads(done.stdout)["findings"] if each["subject"] == "NATS"]
        return found

    known, stranger = await nats_as(stack.workers[0].agent_seed), await nats_as(new_seed())
    assert (known["severity"], known["said"]) == ("good", f"{stack.nats.url} answers, and takes this worker's key")
    assert stranger["severity"] == "broken"
    assert "no NATS server answers" in stranger["said"]
