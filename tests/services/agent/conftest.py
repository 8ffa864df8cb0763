import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.agent.domain.runtime import ContainerRuntime
from tests.services.agent.engines import REPOSITORY, Agents


@pytest.fixture(params=["local_process"])
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    agents = Agents(tmp_path / "engines")
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
