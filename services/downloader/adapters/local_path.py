"""Models that lie on the worker's disk already: what they are and weigh, and whether they are complete.

Everything here blocks; it belongs in a thread. Only headers are read, never weights.
"""

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from schemas.asks import InspectModel, ModelInspection
from schemas.models import ModelWeights
from schemas.reasons import (
    InspectionFailed,
    ModelFileInvalid,
    ModelFilesIncomplete,
    ModelFileTruncated,
    ModelNotFound,
    PathNotAllowed,
    Reason,
    WeightsUnknown,
)
from schemas.sources import LocalPath
from services.downloader.domain import gguf, safetensors
from services.downloader.domain.short_config import short_config

_T = TypeVar("_T")

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_MAX_REASONS: Final = 32
_MAX_MISSING_NAMED: Final = 32
"""An answer must stay far below NATS' limit of 1 MiB, however many files are broken."""


def inspect_model(question: InspectModel, allowed_roots: tuple[Path, ...]) -> ModelInspection:
    """The model with what is loaded beside it; the objections to all of them, where there are any.

    `allowed_roots`: directories that all of it must lie in, symbolic links followed; empty allows every path.
    """
    disk = _Disk(tuple(Path(os.path.realpath(root)) for root in allowed_roots))
    model, objections = _answer(question.source, _inspect, disk)
    lora_bytes = draft_bytes = 0
    for adapter in question.adapters:
        size, more = _answer(adapter, _inspect_adapter, disk)
        lora_bytes += size or 0
        objections += more
    if question.draft is not None:
        draft, more = _answer(question.draft, _inspect, disk)
        draft_bytes = draft.weight_bytes if draft else 0
        objections += more
    if model is None or objections:
        return ModelInspection(reasons=objections[:_MAX_REASONS])
    return ModelInspection(weights=model.model_copy(update={"lora_bytes": lora_bytes, "draft_bytes": draft_bytes}))


class _Unfit(Exception):
    def __init__(self, *reasons: Reason) -> None:
        super().__init__(reasons)
        self.reasons = reasons


def _answer(
    source: LocalPath, inspect: Callable[[Path, "_Disk"], _T], disk: "_Disk"
) -> tuple[_T | None, tuple[Reason, ...]]:
    try:
        return inspect(Path(source.path), disk), ()
    except _Unfit as unfit:
        return None, unfit.reasons
    except OSError as error:
        return None, (InspectionFailed(problem=f"{source.path}: {error.strerror or error}"),)


@dataclass(frozen=True, slots=True)
class _Disk:
    """The files that the operator allows us to see."""

    roots: tuple[Path, ...]

    def stat(self, path: Path) -> os.stat_result | None:
        """None: there is nothing, or a symbolic link to nothing."""
        try:
            return self._real(path).stat()
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    @contextmanager
    def open(self, path: Path) -> Generator[tuple[BinaryIO, int], None, None]:
        """The file and its size. Opening a pipe or a device has effects, so only regular files ever are."""
        real = self._real(path)
        _require_regular(path, real.stat().st_mode)
        # What was looked at may have been replaced since: no link is followed, no pipe waited for.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - pathlib opens no descriptors
            found = os.fstat(descriptor)
            _require_regular(path, found.st_mode)
            yield file, found.st_size

    def names(self, directory: Path) -> list[str]:
        """Those that have to do with weights. Engines don't see hidden files, such as the `._*` of macOS, either."""
        names = sorted(entry.name for entry in self._real(directory).iterdir() if _is_weights(entry.name))
        for name in names:
            if not _is_utf8(name):
                raise _invalid(directory, f"the file name {name!a} in it is not UTF-8")
        return names

    def _real(self, path: Path) -> Path:
        real = Path(os.path.realpath(path))
        if self.roots and not any(real.is_relative_to(root) for root in self.roots):
            raise _Unfit(PathNotAllowed(path=str(path)))
        return real


def _inspect(path: Path, disk: _Disk) -> ModelWeights:
    if _is_directory(path, disk):
        return _inspect_directory(path, disk)
    if path.suffix == ".safetensors":
        raise _invalid(path, "give the directory that holds it and its config.json")
    return _inspect_gguf(path, disk)


def _is_directory(path: Path, disk: _Disk) -> bool:
    if not path.is_absolute():
        raise _invalid(path, "the path is not absolute")
    if "\0" in str(path):
        raise _Unfit(ModelNotFound(path=str(path)))
    found = disk.stat(path)
    if found is None:
        raise _Unfit(ModelNotFound(path=str(path)))
    return stat.S_ISDIR(found.st_mode)


def _inspect_directory(path: Path, disk: _Disk) -> ModelWeights:
    if disk.stat(path / safetensors.PIPELINE_NAME) is not None:
        return _inspect_pipeline(path, disk)
    names = disk.names(path)
    if any(name == safetensors.INDEX_NAME or name.endswith(".safetensors") for name in names):
        return _inspect_safetensors(path, disk, names)
    models = sorted({gguf.first_shard(name) for name in names if name.endswith(".gguf") and not gguf.is_sidecar(name)})
    if not models:
        raise _Unfit(WeightsUnknown(path=str(path)))
    if len(models) > 1:
        raise _invalid(path, f"it holds {len(models)} GGUF models, {models[0]} and others; give one of them")
    return _inspect_gguf(path / models[0], disk)


def _inspect_adapter(path: Path, disk: _Disk) -> int:
    """What a LoRA adapter weighs: a directory as the PEFT library writes it, or a GGUF file."""
    if not _is_directory(path, disk):
        header, size = _read_gguf(path, 1, 1, disk)
        if not header.is_adapter:
            raise _invalid(path, "it is a model, not an adapter")
        return size
    _require_all(path, path, (safetensors.ADAPTER_CONFIG_NAME, safetensors.ADAPTER_NAME), disk)
    config_path = path / safetensors.ADAPTER_CONFIG_NAME
    document = _read_document(config_path, safetensors.MAX_CONFIG_BYTES, disk)
    with _domain_errors(config_path):
        safetensors.check_adapter(document)
    return _read_safetensors(path / safetensors.ADAPTER_NAME, disk)


def _inspect_gguf(path: Path, disk: _Disk) -> ModelWeights:
    with _domain_errors(path):
        names = gguf.shard_names(path.name)
    _require_all(path, path.parent, names, disk)
    numbers = {path.with_name(name): number for number, name in enumerate(names, start=1)}
    shards = _each(numbers, lambda shard: _read_gguf(shard, numbers[shard], len(numbers), disk))
    first, _ = shards[0]
    if first.is_adapter:
        raise _invalid(path, "it is an adapter, not a model")
    block_bytes = [header.block_bytes for header, _ in shards]
    known_bytes = [size for size in block_bytes if size is not None]
    return ModelWeights(
        format="gguf",
        weight_bytes=sum(size for _, size in shards),
        files=tuple(str(shard) for shard in numbers),
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
        vocabulary_size=next((header.vocabulary_size for header, _ in shards if header.vocabulary_size), None),
        layer_bytes=sum(known_bytes) if len(known_bytes) == len(block_bytes) else None,
        categories=(first.category,),
    )


def _read_gguf(path: Path, number: int, count: int, disk: _Disk) -> tuple[gguf.GgufHeader, int]:
    with disk.open(path) as (file, size), _domain_errors(path):
        header = gguf.read_gguf_header(file)
        gguf.check_shard(header, number, count)
    if size < header.required_bytes:
        raise _Unfit(_truncated(path, header.required_bytes, size))
    return header, size


def _inspect_safetensors(path: Path, disk: _Disk, names: list[str]) -> ModelWeights:
    index_name = safetensors.INDEX_NAME if safetensors.INDEX_NAME in names else None
    weights = [name for name in names if name.endswith(".safetensors")]
    shard_names = _shard_names(path, weights, index_name, disk)
    config_path = path / safetensors.CONFIG_NAME
    _require_all(path, path, (config_path.name, *shard_names), disk)
    document = _read_document(config_path, safetensors.MAX_CONFIG_BYTES, disk)
    with _domain_errors(config_path):
        config = safetensors.read_config(document)
        answered = short_config(document)
    category = config.category
    if category == "llm" and disk.stat(path / safetensors.EMBEDS_NAME) is not None:
        category = "embedding"
    shards = [path / name for name in shard_names]
    return ModelWeights(
        format="safetensors",
        weight_bytes=sum(_each(shards, lambda shard: _read_safetensors(shard, disk))),
        files=tuple(str(shard) for shard in shards),
        config=answered,
        architecture=config.architecture,
        context_length=config.context_length,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        categories=(category,),
    )


def _inspect_pipeline(path: Path, disk: _Disk) -> ModelWeights:
    """A directory of the diffusers library. Weights beside its parts are those of other programs."""
    index_path = path / safetensors.PIPELINE_NAME
    document = _read_document(index_path, safetensors.MAX_CONFIG_BYTES, disk)
    with _domain_errors(index_path):
        name, parts = safetensors.read_pipeline(document)
        answered = short_config(document)
    _require_all(path, path, parts, disk)
    files = [file for part in parts for file in _part_files(path / part, disk)]
    if not files:
        raise _Unfit(WeightsUnknown(path=str(path)))
    return ModelWeights(
        format="safetensors",
        weight_bytes=sum(_each(files, lambda file: _read_safetensors(file, disk))),
        files=tuple(str(file) for file in files),
        config=answered,
        architecture=name,
        categories=("image",),
    )


def _part_files(part: Path, disk: _Disk) -> list[Path]:
    """Those of one part; a tokenizer or a scheduler has none."""
    if not _is_directory(part, disk):
        raise _invalid(part, "it is no directory")
    names = disk.names(part)
    plain = safetensors.plain_weights([name for name in names if name.endswith(".safetensors")])
    index_name = next((name for name in safetensors.PART_INDEX_NAMES if name in names), None)
    shard_names = _shard_names(part, plain, index_name, disk)
    _require_all(part, part, shard_names, disk)
    return [part / name for name in shard_names]


def _shard_names(path: Path, weights: Iterable[str], index_name: str | None, disk: _Disk) -> tuple[str, ...]:
    """What its index names; without one the files that are there, and those that they ask for."""
    if index_name is None:
        with _domain_errors(path):
            return safetensors.shard_names(tuple(weights))
    index = path / index_name
    _require_all(path, path, (index_name,), disk)
    document = _read_document(index, safetensors.MAX_INDEX_BYTES, disk)
    with _domain_errors(index):
        return safetensors.read_index(document)


def _read_safetensors(path: Path, disk: _Disk) -> int:
    """The size of the file, which is what its header says."""
    with disk.open(path) as (file, size), _domain_errors(path):
        header = safetensors.read_safetensors_header(file)
    if size < header.required_bytes:
        raise _Unfit(_truncated(path, header.required_bytes, size))
    if size > header.required_bytes:
        raise _invalid(path, f"{size - header.required_bytes} bytes follow its last tensor")
    return size


def _read_document(path: Path, limit_bytes: int, disk: _Disk) -> bytes:
    with disk.open(path) as (file, _):
        document = file.read(limit_bytes + 1)
    if len(document) > limit_bytes:
        raise _invalid(path, f"it is larger than {limit_bytes} bytes")
    return document


def _require_all(path: Path, directory: Path, names: Iterable[str], disk: _Disk) -> None:
    """`path` is what the reason calls the model by."""
    missing = [name for name in names if disk.stat(directory / name) is None]
    if len(missing) > _MAX_MISSING_NAMED:
        missing[_MAX_MISSING_NAMED:] = [f"{len(missing) - _MAX_MISSING_NAMED} more"]
    if missing:
        raise _Unfit(ModelFilesIncomplete(path=str(path), missing=tuple(missing)))


def _each(paths: Iterable[Path], read: Callable[[Path], _T]) -> list[_T]:
    """One answer for each file, or the objections to all of them."""
    answers: list[_T] = []
    objections: list[Reason] = []
    for path in paths:
        try:
            answers.append(read(path))
        except _Unfit as unfit:
            objections.extend(unfit.reasons)
    if objections:
        raise _Unfit(*objections)
    return answers


@contextmanager
def _domain_errors(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except (gguf.InvalidGguf, safetensors.InvalidSafetensors) as invalid:
        raise _invalid(path, invalid.problem) from invalid


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise _invalid(path, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}")


def _invalid(path: Path, problem: str) -> _Unfit:
    return _Unfit(ModelFileInvalid(path=str(path), problem=problem))


def _truncated(path: Path, expected_bytes: int, actual_bytes: int) -> ModelFileTruncated:
    return ModelFileTruncated(path=str(path), expected_bytes=expected_bytes, actual_bytes=actual_bytes)


def _is_weights(name: str) -> bool:
    visible = not name.startswith(".")
    return name in safetensors.PART_INDEX_NAMES or (visible and name.endswith((".gguf", ".safetensors")))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
