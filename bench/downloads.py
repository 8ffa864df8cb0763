"""A large file from a server on this machine to its disk: by Muster, curl, aria2c and huggingface_hub, by turns.

`python -m bench.downloads` takes options that `python -m bench downloads` has not: how large, how often, to which disk.
"""

import argparse
import asyncio
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, cast

import orjson
import psutil
from nats.aio.msg import Msg

from bench import tables
from bench.figures import Figure, Result, percentile
from bench.machine import look_at_machine
from bench.processes import MIB, CpuMeter, family, pss_mib, rss_mib
from bench.servers import until_ready
from schemas.assignment import Assigned, AssignedFile
from schemas.sources import HuggingFace, file_id_of
from schemas.subjects import ReportSubject
from services.scheduler.adapters.board import Board
from tests.support.stack import Stack, free_port

GB: Final = 10**9
MB: Final = 10**6
REPOSITORY: Final = "bench/model"
NAME: Final = "model.safetensors"
SMALL: Final = "small.safetensors"
SMALL_BYTES: Final = 200 * MB
"""Memory must not grow with the file: ten times as small is fetched too."""
HASHED_BYTES: Final = 512 * MB
HASHED_AT_ONCE: Final = 256 * 1024
WRITTEN_BYTES: Final = 512 * MB
WRITTEN_AT_ONCE: Final = 4 * 2**20
READY_SECONDS: Final = 60.0
SETTLED_SECONDS: Final = 5.0
FETCHED_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 0.05
NGINX: Final = """
daemon off;
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
{user}
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    user_seconds: float
    system_seconds: float
    whole_seconds: float
    """Of the processor, for the whole program: its start and what it imports, too."""
    peak_bytes: int
    others: float
    """Of the whole machine, what neither this nor the servers took meanwhile: other work."""

    @property
    def cpu_seconds(self) -> float:
        return self.user_seconds + self.system_seconds


@dataclass(slots=True)
class Tool:
    """A command that fetches into the directory that it is given; `is_python`: it says itself what the fetch took."""

    name: str
    command: Sequence[str]
    """With `{directory}` where that belongs."""
    bytes: int
    is_python: bool = False
    runs: list[Run] = field(default_factory=list[Run])

    def fetch(
        self, below: Path, environment: Mapping[str, str], servers: Mapping[str, int], sha256: str | None
    ) -> None:
        """Whatever was fetched is gone afterwards, and nothing of it is on its way to the disk any more."""
        with tempfile.TemporaryDirectory(prefix="fetched-", dir=below) as directory:
            own = {"HF_HOME": f"{directory}/home"}
            command = [part.format(directory=directory) for part in self.command]
            meter, before = CpuMeter(servers), _machine()
            said = subprocess.run(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("timed.py")), *command],
                env={**environment, **own},
                stdout=subprocess.PIPE,
                check=True,
            )
            busy, passed = (now - then for now, then in zip(_machine(), before, strict=True))
            *first, last = (json.loads(line) for line in said.stdout.splitlines())
            fetched = first[-1] if self.is_python else last
            whole = last["user_seconds"] + last["system_seconds"]
            others = max(busy - whole - sum(meter.spent().values()), 0) / passed
            took = (fetched["seconds"], fetched["user_seconds"], fetched["system_seconds"])
            self.runs.append(Run(*took, whole, last["peak_bytes"], others))
            (file,) = (each for each in _files(Path(directory)) if each.stat().st_size == self.bytes)
            if sha256 is not None and _sha256(file) != sha256:
                raise RuntimeError(f"{self.name} fetched something else")
        _until_written(below)

    @property
    def megabytes_per_second(self) -> float:
        return percentile([self.bytes / MB / run.seconds for run in self.runs], 0.5)

    @property
    def cpu_seconds_a_gigabyte(self) -> float:
        return percentile([run.cpu_seconds for run in self.runs], 0.5) / (self.bytes / GB)

    @property
    def peak_megabytes(self) -> float:
        return max(run.peak_bytes for run in self.runs) / MB

    def times_as_fast_as(self, other: "Tool") -> float:
        """Of each round, so that both saw the same machine."""
        return percentile(
            [theirs.seconds / own.seconds for own, theirs in zip(self.runs, other.runs, strict=True)], 0.5
        )

    def figures(self) -> list[Figure]:
        user = percentile([run.user_seconds for run in self.runs], 0.5) / (self.bytes / GB)
        system = percentile([run.system_seconds for run in self.runs], 0.5) / (self.bytes / GB)
        slowest, fastest = (edge(self.bytes / MB / run.seconds for run in self.runs) for edge in (min, max))
        processor = f"{self.cpu_seconds_a_gigabyte:.2f} s/GB of processor (user {user:.2f}, system {system:.2f})"
        conditions = f"median of {len(self.runs)}, {slowest:,.0f} to {fastest:,.0f}; {processor}; peak RSS {self.peak_megabytes:.0f} MB"
        return [Figure(self.name, self.megabytes_per_second, "MB/s", conditions)]


@dataclass(slots=True)
class Floors:
    """What this machine can do at all, measured in the same rounds."""

    hashed: list[float] = field(default_factory=list[float])
    """Seconds a GB, of the processor."""
    written: list[float] = field(default_factory=list[float])
    """MB/s, until the file is on the disk."""

    def measure(self, below: Path) -> None:
        content, sha256 = os.urandom(HASHED_AT_ONCE), hashlib.sha256()
        begun = time.thread_time()
        for _ in range(HASHED_BYTES // HASHED_AT_ONCE):
            sha256.update(content)
        self.hashed.append((time.thread_time() - begun) / (HASHED_BYTES / GB))
        content = os.urandom(WRITTEN_AT_ONCE)
        with tempfile.TemporaryFile(dir=below, buffering=0) as file:
            begun = time.perf_counter()
            for _ in range(WRITTEN_BYTES // WRITTEN_AT_ONCE):
                file.write(content)
            os.fdatasync(file.fileno())
            self.written.append(WRITTEN_BYTES / MB / (time.perf_counter() - begun))
        _until_written(below)

    def figures(self) -> list[Figure]:
        times = f"median of {len(self.hashed)}, in the same rounds"
        return [
            Figure("this machine's SHA-256 (hashlib)", percentile(self.hashed, 0.5), "s/GB", times),
            Figure(
                "this machine's disk, a file written and synced",
                percentile(self.written, 0.5),
                "MB/s",
                f"{times}; 0.5 GB",
            ),
        ]


@dataclass(frozen=True, slots=True)
class Served:
    """The same files, by two servers."""

    hub: str
    commit: str
    fast: str
    """Where a plain server has the repository."""
    fast_name: str
    servers: Mapping[str, int]
    """Their processes."""
    bytes: int
    sha256: Mapping[str, str]


async def run(
    *,
    quick: bool,
    size: int | None = None,
    rounds: int | None = None,
    below: Path | None = None,
    only_service: bool = False,
) -> list[Figure]:
    size = size or (SMALL_BYTES if quick else 2 * GB)
    rounds = rounds or (2 if quick else 5)
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=below) as directory, _served(size) as served:
        figures = [] if only_service else await asyncio.to_thread(_by_turns, served, Path(directory), rounds)
        return figures + await _service(served, Path(directory), 10 if quick else 60)


# -- each tool in a process of its own -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tools:
    verified: Tool
    unverified: Tool
    small: Tool
    of_hub: Tool
    rivals: Sequence[tuple[Tool, Tool, float]]
    """Another one, ours that has the same server, and how many times as fast ours is to be. What is not installed is left out."""

    def all(self) -> list[Tool]:
        return [self.verified, self.unverified, self.small, self.of_hub, *(rival for rival, _, _ in self.rivals)]


def _by_turns(served: Served, below: Path, rounds: int) -> list[Figure]:
    tools, floors = _tools(served), Floors()
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": served.hub,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for number in range(rounds):
        floors.measure(below)
        for tool in tools.all() if number % 2 == 0 else reversed(tools.all()):
            sha256 = served.sha256[SMALL if tool is tools.small else NAME]
            tool.fetch(below, environment, served.servers, sha256 if number == 0 else None)
    ours, small = tools.verified, tools.small
    whole = percentile([run.whole_seconds for run in ours.runs], 0.5) / (served.bytes / GB)
    others = [run.others for tool in tools.all() for run in tool.runs]
    pairs = f"median of {rounds} rounds' ratios; {served.bytes / GB:g} GB, ours with SHA-256, theirs verifies nothing"
    return [
        *(
            Figure(f"times as fast as {rival.name}", own.times_as_fast_as(rival), "×", pairs, at_least=at_least)
            for rival, own, at_least in tools.rivals
        ),
        Figure(
            "processor time, with SHA-256",
            ours.cpu_seconds_a_gigabyte,
            "s/GB",
            f"the fetch alone; {whole:.2f} s/GB with the program's start",
            at_most=1.1,
        ),
        Figure(
            "processor time, without", tools.unverified.cpu_seconds_a_gigabyte, "s/GB", "the fetch alone", at_most=0.6
        ),
        Figure(
            "peak RSS",
            max(ours.peak_megabytes, small.peak_megabytes),
            "MB",
            f"whole program, {ours.peak_megabytes:.1f} MB at {ours.bytes / GB:g} GB, "
            f"{small.peak_megabytes:.1f} MB at {small.bytes / GB:g} GB",
            at_most=60,
        ),
        *(figure for tool in tools.all() for figure in tool.figures()),
        *floors.figures(),
        Figure(
            "other work's share of the machine meanwhile",
            percentile(others, 0.5) * 100,
            "%",
            f"median of {len(others)} fetches, {min(others) * 100:.0f} to {max(others) * 100:.0f} %",
        ),
    ]


def _tools(served: Served) -> Tools:
    url, size, where = f"{served.fast}/{NAME}", served.bytes, f"from {served.fast_name}"
    fetch = [sys.executable, "-m", "bench.one_fetch"]

    def ours(what: str, url: str, name: str, size: int, *more: str) -> Tool:
        expected = ["--bytes", str(size), "--sha256", served.sha256[name], "--commit", served.commit]
        return Tool(f"Muster, {what}", [*fetch, "muster", url, "{directory}", *expected, *more], size, is_python=True)

    verified = ours(f"with SHA-256, {where}", url, NAME, size)
    of_hub = ours(
        "with SHA-256, from the tests' hub", f"{served.hub}/{REPOSITORY}/resolve/{served.commit}/{NAME}", NAME, size
    )
    curl = Tool(f"curl {where}", ["curl", "-q", "-sS", "-f", "-o", "{directory}/" + NAME, url], size)
    aria2c = Tool(
        f"aria2c -x8 -s8 {where}", ["aria2c", "-q", "-x8", "-s8", "--no-conf", "-d", "{directory}", url], size
    )
    hugging_face = [*fetch, "huggingface", REPOSITORY, NAME, "{directory}"]
    rivals = [
        (curl, verified, 1.5),
        (aria2c, verified, 2.0),
        (Tool("huggingface_hub from the tests' hub", hugging_face, size, is_python=True), of_hub, 4.0),
    ]
    return Tools(
        verified,
        ours(f"without, {where}", url, NAME, size, "--unverified"),
        ours(f"with SHA-256, {where}, {SMALL_BYTES / GB:g} GB", f"{served.fast}/{SMALL}", SMALL, SMALL_BYTES),
        of_hub,
        [each for each in rivals if shutil.which(each[0].command[0]) is not None],
    )


# -- the service ---------------------------------------------------------------------------------------------------------


async def _service(served: Served, below: Path, idle_seconds: float) -> list[Figure]:
    """The downloader as a process, told by the bus as a scheduler would."""
    async with Stack(below / "stack", "") as stack:
        worker, port = stack.workers[0].id, free_port()
        reports: asyncio.Queue[dict[str, object]] = asyncio.Queue()

        async def hear(message: Msg) -> None:
            reports.put_nowait(orjson.loads(message.data)["data"])

        await stack.operator.client.subscribe(str(ReportSubject(worker, "*", "*", "FileReported")), cb=hear)
        environment = ["env", f"HF_ENDPOINT={served.hub}", "no_proxy=*"]
        process = await stack.spawn("downloader", before=environment, health_port=port)
        await until_ready(f"http://127.0.0.1:{port}", process)
        await asyncio.sleep(SETTLED_SECONDS)
        rest, rest_pss = rss_mib(process.pid), pss_mib(process.pid)
        idle = await _idle(process.pid, idle_seconds)
        source = HuggingFace(repo_id=REPOSITORY)
        file = AssignedFile(file_id=file_id_of(source, served.commit, worker), source=source, commit=served.commit)
        _forget_peak(process.pid)
        before, begun = _own_seconds(process.pid), time.perf_counter()
        await Board(stack.operator).publish(Assigned(election=1, seq=1, worker_id=worker, files=(file,)))
        fetching = asyncio.create_task(_until_ready(reports))
        children = 0.0
        while not fetching.done():
            await asyncio.wait({fetching}, timeout=LOOK_SECONDS)
            children = max(children, sum(map(rss_mib, family(process.pid)[1:])))
        await fetching
        seconds, took = time.perf_counter() - begun, _own_seconds(process.pid) - before
        peak = _peak_mib(process.pid)
        await asyncio.sleep(SETTLED_SECONDS)
        after, idle_after = rss_mib(process.pid), await _idle(process.pid, idle_seconds)
    size = (served.bytes + SMALL_BYTES) / GB
    asked = f"{size:g} GB in two files, from the tests' hub"
    return [
        Figure("the service: RSS at rest", rest, "MiB", f"PSS {rest_pss:.0f} MiB; its process alone, as below"),
        Figure(
            "the service: peak RSS while it fetches", peak, "MiB", f"{asked}; its sandbox beside it {children:.0f} MiB"
        ),
        Figure("the service: RSS at rest afterwards", after, "MiB", ""),
        Figure("the service idle: processor time a minute", idle, "s", f"{idle_seconds:g} s"),
        Figure("the service idle: processor time a minute, afterwards", idle_after, "s", f"{idle_seconds:g} s"),
        Figure(
            "the service: assignment sent → ready reported",
            size * 1000 / seconds,
            "MB/s",
            f"{asked}, listed, verified, on the disk (synced); one run, {seconds:.2f} s",
        ),
        Figure("the service: processor time of it", took / size, "s/GB", "everything that it does meanwhile"),
    ]


async def _until_ready(reports: "asyncio.Queue[dict[str, object]]") -> None:
    async with asyncio.timeout(FETCHED_SECONDS):
        while True:
            file = cast("dict[str, object]", (await reports.get())["file"])
            if file["phase"] == "failed":
                raise RuntimeError(f"the service did not fetch it: {file['reasons']}")
            if file["phase"] == "ready":
                return


async def _idle(pid: int, seconds: float) -> float:
    before = _own_seconds(pid)
    await asyncio.sleep(seconds)
    return (_own_seconds(pid) - before) / seconds * 60


def _own_seconds(pid: int) -> float:
    """User and system time, threads that ended included (fields 14 and 15 of /proc/<pid>/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_mib(pid: int) -> float:
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / MIB


# -- servers -------------------------------------------------------------------------------------------------------------


@contextmanager
def _served(size: int) -> Generator[Served]:
    """The files lie in memory, where there is room: no disk is waited for but the one that is written to."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 * size + GB
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=memory if roomy else None) as name:
        root = Path(name)
        repository = root / "files" / REPOSITORY
        repository.mkdir(parents=True)
        sha256 = {NAME: _make(repository / NAME, size), SMALL: _make(repository / SMALL, SMALL_BYTES)}
        (repository / "config.json").write_text('{"model_type": "llama"}')
        with _hub(root / "files") as (hub, commit, pid), _nginx(root) as nginx:
            served = partial(Served, hub=hub, commit=commit, bytes=size, sha256=sha256)
            if nginx is None:
                of_hub = f"{hub}/{REPOSITORY}/resolve/{commit}"
                yield served(fast=of_hub, fast_name="the tests' hub", servers={"hub": pid})
            else:
                url, server = nginx
                yield served(fast=f"{url}/{REPOSITORY}", fast_name="nginx", servers={"hub": pid, "nginx": server})


@contextmanager
def _hub(files: Path) -> Generator[tuple[str, str, int]]:
    """Its address, the commit that it serves, its process."""
    command = [sys.executable, "-m", "tests.support.hub", str(files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as hub:
        try:
            assert hub.stdout is not None
            said = json.loads(hub.stdout.readline())
            yield said["url"], said["repositories"][REPOSITORY]["main"], hub.pid
        finally:
            hub.terminate()


@contextmanager
def _nginx(root: Path) -> Generator[tuple[str, int] | None]:
    """Its address and its process; None where it is not installed."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        yield None
        return
    port, directory = free_port(), root / "nginx"
    directory.mkdir()
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""  # who may read what we made
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, root=root / "files", user=user))
    with subprocess.Popen([nginx, "-c", str(config), "-p", str(directory)], stderr=subprocess.DEVNULL) as server:
        try:
            _until_listening(port, server, directory / "nginx.log")
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.terminate()


def _until_listening(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    ends_at = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends_at and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(LOOK_SECONDS)
        else:
            return
    raise RuntimeError(f"nginx does not listen: {log.read_text() if log.exists() else 'it says nothing'}")


# -- files ---------------------------------------------------------------------------------------------------------------


def _make(path: Path, size: int) -> str:
    """Of bytes that nothing can compress; its SHA-256."""
    sha256 = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        while size:
            content = os.urandom(min(size, WRITTEN_AT_ONCE))
            file.write(content)
            sha256.update(content)
            size -= len(content)
    return sha256.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    return (each for each in directory.rglob("*") if each.is_file() and not each.is_symlink())


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _machine() -> tuple[float, float]:
    """Seconds of all processors together since it started: busy, and all."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return busy, busy + times.idle + times.iowait


def _until_written(directory: Path) -> None:
    """Of the whole file system: the next one finds it at rest."""
    subprocess.run(["sync", "-f", str(directory)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.downloads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes", type=int, default=2 * GB, help="of the file; default: 2 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk that is fetched to; default: TMPDIR")
    parser.add_argument("--service", action="store_true", help="the service alone")
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    load, begun = os.getloadavg()[0], time.monotonic()
    figures = asyncio.run(
        run(quick=False, size=asked.bytes, rounds=asked.rounds, below=asked.directory, only_service=asked.service)
    )
    result = Result("downloads", tuple(figures), load, os.getloadavg()[0], time.monotonic() - begun)
    print((tables.markdown if asked.markdown else tables.plain)(look_at_machine(), [result]))


if __name__ == "__main__":
    main()
