"""Makes docs/reference from the code.

docs/generate.py            write what has changed
docs/generate.py --check    write nothing; 1 and the differences when a page is stale
docs/generate.py --golden   add golden files of types and versions that have none; an existing one is never touched
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from docs.making import accelerators, bus, engine_metrics, events, golden, reasons, rest, settings, states

REFERENCE: Final = Path(__file__).parent / "reference"
GOLDEN: Final = Path(__file__).parents[1] / "tests" / "golden"
LINES_SHOWN: Final = 20


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "events.md": events.page,
    "reasons.md": reasons.page,
    "states.md": states.page,
    "settings.md": settings.page,
    "accelerators.md": accelerators.page,
    "engine-metrics.md": engine_metrics.page,
    "openapi.json": lambda: _json(rest.document()),
    "asyncapi.json": lambda: _json(bus.document()),
}


def stale(reference: Path) -> Iterator[tuple[Path, str, str]]:
    """Pages that the code no longer says: the file, what is in it, what should be."""
    for name, make in PAGES.items():
        path = reference / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there != (wanted := make()):
            yield path, there, wanted


def check(reference: Path) -> int:
    """The exit code."""
    found = list(stale(reference))
    for path, there, wanted in found:
        print(f"{path} is stale:")
        differences = difflib.unified_diff(there.splitlines(), wanted.splitlines(), "is", "should be", n=0, lineterm="")
        print("\n".join(f"    {line[:160]}" for line in islice(differences, 2, LINES_SHOWN)))
    if found:
        print("Run `make docs`.")
    return 1 if found else 0


def write(reference: Path) -> None:
    reference.mkdir(exist_ok=True)
    for path, _, wanted in list(stale(reference)):
        path.write_text(wanted, encoding="utf-8")
        print(f"wrote {path}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Make docs/reference from the code.")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is stale")
    only.add_argument("--golden", action="store_true", help="add the golden files that are missing")
    given = parser.parse_args(arguments)
    if given.check:
        return check(REFERENCE)
    if given.golden:
        for path in golden.add_missing(GOLDEN):
            print(f"wrote {path}")
        return 0
    write(REFERENCE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
