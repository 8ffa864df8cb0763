"""The forms in which tools answer: JSON, CSV, tables in boxes, and matrices of links."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

from services.agent.domain.accelerators.reading import BadOutput

Answers = Mapping[str, str]
"""What a tool printed, by the name of the question. One that it did not answer is missing."""

_STARTS: Final = re.compile(r"^[ \t]*[\[{]", re.MULTILINE)
_STARTS_TRIED: Final = 20
_UNIT: Final = re.compile(r"\s*\[[^\]]*\]$")


def json_in(text: str) -> Any:
    """The first JSON object or array; tools print warnings before it. Raises BadOutput."""
    for count, found in enumerate(_STARTS.finditer(text)):
        if count == _STARTS_TRIED:
            break
        try:
            return json.JSONDecoder().raw_decode(text, found.end() - 1)[0]
        except (ValueError, RecursionError):
            continue
    raise BadOutput("no JSON in its output")


def mapping(value: Any) -> dict[str, Any]:
    """Empty where it is none."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """Empty where it is none."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """With a header, as `--query-gpu=… --format=csv` prints it; units in it are left out (`memory.used [MiB]`).

    A last line without an end is half a line.
    """
    complete = text[: text.rfind("\n") + 1]
    lines = [line.replace("\0", "") for line in complete.splitlines() if line.strip()]
    try:
        head, *rows = csv.reader(lines, skipinitialspace=True)
    except (ValueError, csv.Error):
        return
    columns = [_UNIT.sub("", name.strip()) for name in head]
    for row in rows:
        if len(row) == len(columns):
            yield dict(zip(columns, (cell.strip() for cell in row), strict=True))


def boxed_rows(text: str) -> Iterator[tuple[str, ...]]:
    """Cells of the lines between | and |; rules and other lines are left out."""
    for line in text.splitlines():
        stripped = line.strip()
        if len(stripped) > 1 and stripped[0] == stripped[-1] == "|":
            cells = tuple(cell.strip() for cell in stripped[1:-1].split("|"))
            if any(cell.strip("-+= ") for cell in cells):
                yield cells


def linked_pairs(text: str, row: str, links: str) -> Iterator[tuple[int, int]]:
    """Pairs of a matrix as `topo -m` prints it. `row`: how rows are called before their number; `links`: which cells are a direct link.

    Columns are GPUs in the order of the rows, then network cards and affinities.
    """
    name = rf"{row}[ #]?([0-9]{{1,4}})"
    line_of_a_gpu = re.compile(
        rf"\s*{name}\s+(?!{name})(\S.*)$"
    )  # the line of the columns' names begins with two names
    link = re.compile(links)
    found = filter(None, map(line_of_a_gpu.match, text.splitlines()))
    rows = [(int(each[1]), each[3].split()) for each in found]
    indexes = [index for index, _ in rows]
    for index, cells in rows:
        for other, cell in zip(indexes, cells, strict=False):
            if other != index and link.fullmatch(cell):
                yield index, other


def islands(indexes: Iterable[int], pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """GPU → number of its island. Within one, each reaches each directly; a GPU that reaches none is in none.

    Links that make no full mesh are cut into full ones, in the order of the indexes: two quads of a hybrid cube mesh (DGX-1), say.
    """
    there = sorted(set(indexes))
    said = set(pairs)
    linked = {(a, b) for a, b in said if (b, a) in said}
    groups: list[list[int]] = []
    for index in there:
        for group in groups:
            if all((index, member) in linked for member in group):
                group.append(index)
                break
        else:
            groups.append([index])
    large = [group for group in groups if len(group) > 1]
    return {index: number for number, group in enumerate(large) for index in group}
