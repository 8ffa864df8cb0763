"""A Docker Engine of the tests' own: private socket and data root, in a network of its own, with images that are made here."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import xllamacpp

from services.agent.adapters.docker import connect

REPOSITORY: Final = Path(__file__).parents[2]
IMAGE: Final = "muster-test:1"
"""Nothing but a skeleton: programs come from the machine's own /usr, which is mounted into it."""
NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
START_SECONDS: Final = 60
HAVE_OWN_NETWORK: Final = os.environ.get("TESTS_OWN_NETWORK") == "1"
"""The tests run in a network of their own (`make test-docker`): what listens in containers can be reached."""


def missing(*programs: str) -> str | None:
    absent = [program for program in programs if shutil.which(program) is None]
    return f"{', '.join(absent)}: not installed" if absent else None


def why_not() -> str | None:
    """Why no Docker Engine can be started here; None: it can."""
    if (reason := missing("dockerd", "containerd", "unshare", "nsenter", "ip")) is not None:
        return reason
    if os.geteuid() != 0:
        return "only root starts a Docker Engine"
    return None


@dataclass
class DockerEngine:
    directory: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _containerd: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _holder: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"unix://{self.directory}/docker.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *arguments: str) -> None:
        """With its containers' network in a namespace of its own: the machine's stays as it is."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._start_containerd()
        command = (
            f"ip link set lo up && exec dockerd --live-restore --containerd {self.directory}/containerd.sock"
            f" --host {self.url} --data-root {self.directory}/data --exec-root {self.directory}/exec"
            f" --pidfile {self.directory}/pid {' '.join(arguments)}"
        )
        namespace = f"/proc/{self.holder}/ns/net"
        with (self.directory / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net={namespace}", "sh", "-c", command], stdout=log, stderr=log, start_new_session=True
            )
        ends = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > ends or self._process.poll() is not None:
                self._end_holder()
                raise AssertionError((self.directory / "dockerd.log").read_text()[-3000:])
            time.sleep(0.05)

    def _start_containerd(self) -> None:
        """On its own, as Debian's service does: it survives its dockerd."""
        if self._containerd is None:
            command = ["containerd", "--address", f"{self.directory}/containerd.sock"]
            command += ["--root", f"{self.directory}/data/containerd", "--state", f"{self.directory}/exec/containerd"]
            with (self.directory / "containerd.log").open("ab") as log:
                self._containerd = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as tried:  # the SDK leaves those open that are refused
            try:
                tried.connect(str(self.directory / "docker.sock"))
                connect(self.url).close()
            except OSError:
                return False
        return True

    @property
    def holder(self) -> int:
        """A process that holds the network namespace, whatever happens to dockerd; ourselves where the tests have their own."""
        if HAVE_OWN_NETWORK:
            return os.getpid()
        if self._holder is None:
            nothing = subprocess.DEVNULL
            command = ["unshare", "--net", "sleep", "infinity"]
            self._holder = subprocess.Popen(
                command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
            )
            time.sleep(0.2)  # until it has left our namespace
        return self._holder.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        """Everything of it."""
        client = connect(self.url)
        for each in client.containers(all=True):
            client.remove_container(each["Id"], force=True)
        client.close()
        self.end()
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait()
            self._containerd = None
        self._end_holder()
        subprocess.run(
            ["sh", "-c", f"grep -o '{self.directory}[^ ]*' /proc/mounts | sort -r | xargs -r umount -l"], check=False
        )
        for name in ("data", "exec"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def make_llama_cpp_image(self, name: str) -> str:
        """An image that serves GGUF files as the built-in llama.cpp does; the program that does it."""
        base, packages = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
        python = base / "bin" / packages
        library = base / "lib" / packages
        left_out = {"test", "idlelib", "tkinter", "site-packages", "ensurepip", "__pycache__", "lib2to3"}
        paths = {python: str(python)}
        for path in sorted(library.rglob("*")):
            if path.is_file() and left_out.isdisjoint(path.relative_to(library).parts):
                paths[path] = str(path)
        site = library / "site-packages"
        for package in sorted(Path(xllamacpp.__file__).parents[1].glob("xllamacpp*")):
            for path in (path for path in package.rglob("*") if path.is_file()):
                paths[path] = str(site / path.relative_to(package.parent))
        for part in (
            "__init__.py",
            "agent/__init__.py",
            "agent/adapters/__init__.py",
            "agent/adapters/llama_cpp_server.py",
        ):
            paths[REPOSITORY / "services" / part] = str(site / "services" / part)
        for path in _libraries_of([path for path in paths if path == python or ".so" in path.name]):
            inside = (
                f"/usr{path}" if path.parts[1] in ("lib", "lib64") else str(path)
            )  # where the skeleton's links lead
            paths.setdefault(path.resolve(), inside)
        self.make_image(
            name, {inside.lstrip("/"): path.read_bytes() for path, inside in paths.items()}, executable={str(python)}
        )
        return str(python)

    def _end_holder(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            self._holder = None

    def make_image(
        self, name: str = IMAGE, files: Mapping[str, bytes] = NOTHING, executable: Collection[str] = ()
    ) -> None:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for path in ("usr", "sbin", "tmp", "run", "dev", "proc", "sys", "etc", "root"):
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for path in ("bin", "lib", "lib64"):
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{path}"
                tar.addfile(entry)
            for path, content in {"etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", **files}.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), 0o755 if f"/{path}" in executable or ".so" in path else 0o644
                tar.addfile(entry, io.BytesIO(content))
        client = connect(self.url)
        repository, _, tag = name.partition(":")
        client.import_image_from_data(data.getvalue(), repository=repository, tag=tag)
        client.close()

    def make_foreign_image(self, name: str, architecture: str, of: str = IMAGE) -> None:
        """The same as `of`, as if it were for other processors."""
        client = connect(self.url)
        saved, data = io.BytesIO(b"".join(client.get_image(of))), io.BytesIO()
        with tarfile.open(fileobj=saved) as source, tarfile.open(fileobj=data, mode="w") as sink:
            files = {entry.name: source.extractfile(entry) for entry in source}
            contents = {path: file.read() for path, file in files.items() if file is not None}
            (manifest,) = json.loads(contents["manifest.json"])
            config = json.loads(contents[manifest["Config"]]) | {"architecture": architecture}
            made = {
                "manifest.json": json.dumps([manifest | {"Config": "config.json", "RepoTags": [name]}]).encode(),
                "config.json": json.dumps(config).encode(),
            } | {path: contents[path] for path in manifest["Layers"]}
            for path, content in made.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                sink.addfile(entry, io.BytesIO(content))
        client.load_image(data.getvalue())
        client.close()


def _libraries_of(programs: Sequence[Path]) -> set[Path]:
    """As the dynamic loader finds them, itself included (`man 1 ldd`)."""
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    found = {Path(each) for each in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}
    return {path for path in found if path.exists()}


if __name__ == "__main__":  # can a Docker Engine be started here? Says why not
    if (reason := why_not()) is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="m") as name:
        tried = DockerEngine(Path(name))
        try:
            tried.start()
        except AssertionError as error:
            raise SystemExit(f"dockerd does not start: {error}") from error
        tried.remove()
