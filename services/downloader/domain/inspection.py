"""What a model is and weighs, and whether it is complete, wherever it lies. Only headers are read, never weights."""

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final, Literal, Protocol, TypeVar

from schemas.asks import ModelInspection
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
from schemas.value import MOST_BYTES
from services.downloader.domain import gguf, safetensors
from services.downloader.domain.short_config import short_config

_T = TypeVar("_T")

Kind = Literal["directory", "file"]

MOST_REASONS: Final = 32
_MOST_MISSING_NAMED: Final = 32
"""An answer must stay far below NATS' limit of 1 MiB, however many files are broken."""


class Unfit(Exception):
    """No model that could be used; why not."""

    def __init__(self, *reasons: Reason) -> None:
        super().__init__(reasons)
        self.reasons = reasons


class Place(Protocol):
    """Where files lie: a disk, or a repository of a hub. Everything may raise `Unfit`, and `OSError` when the place fails."""

    def called(self, path: PurePosixPath) -> str:
        """What reasons call it by."""
        ...

    def kind(self, path: PurePosixPath) -> Kind | None:
        """None: there is nothing. A pipe or a device is a `file` here, and refused when it is opened."""
        ...

    def names(self, directory: PurePosixPath) -> Iterable[str]:
        """Of what is in it, in no order."""
        ...

    def open(self, path: PurePosixPath) -> AbstractContextManager[tuple[BinaryIO, int]]:
        """The file and its size in bytes."""
        ...

    def size(self, path: PurePosixPath) -> int:
        """Bytes of the file, without a look into it."""
        ...

    @property
    def pickled(self) -> Collection[str]:
        """Weights that may be loaded although they are pickled: an operator trusts who made them."""
        ...

    def to_read(self, weights: Sequence[PurePosixPath]) -> Collection[PurePosixPath]:
        """Those of a model's files whose headers are to be read; of the others, the size is believed."""
        ...


@dataclass(frozen=True, slots=True)
class Lies:
    """Where a model lies, or an adapter."""

    at: PurePosixPath
    place: Place


def inspect_together(model: Lies, adapters: Iterable[Lies] = (), draft: Lies | None = None) -> ModelInspection:
    """The model with what is loaded beside it; the objections to all of them, where there are any."""
    weights, objections = _answer(model, inspect)
    lora_bytes = draft_bytes = 0
    for adapter in adapters:
        size, more = _answer(adapter, inspect_adapter)
        lora_bytes += size or 0
        if lora_bytes > MOST_BYTES:
            more += _invalid(adapter.at, adapter.place, f"it and those before claim {lora_bytes} bytes").reasons
        objections += more
    if draft is not None:
        drafting, more = _answer(draft, inspect)
        draft_bytes = drafting.weight_bytes if drafting else 0
        objections += more
    if weights is None or objections:
        return ModelInspection(reasons=objections[:MOST_REASONS])
    return ModelInspection(weights=weights.model_copy(update={"lora_bytes": lora_bytes, "draft_bytes": draft_bytes}))


def _answer(lies: Lies, look: Callable[[PurePosixPath, Place], _T]) -> tuple[_T | None, tuple[Reason, ...]]:
    try:
        return look(lies.at, lies.place), ()
    except Unfit as unfit:
        return None, unfit.reasons
    except OSError as error:
        return None, (InspectionFailed(problem=f"{lies.place.called(lies.at)}: {error.strerror or error}"),)


def inspect(path: PurePosixPath, place: Place) -> ModelWeights:
    """Raises `Unfit`, and `OSError` when the place fails."""
    if _is_directory(path, place):
        return _inspect_directory(path, place)
    if path.suffix == ".safetensors":
        raise _invalid(path, place, "give the directory that holds it and its config.json")
    return _inspect_gguf(path, place)


def inspect_adapter(path: PurePosixPath, place: Place) -> int:
    """What a LoRA adapter weighs: a directory as the PEFT library writes it, or a GGUF file. Raises as `inspect` does."""
    if not _is_directory(path, place):
        header, size = _read_gguf(path, 1, 1, place)
        if not header.is_adapter:
            raise _invalid(path, place, "it is a model, not an adapter")
        return size
    _require_all(path, (safetensors.ADAPTER_CONFIG_NAME, safetensors.ADAPTER_NAME), place)
    config_path = path / safetensors.ADAPTER_CONFIG_NAME
    document = _read_document(config_path, safetensors.MAX_CONFIG_BYTES, place)
    with _domain_errors(config_path, place):
        safetensors.check_adapter(document)
    return _read_safetensors(path / safetensors.ADAPTER_NAME, place)


def _is_directory(path: PurePosixPath, place: Place) -> bool:
    kind = place.kind(path)
    if kind is None:
        raise Unfit(ModelNotFound(path=place.called(path)))
    return kind == "directory"


def _inspect_directory(path: PurePosixPath, place: Place) -> ModelWeights:
    if place.kind(path / safetensors.PIPELINE_NAME) is not None:
        return _inspect_pipeline(path, place)
    names = _names(path, place)
    if any(name == safetensors.INDEX_NAME or name.endswith(".safetensors") for name in names):
        return _inspect_safetensors(path, place, names)
    models = sorted({gguf.first_shard(name) for name in names if name.endswith(".gguf") and not gguf.is_sidecar(name)})
    pickled = sorted(path / name for name in map(PurePosixPath, place.pickled) if name.parent == path)
    if pickled and not models:
        return _inspect_pickled(path, place, pickled)
    if not models:
        raise Unfit(WeightsUnknown(path=place.called(path)))
    if len(models) > 1:
        raise _invalid(path, place, f"it holds {len(models)} GGUF models, {models[0]} and others; give one of them")
    return _inspect_gguf(path / models[0], place)


def _inspect_gguf(path: PurePosixPath, place: Place) -> ModelWeights:
    with _domain_errors(path, place):
        names = gguf.shard_names(path.name)
    _require_all(path, names, place, directory=path.parent)
    shards = [path.with_name(name) for name in names]
    read = {shards[0], *place.to_read(shards)}
    numbers = {shard: number for number, shard in enumerate(shards, start=1)}
    found = _each(
        shards, lambda shard: _read_gguf(shard, numbers[shard], len(shards), place) if shard in read else None
    )
    headers = [header for header, _ in filter(None, found)]
    first = headers[0]
    if first.is_adapter:
        raise _invalid(path, place, "it is an adapter, not a model")
    block_bytes = [header.block_bytes for header in headers if header.block_bytes is not None]
    sizes = [place.size(shard) if each is None else each[1] for shard, each in zip(shards, found, strict=True)]
    return ModelWeights(
        format="gguf",
        weight_bytes=_sum(sizes, path, place),
        files=tuple(map(str, shards)),
        architecture=first.architecture,
        context_length=first.context_length,
        layers=first.block_count,
        attention_layers=first.attention_blocks,
        windowed_layers=first.windowed_blocks if first.window else None,
        window=first.window,
        state_bytes=first.state_bytes,
        hidden_size=first.embedding_length,
        attention_heads=first.head_count,
        kv_heads=first.head_count_kv,
        head_size=first.head_size,
        value_size=first.value_size,
        vocabulary_size=next((header.vocabulary_size for header in headers if header.vocabulary_size), None),
        layer_bytes=sum(block_bytes) if len(block_bytes) == len(shards) else None,
        categories=(first.category,),
    )


def _read_gguf(path: PurePosixPath, number: int, count: int, place: Place) -> tuple[gguf.GgufHeader, int]:
    with place.open(path) as (file, size), _domain_errors(path, place):
        header = gguf.read_gguf_header(file)
        gguf.check_shard(header, number, count)
    if size < header.required_bytes:
        raise _truncated(path, place, header.required_bytes, size)
    return header, size


def _inspect_safetensors(path: PurePosixPath, place: Place, names: Collection[str]) -> ModelWeights:
    index_name = safetensors.INDEX_NAME if safetensors.INDEX_NAME in names else None
    weights = [name for name in names if name.endswith(".safetensors")]
    shard_names = _shard_names(path, weights, index_name, place)
    _require_all(path, (safetensors.CONFIG_NAME, *shard_names), place)
    described = _described(path, place)
    shards = [path / name for name in shard_names]
    return described.model_copy(
        update={"weight_bytes": _weigh_safetensors(shards, path, place), "files": tuple(map(str, shards))}
    )


def _inspect_pickled(path: PurePosixPath, place: Place, weights: Sequence[PurePosixPath]) -> ModelWeights:
    """They tell nothing without being run: their sizes are believed."""
    _require_all(path, (safetensors.CONFIG_NAME,), place)
    size = _sum([place.size(each) for each in weights], path, place)
    update = {"format": "pickle", "weight_bytes": size, "files": tuple(map(str, weights))}
    return _described(path, place).model_copy(update=update)


def _described(path: PurePosixPath, place: Place) -> ModelWeights:
    """What config.json says of the model, before its weights are looked at."""
    config_path = path / safetensors.CONFIG_NAME
    document = _read_document(config_path, safetensors.MAX_CONFIG_BYTES, place)
    with _domain_errors(config_path, place):
        config = safetensors.read_config(document)
        answered = short_config(document)
    category = config.category
    if category == "llm" and place.kind(path / safetensors.EMBEDS_NAME) is not None:
        category = "embedding"
    return ModelWeights(
        format="safetensors",
        weight_bytes=0,
        config=answered,
        remote_code=safetensors.needs_remote_code(document),
        architecture=config.architecture,
        context_length=config.context_length,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        categories=(category,),
    )


def _inspect_pipeline(path: PurePosixPath, place: Place) -> ModelWeights:
    """A directory of the diffusers library. Weights beside its parts are those of other programs."""
    index_path = path / safetensors.PIPELINE_NAME
    document = _read_document(index_path, safetensors.MAX_CONFIG_BYTES, place)
    with _domain_errors(index_path, place):
        name, parts = safetensors.read_pipeline(document)
        answered = short_config(document)
    _require_all(path, parts, place)
    files = [file for part in parts for file in _part_files(path / part, place)]
    if not files:
        raise Unfit(WeightsUnknown(path=place.called(path)))
    return ModelWeights(
        format="safetensors",
        weight_bytes=_weigh_safetensors(files, path, place),
        files=tuple(map(str, files)),
        config=answered,
        architecture=name,
        categories=("image",),
    )


def _part_files(part: PurePosixPath, place: Place) -> list[PurePosixPath]:
    """Those of one part; a tokenizer or a scheduler has none."""
    if not _is_directory(part, place):
        raise _invalid(part, place, "it is no directory")
    names = _names(part, place)
    plain = safetensors.plain_weights([name for name in names if name.endswith(".safetensors")])
    index_name = next((name for name in safetensors.PART_INDEX_NAMES if name in names), None)
    shard_names = _shard_names(part, plain, index_name, place)
    _require_all(part, shard_names, place)
    return [part / name for name in shard_names]


def _shard_names(path: PurePosixPath, weights: Iterable[str], index_name: str | None, place: Place) -> tuple[str, ...]:
    """What its index names; without one the files that are there, and those that they ask for."""
    if index_name is None:
        with _domain_errors(path, place):
            return safetensors.shard_names(tuple(weights))
    index = path / index_name
    _require_all(path, (index_name,), place)
    document = _read_document(index, safetensors.MAX_INDEX_BYTES, place)
    with _domain_errors(index, place):
        return safetensors.read_index(document)


def _weigh_safetensors(files: Sequence[PurePosixPath], path: PurePosixPath, place: Place) -> int:
    read = frozenset(place.to_read(files))
    sizes = _each(files, lambda file: _read_safetensors(file, place) if file in read else place.size(file))
    return _sum(sizes, path, place)


def _read_safetensors(path: PurePosixPath, place: Place) -> int:
    """The size of the file, which is what its header says."""
    with place.open(path) as (file, size), _domain_errors(path, place):
        header = safetensors.read_safetensors_header(file)
    if size < header.required_bytes:
        raise _truncated(path, place, header.required_bytes, size)
    if size > header.required_bytes:
        raise _invalid(path, place, f"{size - header.required_bytes} bytes follow its last tensor")
    return size


def _read_document(path: PurePosixPath, limit_bytes: int, place: Place) -> bytes:
    with place.open(path) as (file, _):
        document = file.read(limit_bytes + 1)
    if len(document) > limit_bytes:
        raise _invalid(path, place, f"it is larger than {limit_bytes} bytes")
    return document


def _names(directory: PurePosixPath, place: Place) -> list[str]:
    """Those that have to do with weights. Engines don't see hidden files, such as the `._*` of macOS, either."""
    names = sorted(name for name in place.names(directory) if _is_weights(name))
    for name in names:
        if not is_utf8(name):
            raise _invalid(directory, place, f"the file name {name!a} in it is not UTF-8")
    return names


def _require_all(
    path: PurePosixPath, names: Iterable[str], place: Place, *, directory: PurePosixPath | None = None
) -> None:
    """`path` is what the reason calls the model by, and where the names are looked for unless a directory is given."""
    missing = [name for name in names if place.kind((directory or path) / name) is None]
    if len(missing) > _MOST_MISSING_NAMED:
        missing[_MOST_MISSING_NAMED:] = [f"{len(missing) - _MOST_MISSING_NAMED} more"]
    if missing:
        raise Unfit(ModelFilesIncomplete(path=place.called(path), missing=tuple(missing)))


def _each(paths: Iterable[PurePosixPath], read: Callable[[PurePosixPath], _T]) -> list[_T]:
    """One answer for each file, or the objections to all of them."""
    answers: list[_T] = []
    objections: list[Reason] = []
    for path in paths:
        try:
            answers.append(read(path))
        except Unfit as unfit:
            objections.extend(unfit.reasons)
    if objections:
        raise Unfit(*objections)
    return answers


def _sum(sizes: Iterable[int], path: PurePosixPath, place: Place) -> int:
    total = sum(sizes)
    if total > MOST_BYTES:
        raise _invalid(path, place, f"its files claim {total} bytes")
    return total


@contextmanager
def _domain_errors(path: PurePosixPath, place: Place) -> Generator[None, None, None]:
    try:
        yield
    except gguf.NotFirst as later:
        raise Unfit(NotTheFirstShard(path=place.called(path), first=later.first)) from later
    except (gguf.InvalidGguf, safetensors.InvalidSafetensors) as invalid:
        raise _invalid(path, place, invalid.problem) from invalid


def _invalid(path: PurePosixPath, place: Place, problem: str) -> Unfit:
    return Unfit(ModelFileInvalid(path=place.called(path), problem=problem))


def _truncated(path: PurePosixPath, place: Place, expected_bytes: int, actual_bytes: int) -> Unfit:
    return Unfit(ModelFileTruncated(path=place.called(path), expected_bytes=expected_bytes, actual_bytes=actual_bytes))


def _is_weights(name: str) -> bool:
    visible = not name.startswith(".")
    return name in safetensors.PART_INDEX_NAMES or (visible and name.endswith((".gguf", ".safetensors")))


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
