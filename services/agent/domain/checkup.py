"""What `muster agent doctor` makes of what was seen of a machine: what is there, what is missing, what to install."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from schemas.reasons import gib
from services.agent.domain.accelerators import vendors
from services.agent.domain.accelerators.reading import GpuReading, Problem
from services.agent.domain.gpu_access import VENDORS as ACCESS

Severity = Literal["good", "note", "lacking", "broken"]
"""`note`: worth knowing. `lacking`: something is there that can't be used. `broken`: an agent does not work here."""
EXIT_CODES: Final[Mapping[Severity, int]] = {"good": 0, "note": 0, "lacking": 1, "broken": 2}
Family = Literal["debian", "ubuntu", "redhat", "suse", "other"]

LEAST_DISK_BYTES: Final = 10 * 2**30
ARCHITECTURES: Final = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    severity: Severity
    said: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DockerSeen:
    version: str | None = None
    runtimes: tuple[str, ...] = ()
    live_restore: bool = False
    problem: str | None = None
    """None: it answers."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked at. None: it could not be found out, or there was no need to."""

    os: str = "linux"
    arch: str = "amd64"
    kernel: str = ""
    distribution: str = ""
    """`ID` and `ID_LIKE` of /etc/os-release."""
    cpu: str = ""
    cpu_count: int = 1
    memory_bytes: int = 0
    data_dir: str = ""
    disk_free_bytes: int | None = None
    data_dir_problem: str | None = None
    vendors_on_the_bus: tuple[str, ...] = ()
    """Names, `nvidia`."""
    readings: tuple[GpuReading, ...] = ()
    gpu_problems: tuple[Problem, ...] = ()
    docker: DockerSeen | None = None
    cdi_kinds: tuple[str, ...] = ()
    """`nvidia.com/gpu`: of all specifications under /etc/cdi and /var/run/cdi."""
    missing_nodes: tuple[str, ...] = ()
    """Under /dev, of those that the GPUs' drivers usually make."""
    engines: Mapping[str, str] = field(default_factory=dict[str, str])
    """That are installed as programs → where, or which version."""
    llama_cpp_problem: str | None = None
    """Why the bundled one does not start."""
    ports: str = "0"
    ports_free: int | None = None
    ports_problem: str | None = None
    nats: str | None = None
    """The servers that were asked; None: none are set."""
    nats_problem: str | None = None
    clock_is_set: bool | None = None
    settings_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """As the agent's settings have it."""

    runtime: Literal["process", "docker"] = "process"
    gpu_handover: Literal["hook", "cdi", "nodes"] = "hook"


def exit_code(findings: Iterable[Finding]) -> int:
    return max((EXIT_CODES[finding.severity] for finding in findings), default=0)


def findings(seen: Seen, wanted: Wanted) -> tuple[Finding, ...]:
    return (
        *_settings(seen),
        *_machine(seen),
        *_disk(seen),
        *_gpus(seen),
        *_docker(seen, wanted),
        *_handover(seen, wanted),
        *_engines(seen, wanted),
        *_ports(seen),
        *_nats(seen),
        *_clock(seen),
    )


def family_of(distribution: str) -> Family:
    """Of `ID` and `ID_LIKE`."""
    words = distribution.lower().split()
    if "ubuntu" in words:
        return "ubuntu"
    if "debian" in words:
        return "debian"
    if {"rhel", "fedora", "centos", "openeuler", "rocky", "almalinux"} & set(words):
        return "redhat"
    return "suse" if {"suse", "opensuse", "sles"} & set(words) else "other"


_DOCKER: Final[Mapping[Family, str]] = {
    "debian": "apt-get install docker.io",
    "ubuntu": "apt-get install docker.io",
    "redhat": "dnf install docker-ce (from download.docker.com; openEuler: dnf install docker-engine)",
    "suse": "zypper install docker",
    "other": "install Docker Engine 20.10 or newer",
}
_DRIVERS: Final[Mapping[tuple[str, Family], str]] = {
    (
        "nvidia",
        "debian",
    ): "apt-get install nvidia-driver (component non-free), or cuda-drivers from NVIDIA's repository",
    ("nvidia", "ubuntu"): "ubuntu-drivers install --gpgpu",
    ("nvidia", "redhat"): "dnf install cuda-drivers (from NVIDIA's repository)",
    ("nvidia", "suse"): "zypper install cuda-drivers (from NVIDIA's repository)",
    ("amd", "debian"): "amdgpu-install --usecase=dkms,rocm (package amdgpu-install of repo.radeon.com)",
    ("amd", "ubuntu"): "amdgpu-install --usecase=dkms,rocm (package amdgpu-install of repo.radeon.com)",
    ("amd", "redhat"): "amdgpu-install --usecase=dkms,rocm (package amdgpu-install of repo.radeon.com)",
    ("amd", "suse"): "amdgpu-install --usecase=dkms,rocm (package amdgpu-install of repo.radeon.com)",
}
_RESTART: Final = "systemctl restart docker"
_INSTALLS: Final[Mapping[Family, str]] = {
    "debian": "apt-get install",
    "ubuntu": "apt-get install",
    "redhat": "dnf install",
    "suse": "zypper install",
    "other": "install",
}
_TOOLKITS: Final[Mapping[str, tuple[str, str]]] = {
    "nvidia": ("nvidia-container-toolkit", "nvidia-ctk runtime configure --runtime=docker"),
    "amd": ("amd-container-toolkit", "amd-ctk runtime configure"),
}
"""Vendor → package (of its own repository), and what makes it known to the Docker Engine."""
_INSTALLERS: Final[Mapping[str, str]] = {
    "ascend": f"run Ascend-docker-runtime_*.run --install (of Huawei's MindCluster), then {_RESTART}",
    "mthreads": f"install Moore Threads' mt-container-toolkit, then {_RESTART}",
    "iluvatar": f"install Iluvatar's ix-container-toolkit, then {_RESTART}",
    "cambricon": f"install Cambricon's container toolkit, then {_RESTART}",
}
_CDI: Final[Mapping[str, str]] = {
    "nvidia": "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    "amd": "amd-ctk cdi generate --output=/etc/cdi/amd.json",
}


def toolkit_of(vendor: str, family: Family) -> str:
    if vendor in _TOOLKITS:
        package, configure = _TOOLKITS[vendor]
        return f"{_INSTALLS[family]} {package}; {configure}; {_RESTART}"
    return _INSTALLERS.get(vendor, "install the vendor's container toolkit, or set MUSTER_GPU_HANDOVER=nodes")


def _settings(seen: Seen) -> Iterator[Finding]:
    if seen.settings_problem is not None:
        yield Finding("settings", "broken", seen.settings_problem)


def _machine(seen: Seen) -> Iterator[Finding]:
    fits = seen.os == "linux" and seen.arch in ARCHITECTURES
    said = f"{seen.os} {seen.arch}, kernel {seen.kernel}, {seen.distribution or 'distribution not told'}"
    yield Finding(
        "machine", "good" if fits else "broken", said, "" if fits else "an agent runs on Linux, amd64 or arm64"
    )
    yield Finding("processor", "good", f"{seen.cpu_count} × {seen.cpu or 'unknown'}")
    yield Finding("memory", "good", gib(seen.memory_bytes))


def _disk(seen: Seen) -> Iterator[Finding]:
    if seen.data_dir_problem is not None:
        yield Finding(
            "disk", "broken", seen.data_dir_problem, "set MUSTER_DATA_DIR to a directory that this user may write to"
        )
    elif seen.disk_free_bytes is not None:
        little = seen.disk_free_bytes < LEAST_DISK_BYTES
        said = f"{gib(seen.disk_free_bytes)} free at {seen.data_dir}"
        yield Finding("disk", "lacking" if little else "good", said, "weights and images need more" if little else "")


def _gpus(seen: Seen) -> Iterator[Finding]:
    family = family_of(seen.distribution)
    for reading in seen.readings:
        severity: Severity = "good" if reading.unhealthy is None else "lacking"
        size = gib(reading.memory_total_bytes) if reading.memory_total_bytes else "memory not told"
        ill = f", unhealthy: {reading.unhealthy}" if reading.unhealthy is not None else ""
        driver = f", driver {reading.driver_version}" if reading.driver_version else ""
        yield Finding(f"GPU {reading.index}", severity, f"{reading.name}, {size}{driver}{ill}")
    for problem in seen.gpu_problems:
        vendor = next((each.name for each in vendors.VENDORS if each.label == problem.vendor), "")
        command = _DRIVERS.get((vendor, family))
        remedy = problem.install if command is None else f"{problem.install} Here: {command}"
        yield Finding(f"GPUs of {problem.vendor}", "lacking", f"{problem.tried}: {problem.said}", remedy)
    if not seen.readings and not seen.gpu_problems:
        yield Finding("GPUs", "note", "none found: models run on the processor")


def _docker(seen: Seen, wanted: Wanted) -> Iterator[Finding]:
    docker, needed = seen.docker, wanted.runtime == "docker"
    if docker is None:
        return
    if docker.problem is not None:
        install = f"{_DOCKER[family_of(seen.distribution)]}, or let this user reach its socket (MUSTER_DOCKER_HOST)"
        severity: Severity = "broken" if needed else "note"
        also = "" if needed else "; engines run as processes (MUSTER_RUNTIME=process)"
        yield Finding("Docker Engine", severity, f"does not answer: {docker.problem}{also}", install if needed else "")
        return
    yield Finding("Docker Engine", "good", f"{docker.version}, runtimes {', '.join(docker.runtimes) or 'not told'}")
    if needed and not docker.live_restore:
        said = "without live-restore, engines end when the Docker Engine is restarted"
        yield Finding("Docker Engine", "note", said, 'set "live-restore": true in /etc/docker/daemon.json')


def _handover(seen: Seen, wanted: Wanted) -> Iterator[Finding]:
    """How containers get the GPUs that were found."""
    if wanted.runtime != "docker" or seen.docker is None or seen.docker.problem is not None:
        return
    family = family_of(seen.distribution)
    for vendor, type_ in dict.fromkeys((reading.vendor, reading.type) for reading in seen.readings):
        access, label = ACCESS[type_], next(each.label for each in vendors.VENDORS if each.name == vendor)
        subject = f"{label} in containers"
        if wanted.gpu_handover == "cdi":
            there, what = access.cdi_kind in seen.cdi_kinds, f"CDI specification {access.cdi_kind}"
            remedy = _CDI.get(vendor, "write one with the vendor's tool")
        elif wanted.gpu_handover == "hook" and access.runtime is not None:
            there, what = access.runtime in seen.docker.runtimes, f"container runtime {access.runtime}"
            remedy = toolkit_of(vendor, family)
        else:
            there, what = not seen.missing_nodes, "device nodes"
            remedy = f"not there: {', '.join(seen.missing_nodes)}; load the driver's kernel module"
        yield Finding(subject, "good" if there else "lacking", what if there else f"no {what}", "" if there else remedy)


def _engines(seen: Seen, wanted: Wanted) -> Iterator[Finding]:
    if wanted.runtime == "docker":
        return
    if seen.llama_cpp_problem is not None:
        remedy = "install what it names, or set MUSTER_LLAMA_CPP_COMMAND to a llama-server of this machine"
        yield Finding("llama.cpp", "lacking", seen.llama_cpp_problem, remedy)
    for name, where in seen.engines.items():
        yield Finding(name, "good", where)
    if seen.llama_cpp_problem is not None and not seen.engines:
        yield Finding("engines", "broken", "no engine can be started", "install one, or set MUSTER_RUNTIME=docker")


def _ports(seen: Seen) -> Iterator[Finding]:
    if seen.ports_problem is not None:
        yield Finding("engine ports", "broken", seen.ports_problem, "MUSTER_ENGINE_PORTS is a range: 40000-40063")
    elif seen.ports_free is None:
        yield Finding("engine ports", "note", "any free port (MUSTER_ENGINE_PORTS=0): a firewall must let all through")
    elif seen.ports_free == 0:
        yield Finding("engine ports", "broken", f"no port of {seen.ports} is free", "set another MUSTER_ENGINE_PORTS")
    else:
        yield Finding("engine ports", "good", f"{seen.ports_free} of {seen.ports} are free")


def _nats(seen: Seen) -> Iterator[Finding]:
    if seen.nats is None:
        yield Finding("NATS", "note", "not asked: MUSTER_NATS_SERVERS is not set")
    elif seen.nats_problem is not None:
        remedy = "see that it runs, that no firewall is between, and that MUSTER_AGENT_NKEY_SEED is this worker's"
        yield Finding("NATS", "broken", seen.nats_problem, remedy)
    else:
        yield Finding("NATS", "good", f"{seen.nats} answers, and takes this worker's key")


def _clock(seen: Seen) -> Iterator[Finding]:
    if seen.clock_is_set is False:
        said = "the kernel does not know of its clock being kept right"
        yield Finding(
            "clock", "note", said, "run an NTP client (chrony, systemd-timesyncd): logs and certificates need it"
        )
    elif seen.clock_is_set:
        yield Finding("clock", "good", "kept right (NTP)")
