"""A measured figure, what the issue asks of it, and what the peer was recorded to need for the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PEER: Final = "GPUStack, recorded 2026-11"
"""Source: facts/performance.md §2.2, GPUStack 2.3.0 on a machine of the same size at load average 3 to 6; not run here."""


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    unit: str
    conditions: str
    """Samples, and what else one must know to read it."""
    at_most: float | None = None
    at_least: float | None = None
    peer: str = ""
    """The peer's figure for the same operation; empty where it has none."""

    @property
    def reached(self) -> bool | None:
        """None: the issue sets no target."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {number(self.at_most)} {self.unit}".rstrip()
        if self.at_least is not None:
            return f"≥ {number(self.at_least)} {self.unit}"
        return ""


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's figures, and how busy the machine was."""

    name: str
    figures: tuple[Figure, ...]
    load_before: float
    load_after: float
    seconds: float
    error: str | None = None
    """Why there are no figures."""


def number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return (f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}".removesuffix("0")).removesuffix(".0")


def percentile(samples: Sequence[float], share: float) -> float:
    """Interpolated between the neighbours."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def milliseconds(
    what: str,
    seconds: Sequence[float],
    *,
    p50: float | None = None,
    p99: float | None = None,
    peer_p50: str = "",
    peer_p99: str = "",
    conditions: str = "",
) -> list[Figure]:
    """Median and 99th percentile of a latency, with their targets in milliseconds."""
    how = f"{len(seconds)} samples" + (f", {conditions}" if conditions else "")
    return [
        Figure(f"{what}, p50", percentile(seconds, 0.5) * 1e3, "ms", how, at_most=p50, peer=peer_p50),
        Figure(f"{what}, p99", percentile(seconds, 0.99) * 1e3, "ms", how, at_most=p99, peer=peer_p99),
    ]
