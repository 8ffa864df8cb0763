"""Versions and platforms as machines and images tell them."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

Version = tuple[int, ...]

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


def is_for_processors(version: str | None) -> bool:
    """A build that needs no GPU calls itself so: `0.32.0+cpu` (PEP 440's local label)."""
    return version is not None and version.partition("+")[2].split(".")[0] == "cpu"


def platform_of(os: str, arch: str) -> str:
    return f"{os.lower()}/{_ARCHITECTURES.get(arch.lower(), arch.lower())}"
