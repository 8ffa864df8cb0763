"""The pages that people read, and what can be checked of them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
WRITTEN: Final = (
    ROOT / "README.md",
    ROOT / "services" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
)
GENERATED: Final = tuple(sorted((ROOT / "docs" / "reference").glob("*.md")))

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE: Final = re.compile(r"`((?:schemas|kernel|services|docs|tests|examples|bench)/[^`\s<>*]*)`")
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ASSIGNMENT: Final = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True, slots=True)
class Command:
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> Iterator[Command]:
    """What is to be typed, without what is set for that command alone."""
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "))
            while _ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            yield Command(page.name, tuple(words))


def links(page: Path) -> list[str]:
    return _LINK.findall(_without_code(page))


def files(page: Path) -> list[str]:
    return _FILE.findall(page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces become dashes, punctuation goes."""
    titles = _HEADING.findall(_without_code(page))
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles}


def _without_code(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))
