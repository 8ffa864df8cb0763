"""What is reported of the GPUs that were read: the inventory's `gpus`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final

from schemas.models import Gpu, GpuNetwork
from services.agent.domain.accelerators.reading import BadOutput, GpuReading

GpuKey = tuple[str, int]
"""Type and index: one GPU of a worker."""

STEADY_BYTES: Final = 64 * 2**20
"""Memory of others that changed by less is no news: drivers and desktops breathe."""
MOST_INDEX: Final = 255
"""`Gpu.index`."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST: Final = 200


def each_once(readings: Iterable[GpuReading]) -> tuple[GpuReading, ...]:
    """In the order of their indexes. Raises BadOutput when there is none, or two have one index."""
    found = sorted(readings, key=lambda reading: reading.index)
    if not found:
        raise BadOutput("no GPU in its output")
    if any(not 0 <= reading.index <= MOST_INDEX for reading in found):
        raise BadOutput(f"a GPU with an index above {MOST_INDEX}")
    if len({reading.index for reading in found}) < len(found):
        raise BadOutput("two GPUs with one index")
    return tuple(found)


def with_islands(readings: Iterable[GpuReading], island_of: Mapping[int, int]) -> tuple[GpuReading, ...]:
    return tuple(replace(reading, island=island_of.get(reading.index)) for reading in readings)


def gpus(
    readings: Sequence[GpuReading], ours: AbstractSet[int] = frozenset(), idle_bytes: Mapping[GpuKey, int] | None = None
) -> tuple[Gpu, ...]:
    """`ours`: PIDs of our engines' processes; `idle_bytes`: what was used when none ran. Numbers of islands are made unique."""
    idle = idle_bytes or {}
    numbers: dict[tuple[str, int], int] = {}
    for reading in readings:
        if reading.island is not None:
            numbers.setdefault((reading.type, reading.island), len(numbers))
    return tuple(
        Gpu(
            index=reading.index,
            vendor=reading.vendor,
            type=reading.type,
            name=_printable(reading.name) or reading.vendor,
            uuid=_printable(reading.uuid),
            memory_total=reading.memory_total_bytes or 0,
            memory_used_by_others=used_by_others(reading, ours, idle.get((reading.type, reading.index), 0)),
            compute_capability=_printable(reading.compute_capability),
            driver_version=_printable(reading.driver_version),
            runtime_version=_printable(reading.runtime_version),
            island=None if reading.island is None else numbers[reading.type, reading.island],
            network=None
            if reading.network is None
            else GpuNetwork(address=_printable(reading.network.address), up=reading.network.up),
            unhealthy=_printable(reading.unhealthy),
        )
        for reading in readings
    )


def used_by_others(reading: GpuReading, ours: AbstractSet[int], idle_bytes: int = 0) -> int:
    """Bytes that are used and not by our engines, what the driver keeps for itself included.

    Where the tool tells what each process holds: all that is used, less what our processes hold. Where it does not tell (or not of a
    process of ours), it is what was used when no engine of ours ran last, or 0 when that was never seen: then others' memory is not
    known, and the engine that finds too little says so itself. To take all of it for others' would charge our own engines twice.
    """
    used = reading.memory_used_bytes
    if used is None:
        return 0
    held = 0
    for process in reading.processes or ():
        if process.pid in ours:
            if process.memory_bytes is None:
                return min(used, idle_bytes)
            held += process.memory_bytes
    if reading.processes is None:
        return min(used, idle_bytes)
    return max(0, used - held)


def held_by_engines(
    readings: Iterable[GpuReading], engines: Mapping[int, int | str]
) -> dict[int | str, dict[GpuKey, int]]:
    """Bytes that each engine's processes hold of each GPU. `engines`: PID → handle. What no tool tells is left out."""
    held: dict[int | str, dict[GpuKey, int]] = {}
    for reading in readings:
        for process in reading.processes or ():
            handle = engines.get(process.pid)
            if handle is not None and process.memory_bytes:
                of_engine, key = held.setdefault(handle, {}), (reading.type, reading.index)
                of_engine[key] = of_engine.get(key, 0) + process.memory_bytes
    return held


def steady(known: tuple[Gpu, ...], now: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """`now`, but for changes of others' memory that are no news."""
    before = {(gpu.type, gpu.index): gpu.memory_used_by_others for gpu in known}
    return tuple(
        gpu.model_copy(update={"memory_used_by_others": was})
        if (was := before.get((gpu.type, gpu.index))) is not None
        and was != gpu.memory_used_by_others
        and abs(was - gpu.memory_used_by_others) < STEADY_BYTES
        else gpu
        for gpu in now
    )


def _printable(text: str | None) -> str | None:
    """Without what a database can't store, and not longer than a sentence."""
    return None if text is None else " ".join(_CONTROL.sub(" ", text).split())[:_LONGEST] or None
