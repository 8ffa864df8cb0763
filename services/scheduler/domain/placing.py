"""Placing the fleet's instances: requests made from what is folded, refusals kept, and who is looked at again when.

A model's pending instances are alike: the first one that finds no place speaks for the others.
"""

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from schemas.facts import (
    InstancePending,
    InstanceScheduled,
    ModelFileWanted,
    ModelInspected,
    ModelPeakMeasured,
    ModelQuarantined,
    ModelQuarantineLifted,
    WorkerRemoved,
)
from schemas.facts.backend import BackendFact
from schemas.facts.base import Fact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Member, ModelSpec, ModelWeights, RunnerUp, Why
from schemas.reasons import Reason, Suggestion
from schemas.sources import LocalPath, Source, file_id_of
from services.scheduler.domain.candidate import Candidate, Looked, Request
from services.scheduler.domain.fleet import Fleet, Model, question_about
from services.scheduler.domain.index import GpuIndex
from services.scheduler.domain.instance import Instance
from services.scheduler.domain.launching import launch_of
from services.scheduler.domain.machines import Lifted
from services.scheduler.domain.peaks import of_revision
from services.scheduler.domain.placement import (
    RUNNERS_UP,
    Place,
    Placed,
    Refused,
    allows_gang,
    best_of,
    group_is_better,
    layout_of,
    may_allow_gang,
    may_gang,
    objections_to,
    place,
    wrong_with,
)
from services.scheduler.domain.rollout import revision_of
from services.scheduler.domain.shapes import Layout
from services.scheduler.domain.snapshot import Machine, copy_of
from services.scheduler.domain.suggestions import OpenClaimOf, suggestions_for
from services.scheduler.domain.waiting import OF_CAPACITY, WaitingModels

LISTED: Final = 32
"""Workers whose objections are stated; the others are counted. All of them are told to whoever asks."""
LISTED_ASKED: Final = 4
"""… where all that is known is that they were asked about the files: each of many instances would state it of each."""


@dataclass(frozen=True, slots=True)
class Stated:
    """A refusal as it goes into the log."""

    reasons: tuple[Reason, ...]
    closest: WorkerId | None
    suggestions: tuple[Suggestion, ...]
    unlisted: dict[str, int]

    def fact(self, instance_id: InstanceId) -> InstancePending:
        return InstancePending(
            instance_id=instance_id,
            reasons=self.reasons,
            closest=self.closest,
            suggestions=self.suggestions,
            unlisted=self.unlisted,
        )


class Placing:
    def __init__(self, fleet: Fleet, *, claims_from_peak: bool = False) -> None:
        self._fleet = fleet
        self.claims_from_peak = claims_from_peak
        """Is what was measured claimed in place of an estimate?"""
        self._requests: dict[ModelId, tuple[tuple[int, int], Request]] = {}
        self._of_source: dict[str, set[ModelId]] = {}
        self._index = GpuIndex(fleet.machines)
        self.waiting = WaitingModels()

    def request_for(self, model_id: ModelId) -> Request:
        """What the model asks for, as it is wanted now. Kept, and brought up to date by `note`."""
        wish = self._fleet.wishes[model_id]
        spec, revision = revision_of(self._fleet, model_id)
        known = self._requests.get(model_id)
        if known is not None and known[0] == (wish.generation, revision):
            return known[1]
        self._drop_request(model_id)
        source = spec.source
        model = self._fleet.models.get(model_id, Model())
        pins = _pins_of(model, spec)
        request = Request(
            spec,
            looked={
                worker_id: Looked(inspection.weights, inspection.reasons)
                for worker_id, inspection in model.inspections.items()
                if inspection.question == question_about(spec)
            },
            model_id=model_id,
            crashes=dict(model.quarantined),
            known=None if isinstance(source, LocalPath) else pins,
            pins=pins,
            must_look=isinstance(source, LocalPath),
            peaks=of_revision(model.peaks, revision) if self.claims_from_peak else {},
            backends=self._fleet.all_backends(),
        )
        request.files_on = self._files_on(request)
        self._requests[model_id] = ((wish.generation, revision), request)
        self._of_source.setdefault(source.model_dump_json(), set()).add(model_id)
        return request

    def _files_on(self, request: Request) -> frozenset[WorkerId]:
        """Workers that have what a new instance would run from."""
        if request.commit is None and not request.must_look:
            return frozenset()
        return self._fleet.workers_with(request.spec.source, request.commit)

    def _drop_request(self, model_id: ModelId) -> None:
        known = self._requests.pop(model_id, None)
        if known is not None:
            self._of_source[known[1].spec.source.model_dump_json()].discard(model_id)

    def note(self, fact: Fact) -> None:
        """Something about a model's files on a worker is not what it was, or about what it takes, or its backend."""
        match fact:
            case ModelInspected(model_id=model_id, worker_id=worker_id, weights=weights, reasons=reasons):
                known = self._requests.get(model_id)
                if known is not None and fact.question in (None, question_about(known[1].spec)):
                    known[1].look(worker_id, Looked(weights, reasons))
                    known[1].pins = _pins_of(self._fleet.models[model_id], known[1].wish)
                    known[1].files_on = self._files_on(known[1])
                    self._index.look_again(model_id, worker_id)
            case ModelQuarantined(model_id=model_id, worker_id=worker_id, crashes=crashes):
                known = self._requests.get(model_id)
                if known is not None:
                    known[1].crashes = dict(known[1].crashes) | {worker_id: crashes}
                    self._index.look_again(model_id, worker_id)
            case ModelQuarantineLifted(model_id=model_id, worker_ids=worker_ids):
                known = self._requests.get(model_id)
                if known is not None:
                    known[1].crashes = {w: n for w, n in known[1].crashes.items() if w not in worker_ids}
                    for worker_id in worker_ids:
                        self._index.look_again(model_id, worker_id)
            case ModelPeakMeasured(model_id=model_id) if self.claims_from_peak:
                self._drop_request(model_id)
            case BackendFact(name=name):
                for model_id, (_, request) in list(self._requests.items()):
                    if request.wish.backend == name:
                        self._drop_request(model_id)
                        self._index.forget(model_id)
            case WorkerRemoved(worker_id=worker_id):
                for _, request in self._requests.values():
                    request.forget(worker_id)
            case _:
                pass

    def note_files(self, source: Source, worker_id: WorkerId) -> dict[ModelId, bool]:
        """A worker has these files, or has them no more. Models that wait for a place and are to look at it again; True: at all
        workers, for those that can't reach the hub fetch from who has them.
        """
        found: dict[ModelId, bool] = {}
        for model_id in sorted(self._of_source.get(source.model_dump_json(), ())):
            request = self._requests[model_id][1]
            had, request.files_on = bool(request.files_on), self._files_on(request)
            of_all = not request.must_look and had != bool(request.files_on)
            if of_all:
                self._index.forget(model_id)
            else:
                self._index.look_again(model_id, worker_id)
            if model_id in self.waiting:
                found[model_id] = of_all
        return found

    def forget(self, model_id: ModelId) -> None:
        self._drop_request(model_id)
        self._index.forget(model_id)
        self.waiting.forget(model_id)

    def find(self, model_id: ModelId, *, not_on: frozenset[WorkerId] = frozenset()) -> Placed | Refused:
        """Anywhere: by the index where it knows, else by the specification."""
        request = self.request_for(model_id)
        if not_on:
            request = _elsewhere(request, not_on)
        placed = self._index.place(request, runners_up=RUNNERS_UP)
        return placed if placed is not None else place(request, self._fleet.machines.in_order())

    def find_on(
        self, model_id: ModelId, workers: Iterable[WorkerId], *, not_on: frozenset[WorkerId] = frozenset()
    ) -> Placed | Refused | None:
        """The best of a few workers, when all others are known to object still.

        None: these object, too, and what was stated of them holds. Refused: it does not hold.
        """
        request = self.request_for(model_id)
        if wrong_with(request, self._fleet.machines.in_order()):
            return self.find(model_id, not_on=not_on)
        layouts: list[Layout] = []
        again = False
        for worker_id in workers:
            machine = self._fleet.machines.get(worker_id)
            if machine is None or worker_id in not_on:
                continue
            candidate = Candidate(request, machine)
            reasons = objections_to(candidate)
            if not reasons:
                layouts.append(layout_of(candidate))
            elif model_id in self.waiting:
                again = self.waiting.update(model_id, worker_id, reasons) or again
            again = again or may_gang(request, candidate)
        if layouts and not group_is_better(request, layouts):
            return best_of(request, layouts)
        return self.find(model_id, not_on=not_on) if again or layouts else None

    def worth_asking(self, model_id: ModelId, most: int) -> list[WorkerId]:
        """Workers to which nothing is objected but that nobody has looked at the files there, or that they were unusable."""
        waiting = self.waiting.get(model_id)
        if waiting is None:
            return self._unknown_where_it_would_fit(model_id, most)
        if waiting.author_only:
            return []
        request = self.request_for(model_id)
        together = may_allow_gang(request)
        askable = [
            machine
            for machine in self._fleet.machines
            if (
                _only_files_are_missing(waiting.blockers.get(machine.id, ()), together=together)
                or _is_held_by_its_own(request, machine, waiting.blockers.get(machine.id, ()))
            )
            and machine.state == "ready"
            and machine.downloader_alive
        ]
        if len(askable) > most:  # the emptiest, as they would be chosen; of equally empty ones each model asks others
            first = zlib.crc32(model_id.encode()) % len(askable)
            askable = sorted([*askable[first:], *askable[:first]], key=lambda machine: machine.claims)
        return [machine.id for machine in askable[:most]]

    def _unknown_where_it_would_fit(self, model_id: ModelId, most: int) -> list[WorkerId]:
        """Of a model that waits for nothing yet. None, while some worker is known to take it."""
        request = self.request_for(model_id)
        if not request.must_look and request.known is not None:
            return []
        found: list[WorkerId] = []
        for machine in self._fleet.machines:
            if len(found) >= most:
                break
            if machine.state != "ready" or not machine.downloader_alive:
                continue
            reasons = objections_to(Candidate(request, machine))
            if not reasons:
                return []
            if all(reason.code == "being_inspected" for reason in reasons):
                found.append(machine.id)
        return found

    def refuse(self, model_id: ModelId, refused: Refused) -> Stated:
        """Remember what the model waits for, and put it into words that fit into the log."""
        request = self.request_for(model_id)
        machines = self._fleet.machines.in_order()
        suggestions = suggestions_for(request, machines, refused, self.claims_on)
        most = _listed(refused)
        listed = refused.workers[:most]
        unlisted = Counter(reason.code for worker in refused.workers[most:] for reason in worker.reasons)
        stated = Stated(
            reasons=(*refused.request, *(reason for worker in listed for reason in worker.reasons)),
            closest=refused.closest,
            suggestions=suggestions,
            unlisted=dict(sorted(unlisted.items())),
        )
        self.waiting.refused(model_id, refused, most)
        return stated

    def freed(self) -> tuple[dict[ModelId, list[WorkerId] | None], frozenset[WorkerId]]:
        """Whom what has changed since the last time concerns; and the workers on which something has."""
        lifted, gone = self._fleet.machines.take_lifted()
        return (self.waiting.freed_by(lifted, gone) if lifted or gone else {}), frozenset(lifted)

    def facts(self, instance: Instance, placed: Placed) -> list[Fact]:
        """The files that it needs there, and its place."""
        wish = self._fleet.wishes[instance.model_id]
        _, revision = revision_of(self._fleet, instance.model_id)
        facts: list[Fact] = []
        members: list[Member] = []
        request = self.request_for(instance.model_id)
        for rank, each in enumerate(placed.places):
            file_ids: list[FileId] = []
            for source, commit, size in _needed_files(request):
                file_id = file_id_of(source, commit, each.worker_id)
                file = self._fleet.files.get(file_id)
                if file is None or file.state in ("failed", "deleting"):
                    facts.append(
                        ModelFileWanted(
                            file_id=file_id, worker_id=each.worker_id, source=source, commit=commit, bytes=size
                        )
                    )
                file_ids.append(file_id)
            members.append(
                Member(
                    worker_id=each.worker_id,
                    address=each.address,
                    rank=rank,
                    accelerator=each.type,
                    gpu_indexes=each.gpu_indexes,
                    gpu_addresses=self._addresses(each),
                    claim=each.claim,
                    file_ids=tuple(file_ids),
                )
            )
        facts.append(
            InstanceScheduled(
                instance_id=instance.id,
                attempt=instance.attempt + 1,
                launch=launch_of(request, placed, self._machines_of(placed), wish.generation, revision),
                members=tuple(members),
                overcommitted=placed.take.overcommitted,
                why=why_of(placed),
            )
        )
        return facts

    def _machines_of(self, placed: Placed) -> dict[WorkerId, Machine]:
        found = {place.worker_id: self._fleet.machines.get(place.worker_id) for place in placed.places}
        return {worker_id: machine for worker_id, machine in found.items() if machine is not None}

    def _addresses(self, place: Place) -> tuple[str, ...]:
        """Of the GPUs' own network ports; none unless each of them tells its own."""
        worker = self._fleet.workers[place.worker_id]
        of = {gpu.index: gpu.network for gpu in worker.inventory.gpus if gpu.type == place.type}
        found = tuple(network.address for index in place.gpu_indexes if (network := of.get(index)) and network.address)
        return found if len(found) == len(place.gpu_indexes) else ()

    def helps(self, instance: Instance) -> bool:
        """Would a new instance of the same model find a place if this one were gone?"""
        claims = self._fleet.claims_of(instance.id)
        machines: list[Machine] = []
        for claim in claims:
            machine = self._fleet.machines.get(claim.worker_id)
            if machine is not None:
                machine = copy_of(machine)
                machine.release(claim.model_id, claim.accelerator, claim.claim)
                machines.append(machine)
        if not machines:
            return False
        others = [each for each in self._fleet.machines if all(each.id != machine.id for machine in machines)]
        request = self.request_for(instance.model_id)
        return isinstance(place(request, machines), Placed) or (
            allows_gang(request) and isinstance(place(request, [*machines, *others]), Placed)
        )

    def claims_on(self, worker_id: WorkerId) -> list[OpenClaimOf]:
        """What instances hold there, by their names."""
        found: list[OpenClaimOf] = []
        for claim in self._fleet.claims_on(worker_id):
            instance = self._fleet.instances.get(claim.instance_id)
            name = instance.name if instance is not None else claim.instance_id
            found.append(OpenClaimOf(claim.instance_id, name, worker_id, claim.accelerator, claim.claim))
        return found


def _needed_files(request: Request) -> list[tuple[Source, str | None, int | None]]:
    """The model's, and what of a hub is loaded beside it: source, commit, bytes."""
    found: dict[tuple[Source, str | None], int | None] = {}
    if isinstance(request.spec.source, LocalPath):
        found[request.spec.source, None] = None
    for each in request.pinned:
        found.setdefault((each.source, each.commit), each.bytes)
    return [(source, commit, size) for (source, commit), size in found.items()]


def _pins_of(model: Model, spec: ModelSpec) -> ModelWeights | None:
    question = question_about(spec)
    return next((each.weights for each in model.pins if each.question == question), None)


def _listed(refused: Refused) -> int:
    asked = all(reason.code == "being_inspected" for worker in refused.workers[:LISTED] for reason in worker.reasons)
    return LISTED_ASKED if asked else LISTED


def _only_files_are_missing(blockers: tuple[Lifted, ...], *, together: bool) -> bool:
    """`together`: a worker that is too small alone may be a member of a gang."""
    others = {each for each in blockers if each != Lifted.FILES}
    return Lifted.FILES in blockers and (not others or (together and others == {OF_CAPACITY}))


def _is_held_by_its_own(request: Request, machine: Machine, blockers: tuple[Lifted, ...]) -> bool:
    """Instances of the model take what a new one would: one of a former revision may make room, if the new files are there."""
    is_full = blockers == (OF_CAPACITY,)
    return is_full and request.model_id in machine.replicas and machine.id not in request.looked and request.must_look


def why_of(placed: Placed) -> Why | None:
    if placed.why is None:
        return None
    return Why(
        scores=placed.why.scores,
        fitting=placed.why.fitting,
        runners_up=tuple(
            RunnerUp(worker_id=each.worker_id, gpu_indexes=each.gpu_indexes, scores=each.scores, lost_by=each.lost_by)
            for each in placed.why.runners_up
        ),
    )


def _elsewhere(request: Request, not_on: frozenset[WorkerId]) -> Request:
    return Request(
        request.wish,
        looked=request.looked,
        model_id=request.model_id,
        not_on=not_on,
        crashes=request.crashes,
        files_on=request.files_on,
        known=request.known,
        pins=request.pins,
        must_look=request.must_look,
        peaks=request.peaks,
        backends=request.backends,
    )
