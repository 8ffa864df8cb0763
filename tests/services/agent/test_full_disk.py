"""A disk that fills up: under the Docker Engine, and under the agent itself. A small file system of its own is the disk."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from schemas.reasons import DiskFull, NotEnoughDisk
from services.agent.domain.runtime import Container, ContainerRuntime, EngineNotStarted, ImageNotPulled
from tests.services.agent.containers import Containers
from tests.services.agent.engines import SLEEPER, a_script, an_id
from tests.support.disks import a_disk, nearly_full
from tests.support.docker_engine import DockerEngine, missing, why_not
from tests.support.registry import Registry, registry_of

pytestmark = pytest.mark.docker

MIB = 2**20
DISK = 400 * MIB
ROOM = 30 * MIB
PORT = 5007


def disk_of(engine: DockerEngine) -> Path:
    return engine.directory / "data"


@pytest.fixture(scope="module")
def small_engine() -> Iterator[DockerEngine]:
    """Its images and containers lie on a disk of 400 MiB."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="m") as directory:
        engine = DockerEngine(Path(directory))
        with a_disk(disk_of(engine), DISK):
            engine.start()
            try:
                engine.make_image()
                yield engine
            finally:
                engine.remove()


@pytest.fixture(scope="module")
def registry(small_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if (reason := missing("docker-registry")) is not None:
        pytest.skip(reason)
    with registry_of(small_engine, tmp_path_factory.mktemp("registry"), PORT) as registry:
        yield registry


@pytest.fixture
async def agents(small_engine: DockerEngine, tmp_path: Path) -> AsyncIterator[Containers]:
    agents = Containers(tmp_path / "engines", engine=small_engine)
    yield agents
    await agents.end()


async def pulled(runtime: ContainerRuntime, image: str) -> None:
    async for _ in runtime.pull(Container(image=image)):
        pass


async def test_an_image_that_is_larger_than_what_is_free_is_refused_before_it_is_there(
    runtime: ContainerRuntime, registry: Registry
) -> None:
    image = registry.holds("large:1", {"weights": os.urandom(48 * MIB)})
    with nearly_full(disk_of(registry.engine), ROOM):
        with pytest.raises(ImageNotPulled) as refusal:
            await pulled(runtime, image)
        (reason,) = refusal.value.reasons
        assert isinstance(reason, NotEnoughDisk)
        assert reason.image == image
        assert 48 * MIB <= reason.needed_bytes < 49 * MIB
        assert reason.free_bytes <= ROOM
        assert not await runtime.has_image(image)

    await pulled(runtime, image)
    assert await runtime.has_image(image)
    registry.forget(image)


async def test_a_disk_that_is_full_when_an_image_is_unpacked_is_a_reason_that_names_it(
    runtime: ContainerRuntime, registry: Registry
) -> None:
    image = registry.holds("zeros:1", {"weights": bytes(64 * MIB)})
    full = DiskFull(path=str(disk_of(registry.engine)))
    with nearly_full(disk_of(registry.engine), ROOM):
        with pytest.raises(ImageNotPulled) as refusal:
            await pulled(runtime, image)
        assert refusal.value.reasons == (full,)
        assert str(disk_of(registry.engine)) in full.sentence()

    await pulled(runtime, image)
    assert await runtime.has_image(image)
    registry.forget(image)


async def test_a_container_that_finds_no_room_is_a_reason_that_names_the_disk_and_starts_when_there_is_some(
    runtime: ContainerRuntime, agents: Containers
) -> None:
    with nearly_full(disk_of(agents.engine)):
        with pytest.raises(EngineNotStarted) as refusal:
            await runtime.start(an_id(), a_script(SLEEPER, port=4711), {})
        assert refusal.value.reasons == (DiskFull(path=str(disk_of(agents.engine))),)
        assert await runtime.list() == ()

    started = await runtime.start(an_id(), a_script(SLEEPER, port=4711), {})
    assert agents.lives(started.handle)


async def test_an_end_on_a_full_disk_is_answered_all_the_same(
    agents: Containers, runtime: ContainerRuntime, tmp_path: Path
) -> None:
    with a_disk(tmp_path, MIB, inodes=2):  # one for itself, one for the runtime's directory
        await runtime.start(an_id(), a_script(SLEEPER, port=4711), {})
        await runtime.stop(an_id(), 0)
        await runtime.forget(an_id())
        assert await runtime.list() == ()
        await agents.end()
