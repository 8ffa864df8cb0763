"""Looks at the machine for `muster agent doctor`: each look in a thread of its own, and no longer than it may take."""

import ctypes
import json
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import psutil

from services.agent.adapters.bundled_llama_cpp import LIBGOMP, bundled_version, lacks_avx2, lacks_library
from services.agent.adapters.inventory import ARCHITECTURES
from services.agent.adapters.probes.detection import Detected, detect
from services.agent.adapters.probes.presence import accelerators
from services.agent.domain.accelerators.reading import GpuReading
from services.agent.domain.accelerators.vendors import VENDORS
from services.agent.domain.checkup import DockerSeen, Seen
from services.agent.domain.gpu_access import VENDORS as ACCESS
from services.agent.domain.plan import worker_ports

T = TypeVar("T")

GPU_SECONDS: Final = 20.0
DOCKER_SECONDS: Final = 5.0
DISK_SECONDS: Final = 5.0
PORTS_SECONDS: Final = 10.0
PROGRAMS: Final = {
    "vLLM": "vllm",
    "SGLang": "sglang",
    "llama.cpp (llama-server)": "llama-server",
    "MindIE": "mindieservice_daemon",
}
_FIRST_RENDER_NODE: Final = 128
_CDI_KIND: Final = re.compile(r"""^\s*["']?kind["']?\s*:\s*["']?([a-z0-9./_-]+)["']?""", re.MULTILINE)
_UNSYNCHRONISED: Final = 5
"""`TIME_ERROR` of adjtimex(2)."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are looked for."""

    root: Path = Path("/")

    @property
    def sysfs(self) -> Path:
        return self.root / "sys"

    @property
    def cdi(self) -> tuple[Path, ...]:
        return (self.root / "etc/cdi", self.root / "var/run/cdi")


def examine(
    data_dir: Path, engine_ports: str, address: str, docker_host: str | None, places: Places | None = None
) -> Seen:
    """All but NATS. Never raises, never hangs."""
    places = places or Places()
    detected = within(GPU_SECONDS + 5, lambda: detect(sysfs=places.sysfs, patience_seconds=GPU_SECONDS), Detected())
    seen = Seen(
        os=platform.system().lower(),
        arch=ARCHITECTURES.get(platform.machine(), platform.machine()),
        kernel=platform.release(),
        distribution=_distribution(places.root),
        cpu=_cpu(places.root),
        cpu_count=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        vendors_on_the_bus=tuple(v.name for v in VENDORS if v.pci_id in accelerators(places.sysfs)),
        readings=detected.readings,
        gpu_problems=detected.problems,
        docker=within(
            DOCKER_SECONDS, lambda: _docker(docker_host), DockerSeen(problem=f"no answer in {DOCKER_SECONDS:g} s")
        ),
        cdi_kinds=_cdi_kinds(places.cdi),
        missing_nodes=tuple(_missing_nodes(detected.readings, places.root)),
        engines=_engines(),
        llama_cpp_problem=_llama_cpp_problem(),
        clock_is_set=_clock_is_set(),
    )
    return _with_ports(_with_disk(seen, data_dir), engine_ports, address)


def within(seconds: float, look: Callable[[], T], otherwise: T) -> T:
    """What a look found; `otherwise` when it takes longer (it is left to itself) or fails."""
    found: list[T] = []

    def run() -> None:
        try:
            found.append(look())
        except Exception:  # noqa: BLE001 - whatever goes wrong in a look, the others go on
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else otherwise


def _distribution(root: Path) -> str:
    try:
        lines = (root / "etc/os-release").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    words = (told.get(name, "").strip("\"'") for name in ("ID", "VERSION_ID", "ID_LIKE"))
    return " ".join(word for word in words if word)


def _cpu(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _with_disk(seen: Seen, data_dir: Path) -> Seen:
    """Also a file system that hangs is an answer."""
    directory = data_dir.absolute()

    def look() -> Seen:
        there = next(path for path in (directory, *directory.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            return replace(seen, data_dir_problem=f"{there} can't be written to: {error.strerror}")
        return replace(seen, disk_free_bytes=shutil.disk_usage(there).free)

    seen = replace(seen, data_dir=str(directory))
    silent = replace(seen, data_dir_problem=f"the file system of {directory} does not answer")
    return within(DISK_SECONDS, look, silent)


def _with_ports(seen: Seen, text: str, address: str) -> Seen:
    seen = replace(seen, ports=text)
    try:
        ports = worker_ports(text)
    except ValueError as error:
        return replace(seen, ports_problem=f"MUSTER_ENGINE_PORTS is wrong: {error}")
    if ports is None:
        return seen
    free = within(PORTS_SECONDS, lambda: sum(_is_free(address, port) for port in ports), None)
    return replace(seen, ports_free=free)


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _docker(base_url: str | None) -> DockerSeen:
    import docker  # noqa: PLC0415 - takes 0.3 s
    from docker.errors import DockerException  # noqa: PLC0415 - the same
    from requests.exceptions import RequestException  # noqa: PLC0415 - the same

    from services.agent.adapters.docker import ANY_VERSION, knock  # noqa: PLC0415 - the same

    url = base_url or os.environ.get("DOCKER_HOST")
    try:
        knock(url)
        client = docker.APIClient(base_url=url, timeout=int(DOCKER_SECONDS), version=ANY_VERSION)
        try:
            info = client.info()
        finally:
            client.close()
    except (DockerException, RequestException, OSError, ValueError) as error:
        return DockerSeen(problem=str(error))
    runtimes = tuple(sorted(cast("dict[str, Any]", info.get("Runtimes") or {})))
    return DockerSeen(str(info.get("ServerVersion")), runtimes, bool(info.get("LiveRestoreEnabled")))


def _cdi_kinds(directories: Iterable[Path]) -> tuple[str, ...]:
    """Of JSON and YAML alike: the field's line is all that is read."""
    kinds: set[str] = set()
    for directory in directories:
        for file in (*directory.glob("*.json"), *directory.glob("*.y*ml")):
            try:
                text = file.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            found = _CDI_KIND.search(text)
            kind = found[1] if found else _kind_of_json(text)
            if kind:
                kinds.add(kind)
    return tuple(sorted(kinds))


def _kind_of_json(text: str) -> str | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    kind = cast("dict[str, Any]", document).get("kind") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) else None


def _missing_nodes(readings: Iterable[GpuReading], root: Path) -> Iterable[str]:
    for reading in readings:
        vendor = ACCESS[reading.type]
        own = (node.format(index=reading.index, render=_FIRST_RENDER_NODE + reading.index) for node in vendor.own_nodes)
        for node in (*vendor.shared_nodes, *own):
            if not (root / node.lstrip("/")).exists():
                yield node


def _engines() -> dict[str, str]:
    found = {name: path for name, program in PROGRAMS.items() if (path := shutil.which(program)) is not None}
    bundled = bundled_version()
    if bundled is not None and _llama_cpp_problem() is None:
        found["llama.cpp (bundled)"] = bundled
    return found


def _llama_cpp_problem() -> str | None:
    if bundled_version() is None:
        return "the bundled one (xllamacpp) is not installed"
    if lacks_avx2():
        return "the bundled one needs AVX2, which this processor does not have"
    if lacks_library():
        return f"the bundled one needs {LIBGOMP} (`apt-get install libgomp1`, elsewhere libgomp)"
    return None


def _clock_is_set() -> bool | None:
    """adjtimex(2), which changes nothing with `modes` 0. None: it is not told (a container may not ask)."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _UNSYNCHRONISED
