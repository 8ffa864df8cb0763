import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.agent.domain.runtime import ContainerRuntime
from tests.services.agent.containers import Containers
from tests.services.agent.engines import REPOSITORY, Agents
from tests.support.docker_engine import DockerEngine, why_not


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="m") as directory:  # sockets have short names
        engine = DockerEngine(Path(directory))
        engine.start()
        try:
            engine.make_image()
            yield engine
        finally:
            engine.remove()


@pytest.fixture(params=["local_process", pytest.param("docker", marks=pytest.mark.docker)])
async def agents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agents]:
    directory = tmp_path / "engines"
    if request.param == "docker":
        agents: Agents = Containers(directory, engine=request.getfixturevalue("docker_engine"))
    else:
        agents = Agents(directory)
    yield agents
    await agents.end()


@pytest.fixture
def runtime(agents: Agents) -> ContainerRuntime:
    return agents.a_runtime()


@pytest.fixture
def models() -> Path:
    return REPOSITORY / "examples" / "models"


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
