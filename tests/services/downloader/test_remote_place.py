import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.asks import InspectModel, ModelInspection
from schemas.models import ModelWeights
from schemas.reasons import (
    InspectionFailed,
    ModelFileInvalid,
    ModelFilesIncomplete,
    ModelFileTruncated,
    ModelNotFound,
    NotTheFirstShard,
    Reason,
    WeightsUnknown,
)
from schemas.sources import LocalPath
from schemas.value import MOST_BYTES as LARGEST_SIZE
from services.downloader.adapters.local_path import inspect_model
from services.downloader.adapters.remote_place import FIRST_STEP, MOST_STEP, RemotePlace, TooMuchToRead
from services.downloader.domain.inspection import Lies, inspect, inspect_adapter, inspect_together
from services.downloader.domain.listing import Listing, RemoteFile
from tests.services.downloader.files import (
    A_CONFIG,
    A_LLAMA,
    FIRST_OF_TWO,
    MODELS,
    SECOND_OF_TWO,
    TINYCHAT,
    WHOLE,
    Tensor,
    a_gguf,
    a_safetensors,
    a_shard,
    a_tensor,
    array,
    text,
    write,
)

REPOSITORY = "org/m"
ROOT = PurePosixPath(".")
Read = tuple[str, int, int]


@dataclass
class Hub:
    """A hub that holds one repository, and remembers what was read of it."""

    files: Mapping[str, bytes | Path]
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """What the listing says, where that isn't the truth."""
    reads: list[Read] = field(default_factory=list[Read])

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.reads.append((name, offset, length))
        content = self.files[name]
        if isinstance(content, bytes):
            return content[offset : offset + length].ljust(length if name in self.sizes else 0, b"\0")
        with content.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def place(self, most_bytes: int = 64 * 2**20, most_headers: int = 8) -> RemotePlace:
        found = {name: len(it) if isinstance(it, bytes) else it.stat().st_size for name, it in self.files.items()}
        listing = Listing("c0ffee", tuple(RemoteFile(name, size) for name, size in {**found, **self.sizes}.items()))
        return RemotePlace(listing, self.read, called=REPOSITORY, most_bytes=most_bytes, most_headers=most_headers)

    @property
    def read_bytes(self) -> int:
        return sum(length for _, _, length in self.reads)


def a_hub(directory: Path) -> Hub:
    return Hub({str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()})


def as_json(files: Mapping[str, object]) -> dict[str, bytes | Path]:
    return {name: it if isinstance(it, bytes | Path) else json.dumps(it).encode() for name, it in files.items()}


def look(hub: Hub | Mapping[str, object], path: str = ".", *, most_bytes: int = 64 * 2**20) -> ModelInspection:
    hub = hub if isinstance(hub, Hub) else Hub(as_json(hub))
    return inspect_together(Lies(PurePosixPath(path), hub.place(most_bytes)))


def weights_of(hub: Hub | Mapping[str, object], path: str = ".") -> ModelWeights:
    found = look(hub, path)
    assert found.weights is not None, found.reasons
    return found.weights


def because(*reasons: Reason) -> ModelInspection:
    return ModelInspection(reasons=reasons)


def invalid(path: str, problem: str) -> ModelInspection:
    return because(ModelFileInvalid(path=path, problem=problem))


def a_pipeline() -> dict[str, object]:
    return {
        "model_index.json": {
            "_class_name": "FluxPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
        },
        "text_encoder/model.safetensors": a_safetensors(),
        "transformer/diffusion_pytorch_model.safetensors": a_safetensors(),
        "transformer/config.json": {},
    }


def some_shards(count: int) -> dict[str, object]:
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    return {
        "config.json": A_CONFIG,
        "model.safetensors.index.json": index,
        **{name: a_safetensors() for name in names},
    }


# The same logic


@pytest.mark.parametrize(
    ("directory", "path"),
    [
        (TINYCHAT, "."),
        (MODELS, "tinychat"),
        (MODELS, WHOLE.name),
        (MODELS, FIRST_OF_TWO.name),
    ],
)
def test_a_model_is_the_same_on_a_disk_and_in_a_repository(directory: Path, path: str) -> None:
    on_disk = inspect_model(InspectModel(source=LocalPath(path=str(directory / path))), ()).weights
    assert on_disk is not None
    names = tuple(str(Path(file).relative_to(directory)) for file in on_disk.files)
    assert weights_of(a_hub(directory), path) == on_disk.model_copy(update={"files": names})


def test_a_pipeline_is_the_same_on_a_disk_and_in_a_repository(tmp_path: Path) -> None:
    for name, content in as_json(a_pipeline()).items():
        write((tmp_path / name).parent, {Path(name).name: content})
    on_disk = inspect_model(InspectModel(source=LocalPath(path=str(tmp_path))), ()).weights
    assert on_disk is not None
    assert weights_of(a_hub(tmp_path)) == on_disk.model_copy(
        update={"files": ("text_encoder/model.safetensors", "transformer/diffusion_pytorch_model.safetensors")}
    )


def test_adapters_and_a_draft_may_lie_in_repositories_of_their_own() -> None:
    adapter = Hub(as_json({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": a_safetensors()}))
    found = inspect_together(
        Lies(ROOT, a_hub(TINYCHAT).place()),
        [Lies(ROOT, adapter.place()), Lies(PurePosixPath("l.gguf"), Hub({"l.gguf": A_GGUF_ADAPTER}).place())],
        Lies(PurePosixPath(WHOLE.name), a_hub(MODELS).place()),
    )
    assert found.weights == weights_of(a_hub(TINYCHAT)).model_copy(
        update={"lora_bytes": len(a_safetensors()) + len(A_GGUF_ADAPTER), "draft_bytes": WHOLE.stat().st_size}
    )


A_GGUF_ADAPTER = a_gguf({**A_LLAMA, "general.type": text("adapter")})


def test_an_adapter_by_itself_is_its_size() -> None:
    assert inspect_adapter(PurePosixPath("l.gguf"), Hub({"l.gguf": A_GGUF_ADAPTER}).place()) == len(A_GGUF_ADAPTER)


@pytest.mark.parametrize(
    ("files", "path", "reason"),
    [
        ({}, ".", WeightsUnknown(path=REPOSITORY)),
        ({"README.md": b""}, "m.gguf", ModelNotFound(path="org/m/m.gguf")),
        ({"config.json": A_CONFIG, "Q4/m.gguf": a_gguf()}, ".", WeightsUnknown(path=REPOSITORY)),
        ({"a.safetensors": a_safetensors()}, ".", ModelFilesIncomplete(path=REPOSITORY, missing=("config.json",))),
        ({"Q4/m-00001-of-00002.gguf": a_shard(1, 2)}, "Q4", ModelFilesIncomplete(
            path="org/m/Q4/m-00001-of-00002.gguf", missing=("m-00002-of-00002.gguf",)
        )),
        ({"Q4/m.gguf": a_gguf()[:-1]}, "Q4", ModelFileTruncated(
            path="org/m/Q4/m.gguf", expected_bytes=len(a_gguf()), actual_bytes=len(a_gguf()) - 1
        )),
        ({"m.gguf": b"<html>"}, ".", ModelFileInvalid(path="org/m/m.gguf", problem="it does not begin with GGUF")),
        ({"config.json/x": b"", "a.safetensors": a_safetensors()}, ".", ModelFileInvalid(
            path="org/m/config.json", problem="it is a directory"
        )),
        ({"a.gguf": a_gguf(), "b.gguf": a_gguf()}, ".", ModelFileInvalid(
            path=REPOSITORY, problem="it holds 2 GGUF models, a.gguf and others; give one of them"
        )),
    ],
)  # fmt: skip
def test_what_is_unfit_is_called_by_its_repository(files: Mapping[str, object], path: str, reason: Reason) -> None:
    assert look(files, path) == because(reason)


def test_files_whose_names_are_no_paths_are_not_there() -> None:
    names = (
        "/m.gguf",
        "./m.gguf",
        "../m.gguf",
        "a//m.gguf",
        "a/../m.gguf",
        "m.gguf/",
        "m\0.gguf",
        "\udcff.gguf",
        "a/" * 512 + "m.gguf",
    )
    place = Hub({name: a_gguf() for name in names}).place()
    assert list(place.names(ROOT)) == []
    assert look({name: a_gguf() for name in names}) == because(WeightsUnknown(path=REPOSITORY))


# How much is read


def test_of_a_big_file_only_its_beginning_is_read(tmp_path: Path) -> None:
    size = 40 * 2**30
    header = {"w": a_tensor(0, size)}
    write(tmp_path, {"config.json": A_CONFIG, "model.safetensors": a_safetensors(header, data_bytes=0)})
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size + size)
    hub = a_hub(tmp_path)
    assert weights_of(hub).weight_bytes == path.stat().st_size > size
    assert hub.read_bytes <= 2 * FIRST_STEP


def test_steps_grow_and_nothing_is_read_twice() -> None:
    vocabulary = array(*(text(f"<token {number}>") for number in range(200_000)), type=8)
    content = a_gguf({**A_LLAMA, "tokenizer.ggml.tokens": vocabulary}, data_bytes=32 * 2**20)
    hub = Hub({"m.gguf": content})
    weights_of(hub)
    lengths = [length for _, _, length in hub.reads]
    assert lengths == sorted(lengths)
    assert max(lengths) <= MOST_STEP
    assert [offset for _, offset, _ in hub.reads] == [sum(lengths[:each]) for each in range(len(lengths))]
    header_bytes = len(content) - 32 * 2**20
    assert header_bytes <= hub.read_bytes <= 3 * header_bytes


def test_a_long_header_is_read_in_steps_of_four_mebibytes() -> None:
    header = json.dumps({"__metadata__": {"x": "y" * 10 * 2**20}, "w": a_tensor(0, 64)}).encode()
    hub = Hub(as_json({"config.json": A_CONFIG, "model.safetensors": a_safetensors(header)}))
    assert weights_of(hub).weight_bytes == len(a_safetensors(header))
    lengths = [length for name, _, length in hub.reads if name == "model.safetensors"]
    assert lengths[:3] == [FIRST_STEP, MOST_STEP, MOST_STEP]
    assert sum(lengths) <= len(a_safetensors(header))


def test_a_file_is_read_no_further_than_the_listing_says_it_is_long() -> None:
    hub = Hub({"m.gguf": a_gguf()}, sizes={"m.gguf": 100})
    assert look(hub) == invalid("org/m/m.gguf", "it ends inside its header, after 100 bytes")
    assert hub.reads == [("m.gguf", 0, 100)]


def test_what_would_need_more_than_the_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": A_CONFIG, "model.safetensors": (80 * 2**20).to_bytes(8, "little")})
    os.truncate(tmp_path / "model.safetensors", 100 * 2**20)
    hub = a_hub(tmp_path)
    assert look(hub) == invalid(
        "org/m/model.safetensors",
        f"to look at it, more than {64 * 2**20} bytes of the repository would have to be read",
    )
    assert hub.read_bytes <= 2 * FIRST_STEP


def test_the_bound_is_one_for_all_files_together() -> None:
    hub = Hub(as_json(some_shards(4)))
    inspect(ROOT, hub.place())
    data_bytes, whole = 64, hub.read_bytes
    inspect(ROOT, hub.place(whole - data_bytes))
    assert look(hub, most_bytes=whole - data_bytes - 1) == invalid(
        "org/m/model-00004-of-00004.safetensors",
        f"to look at it, more than {whole - data_bytes - 1} bytes of the repository would have to be read",
    )


def test_every_byte_of_the_bound_may_be_used() -> None:
    content = a_gguf()
    assert look(Hub({"m.gguf": content}), most_bytes=len(content)).weights is not None
    with Hub({"m.gguf": content}).place(100).open(PurePosixPath("m.gguf")) as (file, _):
        assert file.read(100) == content[:100]
        with pytest.raises(TooMuchToRead):
            file.read(1)


# Many files


def test_of_many_shards_some_headers_are_read_and_the_sizes_of_the_rest_believed() -> None:
    files = as_json(some_shards(12))
    hub = Hub(files)
    last = "model-00012-of-00012.safetensors"
    hub.sizes = {last: 5_000_000_000}
    assert weights_of(hub).weight_bytes == 11 * len(a_safetensors()) + 5_000_000_000
    assert sum(name.endswith(".safetensors") for name, _, _ in hub.reads) == 8
    hub.sizes = {"model-00001-of-00012.safetensors": 5}
    assert look(hub).weights is None


def test_of_a_gguf_in_many_shards_nobody_knows_what_its_layers_weigh() -> None:
    def files(count: int) -> dict[str, object]:
        shards = {f"m-{number:05}-of-{count:05}.gguf": a_shard(number, count) for number in range(1, count + 1)}
        return dict(shards)

    eight, nine = weights_of(files(8)), weights_of(files(9))
    assert eight.layer_bytes == 8 * 512
    assert nine.layer_bytes is None
    assert nine.weight_bytes == sum(len(a_shard(number, 9)) for number in range(1, 10))
    assert nine == eight.model_copy(
        update={"layer_bytes": None, "weight_bytes": nine.weight_bytes, "files": tuple(files(9))}
    )


def test_the_first_shard_is_always_read() -> None:
    hub = Hub({"m-00001-of-00002.gguf": a_shard(1, 2), "m-00002-of-00002.gguf": b"not looked at"})
    found = inspect(PurePosixPath("m-00001-of-00002.gguf"), hub.place(most_headers=0))
    assert (found.architecture, found.weight_bytes) == ("llama", len(a_shard(1, 2)) + len(b"not looked at"))


def test_sizes_that_no_disk_has_are_refused() -> None:
    hub = Hub(as_json(some_shards(12)), sizes={"model-00012-of-00012.safetensors": LARGEST_SIZE})
    total = LARGEST_SIZE + 11 * len(a_safetensors())
    assert look(hub) == invalid(REPOSITORY, f"its files claim {total} bytes")


def test_adapters_that_no_disk_could_hold_are_refused() -> None:
    size = LARGEST_SIZE - len(a_safetensors()) - 200
    header = a_safetensors({"w": a_tensor(0, size)}, data_bytes=0)
    files = as_json({"adapter_config.json": {}, "adapter_model.safetensors": header})
    hub = Hub(files, sizes={"adapter_model.safetensors": len(header) + size})
    found = inspect_together(Lies(ROOT, a_hub(TINYCHAT).place()), [Lies(ROOT, hub.place()), Lies(ROOT, hub.place())])
    assert found == invalid(REPOSITORY, f"it and those before claim {2 * (len(header) + size)} bytes")


# A hub that fails


def test_a_hub_that_fails_is_asked_again_later() -> None:
    def read(_name: str, _offset: int, _length: int) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    place = RemotePlace(Listing("c", (RemoteFile("m.gguf", 1000),)), read, called=REPOSITORY)
    assert inspect_together(Lies(ROOT, place)) == because(InspectionFailed(problem="org/m: Connection reset by peer"))


@pytest.mark.parametrize("answer", [b"", b"GGUF", bytes(1001)])
def test_an_answer_of_another_length_than_was_asked_for_is_a_failure(answer: bytes) -> None:
    def read(_name: str, _offset: int, _length: int) -> bytes:
        return answer

    place = RemotePlace(Listing("c", (RemoteFile("m.gguf", 1000),)), read, called=REPOSITORY)
    assert inspect_together(Lies(ROOT, place)) == because(
        InspectionFailed(problem=f"org/m: {len(answer)} bytes of m.gguf were answered where 1000 were asked for")
    )


# Whatever a repository holds

NAMES = st.sampled_from([
    "m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "Q4/m.gguf", "config.json", "modules.json",
    "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json", "model_index.json", "transformer/model.safetensors", "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors",
    "transformer", "config.json/x", "\ud800.safetensors", "/", "..", "",
])  # fmt: skip
SEEDS = st.sampled_from([
    a_gguf(), a_gguf({}, ()), A_GGUF_ADAPTER, a_gguf(tensors=(Tensor("token_embd.weight"),)),
    a_shard(1, 2), a_shard(2, 2, {}), a_safetensors(), a_safetensors({"w": a_tensor(0, 64), "v": a_tensor(64, 64)}),
    json.dumps(A_CONFIG).encode(), json.dumps({**A_CONFIG, "text_config": {"head_dim": 7}}).encode(),
    json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model.safetensors"}}).encode(),
    json.dumps({"_class_name": "P", "transformer": ["diffusers", "T"], "scheduler": [None, None]}).encode(),
    b'{"peft_type": "LORA"}', b"{}", b"[" * 100_000, b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
])  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=4)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(SEEDS | st.binary(max_size=200)))
    for position, patch in draw(CHANGES):
        at = position % (len(content) + 1)
        content[at : at + len(patch)] = patch
    return bytes(content)


@settings(max_examples=600, deadline=None)
@given(
    files=st.dictionaries(NAMES, contents(), max_size=8),
    lies=st.dictionaries(NAMES, st.integers(0, 300) | st.integers(2**50, 2**60), max_size=2),
    path=st.sampled_from([".", "m.gguf", "m-00001-of-00002.gguf", "Q4", "model.safetensors", "transformer", "a/../b"]),
    most=st.tuples(st.integers(0, 2000) | st.just(2**26), st.integers(0, 3)),
)
def test_whatever_a_repository_holds_there_is_an_answer_that_can_be_sent(
    files: dict[str, bytes], lies: dict[str, int], path: str, most: tuple[int, int]
) -> None:
    hub = Hub(files, sizes={name: size for name, size in lies.items() if name in files})

    def here() -> Lies:
        return Lies(PurePosixPath(path), hub.place(*most))

    for found in (inspect_together(here()), inspect_together(here(), [here()], here())):
        assert (found.weights is None) == bool(found.reasons)
        assert ModelInspection.model_validate_json(found.model_dump_json()) == found
    assert hub.read_bytes <= 4 * most[0]


@settings(max_examples=150, deadline=None)
@given(files=st.dictionaries(NAMES.filter(lambda name: name.isprintable() and "." in name[2:]), contents(), max_size=6))
def test_whatever_a_disk_holds_is_the_same_in_a_repository(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("disk")
    for name, content in files.items():
        if not name.startswith("config.json/"):
            write((directory / name).parent, {Path(name).name: content})
    on_disk = inspect_model(InspectModel(source=LocalPath(path=str(directory))), ())
    if on_disk.weights is None:
        assert look(a_hub(directory)) == ModelInspection.model_validate_json(
            on_disk.model_dump_json().replace(str(directory), REPOSITORY)
        )
    else:
        names = tuple(str(Path(file).relative_to(directory)) for file in on_disk.weights.files)
        assert weights_of(a_hub(directory)) == on_disk.weights.model_copy(update={"files": names})


def test_the_second_shard_of_a_repository_is_answered_with_the_name_of_the_first() -> None:
    later = NotTheFirstShard(path=f"org/m/{SECOND_OF_TWO.name}", first=FIRST_OF_TWO.name)
    assert look(a_hub(MODELS), SECOND_OF_TWO.name) == ModelInspection(reasons=(later,))
