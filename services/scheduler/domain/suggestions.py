"""What would help: changes that were run through the same placement, and made it fit.

A change of the model is a JSON merge patch on it; anything else is an action of an operator. Flags are suggested for
what they are: the share of a GPU that an engine takes, the length of a context, captured graphs. Only what fits is told.
Where no change helps alone, a few pairs are tried: `{"action": "together", "changes": […]}`, or one patch where both are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any, Final

from schemas.ids import InstanceId, WorkerId
from schemas.models import Claim, ModelSpec
from schemas.parameters import without
from schemas.reasons import Suggestion, gib
from schemas.wanted import CPU_MEMORY, LAYERS, RAM_CLAIM, VRAM_CLAIM
from services.scheduler.domain.candidate import Candidate, Request
from services.scheduler.domain.fleet import changes_engine
from services.scheduler.domain.placement import Objections, Placed, Refused, allows_gang, place
from services.scheduler.domain.snapshot import Machine, copy_of, gpu_ids
from services.scheduler.domain.takes import ON_CPU_IF_ALLOWED

NEAREST: Final = 6
"""Workers on which changes are tried: those that came closest."""
SELECTED: Final = 64
"""… and those that have GPUs which the model selects, as far as these."""
MOST: Final = 8
MOST_FIRSTS: Final = 6
MOST_SECONDS: Final = 3
"""For each of so many first changes so many second ones are tried."""
SMALLEST_CONTEXT: Final = 256
SHARE_STEP: Final = 100


@dataclass(frozen=True, slots=True)
class OpenClaimOf:
    """Memory that an instance holds on a worker: what deleting it would free."""

    instance_id: InstanceId | None
    name: str
    worker_id: WorkerId
    accelerator: str | None
    claim: Claim


ClaimsOn = Callable[[WorkerId], Sequence[OpenClaimOf]]
"""What is held on a worker."""


def nothing_on(_worker_id: WorkerId) -> Sequence[OpenClaimOf]:
    return ()


@dataclass(frozen=True, slots=True)
class _Try:
    change: Mapping[str, Any]
    text: str
    request: Request
    machines: Sequence[Machine]


def suggestions_for(
    request: Request, machines: Sequence[Machine], refused: Refused, claims: ClaimsOn = nothing_on
) -> tuple[Suggestion, ...]:
    """The ones that work, simplest first; of one kind only the best, so that no kind crowds out the others."""
    by_id = {machine.id: machine for machine in machines}
    nearest = [by_id[each.worker_id] for each in refused.workers[:NEAREST]]
    if request.known is None:
        return tuple(_before_its_files(request, nearest, refused))
    if request.selected is not None:  # GPUs that are selected must be there to be known
        others = [by_id[each.worker_id] for each in refused.workers[NEAREST:SELECTED]]
        nearest += [machine for machine in others if not request.selected.isdisjoint(gpu_ids(machine))]
    found: dict[str, Suggestion] = {}
    for most, tries in _kinds(request, machines, nearest, refused, claims):
        enough = min(len(found) + most, MOST)
        for attempt in tries:
            if attempt.text not in found and isinstance(place(attempt.request, attempt.machines), Placed):
                found[attempt.text] = Suggestion(change=dict(attempt.change), text=attempt.text)
                if len(found) >= enough:
                    break
    return tuple(found.values())[:MOST] or _pairs(request, nearest, refused, claims)


def _before_its_files(request: Request, nearest: Sequence[Machine], refused: Refused) -> Iterator[Suggestion]:
    """Nothing fits while nobody knows what it weighs. What lets a worker be asked for its files may help."""
    codes = {reason.code for worker in refused.workers[:NEAREST] for reason in worker.reasons}
    for attempt in _offloading(request, nearest, codes):
        then = place(attempt.request, attempt.machines)
        if isinstance(then, Refused) and not then.request and any(map(_waits_for_its_files, then.workers)):
            yield Suggestion(change=dict(attempt.change), text=attempt.text.replace("it fits", "it may fit"))


def _waits_for_its_files(worker: Objections) -> bool:
    return all(reason.code == "being_inspected" for reason in worker.reasons)


# -- two changes at once ----------------------------------------------------------------------------------------------


def _pairs(request: Request, nearest: Sequence[Machine], refused: Refused, claims: ClaimsOn) -> tuple[Suggestion, ...]:
    """One that works; each part of it was tried alone in vain."""
    before = place(request, nearest)
    for first in islice(_firsts(request, nearest, refused, claims), MOST_FIRSTS):
        then = place(first.request, first.machines)
        if isinstance(then, Placed):
            return (Suggestion(change=dict(first.change), text=first.text),)
        if isinstance(before, Refused) and then.reasons == before.reasons:
            continue  # it changed nothing
        by_id = {machine.id: machine for machine in first.machines}
        near = [by_id[each.worker_id] for each in then.workers[:NEAREST]]
        kinds = _kinds(first.request, first.machines, near, then, _without(claims, first.change.get("instance")))
        for second in islice(chain.from_iterable(islice(tries, 2) for _, tries in kinds), MOST_SECONDS):
            if second.text != first.text and isinstance(place(second.request, second.machines), Placed):
                return (Suggestion(change=_both(first.change, second.change), text=_in_words(first.text, second.text)),)
    return ()


def _without(claims: ClaimsOn, name: object) -> ClaimsOn:
    """An instance ends once."""
    return lambda worker_id: [claim for claim in claims(worker_id) if claim.name != name]


def _firsts(request: Request, nearest: Sequence[Machine], refused: Refused, claims: ClaimsOn) -> Iterator[_Try]:
    """What does not help alone: one change of each kind, the sizes left to us, the end of the largest instance."""
    for _, tries in _kinds(request, nearest, nearest, refused, claims):
        yield from islice(tries, 1)
    flags = request.wanted.flags
    if request.wanted.world_size is not None:
        sizes = (*flags.tensor, *flags.pipeline, *flags.data)
        yield _patched(request, nearest, _with(request, sizes, None), "without parallel sizes it fits")
    for worker in refused.workers[:2]:
        if {reason.code for reason in worker.reasons} <= OF_MEMORY:
            machine = next(machine for machine in nearest if machine.id == worker.worker_id)
            largest = sorted(claims(machine.id), key=_size_of, reverse=True)[:1]
            yield from (_deletion(request, nearest, machine, claim, claims) for claim in largest)


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The second was made when the first was done: where both are patches, it has the last word."""
    if "action" not in one and "action" not in other:
        return {**one, **other}
    return {"action": "together", "changes": [dict(one), dict(other)]}


def _in_words(one: str, other: str) -> str:
    """`with a it fits`, `with b it fits: which is slower` → `with a and with b it fits: which is slower`."""
    (first, _, why), (second, _, also) = one.partition(" it fits"), other.partition(" it fits")
    reasons = [each.lstrip(":, ") for each in (why, also) if each]
    return f"{first.rstrip(',')} and {second.rstrip(',')} it fits{': ' + '; '.join(reasons) if reasons else ''}"


def _kinds(
    request: Request,
    machines: Sequence[Machine],
    nearest: Sequence[Machine],
    refused: Refused,
    claims: ClaimsOn,
) -> Iterator[tuple[int, Iterator[_Try]]]:
    """Changes of one kind each, and how many of them are worth telling."""
    codes = {reason.code for worker in refused.workers[: len(nearest)] for reason in worker.reasons}
    wrong = {reason.code for reason in refused.request}
    if not wrong - {"workers_do_not_add_up", "network_down"}:
        yield 1, _shares(request, nearest, codes)
        yield 1, _contexts(request, nearest, codes)
        yield 1, _shares_for_contexts(request, nearest, codes)
        yield 2, _more_gpus(request, _around(machines, refused), nearest, codes)
        yield 1, _offloading(request, nearest, codes)
        yield 1, _layers(request, nearest, codes)
        yield 1, _packing(request, nearest, codes)
        yield 3, _selectors(request, nearest, codes)
        yield 2, _operators(request, nearest, refused)
        yield 2, _deletions(request, nearest, refused, claims)
    else:
        yield 2, _sizes(request, nearest, wrong)
        yield 2, _without_what_is_wrong(request, nearest, refused)
        yield 1, _versions(request, nearest, wrong)
        yield 1, _backends(request, nearest, wrong)
        if wrong & {"gpu_unknown", "gpu_types_mixed", "too_few_gpus_selected", "world_size_does_not_match"}:
            yield 1, iter([_patched(request, nearest, {"gpu_selector": None}, "without a GPU selector it fits")])


def _around(machines: Sequence[Machine], refused: Refused) -> Sequence[Machine]:
    """Among whom a group is looked for: the nearest, twice as many as the largest one has."""
    near = {each.worker_id for each in refused.workers[:SELECTED]}
    return [machine for machine in machines if machine.id in near]


# -- changes of the model ---------------------------------------------------------------------------------------------


def changed(request: Request, patch: Mapping[str, Any]) -> Request:
    """The same request with a JSON merge patch on its model (null removes, objects are merged). Another revision of it was
    measured nowhere.
    """
    spec = ModelSpec.model_validate(merged(request.wish.model_dump(), patch))
    return Request(
        spec,
        looked=request.looked,
        model_id=request.model_id,
        not_on=request.not_on,
        crashes=request.crashes,
        files_on=request.files_on,
        known=request.known,
        pins=request.pins,
        must_look=request.must_look,
        peaks=request.peaks if not changes_engine(request.wish, spec) else {},
        backends=request.backends,
    )


def merged(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396."""
    after = dict(document)
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, Mapping):
            before = after.get(key)
            after[key] = merged(before if isinstance(before, Mapping) else {}, value)  # pyright: ignore[reportUnknownArgumentType] - JSON
        else:
            after[key] = value
    return after


def _patched(request: Request, machines: Sequence[Machine], patch: Mapping[str, Any], text: str) -> _Try:
    return _Try(patch, text, changed(request, patch), machines)


def _with(request: Request, names: tuple[str, ...], value: str | None) -> dict[str, Any]:
    kept = list(without(request.spec.backend_parameters, names))
    return {"backend_parameters": kept if value is None else [*kept, f"{names[0]}={value}" if value else names[0]]}


def _shares(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    """A smaller share of each GPU, as large as is free now."""
    flag = request.wanted.flags.share
    if not flag:
        return
    if "gpu_share_too_small" in codes:
        for machine in nearest:
            short = Candidate(request, machine).shortage
            if short is None or short.take is not None:
                continue
            share = math.ceil(short.needed_bytes / short.short_of.profile.memory_total * SHARE_STEP) / SHARE_STEP
            for larger in (share, share + 0.05):  # the KV cache may want a little more than the rule adds
                if larger <= 1:
                    yield _patched(
                        request, nearest, _with(request, flag, f"{larger:g}"), f"with {flag[0]}={larger:g} it fits"
                    )
    if "gpu_share_not_free" not in codes:
        return
    for machine in nearest:
        candidate = Candidate(request, machine)
        short = candidate.shortage
        if short is None or short.take is None or short.take.share is None:
            continue
        share = math.floor(short.short_of.free / short.short_of.profile.memory_total * SHARE_STEP) / SHARE_STEP
        least = short.needed_bytes / short.short_of.profile.memory_total
        if least <= share < short.take.share:
            yield _patched(request, nearest, _with(request, flag, f"{share:g}"), f"with {flag[0]}={share:g} it fits")


def _contexts(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    """A shorter context: its KV cache is smaller. What the weights take stays."""
    flag, usual = request.wanted.flags.context, request.usual
    if not flag or usual is None:
        return
    if "context_does_not_fit" in codes:
        shorts = [
            takes.context_short
            for machine in nearest
            for of in Candidate(request, machine).takes
            for takes in of.values()
            if takes.context_short is not None
        ]
        for tokens in sorted({short.fitting_tokens for short in shorts}, reverse=True):
            if tokens >= SMALLEST_CONTEXT:
                yield _patched(request, nearest, _with(request, flag, str(tokens)), f"with {flag[0]}={tokens} it fits")
    elif (usual.layered is not None or request.spec.packed or request.spec.backend == "MindIE") and codes & {
        "not_enough_vram", "not_enough_ram", "gpu_share_not_free", "gpu_share_too_small",
    }:  # fmt: skip
        tokens = usual.context // 2
        while tokens >= SMALLEST_CONTEXT:
            yield _patched(request, nearest, _with(request, flag, str(tokens)), f"with {flag[0]}={tokens} it fits")
            tokens //= 2


def _shares_for_contexts(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    """A larger share of each GPU, that holds the whole context."""
    flag, sizes = request.wanted.flags.share, request.wanted
    if not flag or request.spec.packed or "context_does_not_fit" not in codes:
        return
    shares: set[float] = set()
    for machine in nearest:
        candidate = Candidate(request, machine)
        for profile, short in ((p, t.context_short) for of in candidate.takes for p, t in of.items()):
            if short is not None and candidate.estimate is not None:
                parallelism = candidate.estimate.parallelisms(sizes.gpus or short.gpus)[0]
                share = candidate.estimate.share_on(profile, parallelism) or 0
                missing = (short.cache_bytes - short.room_bytes) / profile.memory_total
                shares.add(math.ceil((share + missing) * SHARE_STEP) / SHARE_STEP)
    for share in sorted(shares):
        if share <= 1:
            yield _patched(request, nearest, _with(request, flag, f"{share:g}"), f"with {flag[0]}={share:g} it fits")


def _more_gpus(
    request: Request, machines: Sequence[Machine], nearest: Sequence[Machine], codes: set[str]
) -> Iterator[_Try]:
    """Another number of GPUs, on one worker or on several."""
    wanted, flags, info = request.wanted, request.wanted.flags, request.info
    memory = {"not_enough_vram", "gpu_share_not_free", "gpu_share_too_small", "not_enough_gpus", "context_does_not_fit"}
    if info is None or not codes & memory:
        return
    if wanted.world_size is not None and request.selected is None:
        names = (*flags.tensor, *flags.pipeline, *flags.data)
        free = _patched(request, machines, _with(request, names, None), "")
        answer = place(free.request, nearest)
        if isinstance(answer, Placed) and len(answer.places) == 1:
            sizes = ((flags.tensor, answer.parallelism.tensor), (flags.pipeline, answer.parallelism.pipeline))
            given = [f"{names[0]}={size}" for names, size in sizes if size > 1]
            text = f"with {' and '.join(given)} it fits" if given else "on one GPU it fits"
            value = _with(request, names, None)
            value["backend_parameters"] += given
            yield _patched(request, nearest, value, text)
    if not request.spec.distributed_inference_across_workers and info.distributes:
        yield _patched(
            request,
            machines,
            {"distributed_inference_across_workers": True},
            "on several workers together it fits (distributed_inference_across_workers)",
        )


def _offloading(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    lacking = {"not_enough_vram", "no_gpu", "gpu_unhealthy", "accelerator_not_supported", "gpu_memory_in_use_by_others"}
    may_divide = request.spec.backend == "llama.cpp"
    if (
        (may_divide or request.spec.backend in ON_CPU_IF_ALLOWED)
        and not request.spec.cpu_offloading
        and codes & lacking
    ):
        yield _patched(
            request,
            nearest,
            {"cpu_offloading": True},
            "with cpu_offloading it fits: "
            + (
                "what no GPU holds stays in RAM, which is slower"
                if may_divide
                else "it runs on processors, which is slower"
            ),
        )


def _layers(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    """llama.cpp with another number of layers on GPUs than the user gave."""
    layers = request.wanted.gpu_layers
    if not layers or not codes & {"not_enough_vram", "no_gpu"}:
        return
    free = _with(request, LAYERS, None)
    for machine in nearest:
        answer = place(changed(request, free | {"cpu_offloading": True}), [machine])
        if isinstance(answer, Placed) and answer.take.gpu_layers is not None and answer.take.gpu_layers < layers:
            fewer = answer.take.gpu_layers
            yield _patched(request, nearest, _with(request, LAYERS, str(fewer)), f"with {LAYERS[0]}={fewer} it fits")


def _packing(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    """Take what the model needs, not the engine's usual share."""
    if request.spec.packed:
        flag = request.wanted.flags.eager
        if flag and not request.wanted.eager and "gpu_share_not_free" in codes:
            yield _patched(
                request,
                nearest,
                _with(request, flag, ""),
                f"with {flag[0]} it fits: no graphs are captured, which is slower",
            )
    elif "gpu_share_not_free" in codes and request.wanted.share is None:
        yield _patched(
            request,
            nearest,
            {"packed": True},
            "packed it fits: the engine takes what the model needs, not its usual share",
        )


def _selectors(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    if request.spec.gpu_selector is not None and codes:
        yield _patched(request, nearest, {"gpu_selector": None}, "without a GPU selector it fits")
    if request.spec.worker_selector and "labels_do_not_match" in codes:
        yield _patched(
            request,
            nearest,
            {"worker_selector": dict.fromkeys(request.spec.worker_selector)},
            "without a worker selector it fits",
        )
    yield from _versions(request, nearest, codes)


def _versions(request: Request, nearest: Sequence[Machine], codes: set[str]) -> Iterator[_Try]:
    unfit = {"backend_version_unknown", "accelerator_not_supported", "image_missing"}
    if request.wish.backend_version is not None and codes & unfit:
        usual = f"with the usual version of {request.wish.backend} it fits"
        yield _patched(request, nearest, {"backend_version": None}, usual)


def _backends(request: Request, nearest: Sequence[Machine], wrong: set[str]) -> Iterator[_Try]:
    """A known one that was meant: `vllm`, `llamacpp`."""
    if "backend_unknown" in wrong:
        names = {name.casefold(): name for name in request.backends}
        for name in get_close_matches(request.wish.backend.casefold(), names, n=2):
            yield _patched(request, nearest, {"backend": names[name]}, f"with the backend {names[name]} it fits")


def _sizes(request: Request, nearest: Sequence[Machine], wrong: set[str]) -> Iterator[_Try]:
    """A tensor parallel size that divides what must be divided."""
    flags, usual = request.wanted.flags, request.usual
    if not flags.tensor or not wrong & {
        "heads_not_divisible", "vocabulary_not_divisible", "world_size_does_not_match", "too_few_layers",
    }:  # fmt: skip
        return
    names = (*flags.tensor, *flags.pipeline, *flags.data)
    sizeless: dict[str, Any] = {"backend_parameters": list(without(request.spec.backend_parameters, names))}
    if request.spec.gpu_selector is not None and "world_size_does_not_match" not in wrong:
        yield _patched(
            request, nearest, sizeless, "without parallel sizes it fits"
        )  # the number of GPUs is given still
    told = request.wanted.tensor or request.wanted.gpus or 8
    sizes = [size for size in range(1, max(2 * told, 8) + 1) if usual is None or not usual.undivided(size)]
    for size in sorted(sizes, key=lambda size: (abs(size - told), size)):
        kept = list(without(request.spec.backend_parameters, names))
        patch: dict[str, Any] = {"backend_parameters": [*kept, f"{flags.tensor[0]}={size}"]}
        if request.spec.gpu_selector is not None and request.spec.gpu_selector.gpus_per_replica is not None:
            patch["gpu_selector"] = {"gpus_per_replica": size}
        yield _patched(request, nearest, patch, f"with {flags.tensor[0]}={size} it fits")
    if "world_size_does_not_match" in wrong:
        yield _patched(request, nearest, sizeless, "without parallel sizes it fits")


def _without_what_is_wrong(request: Request, nearest: Sequence[Machine], refused: Refused) -> Iterator[_Try]:
    """A parameter that can't be, and one of two that exclude each other, left out."""
    flags = request.wanted.flags
    known = (flags.share, flags.context, flags.tensor, flags.pipeline, flags.data, flags.cache_type, LAYERS, CPU_MEMORY)
    patch: dict[str, Any] = {}
    parameters = request.spec.backend_parameters
    said: list[str] = []
    for reason in refused.request:
        if reason.code == "parameter_invalid" and reason.field == "env":
            names = next(names for names in (VRAM_CLAIM, RAM_CLAIM) if reason.parameter in names)
            patch["env"] = patch.get("env", {}) | {name: None for name in names if name in request.spec.env}
        elif reason.code == "parameter_invalid":
            names = next((names for names in known if reason.parameter in names), (reason.parameter,))
            parameters = without(parameters, names)
        elif reason.code == "parameters_contradict":
            names = (reason.parameters[-1],)
            if names == ("--speculative-algorithm",):
                patch["speculative_config"] = None
            parameters = without(parameters, names)
        else:
            continue
        said.append(names[0])
    if said:
        if parameters != request.spec.backend_parameters:
            patch["backend_parameters"] = list(parameters)
        yield _patched(request, nearest, patch, f"without {' and '.join(dict.fromkeys(said))} it fits")


# -- actions of operators ---------------------------------------------------------------------------------------------


def _operators(request: Request, nearest: Sequence[Machine], refused: Refused) -> Iterator[_Try]:
    by_id = {machine.id: machine for machine in nearest}
    for worker in refused.workers[:NEAREST]:
        machine = by_id[worker.worker_id]
        codes = {reason.code for reason in worker.reasons}
        if "labels_do_not_match" in codes:
            wanted = request.spec.worker_selector
            labels = {k: v for k, v in wanted.items() if machine.labels.get(k) != v and k not in BUILT_IN}
            said = ", ".join(f"{key}={value}" for key, value in labels.items())
            if labels:
                yield _Try(
                    {"action": "label_worker", "worker": machine.name, "labels": labels},
                    f"with the label {said} on {machine.name} it fits",
                    request,
                    _instead(nearest, copy_of(machine, labels=dict(machine.labels) | labels)),
                )
        if "worker_cordoned" in codes and not machine.held_back:
            yield _Try(
                {"action": "uncordon_worker", "worker": machine.name},
                f"when {machine.name} is uncordoned it fits",
                request,
                _instead(nearest, copy_of(machine, cordoned=False)),
            )
        if "gpu_memory_in_use_by_others" in codes:
            yield _Try(
                {"action": "free_gpu_memory", "worker": machine.name},
                f"when the other processes on the GPUs of {machine.name} have ended it fits",
                request,
                _instead(nearest, copy_of(machine, others=False)),
            )
        if "quarantined" in codes:
            others = {w: crashes for w, crashes in request.crashes.items() if w != machine.id}
            cleared = changed(request, {})
            cleared.crashes = others
            yield _Try(
                {"action": "clear_quarantine", "worker": machine.name},
                f"when the quarantine on {machine.name} is cleared it fits",
                cleared,
                nearest,
            )


def _instead(machines: Sequence[Machine], changed: Machine) -> list[Machine]:
    """All others as they are: a group may need them."""
    return [changed if machine.id == changed.id else machine for machine in machines]


BUILT_IN: Final = ("os", "arch", "worker-name")


def _deletions(request: Request, nearest: Sequence[Machine], refused: Refused, claims: ClaimsOn) -> Iterator[_Try]:
    """One instance whose end would make room: the smallest that does."""
    memory = set(OF_MEMORY)
    grouped = allows_gang(request)
    if grouped:
        memory |= {"not_enough_gpus", "context_does_not_fit", "gpu_share_too_small"}
    for worker in refused.workers[:NEAREST]:
        if not {reason.code for reason in worker.reasons} <= memory:
            continue
        machine = next(machine for machine in nearest if machine.id == worker.worker_id)
        for claim in sorted(claims(machine.id), key=_size_of):
            around = nearest if grouped or request.selected is not None else [machine]
            attempt = _deletion(request, around, machine, claim, claims)
            if isinstance(place(request, attempt.machines), Placed):
                yield attempt
                break


OF_MEMORY: Final = frozenset({"gpu_share_not_free", "not_enough_vram", "not_enough_ram", "gpu_memory_in_use_by_others"})
"""Objections that an instance's end may lift."""


def _size_of(claim: OpenClaimOf) -> tuple[int, int, str]:
    return (sum(claim.claim.vram.values()), claim.claim.ram, claim.name)


def _deletion(
    request: Request, machines: Sequence[Machine], machine: Machine, claim: OpenClaimOf, claims: ClaimsOn
) -> _Try:
    """One that runs on several workers ends on all of them."""
    after = list(machines)
    for each in machines:
        held = [claim] if each.id == machine.id else []
        if claim.instance_id is not None:
            held = [other for other in claims(each.id) if other.instance_id == claim.instance_id]
        if held:
            copy = copy_of(each)
            for other in held:
                copy.release(None, other.accelerator, other.claim)
            after = _instead(after, copy)
    size = gib(sum(claim.claim.vram.values()) or claim.claim.ram)
    return _Try(
        {"action": "delete_instance", "instance": claim.name},
        f"without {claim.name}, which holds {size} on {machine.name}, it fits",
        request,
        after,
    )
