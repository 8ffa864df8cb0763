"""Beside the weights, the engine's share of a GPU must hold the KV cache of one sequence of the whole context."""

from schemas.reasons import ContextDoesNotFit
from services.scheduler.domain.candidate import Candidate


def context_does_not_fit(candidate: Candidate) -> ContextDoesNotFit | None:
    if candidate.layout is not None:
        return None
    shorts = [takes.context_short for of in candidate.takes for takes in of.values() if takes.context_short is not None]
    if not shorts:
        return None
    best = max(shorts, key=lambda short: short.fitting_tokens)
    return ContextDoesNotFit(
        worker_id=candidate.machine.id,
        context_tokens=best.tokens,
        fitting_tokens=best.fitting_tokens,
        cache_bytes=best.cache_bytes,
        room_bytes=best.room_bytes,
    )
