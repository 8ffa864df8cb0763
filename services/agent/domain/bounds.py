"""How much RAM an engine may hold at most: a bound that a healthy engine never meets, so that an ill one can't take its machine along.

The claim is an estimate, and what is counted against a bound is more than an engine's own: files that it reads count too. Those pages
are given back before anything is killed, so weights that are read or mapped never kill an engine; but a bound below what it maps would
make it read them from disk again and again. /dev/shm counts as well and is not given back. So the bound is generous, and as it
can't say anything of an engine whose claim is not known, that one may have all but what the machine itself needs.
"""

from dataclasses import dataclass, replace
from typing import Final

from services.agent.domain.runtime import Bounds, EngineCommand

FACTOR: Final = 2
LEAST_BEYOND_BYTES: Final = 8 * 2**30
"""CUDA's own tables, pinned buffers, compilers and Python's libraries are in nobody's estimate."""
KEPT_SHARE: Final = 0.05
KEPT_LEAST_BYTES: Final = 2**30
"""Of the machine, for itself."""


@dataclass(frozen=True, slots=True)
class Ram:
    claimed_bytes: int
    """0: not known."""
    machine_bytes: int


def most_ram_bytes(ram: Ram, shm_bytes: int = 0) -> int | None:
    """None: there is no bound that would help."""
    rest = ram.machine_bytes - max(int(ram.machine_bytes * KEPT_SHARE), KEPT_LEAST_BYTES)
    if rest <= 0:
        return None
    if not ram.claimed_bytes:
        return rest
    return min(max(FACTOR * ram.claimed_bytes, ram.claimed_bytes + LEAST_BEYOND_BYTES) + shm_bytes, rest)


def bounded(command: EngineCommand, ram: Ram) -> EngineCommand:
    container = command.container
    if container is None:
        return replace(command, bounds=Bounds(most_ram_bytes(ram)))
    most = most_ram_bytes(ram, 0 if container.needs.host_ipc else container.shm_bytes)
    return replace(command, container=replace(container, memory_bytes=most))
