"""Which port an engine is to listen on."""

import socket
from collections.abc import Collection

from schemas.reasons import PortInUse
from services.agent.domain.runtime import EngineNotStarted


def free_port(address: str, allowed: range | None, taken: Collection[int]) -> int:
    """A port that nobody listens on now. Raises EngineNotStarted(port_in_use) when the range has none."""
    if allowed is None:
        with socket.socket() as probe:
            probe.bind((address, 0))
            return int(probe.getsockname()[1])
    for port in allowed:
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise EngineNotStarted(
        (PortInUse(port=allowed[0] if len(allowed) == 1 else None),), f"no port of {allowed[0]}-{allowed[-1]} is free"
    )
