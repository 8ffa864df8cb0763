import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.asks import InspectModel, ModelInspection
from schemas.reasons import InspectionFailed, ModelFileInvalid, ModelNotFound, PathNotAllowed
from schemas.sources import LocalPath
from services.downloader.adapters.inspecting import InRepository, OnDisk, inspect_apart
from services.downloader.adapters.local_path import inspect_model
from services.downloader.adapters.sandbox import Limits, Sandbox
from services.downloader.domain.listing import Listing, RemoteFile
from tests.services.downloader.files import (
    FIRST_OF_TWO,
    MODELS,
    TINYCHAT,
    WHOLE,
    Tensor,
    a_gguf,
    a_safetensors,
    write,
)

CONFIG = b'{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}'


@pytest.fixture(scope="module")
async def sandbox() -> AsyncGenerator[Sandbox, None]:
    sandbox = Sandbox()
    yield sandbox
    await sandbox.close()


def in_repository(directory: Path, path: str = ".") -> InRepository:
    """What lies in the directory, as a hub would have it."""
    files = [file for file in directory.rglob("*") if file.is_file()]
    listing = Listing("c", tuple(RemoteFile(str(file.relative_to(directory)), file.stat().st_size) for file in files))

    async def fetch(name: str, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        with (directory / name).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    return InRepository(listing, fetch, called="org/m", path=path)


def here(path: Path, *adapters: Path, draft: Path | None = None) -> ModelInspection:
    return inspect_model(
        InspectModel(
            source=LocalPath(path=str(path)),
            adapters=tuple(LocalPath(path=str(adapter)) for adapter in adapters),
            draft=LocalPath(path=str(draft)) if draft else None,
        ),
        (),
    )


def named_as_in(directory: Path, found: ModelInspection) -> ModelInspection:
    assert found.weights is not None
    names = tuple(str(Path(file).relative_to(directory)) for file in found.weights.files)
    return ModelInspection(weights=found.weights.model_copy(update={"files": names}))


@pytest.mark.parametrize("path", [WHOLE, FIRST_OF_TWO, TINYCHAT, MODELS, MODELS / "nothing"])
async def test_a_disk_is_looked_at_as_without_a_sandbox(sandbox: Sandbox, path: Path) -> None:
    assert await inspect_apart(sandbox, OnDisk(str(path))) == here(path)


async def test_what_is_not_allowed_is_not_seen_by_the_child_either(sandbox: Sandbox) -> None:
    found = await inspect_apart(sandbox, OnDisk(str(WHOLE), (TINYCHAT,)))
    assert found == ModelInspection(reasons=(PathNotAllowed(path=str(WHOLE)),))


async def test_a_repository_is_looked_at_through_the_parent(sandbox: Sandbox) -> None:
    assert await inspect_apart(sandbox, in_repository(TINYCHAT)) == named_as_in(TINYCHAT, here(TINYCHAT))
    assert await inspect_apart(sandbox, in_repository(MODELS, WHOLE.name)) == named_as_in(MODELS, here(WHOLE))


async def test_of_several_places_each_is_asked_for_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    adapter = write(tmp_path, {"adapter_config.json": {}, "adapter_model.safetensors": a_safetensors()})
    found = await inspect_apart(
        sandbox,
        in_repository(TINYCHAT),
        [in_repository(adapter), OnDisk(str(adapter))],
        in_repository(MODELS, WHOLE.name),
    )
    assert found == named_as_in(TINYCHAT, here(TINYCHAT, adapter, adapter, draft=WHOLE))


async def test_a_file_whose_name_no_document_can_hold_is_not_there(sandbox: Sandbox) -> None:
    whole = in_repository(MODELS, WHOLE.name)
    listing = Listing("c", (*whole.listing.files, RemoteFile("\udcff.gguf", 1)))
    found = await inspect_apart(sandbox, InRepository(listing, whole.fetch, "org/m", WHOLE.name))
    assert found == named_as_in(MODELS, here(WHOLE))


# What goes wrong


async def test_a_hub_that_fails_is_asked_again_later(sandbox: Sandbox) -> None:
    async def fetch(_name: str, _offset: int, _length: int) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    where = InRepository(Listing("c", (RemoteFile("m.gguf", 1000),)), fetch, called="org/m")
    assert await inspect_apart(sandbox, where) == ModelInspection(
        reasons=(InspectionFailed(problem="org/m: Connection reset by peer"),)
    )


async def test_a_hub_that_never_answers_is_asked_again_later(sandbox: Sandbox) -> None:
    async def fetch(_name: str, _offset: int, _length: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    where = InRepository(Listing("c", (RemoteFile("m.gguf", 1000),)), fetch, called="org/m")
    assert await inspect_apart(sandbox, where, seconds=0.5) == ModelInspection(
        reasons=(InspectionFailed(problem="org/m: it took longer than 0.5 s"),)
    )


async def test_what_is_not_in_the_repository_is_not_found(sandbox: Sandbox) -> None:
    found = await inspect_apart(sandbox, in_repository(MODELS, "m.gguf"))
    assert found == ModelInspection(reasons=(ModelNotFound(path="org/m/m.gguf"),))


EXHAUSTING: Mapping[str, tuple[str, bytes, str]] = {
    "2^63 elements": (
        "m.gguf", a_gguf(tensors=(Tensor(dimensions=(2**63, 1)),)), "claims 9223372036854775808 elements"
    ),
    "a million keys": ("m.gguf", a_gguf(key_count=10**6), "it claims 1000000 metadata keys"),
    "2^63 tensors": ("m.gguf", a_gguf(tensor_count=2**63), "it claims 9223372036854775808 tensors"),
    "a gigabyte": ("a.safetensors", (10**9).to_bytes(8, "little"), "it claims a header of 1000000000 bytes"),
    "many brackets": ("a.safetensors", a_safetensors(b"{" + b"[" * 50_000_000), "it claims more than 250000 tensors"),
    "deep brackets": ("a.safetensors", a_safetensors(b'{"a":' + b"[" * 900_000), "its header is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("what", EXHAUSTING)
async def test_what_is_meant_to_exhaust_a_reader_is_refused(
    sandbox: Sandbox, tmp_path: Path, what: str, *, remote: bool
) -> None:
    name, content, problem = EXHAUSTING[what]
    write(tmp_path, {"config.json": {}, name: content})
    if name.endswith(".safetensors"):
        os.truncate(tmp_path / name, 2 * 10**9)
    (reason,) = (await inspect_apart(sandbox, in_repository(tmp_path) if remote else OnDisk(str(tmp_path)))).reasons
    assert isinstance(reason, ModelFileInvalid)
    assert problem in reason.problem


async def test_a_header_that_needs_more_than_there_is_is_to_blame_for_it(tmp_path: Path) -> None:
    sandbox = Sandbox(Limits(memory_bytes=64 * 2**20))
    write(tmp_path, {"config.json": {}, "a.safetensors": (99_000_000).to_bytes(8, "little")})
    os.truncate(tmp_path / "a.safetensors", 10**9)
    assert await inspect_apart(sandbox, OnDisk(str(tmp_path))) == ModelInspection(
        reasons=(
            ModelFileInvalid(
                path=str(tmp_path),
                problem=f"it could not be looked at within bounds: it needed more than {64 * 2**20} bytes of memory",
            ),
        )
    )
    await sandbox.close()


async def test_pickled_weights_that_are_trusted_weigh_what_they_are_long(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1234))
    there = in_repository(tmp_path)
    assert (await inspect_apart(sandbox, there)).weights is None
    trusted = replace(there, pickled=("pytorch_model.bin",))
    found = (await inspect_apart(sandbox, trusted)).weights
    assert found is not None
    assert (found.format, found.weight_bytes, found.files) == ("pickle", 1234, ("pytorch_model.bin",))
    assert (found.architecture, found.layers) == ("LlamaForCausalLM", 2)
