"""tests/golden/<Type>.v<N>.json: what a version of a document looked like when it was new. Kept for ever."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from docs.making.examples import example, example_event
from schemas.assignment import Assigned
from schemas.facts import FACTS
from schemas.reports import REPORTS


def documents() -> Iterator[tuple[str, BaseModel]]:
    """File name and document of the newest version of each type."""
    for of in (*FACTS, *REPORTS):
        yield f"{of.type}.v{of.version}.json", example_event(of)
    yield "Assigned.v1.json", example(Assigned)


def add_missing(directory: Path) -> list[Path]:
    """The files that were added. One that is there is never written again: it is what old logs hold."""
    directory.mkdir(exist_ok=True)
    added: list[Path] = []
    for name, document in documents():
        path = directory / name
        if not path.exists():
            path.write_text(document.model_dump_json(indent=1) + "\n", encoding="utf-8")
            added.append(path)
    return added
