"""One table of all results: for a terminal, for docs/benchmarks.md, for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from bench.figures import PEER, Figure, Result, number
from bench.machine import Machine

HEADINGS: Final = ("", "ours", "target", "reached", "peer", "conditions")
REACHED: Final = {True: "yes", False: "no", None: ""}


def plain(machine: Machine, results: Sequence[Result]) -> str:
    rows = [list(HEADINGS)]
    for result in results:
        rows += [["", *[""] * 5], [f"{result.name} ({_load(result)})", *[""] * 5]]
        rows += [[f"  {cells[0]}", *cells[1:]] for cells in _rows(result)]
    widths = [max(len(row[column]) for row in rows if row[1]) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*_about(machine), "", *lines])


def markdown(machine: Machine, results: Sequence[Result]) -> str:
    lines = [*_about(machine), ""]
    for result in results:
        lines += [f"## {result.name}", "", f"{_load(result)}.", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|---|--:|--:|---|---|---|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in _rows(result)]
        lines.append("")
    return "\n".join(lines).rstrip()


def as_json(machine: Machine, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "machine": dataclasses.asdict(machine),
        "peer": PEER,
        "results": [
            dataclasses.asdict(result)
            | {"figures": [dataclasses.asdict(figure) | {"reached": figure.reached} for figure in result.figures]}
            for result in results
        ],
    }


def _about(machine: Machine) -> list[str]:
    fsync = f"{machine.fsync_p50_ms:.2f} ms (p99 {machine.fsync_p99_ms:.2f} ms)"
    hardware = f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:.0f} GiB, Linux {machine.kernel}"
    return [
        f"Measured on {machine.at:%Y-%m-%d %H:%M} UTC: {hardware}; a 700-byte fdatasync takes {fsync}.",
        f"Versions: {', '.join(f'{name} {what}' for name, what in machine.versions.items())}.",
        f"Peer: {PEER}, on a machine of the same size; not run here.",
    ]


def _load(result: Result) -> str:
    return f"load average {result.load_before:.1f} before, {result.load_after:.1f} after; {result.seconds:.0f} s"


def _rows(result: Result) -> list[tuple[str, ...]]:
    if result.error is not None:
        return [(f"could not be measured: {result.error[:80]}", "–", "", "no", "", "")]
    return [_row(figure) for figure in result.figures]


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.what,
        f"{number(figure.value)} {figure.unit}".rstrip(),
        figure.target,
        REACHED[figure.reached],
        figure.peer,
        figure.conditions,
    )
