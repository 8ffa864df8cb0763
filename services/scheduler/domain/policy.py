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
    start_report_seconds: float = 5.0
    """So long after an engine's start timeout its agent's word is waited for: it says the same, with the engine's last lines."""
    stop_repeat_seconds: float = 15.0
    drain_seconds: float = 60.0
    """So long an instance that is replaced, drained or scaled down may finish its requests; 0: it is stopped at once."""
    restart_base_seconds: float = 1.0
    restart_most_seconds: float = 300.0
    steady_seconds: float = 600.0
    """An engine that ran for this long has no former crashes held against it."""
    quarantine_crashes: int = 5
    """So many crashes in a row of a model on a worker, and it is not placed there any more."""
    trial_crashes: int = 2
    """So many crashes of the first instance of a new revision, and the former one runs again."""
    cordon_unhealthy: bool = False
    """A worker with a GPU that its driver calls unhealthy takes nothing new at all, not even on its other GPUs."""
    claims_from_peak: bool = False
    """New placements claim what was measured of the model, and a margin, in place of an estimate."""
    reinspect_seconds: float = 15.0
    """A model whose files could not be used is looked at again after this time."""
    patience_seconds: float = 0.5
    """So long a model's instances wait for all workers that were asked about its files, so that they can be spread."""
    scan_seconds: float = 1.0
    """So often it is looked for workers that an unreachable or failed instance could go to."""
    brake_share: float = 0.5
    """When at least this share of the fleet (and more than one worker) is silent at once, nobody is evicted."""
    most_facts: int = 1000
    """About so much is decided at once; what is left is decided next, after whatever came in meanwhile."""
