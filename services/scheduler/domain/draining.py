"""Which instances finish their requests before their engines are stopped, and for how long."""

from typing import Final

from schemas.facts.instance import StopCause
from services.scheduler.domain.instance import Instance, Running, Stopping
from services.scheduler.domain.policy import Policy

GENTLE: Final[frozenset[StopCause]] = frozenset({"replaced", "drained", "scaled_down"})
"""Others take over. Who deletes a model, or an instance by name, wants it gone."""


def seconds_to_drain(instance: Instance, cause: StopCause, policy: Policy) -> float:
    """0: its engine is stopped at once. What does not run has no requests that could end."""
    return policy.drain_seconds if cause in GENTLE and isinstance(instance.state, Running) else 0.0


def is_draining(instance: Instance) -> bool:
    return isinstance(instance.state, Stopping) and instance.state.drain_seconds > 0
