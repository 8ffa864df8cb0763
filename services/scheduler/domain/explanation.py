"""Refusals and places in the words of people: the one module where placement is rendered.

Documents for REST and the command line: a sentence, every worker's objections, who comes closest, what would help.
"""

from collections.abc import Mapping, Sequence

from schemas.ids import WorkerId
from schemas.placements import (
    AnswerClaim,
    AnswerMember,
    AnswerObjection,
    AnswerPlacement,
    AnswerRunnerUp,
    AnswerSuggestion,
    AnswerWhy,
)
from schemas.preferences import lost
from schemas.reasons import Reason, Suggestion
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.launching import assumed
from services.scheduler.domain.placement import Placed, Refused

Names = Mapping[WorkerId, str]


def placement(request: Request, placed: Placed, names: Names) -> AnswerPlacement:
    return AnswerPlacement(
        members=tuple(
            AnswerMember(
                worker=names.get(each.worker_id, each.worker_id),
                role="leader" if rank == 0 else "follower",
                type=each.type,
                gpu_indexes=each.gpu_indexes,
                claim=AnswerClaim(ram=each.claim.ram, vram={str(i): size for i, size in each.claim.vram.items()}),
            )
            for rank, each in enumerate(placed.places)
        ),
        parallelism=placed.parallelism,
        overcommitted=placed.take.overcommitted,
        parameters=assumed(request, placed),
        why=None
        if placed.why is None
        else AnswerWhy(
            scores=placed.why.scores,
            fitting=placed.why.fitting,
            runners_up=tuple(
                AnswerRunnerUp(
                    worker=names.get(each.worker_id, each.worker_id),
                    gpu_indexes=each.gpu_indexes,
                    scores=each.scores,
                    lost_by=each.lost_by,
                    text=lost(each.lost_by),
                )
                for each in placed.why.runners_up
            ),
        ),
    )


def objections(refused: Refused, names: Names) -> tuple[AnswerObjection, ...]:
    """What is wrong with the request first, then the workers, the closest first."""
    return tuple(objection(reason, names) for reason in refused.reasons)


def objection(reason: Reason, names: Names) -> AnswerObjection:
    numbers = reason.model_dump(mode="json", exclude={"code", "worker_id"})
    worker_id = reason.worker_id
    return AnswerObjection(
        worker=None if worker_id is None else names.get(worker_id, worker_id),
        code=reason.code,
        who=reason.whose,
        numbers=numbers,
        text=reason.sentence(),
    )


def suggestions(found: Sequence[Suggestion]) -> tuple[AnswerSuggestion, ...]:
    return tuple(AnswerSuggestion.model_validate(each.model_dump(mode="json")) for each in found)


def placed_in_words(placements: Sequence[AnswerPlacement]) -> str:
    """`It fits: 2 GPUs of w1.`"""
    if len(placements) > 1:
        workers = {member.worker for each in placements for member in each.members}
        return f"All {len(placements)} instances fit, on {len(workers)} worker{'s' if len(workers) > 1 else ''}."
    (one,) = placements
    parts = [
        f"GPU {', '.join(str(index) for index in member.gpu_indexes)} of {member.worker}"
        if member.gpu_indexes
        else f"the memory of {member.worker}"
        for member in one.members
    ]
    over = " The estimate is above what the engine takes of the GPUs that were chosen." if one.overcommitted else ""
    return f"It fits on {' and '.join(parts)}.{over}"


def refused_in_words(refused: Refused, found: Sequence[Suggestion], *, fitting: int = 0, wanted: int = 1) -> str:
    """The nearest miss in a sentence, and what would help first. `fitting` of the `wanted` instances would find a place."""
    start = "It fits nowhere" if not fitting else f"{fitting} of {wanted} instances fit, the next one nowhere"
    start += f": {refused.request[0].sentence()}." if refused.request else "."
    if refused.workers and refused.workers[0].reasons:
        closest = refused.workers[0]
        why = "; ".join(reason.sentence() for reason in closest.reasons)
        many = len(refused.workers)
        start += f" Of {many} workers {closest.name} comes closest: {why}." if many > 1 else f" {closest.name}: {why}."
    return start + (f" What would help: {found[0].text}." if found else "")
