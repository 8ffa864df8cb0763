"""Which files of a hub's repository make up the model that was asked for: what an engine loads, and nothing beside it.

Only names are looked at. What the files say is read afterwards, from a hub or a disk.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Final, Literal

from services.downloader.domain import gguf, safetensors
from services.downloader.domain.listing import Listing, RemoteFile

MOST_NAMED: Final = 32
"""Names in an error."""

PICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".pth.tar")
"""Whoever loads them runs what is in them."""
_OTHER_WEIGHTS: Final = (
    ".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".gguf", ".ot", ".mlmodel", ".llamafile", ".nemo", ".distcp",
)  # fmt: skip
_MEDIA: Final = (
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".bmp", ".ico", ".tif", ".tiff", ".avif", ".mp3", ".wav",
    ".flac", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".mov", ".avi", ".mkv", ".pdf",
)  # fmt: skip
_NOT_LOADED: Final = (*PICKLED, *_OTHER_WEIGHTS, *_MEDIA)

_DIRECTORIES: Final = re.compile(r"original|onnx|openvino|coreml|checkpoint-[0-9]+|global_step[0-9]+")
"""The same model once more: as its authors' own programs read it, for other runtimes, and at earlier steps."""
_TRAINING: Final = re.compile(
    r"training_args\.bin|scheduler\.(pt|bin)|optimizer.*\.(pt|pth|bin|safetensors)|rng_state.*|random_states_.*"
    r"|events\.out\.tfevents.*"
)
_TRUSTED_WEIGHTS: Final = re.compile(r"pytorch_model(-[0-9]+-of-[0-9]+)?\.bin|adapter_model\.bin")
_INDEX: Final = re.compile(r"(.+)\.safetensors\.index(\.[^./]+)?\.json")
_MISTRAL_CONFIG_NAME: Final = "params.json"
_PRECISION: Final = re.compile(r"(?<![a-z0-9])(bf16|fp?16|fp?32|q8_0)(?![a-z0-9])")
_PROJECTORS: Final = ("f16", "bf16", "f32", "q8_0")
"""Precisions of a projector, best first: all engines compute in F16."""


class Unselectable(Exception):
    """The repository has not what was asked for, or not all of it."""


class NothingMatches(Unselectable):
    def __init__(self, pattern: str, available: tuple[str, ...]) -> None:
        super().__init__(f"no file matches {pattern!a}")
        self.pattern = pattern
        self.available = available
        """Models that a pattern could name."""


class Ambiguous(Unselectable):
    def __init__(self, pattern: str | None, models: tuple[str, ...]) -> None:
        super().__init__("there are several models")
        self.pattern = pattern
        self.models = models


class UnsafeFormat(Unselectable):
    def __init__(self, formats: tuple[str, ...]) -> None:
        super().__init__(f"there are only pickled weights: {', '.join(formats)}")
        self.formats = formats
        """Endings of names, with their dot."""


class ShardsMissing(Unselectable):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__("shards are missing")
        self.names = names


class ImpossibleShards(Unselectable):
    """The name of a file counts shards in a way that can't be."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class NoWeights(Unselectable):
    def __init__(self, available: tuple[str, ...]) -> None:
        super().__init__("there are no weights that we can load")
        self.available = available
        """As of `NothingMatches`."""


@dataclass(frozen=True, slots=True)
class Selection:
    files: tuple[RemoteFile, ...]
    """What is small first, weights last; each by name."""
    weights: tuple[str, ...]
    """Those of the files that hold tensors, the projector among them."""
    format: Literal["safetensors", "gguf", "pickle"]
    model: str | None
    """The GGUF (the first of its shards) that an engine is given; None: it is given the directory."""
    directory: str = ""
    """Of the repository, which holds the model; empty: its root."""
    projector: str | None = None
    """The GGUF that an engine is given beside the model, so that it sees or hears."""


def select(listing: Listing, pattern: str | None) -> Selection:
    """Raises an `Unselectable`. `pattern`: as of `schemas.sources.Hub.filename`; where it matches a GGUF, that is
    taken. Where there is none, safetensors are.
    """
    names = sorted(name for name in listing.by_name if not _is_hidden(name))
    matching = names if pattern is None else [name for name in names if _matches(name, pattern)]
    if pattern is not None and not matching:
        raise NothingMatches(pattern, _available(names))
    weights = [name for name in matching if _is_safetensors(name)]
    models = _gguf_models(matching)
    if pattern in weights:
        weights = [pattern]
    if weights and (_is_read_from_root(names) if pattern is None else not models):
        return _select_directory(listing, names, weights)
    if pattern in matching and (named := gguf.first_shard(pattern)) in models:
        models = [named]
    if len(models) > 1:
        raise Ambiguous(pattern, tuple(models[:MOST_NAMED]))
    projectors = [] if pattern is None else [name for name in matching if _is_projector(name)]
    if models:
        return _select_gguf(listing, models[0], _projector(models[0], names, projectors))
    if projectors:
        return _select_gguf(listing, min(projectors, key=_precision), None)
    raise _nothing_to_load(matching, names)


def select_pickled(listing: Listing) -> Selection:
    """Of a repository that somebody trusts although it has pickled weights only. Raises an `Unselectable`."""
    names = sorted(name for name in listing.by_name if not _is_hidden(name))
    weights = tuple(name for name in names if _TRUSTED_WEIGHTS.fullmatch(name))
    if not weights or safetensors.CONFIG_NAME not in names:
        raise _nothing_to_load(names, names)
    indexes = [name for name in names if name == "pytorch_model.bin.index.json"]
    companions = sorted({*indexes, *(name for name in names if "/" not in name and _is_companion(name))})
    return Selection(
        files=tuple(listing.by_name[name] for name in (*companions, *weights)),
        weights=weights,
        format="pickle",
        model=None,
    )


def _matches(name: str, pattern: str) -> bool:
    """A name may have brackets in it, and then doesn't match itself."""
    own = name if "/" in pattern else name.rpartition("/")[2]
    return own == pattern or fnmatchcase(own, pattern) or fnmatchcase(name, pattern)


def _available(names: Iterable[str]) -> tuple[str, ...]:
    weights = [name for name in names if _is_safetensors(name)]
    return tuple((_gguf_models(names) + weights)[:MOST_NAMED])


def _nothing_to_load(matching: Iterable[str], names: Iterable[str]) -> UnsafeFormat | NoWeights:
    """`names`: all that the repository has."""
    formats = {
        ending
        for name in matching
        for ending in PICKLED
        if name.lower().endswith(ending) and not _TRAINING.fullmatch(_base(name))
    }
    only_pickled = formats and not _available(matching)
    return UnsafeFormat(tuple(sorted(formats))) if only_pickled else NoWeights(_available(names))


# GGUF


def _gguf_models(names: Iterable[str]) -> list[str]:
    """Each by the name of its first shard, which may be missing."""
    models = {
        gguf.first_shard(name)
        for name in names
        if name.endswith(".gguf")
        and not gguf.is_sidecar(_base(name))
        and "mmproj" not in _base(name).lower()
        and "imatrix" not in _base(name).lower()
    }
    return sorted(models)


def _select_gguf(listing: Listing, model: str, projector: str | None) -> Selection:
    try:
        shards = gguf.shard_names(model)
    except gguf.InvalidGguf as invalid:
        raise ImpossibleShards(invalid.problem) from invalid
    _require(shards, listing)
    weights = tuple(sorted((*shards, projector) if projector else shards))
    return Selection(
        files=tuple(listing.by_name[name] for name in weights),
        weights=weights,
        format="gguf",
        model=model,
        directory=_parent(model),
        projector=projector,
    )


def _is_projector(name: str) -> bool:
    return name.endswith(".gguf") and "mmproj" in _base(name).lower()


def _projector(model: str, names: Iterable[str], asked_for: Sequence[str]) -> str | None:
    """One that was asked for, else one beside the model, else one above it."""
    above = list(_ancestors(model))
    candidates = asked_for or [name for name in names if _is_projector(name) and _parent(name) in above]

    def rank(name: str) -> tuple[int, int, str]:
        directory = _parent(name)
        return (above.index(directory) if directory in above else len(above), *_precision(name))

    return min(candidates, key=rank, default=None)


def _precision(projector: str) -> tuple[int, str]:
    found = _PRECISION.findall(_base(projector).lower())
    precision = found[-1].replace("fp", "f") if found else None
    return (_PROJECTORS.index(precision) if precision in _PROJECTORS else len(_PROJECTORS), projector)


# Safetensors


def _is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors") and not _TRAINING.fullmatch(_base(name))


def _is_read_from_root(names: Iterable[str]) -> bool:
    """Whether an engine that is given the whole repository finds safetensors in it."""
    present = set(names)
    weights = [name for name in names if _is_safetensors(name)]
    at_root = [name for name in weights if "/" not in name]
    return (
        (safetensors.CONFIG_NAME in present and bool(at_root))
        or (safetensors.PIPELINE_NAME in present and len(at_root) < len(weights))
        or {safetensors.ADAPTER_CONFIG_NAME, safetensors.ADAPTER_NAME} <= present
        or (_MISTRAL_CONFIG_NAME in present and any(map(_is_consolidated, at_root)))
    )


def _select_directory(listing: Listing, names: Sequence[str], matching: Sequence[str]) -> Selection:
    is_pipeline = safetensors.PIPELINE_NAME in names
    try:
        weights = safetensors.shard_names(_without_copies(matching, is_pipeline=is_pipeline))
    except safetensors.InvalidSafetensors as invalid:
        raise ImpossibleShards(invalid.problem) from invalid
    _require(weights, listing)
    companions = _companions(names, weights)
    directories = {_parent(name) for name in weights}
    directory = directories.pop() if len(directories) == 1 and not is_pipeline else ""
    configs = {f"{directory}/{name}" for name in (safetensors.CONFIG_NAME, safetensors.ADAPTER_CONFIG_NAME)}
    return Selection(
        files=tuple(listing.by_name[name] for name in (*companions, *weights)),
        weights=weights,
        format="safetensors",
        model=None,
        directory=directory if configs & set(companions) else "",
    )


def _without_copies(weights: Sequence[str], *, is_pipeline: bool) -> list[str]:
    """Copies are what a directory holds twice, in forms that other programs read. They stay if there is nothing else."""
    kept = [name for name in weights if not _is_elsewhere(name)] or list(weights)
    parts = [name for name in kept if "/" in name]
    if is_pipeline and parts:  # what lies beside them is one file with all of them
        return [
            f"{directory}/{name}"
            for directory, names in groupby(sorted(parts, key=_parent), key=_parent)
            for name in safetensors.plain_weights([_base(name) for name in names])
        ]
    if any(name.startswith("model") and "/" not in name for name in kept):
        return [name for name in kept if not _is_consolidated(name)]
    return kept


def _is_consolidated(name: str) -> bool:
    """As Mistral's and Meta's own programs read it."""
    return name.startswith("consolidated") and "/" not in name


def _is_elsewhere(name: str) -> bool:
    return any(_DIRECTORIES.fullmatch(part) for part in name.split("/")[:-1])


def _companions(names: Iterable[str], weights: Iterable[str]) -> list[str]:
    """Configurations, tokenizers, templates, code: those of the root, and of each directory whose weights are taken."""
    unused = {name for name in names if _is_safetensors(name)}.difference(weights)
    used_directories = {_parent(name) for name in weights} | {""}
    directories = {_parent(name) for name in unused} | used_directories

    def belongs(name: str) -> bool:
        directory = next(directory for directory in _ancestors(name) if directory in directories)
        return directory in used_directories and not _is_elsewhere(name.removeprefix(directory))

    def is_of_others(name: str) -> bool:
        """An index of weights that are left out would say that they are missing."""
        index = _INDEX.fullmatch(name)
        prefix = f"{index[1]}{index[2] or ''}" if index else None
        return prefix is not None and _has_shards(prefix, unused) and not _has_shards(prefix, weights)

    return [name for name in names if _is_companion(_base(name)) and belongs(name) and not is_of_others(name)]


def _is_companion(file_name: str) -> bool:
    return not (
        file_name.lower().endswith((*_NOT_LOADED, ".safetensors"))
        or file_name.startswith(("pytorch_model", "openvino_model"))
        or _TRAINING.fullmatch(file_name)
    )


def _has_shards(prefix: str, weights: Iterable[str]) -> bool:
    """`model-00001-of-00002.safetensors` is one of `model`, and `model.fp16-…` is not."""
    others = frozenset("./")
    return any(
        name.startswith(prefix) and others.isdisjoint(name.removesuffix(".safetensors")[len(prefix) :])
        for name in weights
    )


def _require(names: Iterable[str], listing: Listing) -> None:
    missing = [name for name in names if name not in listing.by_name]
    if missing:
        raise ShardsMissing(tuple(missing[:MOST_NAMED]))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _parent(name: str) -> str:
    """Empty: the root."""
    return name.rpartition("/")[0]


def _ancestors(name: str) -> Iterator[str]:
    """Directories above it, the nearest first and the root last."""
    while name:
        name = _parent(name)
        yield name
