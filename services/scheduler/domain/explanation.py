"""Refusals and places in the words of people: the one module where placement is rendered.

Documents for REST and the command line: a sentence, every worker's objections, who comes closest, what would help.
"""

from collections.abc import Mapping, Sequence

from schemas.ids import WorkerId
from schemas.placements import (
    AnswerClaim,
    AnswerMeasured,
    AnswerMember,
    AnswerObjection,
    AnswerPlacement,
    AnswerRunnerUp,
    AnswerSuggestion,
    AnswerWhy,
)
from schemas.preferences import lost
from schemas.reasons import Reason, Suggestion, gib
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.launching import assumed
from services.scheduler.domain.peaks import Peak, Where
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


def measured(
    where: Where, claim: tuple[int, int], share: float | None, peak: Peak | None, *, instances: int, from_peak: bool
) -> AnswerMeasured:
    """`claim`: VRAM on each GPU, and RAM. `from_peak`: is the next instance like these going to claim what was measured?"""
    vram, ram = claim
    peak_vram, peak_ram = (peak.vram_bytes, peak.ram_bytes) if peak is not None else (None, None)
    on = "on the CPU" if not where.gpus else f"on {where.gpus}× {where.gpu}"
    if where.workers > 1:
        on += f" of {where.workers} workers"
    if where.gpu_layers is not None:
        on += f" ({where.gpu_layers} layers)"
    parts: list[str] = []
    if where.gpus:
        parts.append(_compared(f"{gib(vram)} on each GPU", vram, peak_vram))
    if ram or peak_ram is not None:
        parts.append(_compared(f"{gib(ram)} of RAM" if ram else "no RAM", ram, peak_ram))
    too_little = [
        what
        for what, claimed_bytes, peak_bytes in (("VRAM", vram, peak_vram), ("RAM", ram, peak_ram))
        if peak_bytes is not None and peak_bytes > claimed_bytes > 0  # some engines claim no RAM at all
    ]
    return AnswerMeasured(
        gpu=where.gpu,
        gpus=where.gpus,
        workers=where.workers,
        gpu_layers=where.gpu_layers,
        instances=instances,
        claimed_vram=vram,
        peak_vram=peak_vram,
        claimed_ram=ram,
        peak_ram=peak_ram,
        share=share,
        text=f"{instances} {'instance' if instances == 1 else 'instances'} {on}: {'; '.join(parts)}",
        warning=_warning(too_little, share, from_peak=from_peak) if too_little else None,
    )


def _compared(claimed: str, claimed_bytes: int, peak_bytes: int | None) -> str:
    """`claims 16.2 GiB on each GPU, measured 13.1 GiB at most (81 %)`"""
    if peak_bytes is None:
        return f"claims {claimed}, not measured"
    share = f" ({round(peak_bytes * 100 / claimed_bytes)} %)" if claimed_bytes else ""
    return f"claims {claimed}, measured {gib(peak_bytes)} at most{share}"


def _warning(too_little: Sequence[str], share: float | None, *, from_peak: bool) -> str:
    head = f"holds more {' and '.join(too_little)} than it claims"
    if from_peak:
        return f"{head}: the next instance claims what was measured"
    if share is not None:
        return f"{head}: a smaller share of the GPUs leaves room, claim_override says how much RAM it takes"
    return f"{head}: set claim_override, or let claims be taken from what was measured (MUSTER_CLAIMS_FROM_PEAK)"


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
