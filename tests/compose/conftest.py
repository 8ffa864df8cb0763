"""A Docker Engine of the suite's own with base images that were made here, and the services of deploy/compose.yaml on it."""

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker
import pytest

from services.agent.adapters.docker import connect
from tests.compose import base_images
from tests.support.docker_engine import HAVE_OWN_NETWORK, REPOSITORY, DockerEngine

ADDRESS: Final = "192.0.2.1"
"""Of the suite's own network: the agent finds it out."""
GUARD_SECONDS: Final = 180


@dataclass(frozen=True)
class Compose:
    """The command as a user gives it, from the repository."""

    engine: DockerEngine
    data: Path

    @property
    def environment(self) -> dict[str, str]:
        settings = {"DOCKER_HOST": self.engine.url, "MUSTER_DATA": str(self.data), "COMPOSE_PROJECT_NAME": "muster"}
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "DOCKER_BUILDKIT": "0"}
        return {"PATH": os.environ["PATH"], "HOME": str(self.data)} | settings | offline

    def run(self, *arguments: str, seconds: float = 300, **environment: str) -> str:
        code, said = self._run(*arguments, seconds=seconds, **environment)
        assert code == 0, f"{' '.join(arguments)}: {code}\n{said[-4000:]}"
        return said

    def fails(self, *arguments: str) -> str:
        code, said = self._run(*arguments, seconds=120)
        assert code != 0, said
        return said

    def _run(self, *arguments: str, seconds: float, **environment: str) -> tuple[int, str]:
        command = ["docker-compose", "-f", "deploy/compose.yaml", *arguments]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout

    def client(self) -> docker.APIClient:
        return connect(self.engine.url)

    def muster(self, *arguments: str) -> str:
        """As the guide has it: the command is in the api's container."""
        return self.run("exec", "-T", "api", "muster", *arguments)

    def key(self) -> str:
        return self.run("exec", "-T", "api", "cat", "/keys/core/admin.key").strip().splitlines()[-1]

    def ask(self, path: str, body: object = None, *, key: str = "") -> Any:
        request = urllib.request.Request(
            f"http://{ADDRESS}:8700{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def until(self, holds: Callable[[], bool]) -> None:
        ends = time.monotonic() + GUARD_SECONDS
        while not holds():
            if time.monotonic() > ends:
                raise AssertionError(self.run("ps") + self.run("logs", "--tail=40"))
            time.sleep(0.5)

    def until_ready(self) -> None:
        self.until(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            return bool(self.ask("/readyz")["ready"])
        except (OSError, urllib.error.HTTPError):
            return False


@pytest.fixture(scope="session")
def compose() -> Iterator[Compose]:
    if (reason := base_images.why_not()) is not None:
        pytest.skip(reason)
    if not HAVE_OWN_NETWORK:
        pytest.skip("containers can be reached where `make test-compose` runs it")
    with tempfile.TemporaryDirectory(prefix="m") as directory:  # sockets have short names
        engine = DockerEngine(Path(directory))
        engine.start("--host", "unix:///run/docker.sock")  # where the file looks for it, in a /run of the suite's own
        try:
            base_images.load(engine.url)
            data = Path(directory) / "muster"
            data.mkdir()
            compose = Compose(engine, data)
            compose.run("build", seconds=600)
            yield compose
            compose.run("down", "--volumes", "--timeout=5")
        finally:
            engine.remove()
