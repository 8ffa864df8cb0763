"""How long things may take. All in seconds, measured with a clock that never jumps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    lease_seconds: float = 10.0
    """Silence of an agent for this long makes its worker unreachable."""
    eviction_seconds: float = 10.0
    """So much longer, and its instances are placed elsewhere."""
    accept_seconds: float = 15.0
    """A worker takes up an assignment within this time, else it is given to another."""
    download_stall_seconds: float = 60.0
    stop_repeat_seconds: float = 15.0
    restart_base_seconds: float = 1.0
    restart_most_seconds: float = 300.0
    steady_seconds: float = 600.0
    """An engine that ran for this long has no former crashes held against it."""
    reinspect_seconds: float = 15.0
    """A model whose files could not be used is looked at again after this time."""
    brake_share: float = 0.5
    """When at least this share of the fleet (and more than one worker) is silent at once, nobody is evicted."""
