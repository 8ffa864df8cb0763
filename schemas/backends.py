"""What each backend runs on: kinds of GPU, platforms, the oldest driver and architecture, and which versions there are.

Of its own images only: a model that brings its own `image_name` is asked for nothing but memory. Sources: the support
matrix and images of the field's public runner repository, 2026-08; SGLang's and vLLM's installation guides (compute
capability); vendors' release notes (runtime versions).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

Version = tuple[int, ...]
PLATFORMS: Final = ("linux/amd64", "linux/arm64")
CPU: Final = "cpu"


@dataclass(frozen=True, slots=True)
class BackendInfo:
    accelerators: Mapping[str, str | None]
    """Kind of GPU → the newest version of the backend there is for it; None: every one. `cpu`: needs no GPU."""
    oldest: str | None = None
    newest: str | None = None
    """None: the backend has no versions of its own (the user's image)."""
    platforms: tuple[str, ...] = PLATFORMS
    """Empty: any."""
    runtimes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Kind of GPU → the oldest runtime (CUDA, ROCm, CANN) that an image was built for."""
    compute_capability: str | None = None
    """Of NVIDIA's: the oldest."""
    tensor_parallel: bool = True
    """Divides a model's heads among GPUs."""
    pipeline_parallel: bool = False
    """Divides a model's layers among GPUs, where the sizes are ours to choose."""
    distributes: bool = True
    """One instance can run on several machines."""


BACKENDS: Final[Mapping[str, BackendInfo]] = {
    "vLLM": BackendInfo(
        accelerators={
            "cuda": None, "rocm": None, "cann": None, "dtk": "0.18", "musa": "0.9.2", "corex": "0.8.3", "maca": "0.21",
            "hggc": "0.23",
        },
        oldest="0.8.0",
        newest="0.32",
        pipeline_parallel=True,
        runtimes={"cuda": "12.6", "rocm": "6.4", "cann": "8.2"},
        compute_capability="7.0",
    ),
    "SGLang": BackendInfo(
        accelerators={"cuda": None, "rocm": None, "cann": None, "musa": None, "maca": None, "hggc": None},
        oldest="0.4.6",
        newest="0.5.23",
        pipeline_parallel=True,
        runtimes={"cuda": "12.6", "rocm": "6.4", "cann": "8.2"},
        compute_capability="8.0",
    ),
    "MindIE": BackendInfo(
        accelerators={"cann": None}, oldest="1.0", newest="2.3.0", runtimes={"cann": "8.2"}
    ),
    "llama.cpp": BackendInfo(
        accelerators={"cuda": None, "rocm": None, "musa": None, "cann": None, CPU: None},
        platforms=(),
        tensor_parallel=False,
        distributes=False,
    ),
    "Custom": BackendInfo(
        accelerators=dict.fromkeys(("cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "neuware", "hggc", CPU)),
        tensor_parallel=False,
    ),
}  # fmt: skip

_VERSION: Final = re.compile(r"v?([0-9]{1,9}(?:\.[0-9]{1,9}){0,3})")
_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}


@lru_cache(maxsize=4096)
def version_of(text: str | None) -> Version | None:
    """The release number that a version begins with; None when it begins with none."""
    match = _VERSION.match(text or "")
    return tuple(int(part) for part in match[1].split(".")) if match else None


@lru_cache(maxsize=4096)
def is_older(version: str | None, than: str | None) -> bool:
    """False where one of them is not told: nothing is refused for want of knowledge."""
    ours, theirs = version_of(version), version_of(than)
    return ours is not None and theirs is not None and ours < theirs


def is_newer(version: str | None, than: str | None) -> bool:
    """Compared as far as both tell: 0.18.3 is no newer than 0.18."""
    ours, theirs = version_of(version), version_of(than)
    return ours is not None and theirs is not None and ours[: len(theirs)] > theirs


def exists(info: BackendInfo, version: str) -> bool:
    if info.newest is None:
        return True
    return version_of(version) is not None and not is_older(version, info.oldest) and not is_newer(version, info.newest)


def platform_of(os: str, arch: str) -> str:
    return f"{os.lower()}/{_ARCHITECTURES.get(arch.lower(), arch.lower())}"
