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

from schemas.asks import ModelInspection
from schemas.models import LocalPath, ModelWeights
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
from services.downloader.domain import gguf, safetensors

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


def inspect_local_path(source: LocalPath, allowed_roots: tuple[Path, ...]) -> ModelInspection:
    """`allowed_roots`: directories that models must lie in, symbolic links followed; empty allows every path."""
    path = Path(source.path)
    disk = _Disk(tuple(Path(os.path.realpath(root)) for root in allowed_roots))
    try:
        return ModelInspection(weights=_inspect(path, disk))
    except _Unfit as unfit:
        return ModelInspection(reasons=unfit.reasons[:_MAX_REASONS])
    except OSError as error:
        return ModelInspection(reasons=(InspectionFailed(problem=f"{source.path}: {error.strerror or error}"),))


class _Unfit(Exception):
    def __init__(self, *reasons: Reason) -> None:
        super().__init__(reasons)
        self.reasons = reasons


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
    if not path.is_absolute():
        raise _invalid(path, "the path is not absolute")
    if "\0" in str(path):
        raise _Unfit(ModelNotFound(path=str(path)))
    found = disk.stat(path)
    if found is None:
        raise _Unfit(ModelNotFound(path=str(path)))
    if stat.S_ISDIR(found.st_mode):
        return _inspect_directory(path, disk)
    if path.suffix == ".safetensors":
        raise _invalid(path, "give the directory that holds it and its config.json")
    return _inspect_gguf(path, disk)


def _inspect_directory(path: Path, disk: _Disk) -> ModelWeights:
    names = disk.names(path)
    if any(not name.endswith(".gguf") for name in names):
        return _inspect_safetensors(path, disk, names)
    models = sorted({gguf.first_shard(name) for name in names if not gguf.is_sidecar(name)})
    if not models:
        raise _Unfit(WeightsUnknown(path=str(path)))
    if len(models) > 1:
        raise _invalid(path, f"it holds {len(models)} GGUF models, {models[0]} and others; give one of them")
    return _inspect_gguf(path / models[0], disk)


def _inspect_gguf(path: Path, disk: _Disk) -> ModelWeights:
    with _domain_errors(path):
        names = gguf.shard_names(path.name)
    _require_all(path, path.parent, names, disk)
    numbers = {path.with_name(name): number for number, name in enumerate(names, start=1)}
    shards = _each(numbers, lambda shard: _read_gguf(shard, numbers[shard], len(numbers), disk))
    first, _ = shards[0]
    return ModelWeights(
        format="gguf",
        weight_bytes=sum(size for _, size in shards),
        files=tuple(str(shard) for shard in numbers),
        architecture=first.architecture,
        context_length=first.context_length,
        layers=first.block_count,
        kv_heads=first.head_count_kv,
        head_size=first.head_size,
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
    index = path / safetensors.INDEX_NAME
    if index.name in names:
        _require_all(path, path, (index.name,), disk)
        document = _read_document(index, safetensors.MAX_INDEX_BYTES, disk)
        with _domain_errors(index):
            shard_names = safetensors.read_index(document)
    else:
        with _domain_errors(path):
            shard_names = safetensors.shard_names([name for name in names if name.endswith(".safetensors")])
    config_path = path / safetensors.CONFIG_NAME
    _require_all(path, path, (config_path.name, *shard_names), disk)
    document = _read_document(config_path, safetensors.MAX_CONFIG_BYTES, disk)
    with _domain_errors(config_path):
        config = safetensors.read_config(document)
    shards = [path / name for name in shard_names]
    return ModelWeights(
        format="safetensors",
        weight_bytes=sum(_each(shards, lambda shard: _read_safetensors(shard, disk))),
        files=tuple(str(shard) for shard in shards),
        architecture=config.architecture,
        context_length=config.context_length,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        categories=(config.category,),
    )


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
    return name == safetensors.INDEX_NAME or (visible and name.endswith((".gguf", ".safetensors")))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
