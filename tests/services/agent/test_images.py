"""Images come from a registry: a real one, in the network of the tests' Docker Engine."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from docker.errors import APIError, ImageNotFound

from schemas.reasons import ImageForAnotherPlatform
from schemas.reasons import ImageNotFound as NoSuchImage
from schemas.reasons import ImageNotPulled as NotPulled
from services.agent.adapters.docker import connect
from services.agent.domain.runtime import Container, ContainerRuntime, ImageNotPulled, PullProgress
from tests.services.agent.containers import Containers
from tests.support.docker_engine import DockerEngine, missing
from tests.support.registry import Registry, registry_of

pytestmark = pytest.mark.docker

MIB = 2**20


@pytest.fixture(scope="module")
def registry(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, with the image `weights:1` of 16 MiB."""
    if (reason := missing("docker-registry")) is not None:
        pytest.skip(reason)
    with registry_of(docker_engine, tmp_path_factory.mktemp("registry")) as registry:
        registry.holds("weights:1", {"first": os.urandom(16 * MIB)})
        yield registry.address


@pytest.fixture
async def agents(docker_engine: DockerEngine, registry: str, tmp_path: Path) -> AsyncIterator[Containers]:
    agents = Containers(tmp_path / "engines", engine=docker_engine)
    client = connect(docker_engine.url)
    with suppress(ImageNotFound):
        client.remove_image(f"{registry}/weights:1", force=True)
    client.close()
    yield agents
    await agents.end()


async def pulled(runtime: ContainerRuntime, image: str) -> list[PullProgress]:
    return [progress async for progress in runtime.pull(Container(image=image))]


async def test_an_image_is_pulled_with_its_bytes_counted_and_only_once(
    runtime: ContainerRuntime, registry: str
) -> None:
    seen = await pulled(runtime, f"{registry}/weights:1")

    assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert 16 * MIB <= seen[-1].total_bytes < 17 * MIB
    assert await pulled(runtime, f"{registry}/weights:1") == []


async def test_an_image_that_the_registry_does_not_have_is_a_reason(runtime: ContainerRuntime, registry: str) -> None:
    for image in (f"{registry}/weights:2", f"{registry}/nothing:1"):
        with pytest.raises(ImageNotPulled) as refusal:
            await pulled(runtime, image)
        assert refusal.value.reasons == (NoSuchImage(image=image),)


async def test_an_image_that_is_only_there_for_other_processors_is_a_reason(
    runtime: ContainerRuntime, docker_engine: DockerEngine, registry: str
) -> None:
    docker_engine.make_foreign_image("foreign:1", "s390x")
    image = Registry(docker_engine).push("foreign:1", "foreign", "1")
    assert image == f"{registry}/foreign:1"
    with pytest.raises(ImageNotPulled) as refusal:
        await pulled(runtime, image)
    (reason,) = refusal.value.reasons
    assert isinstance(reason, ImageForAnotherPlatform)
    assert (reason.image, reason.platform.partition("/")[0]) == (image, "linux")


async def test_a_registry_that_is_away_is_a_reason_of_the_operators(runtime: ContainerRuntime) -> None:
    image = "127.0.0.1:1/weights:1"
    with pytest.raises(ImageNotPulled) as refusal:
        await pulled(runtime, image)
    (reason,) = refusal.value.reasons
    assert isinstance(reason, NotPulled)
    assert "connection refused" in reason.problem


async def test_a_pull_that_is_given_up_leaves_no_thread_and_can_be_asked_for_again(
    agents: Containers, registry: str
) -> None:
    runtime = agents.a_runtime()
    image = f"{registry}/weights:1"
    pulling = runtime.pull(Container(image=image))
    await anext(pulling)
    async with asyncio.timeout(10):
        await pulling.aclose()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - a generator

    await pulled(runtime, image)

    client = connect(agents.engine.url)
    try:
        assert client.inspect_image(image)["RepoTags"] == [image]
    except APIError as error:
        raise AssertionError("it is not here") from error
    finally:
        client.close()
