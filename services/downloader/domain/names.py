"""Whether files of these names may be written below a directory of ours.

Anybody may have uploaded them, so a name is a claim too. What is refused, is refused on every file system: a worker's
may be shared, and may know neither the case of letters nor which of two encodings of an accent it was given.
"""

import re
import unicodedata
from collections.abc import Collection
from typing import Final

MOST_FILES: Final = 2000
MOST_NAME_BYTES: Final = 1024
MOST_PART_BYTES: Final = 255
"""What file systems store."""
OURS: Final = ".muster"
"""Beside the files of a repository, what we know about them."""

_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control characters, those that reorder or join what is shown, surrogates, and ends of lines and paragraphs."""
_IGNORED: Final = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Unicode's Default_Ignorable_Code_Point, as far as `_UNSEEN` lets it through: ext4, HFS+ and APFS compare without."""
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_MOST_SHOWN: Final = 80


class UnsafeName(Exception):
    """A name that a repository must not make us write."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = _shown(name)
        """Escaped and shortened: fit for a message."""
        self.problem = problem
        super().__init__(f"{self.name}: {problem}")


class TooManyFiles(Exception):
    def __init__(self, count: int) -> None:
        self.count = count
        self.problem = f"{count} files are more than {MOST_FILES}"
        super().__init__(self.problem)


def check_names(names: Collection[str]) -> None:
    """`names` have `/` between their parts. Raises `UnsafeName` or `TooManyFiles`."""
    if len(names) > MOST_FILES:
        raise TooManyFiles(len(names))
    taken: dict[str, str] = {}
    for name in names:
        problem = _problem(name)
        if problem is not None:
            raise UnsafeName(name, problem)
        folded = _folded(name)
        if folded in taken:
            raise UnsafeName(name, f"some file systems don't tell it from {_shown(taken[folded])}")
        taken[folded] = name
    for folded, name in taken.items():
        for slash in re.finditer("/", folded):
            file = taken.get(folded[: slash.start()])
            if file is not None:
                raise UnsafeName(name, f"{_shown(file)} is a file, not a directory")


def _problem(name: str) -> str | None:
    if len(name.encode(errors="surrogatepass")) > MOST_NAME_BYTES:
        return f"it is longer than {MOST_NAME_BYTES} bytes"
    if any(unicodedata.category(character) in _UNSEEN for character in name):
        return "it has a character that is not shown"
    if "\\" in name:
        return "it has a backslash"
    if name.startswith("/"):
        return "it is absolute"
    parts = name.split("/")
    for part in parts:
        if _folded(part) in ("", ".", ".."):
            return f"it has the part '{part}'"
        if _DRIVE.match(part):
            return "it names a drive"
        if len(part.encode()) > MOST_PART_BYTES:
            return f"a part of it is longer than {MOST_PART_BYTES} bytes"
    return f"{OURS} is ours" if _folded(parts[0]) == OURS else None


def _folded(name: str) -> str:
    """The same for all names that some file system takes for one; source: the Unicode Standard, section 3.13, D146."""
    if name.isascii():
        return name.lower()
    for form in ("NFD", "NFKD"):
        name = unicodedata.normalize(form, name).casefold()
    return _IGNORED.sub("", unicodedata.normalize("NFKD", name))


def _shown(name: str) -> str:
    short = name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}…"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in short
    )
