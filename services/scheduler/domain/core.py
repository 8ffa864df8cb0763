"""The decider of the fleet: every input is answered with the facts that follow from it, and nothing else happens.

Pure and serial: no clock, no dice, no I/O; time comes with each input. A decision folds its own facts into the fleet as
it goes, so what follows later in it sees what went before. No news is no event: the same input twice is answered once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from schemas.asks import InspectModel, ModelInspection
from schemas.facts import (
    DeadlinePassed,
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDeleted,
    InstanceDeletionRequested,
    InstanceDownloading,
    InstanceDrained,
    InstanceFailed,
    InstancePending,
    InstanceReachable,
    InstanceRestartPlanned,
    InstanceRunning,
    InstanceScheduled,
    InstanceStarting,
    InstanceStopping,
    InstanceUnreachable,
    ModelDeleted,
    ModelEnded,
    ModelFileDeleted,
    ModelFileDeleting,
    ModelFileDeletionRefused,
    ModelFileFailed,
    ModelFileForgotten,
    ModelFileReady,
    ModelFileWanted,
    ModelInspected,
    ModelPeakMeasured,
    ModelQuarantineCleared,
    ModelQuarantined,
    ModelQuarantineLifted,
    ModelRolledBack,
    WorkerAddressChanged,
    WorkerDrained,
    WorkerDrainRequested,
    WorkerInventoryChanged,
    WorkerReady,
    WorkerRegistered,
    WorkerRemovalRequested,
    WorkerRemoved,
    WorkerRenamed,
    WorkerUncordoned,
    WorkerUnreachable,
)
from schemas.facts.backend import BackendFact
from schemas.facts.base import Fact
from schemas.facts.file import FileFact, FileStated
from schemas.facts.instance import InstanceFact, StopCause
from schemas.facts.model import ModelFact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import ModelWeights
from schemas.reasons import (
    AgentStopped,
    DownloadStalled,
    EngineUnhealthy,
    EngineVanished,
    FileInUse,
    InspectionFailed,
    NotAccepted,
    Reason,
    StartTimeout,
    StopOverdue,
    WorkerShutDown,
    WorkerSilent,
)
from schemas.reports import (
    EngineReported,
    EngineSeen,
    FileReported,
    FileSeen,
    FilesObserved,
    Report,
    RequestsInFlight,
    WorkerLeaving,
    WorkerObserved,
)
from schemas.sources import LocalPath
from services.scheduler.domain.assignments import all_files_ready, waiting_for_like, whom_it_concerns
from services.scheduler.domain.boots import Boots
from services.scheduler.domain.deadlines import Deadlines, seconds_in
from services.scheduler.domain.draining import is_draining, seconds_to_drain
from services.scheduler.domain.fleet import File, Fleet, Inspection, Model, claim_key, evolve, question_about
from services.scheduler.domain.gangs import TakenUp, serves_without, silent_members, why_silent
from services.scheduler.domain.instance import (
    PHASES,
    Downloading,
    Failed,
    Instance,
    Pending,
    Placement,
    Running,
    Scheduled,
    Starting,
    Stopping,
    Unreachable,
    placement_of,
)
from services.scheduler.domain.liveness import Liveness
from services.scheduler.domain.peaks import news as peak_news
from services.scheduler.domain.peaks import told_by
from services.scheduler.domain.placement import Placed, Refused
from services.scheduler.domain.placing import Placing
from services.scheduler.domain.policy import Policy
from services.scheduler.domain.restarts import crashes_in_a_row, restart_delay_seconds
from services.scheduler.domain.rollout import is_on_trial, is_unsettled, next_step, revision_of
from services.scheduler.domain.status import news, status_of
from services.scheduler.domain.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Now:
    at: datetime
    """Wall-clock time, for people."""
    monotonic: float
    """Seconds that never jump, for leases and deadlines."""


@dataclass(frozen=True, slots=True)
class Question:
    """A model whose files a worker's downloader must look at."""

    model_id: ModelId
    worker_id: WorkerId
    generation: int
    about: InspectModel


@dataclass(slots=True)
class Wave:
    """Workers that were asked about a model's files at once, and what is put off until they have answered."""

    until: float
    """When nobody waits for the others any more; monotonic seconds."""
    unanswered: set[WorkerId] = field(default_factory=set[WorkerId])
    is_held: bool = False
    whole: bool = False
    """Its pending instances are to be looked at on all workers."""
    workers: set[WorkerId] = field(default_factory=set[WorkerId])
    """… or on these."""

    def hold(self, workers: Iterable[WorkerId] | None) -> None:
        self.is_held = True
        if workers is None:
            self.whole = True
        else:
            self.workers.update(workers)


@dataclass(slots=True)
class Decision:
    facts: list[Fact] = field(default_factory=list[Fact])
    at: datetime | None = None
    """When it was decided: what was folded then is what a replay of the log folds."""
    workers: set[WorkerId] = field(default_factory=set[WorkerId])
    """Workers whose assignment may have changed."""
    behind: set[WorkerId] = field(default_factory=set[WorkerId])
    """Workers that have not read their newest assignment: they are sent it again."""


class Core:
    def __init__(self, fleet: Fleet, policy: Policy, now: Now) -> None:
        self.fleet = fleet
        self.policy = policy
        self.liveness = Liveness(policy, now.monotonic)
        self.deadlines = Deadlines(policy)
        self.boots = Boots()
        self.traffic = Traffic(now.monotonic)
        self._draining: dict[InstanceId, int | None] = {
            each.id: fleet.seq for each in fleet.instances.values() if is_draining(each)
        }
        """Instances that finish their requests: the last fact that was in the log when gateways were to take them out, or a
        later one. None: that fact is being appended.
        """
        self._published: dict[str, tuple[int, int]] = {}
        self._untold: set[str] = set()
        """Attempts that were placed here and are in no assignment yet: nobody knows them but the log."""
        self._taken_up = TakenUp()
        self._newest: dict[WorkerId, tuple[int, int]] = {}
        """Worker → election and sequence of the newest assignment that was sent to it."""
        self._election = 0
        """Of this scheduler, once something was published."""
        self._inspected_at: dict[tuple[ModelId, WorkerId], float] = {}
        self._answered_at: dict[ModelId, float] = {}
        """When a worker said last what it knows of a model's files."""
        self._asked: dict[tuple[ModelId, WorkerId], tuple[int, float]] = {}
        """Questions that are on their way: the generation that they are about, and since when."""
        self._waves: dict[ModelId, Wave] = {}
        """Models about whose files workers were asked that have not all answered yet."""
        if fleet.machines.cordon_unhealthy != policy.cordon_unhealthy:
            fleet.machines.cordon_unhealthy = policy.cordon_unhealthy
            for worker_id in fleet.workers:
                fleet.see(worker_id)
        self.placing = Placing(fleet, claims_from_peak=policy.claims_from_peak)
        self._fresh: set[ModelId] = set()
        """Models whose pending instances are to be looked at on all workers."""
        self._again: dict[ModelId, set[WorkerId]] = {}
        """… and on some."""
        self._restless = {instance.id for instance in fleet.instances.values() if _may_need_a_place(instance)}
        """Instances that may need another place soon."""
        self._scanned_at: dict[ModelId, float] = {}
        """When it was last looked for workers that one of those could go to."""
        self._rolling: set[ModelId] = set()
        """Models of which instances are being replaced, or are too many."""
        self._unfinished: set[ModelId] = set()
        """Models whose next step this decision did not get to, or to the end of."""
        self._later: dict[ModelId, set[WorkerId] | None] = {}
        """Models whose pending instances this decision did not get to, first come, first served: on these workers, or on all."""
        self._first: list[ModelId] = []
        """Those of the last decision, in their order."""
        self._looked = 0
        """Models for which this decision has looked for places."""
        self._movers = {instance.id for instance in fleet.instances.values() if _wants_to_move(instance)}
        self._decision = Decision()
        self._models: set[ModelId] = set()
        self._is_picture = False
        self._now = now
        for instance in fleet.instances.values():
            self.deadlines.watch(instance.id, instance, now.monotonic)
        for worker_id in fleet.workers:
            self.liveness.downloader_heard(
                worker_id, now.monotonic
            )  # silent only after a full lease of our own listening

    # -- inputs -------------------------------------------------------------------------------------------------------

    def took_over(self, now: Now) -> Decision:
        """First decision after an election: whatever the former scheduler left half done.

        It may have died between any two facts of a decision, so each prefix of a decision must be completed here.
        """
        self._begin(now)
        self._models.update(self.fleet.wishes)
        for instance in list(self.fleet.instances.values()):
            self._complete(instance)
        for model_id in list(self.fleet.wishes):
            self._engine_changed(model_id)
            self._reconcile(model_id)
        for instance_id in list(self.fleet.deletion_requests):
            self._deletion_requested(instance_id)
        for file_id in list(self.fleet.file_wishes):
            self._file_requested(file_id)
        for worker_id, requests in list(self.fleet.removal_requests.items()):
            if requests > self.fleet.removals.get(worker_id, 0):
                self._removal_requested(worker_id)
        self._fresh.update(self.fleet.wishes)
        self._again_everywhere()
        return self._settle()

    def _complete(self, instance: Instance) -> None:
        """State what should have followed from what was stated last about this instance."""
        match instance.state:
            case Failed(restart_in_seconds=None, final=False):
                self._plan_restart(instance.id, instance.crashes)
            case Stopping():
                self._delete_when_gone(instance.id)
            case Scheduled(placement) | Downloading(placement) | Starting(placement) | Running(placement):
                if silent_members(self.fleet, placement):
                    self._lose_sight(instance)
                    return
                failed = self._failed_files(placement)
                if failed and isinstance(instance.state, Scheduled | Downloading | Starting):
                    self._fail(instance, failed[0].worker_id, failed[0].reasons)
            case Unreachable(placement, running=running):
                failed = [each for each in self._failed_files(placement) if running is None]
                if failed:
                    self._fail(instance, failed[0].worker_id, failed[0].reasons, engine_gone=False)
                else:
                    self._lose_sight(instance)
            case Pending() | Failed():
                pass

    def _failed_files(self, placement: Placement) -> list[File]:
        files = [self.fleet.files.get(file_id) for member in placement.members for file_id in member.file_ids]
        return [file for file in files if file is not None and file.state == "failed"]

    def wished(self, fact: Fact, now: Now) -> Decision:
        """A fact of the api, which has been folded already."""
        self._begin(now)
        match fact:
            case ModelFact():
                self._models.add(fact.model_id)
                if isinstance(fact, ModelQuarantineCleared):
                    model = self.fleet.models.get(fact.model_id, Model())
                    known = sorted(model.crashes.keys() | model.quarantined.keys())
                    self._lift_quarantine(fact.model_id, [w for w in known if fact.worker_id in (None, w)])
                self._engine_changed(fact.model_id)
                self._reconcile(fact.model_id)
                if not isinstance(fact, ModelDeleted):
                    self._fresh.add(fact.model_id)
            case BackendFact(name=name):
                self.placing.note(fact)
                for model_id in sorted(self.fleet.wishes):
                    wish = self.fleet.wishes[model_id]
                    if wish.spec.backend == name and not wish.deleted:
                        self._models.add(model_id)
                        self._fresh.add(model_id)
            case InstanceDeletionRequested():
                self._deletion_requested(fact.instance_id)
            case FileFact():
                self._file_requested(fact.file_id)
            case WorkerDrainRequested() | WorkerUncordoned():
                self._reconcile_on(fact.worker_id)
            case WorkerRemovalRequested():
                self._removal_requested(fact.worker_id)
            case _:  # labels, a cordon: the fleet has noted what they lift
                pass
        return self._settle()

    def heard(self, report: Report, now: Now) -> Decision:
        """A report of an agent or downloader. The sender was checked; what it says is checked here."""
        self._begin(now)
        role = "downloader" if isinstance(report, FileReported | FilesObserved) else "agent"
        if not self.boots.is_news(report, role):
            return self._settle()
        self._is_picture = isinstance(report, WorkerObserved | FilesObserved)
        match report:
            case WorkerObserved():
                self._observed(report)
            case WorkerLeaving():
                self._leaving(report)
            case EngineReported():
                if report.worker_id in self.fleet.workers:
                    self._engine(report.worker_id, report.engine)
            case FileReported():
                self._file(report.worker_id, report.file)
            case FilesObserved():
                for file in report.files:
                    self._file(report.worker_id, file)
            case _:
                pass
        return self._settle()

    def beat(self, worker_id: WorkerId, role: str, now: Now, boot_id: str | None = None) -> Decision:
        self._begin(now)
        if boot_id is not None:
            self.boots.beat(worker_id, role, boot_id)
        if role == "agent":
            if worker_id not in self.liveness.left:
                self.liveness.agent_heard(worker_id, now.monotonic)
        elif self.liveness.downloader_heard(worker_id, now.monotonic):
            self._hear_downloader(worker_id, alive=True)
        return self._settle()

    def beat_is_news(self, worker_id: WorkerId, role: str, now: float, boot_id: str | None = None) -> bool:
        """False: nothing follows but that the sender was heard, and that is noted, also between two decisions.

        Most beats are none: a fleet sends thousands each second, and they must not wait behind what has to be appended.
        """
        if boot_id is not None and not self.boots.is_beating(worker_id, role, boot_id):
            self.boots.beat(worker_id, role, boot_id)
            return True
        if role == "agent":
            if worker_id not in self.liveness.left:
                self.liveness.agent_heard(worker_id, now)
            return False
        machine = self.fleet.machines.get(worker_id)
        if machine is None or not machine.downloader_alive or self.liveness.silent_downloaders([worker_id], now):
            return True
        self.liveness.downloader_heard(worker_id, now)
        return False

    def requests_are_news(self, told: RequestsInFlight, now: float) -> bool:
        """A gateway tells what it has in flight. False: nothing follows from it, and it is noted, also between two decisions.

        Most pictures are no news, and must not wait behind what has to be appended.
        """
        self.traffic.hear(told, now)
        return any(self._is_quiet(instance_id, now) for instance_id in self._draining)

    def requests_told(self, now: Now) -> Decision:
        """What follows from the pictures that were noted."""
        self._begin(now)
        self._notice_quiet()
        return self._settle()

    def inspected(self, question: Question, answer: ModelInspection, now: Now) -> Decision:
        """What a downloader said of a model's files. Nothing is stated that was known."""
        self._begin(now)
        self._inspected_at[question.model_id, question.worker_id] = now.monotonic
        self._answered_at[question.model_id] = now.monotonic
        asked = self._asked.get((question.model_id, question.worker_id))
        if asked is not None and asked[0] == question.generation:
            del self._asked[question.model_id, question.worker_id]
        wave = self._waves.get(question.model_id)
        if wave is not None:
            wave.unanswered.discard(question.worker_id)
        wish = self.fleet.wishes.get(question.model_id)
        if (
            wish is None
            or wish.deleted
            or wish.generation != question.generation
            or question.worker_id not in self.fleet.workers
        ):
            return self._settle()
        known = self.fleet.models.get(question.model_id, Model()).inspections.get(question.worker_id)
        about = question.about
        if answer.weights is not None and _pins_nothing(about, answer.weights):
            answer = ModelInspection(reasons=(InspectionFailed(problem="it does not say which commit it looked at"),))
        told = Inspection(about, question.generation, answer.weights, answer.reasons)
        if known != told:
            if self.placing.request_for(question.model_id).known is None:
                self._fresh.add(question.model_id)
            self._again.setdefault(question.model_id, set()).add(question.worker_id)
            self._say(
                ModelInspected(
                    model_id=question.model_id,
                    worker_id=question.worker_id,
                    generation=question.generation,
                    weights=answer.weights,
                    reasons=answer.reasons,
                    question=about,
                )
            )
        return self._settle()

    def time_passed(self, now: Now, heard_until: float | None = None) -> Decision:
        """`heard_until`: all that arrived before this monotonic second was heard; now, if it isn't given. Who has not
        answered in time by then may have done so since.
        """
        self._begin(now)
        self._go_on()
        until = now.monotonic if heard_until is None else heard_until
        self._notice_silence(until)
        for worker_id in sorted(self._silent_downloaders(until)):
            self._hear_downloader(worker_id, alive=False)
        for wave in self._waves.values():
            if until >= wave.until:
                wave.unanswered.clear()
        for instance_id in self.deadlines.due(until):
            instance = self.fleet.instances.get(instance_id)
            if instance is not None:
                self._deadline(instance)
        self._notice_quiet()
        return self._settle()

    def _go_on(self) -> None:
        """With what the last decision did not get to."""
        unfinished, self._unfinished = self._unfinished, set()
        for model_id in sorted(unfinished & self.fleet.wishes.keys()):
            self._models.add(model_id)
            self._reconcile(model_id)
        later, self._later = self._later, {}
        self._first = list(later)
        for model_id, workers in later.items():
            if workers is None:
                self._fresh.add(model_id)
            else:
                self._again.setdefault(model_id, set()).update(workers)

    @property
    def has_more(self) -> bool:
        """A decision grew too long: the next one goes on, whether or not something happens before."""
        return bool(self._unfinished or self._later)

    @property
    def _is_full(self) -> bool:
        """Whoever decides for too long without a pause is taken for dead, and everything that he has not appended is lost."""
        return len(self._decision.facts) + self._looked * FACTS_OF_A_LOOK >= self.policy.most_facts

    def next_deadline(self) -> float | None:
        ends = [wave.until for wave in self._waves.values()]
        deadline = self.deadlines.next_at()
        return min(ends if deadline is None else [*ends, deadline], default=None)

    def questions(self, now: Now) -> list[Question]:
        """Whom to ask what: models that wait for a place, and workers that would take them if the files are there.

        A few at a time: a fleet has many workers, and most models need one. Nobody is asked twice before he has answered.
        """
        found: list[Question] = []
        restless = {self.fleet.instances[each].model_id for each in self._restless}
        for model_id in sorted(restless.union(self.placing.waiting)):
            wish = self.fleet.wishes.get(model_id)
            if wish is None or wish.deleted:
                continue
            if model_id not in self.placing.waiting:
                if now.monotonic - self._scanned_at.get(model_id, float("-inf")) < self.policy.scan_seconds:
                    continue
                self._scanned_at[model_id] = now.monotonic
            is_hubs = not self.placing.request_for(model_id).must_look
            if is_hubs and self._knows_what_the_hub_says(model_id, wish.generation, now.monotonic):
                continue
            worth_asking = self.placing.worth_asking(model_id, self._most_to_ask(model_id))
            if is_hubs:  # each in turn: that one has no token, or can't reach it, must not hide one that has and can
                worth_asking.sort(key=lambda each: self._inspected_at.get((model_id, each), float("-inf")))
            for worker_id in worth_asking:
                if self._may_ask(model_id, worker_id, wish.generation, now.monotonic):
                    self._asked[model_id, worker_id] = (wish.generation, now.monotonic)
                    about = question_about(revision_of(self.fleet, model_id)[0])
                    found.append(Question(model_id, worker_id, wish.generation, about))
                    wave = self._waves.setdefault(model_id, Wave(now.monotonic + self.policy.patience_seconds))
                    wave.unanswered.add(worker_id)
                    if is_hubs:  # what one is told holds for all
                        break
        return found

    def _knows_what_the_hub_says(self, model_id: ModelId, generation: int, now: float) -> bool:
        """Some worker is being asked, or was told a little while ago what holds for all."""
        for (asked, _), (about, since) in self._asked.items():
            if asked == model_id and about == generation and now - since < self.policy.reinspect_seconds:
                return True
        if self.placing.request_for(model_id).verdict is None:
            return False
        return now - self._answered_at.get(model_id, float("-inf")) < self.policy.reinspect_seconds

    def _most_to_ask(self, model_id: ModelId) -> int:
        if not self.placing.request_for(model_id).must_look:  # whoever can reach the hub
            return len(self.fleet.workers)
        waiting = sum(isinstance(instance.state, Pending) for instance in self.fleet.instances_of(model_id))
        return waiting + FEWEST_ASKED

    def _may_ask(self, model_id: ModelId, worker_id: WorkerId, generation: int, now: float) -> bool:
        asked = self._asked.get((model_id, worker_id))
        if asked is not None and asked[0] == generation and now - asked[1] < self.policy.reinspect_seconds:
            return False
        known = self.fleet.models.get(model_id, Model()).inspections.get(worker_id)
        if known is None or known.question != question_about(revision_of(self.fleet, model_id)[0]):
            return True
        answered = self._inspected_at.get((model_id, worker_id), float("-inf"))
        return bool(known.reasons) and now - answered >= self.policy.reinspect_seconds

    def published(
        self,
        worker_id: WorkerId,
        instances: Iterable[tuple[InstanceId, int]],
        election: int,
        seq: int,
        *,
        unchanged: bool = False,
    ) -> None:
        """An assignment went out: from here on a picture that takes it into account can be judged by it.

        `unchanged`: it says what the one before said, and was not sent.
        """
        if not unchanged:
            self._newest[worker_id] = (election, seq)
        self._election = election
        for instance_id, attempt in instances:
            self._published.setdefault(claim_key(instance_id, attempt, worker_id), (election, seq))
            self._untold.discard(claim_key(instance_id, attempt, worker_id))

    # -- wishes -------------------------------------------------------------------------------------------------------

    def _reconcile(self, model_id: ModelId) -> None:
        """As many instances as are wanted, of the revision that is wanted: the next step towards that."""
        wish = self.fleet.wishes[model_id]
        if wish.deleted:
            self.placing.forget(model_id)
            for instance in self.fleet.instances_of(model_id):
                self._drained(instance)
        step = next_step(self.fleet, model_id, self.placing.helps, self.traffic.requests_of)
        for _ in range(step.create):
            if self._is_full:
                self._unfinished.add(model_id)
                break
            number = self.fleet.models.get(model_id, Model()).created
            self._say(
                InstanceCreated(
                    instance_id=InstanceId(f"i-{model_id.removeprefix('m-')}-{number}"),
                    model_id=model_id,
                    name=f"{wish.spec.name}-{number}",
                )
            )
        for stop in step.stop:
            self._stop(stop.instance, stop.cause)
        if is_unsettled(self.fleet, model_id):
            self._rolling.add(model_id)
        else:
            self._rolling.discard(model_id)

    def _engine_changed(self, model_id: ModelId) -> None:
        """What crashed before need not crash now."""
        wish, model = self.fleet.wishes[model_id], self.fleet.models.get(model_id, Model())
        if model.clears < wish.clears and (model.crashes or model.quarantined):
            self._lift_quarantine(model_id, sorted(model.crashes.keys() | model.quarantined.keys()))

    def _lift_quarantine(self, model_id: ModelId, worker_ids: Iterable[WorkerId]) -> None:
        clears = self.fleet.wishes[model_id].clears
        self._say(ModelQuarantineLifted(model_id=model_id, worker_ids=tuple(worker_ids), clears=clears))
        self._fresh.add(model_id)

    def _judge(self, instance: Instance, worker_id: WorkerId, reasons: tuple[Reason, ...]) -> None:
        """After an engine's own end: was it a new revision that does not run, or one crash too many on this worker?"""
        model_id = instance.model_id
        placement = placement_of(instance.state)
        wish, model = self.fleet.wishes[model_id], self.fleet.models.get(model_id, Model())
        if wish.deleted or placement is None:
            return
        is_new = placement.launch.revision == wish.revision and is_on_trial(self.fleet, model_id)
        if is_new and self.fleet.instances[instance.id].crashes >= self.policy.trial_crashes:
            self._say(
                ModelRolledBack(
                    model_id=model_id,
                    revision=wish.revision,
                    to_revision=wish.former_revision,
                    instance_id=instance.id,
                    reasons=reasons,
                )
            )
            self._rolling.add(model_id)
            self._fresh.add(model_id)
        crashes = model.crashes.get(worker_id, 0)
        if crashes >= self.policy.quarantine_crashes and worker_id not in model.quarantined:
            self._say(ModelQuarantined(model_id=model_id, worker_id=worker_id, crashes=crashes))

    def _reconcile_on(self, worker_id: WorkerId) -> None:
        """What is there is to leave, or may stay after all."""
        for model_id in sorted({instance.model_id for instance in self.fleet.on(worker_id)}):
            self._models.add(model_id)
            self._reconcile(model_id)

    def _deletion_requested(self, instance_id: InstanceId) -> None:
        instance = self.fleet.instances.get(instance_id)
        if instance is None:
            return
        if isinstance(instance.state, Stopping):
            self._drained(instance)
            return
        self._stop(instance, "deletion_requested")
        self._reconcile(instance.model_id)

    def _stop(self, instance: Instance, cause: StopCause) -> None:
        self._models.add(instance.model_id)
        drain_seconds = seconds_to_drain(instance, cause, self.policy)
        self._say(InstanceStopping(instance_id=instance.id, cause=cause, drain_seconds=drain_seconds))
        for claim in self.fleet.claims_of(instance.id):
            if (key := claim_key(claim.instance_id, claim.attempt, claim.worker_id)) in self._untold:
                self._untold.discard(key)
                self._attempt_ended(claim.worker_id, self.fleet.instances[instance.id], claim.attempt)
        if instance.id in self.fleet.instances:
            self._delete_when_gone(instance.id)

    def _drained(self, instance: Instance) -> None:
        """Nobody waits for its requests any more, if somebody did."""
        if is_draining(instance):
            left = self.traffic.requests_of(instance.id)
            self._say(InstanceDrained(instance_id=instance.id, requests_left=left))

    def _notice_quiet(self) -> None:
        for instance_id in [each for each in self._draining if self._is_quiet(each, self._now.monotonic)]:
            self._drained(self.fleet.instances[instance_id])

    def _is_quiet(self, instance_id: InstanceId, now: float) -> bool:
        since = self._draining[instance_id]
        return since is not None and self.traffic.is_quiet(instance_id, since, now)

    def _delete_when_gone(self, instance_id: InstanceId) -> None:
        if not self.fleet.claims_of(instance_id):
            self._say(InstanceDeleted(instance_id=instance_id))

    def _removal_requested(self, worker_id: WorkerId) -> None:
        worker = self.fleet.workers.get(worker_id)
        if worker is None or worker.state == "ready":
            return
        there = {instance.id for instance in self.fleet.on(worker_id)}
        affected = [
            i
            for i in self.fleet.instances.values()
            if i.id in there or ((p := placement_of(i.state)) is not None and p.on(worker_id))
        ]
        for instance in affected:
            placement = placement_of(instance.state)
            if placement is None or placement.on(worker_id) is None:
                continue  # a former attempt of it is there
            if not isinstance(instance.state, Stopping | Failed):
                self._fail(instance, worker_id, (EngineVanished(worker_id=worker_id),), to_blame=False)
        for file in self.fleet.files_on(worker_id):
            self._say(ModelFileForgotten(file_id=file.id, worker_id=worker_id))
        self._say(WorkerRemoved(worker_id=worker_id))
        for instance in affected:
            current = self.fleet.instances.get(instance.id)
            if current is not None and isinstance(current.state, Stopping):
                self._delete_when_gone(instance.id)

    # -- reports ------------------------------------------------------------------------------------------------------

    def _observed(self, report: WorkerObserved) -> None:
        """The complete picture of a worker: the truth about which engines there are."""
        worker_id = report.worker_id
        self.liveness.agent_heard(worker_id, self._now.monotonic)
        worker = self.fleet.workers.get(worker_id)
        if worker is None:
            self._say(
                WorkerRegistered(
                    worker_id=worker_id,
                    name=report.name,
                    address=report.address,
                    inventory=report.inventory,
                    agent_version=report.agent_version,
                )
            )
        else:
            if worker.name != report.name:
                self._say(WorkerRenamed(worker_id=worker_id, name=report.name))
            if worker.address != report.address:
                self._say(WorkerAddressChanged(worker_id=worker_id, address=report.address))
            if (worker.inventory, worker.agent_version) != (report.inventory, report.agent_version):
                self._say(
                    WorkerInventoryChanged(
                        worker_id=worker_id, inventory=report.inventory, agent_version=report.agent_version
                    )
                )
        if worker is None:
            silent = worker_id in self.liveness.silent_downloaders([worker_id], self._now.monotonic)
            self._hear_downloader(worker_id, alive=not silent)
            for file_id in [each for each, wish in self.fleet.file_wishes.items() if wish.worker_id == worker_id]:
                self._file_requested(file_id)
        if self.fleet.workers[worker_id].state != "ready":
            self._say(WorkerReady(worker_id=worker_id))
            for instance in self.fleet.on(worker_id):
                self._lose_sight(instance)  # of others of its workers, if there are any
        self._decision.workers.add(worker_id)
        if (report.assigned_election, report.assigned_seq) < self._newest.get(worker_id, (0, 0)):
            self._decision.behind.add(worker_id)
        seen = {(engine.instance_id, engine.attempt): engine for engine in report.engines}
        for engine in report.engines:
            self._engine(worker_id, engine)
        for claim in self.fleet.claims_on(worker_id):
            if (claim.instance_id, claim.attempt) not in seen and self._could_have_seen(
                report, claim.instance_id, claim.attempt
            ):
                self._engine_missing(worker_id, claim.instance_id, claim.attempt)

    def _could_have_seen(self, report: WorkerObserved, instance_id: InstanceId, attempt: int) -> bool:
        """Had the agent read an assignment with (or newer than) this attempt when it looked?

        A picture from before this scheduler's election may have come late: the next one follows its assignment.
        """
        if report.assigned_election < self._election:
            return False
        read = (report.assigned_election, report.assigned_seq)
        published = self._published.get(claim_key(instance_id, attempt, report.worker_id))
        if published is not None:
            return read >= published
        instance = self.fleet.instances.get(instance_id)
        return instance is None or instance.attempt > attempt or isinstance(instance.state, Stopping | Failed | Pending)

    def _engine_missing(self, worker_id: WorkerId, instance_id: InstanceId, attempt: int) -> None:
        instance = self.fleet.instances[instance_id]
        if attempt < instance.attempt or isinstance(instance.state, Stopping | Failed | Pending):
            self._attempt_ended(worker_id, instance, attempt)
        elif isinstance(instance.state, Downloading | Starting | Running | Unreachable):
            self._fail(instance, worker_id, (EngineVanished(worker_id=worker_id),), to_blame=False)

    def _leaving(self, report: WorkerLeaving) -> None:
        worker = self.fleet.workers.get(report.worker_id)
        self.liveness.left.add(report.worker_id)
        if worker is None or worker.state == "unreachable":
            return
        # Another agent of the machine that is there already may have started them again: its picture tells.
        gone = report.engines_stopped and not self.boots.is_another(worker.id, "agent", report.boot_id)
        self._unreachable(worker.id, AgentStopped(worker_id=worker.id), engines_gone=gone)

    def _unreachable(self, worker_id: WorkerId, reason: Reason, *, engines_gone: bool) -> None:
        self._say(WorkerUnreachable(worker_id=worker_id, reasons=(reason,)))
        for instance in self.fleet.on(worker_id):
            placement = placement_of(instance.state)
            if placement is None or placement.on(worker_id) is None:
                continue
            if engines_gone and isinstance(instance.state, Stopping | Failed):
                self._attempt_ended(worker_id, instance, placement.attempt)
            elif engines_gone and isinstance(
                instance.state, Scheduled | Downloading | Starting | Running | Unreachable
            ):
                self._fail(instance, worker_id, (WorkerShutDown(worker_id=worker_id),), to_blame=False)
            else:
                self._lose_sight(instance)

    def _lose_sight(self, instance: Instance) -> None:
        """Some of its workers are not heard; of what was lost sight of before, others than were said."""
        match instance.state:
            case Scheduled(placement) | Downloading(placement) | Starting(placement) | Running(placement):
                silent, reasons = silent_members(self.fleet, placement), why_silent(self.fleet, placement)
            case Unreachable(placement, known) if len(placement.members) > 1:
                silent, reasons = silent_members(self.fleet, placement), why_silent(self.fleet, placement)
                if reasons == known:
                    return
            case _:
                return
        if silent:
            self._say(
                InstanceUnreachable(
                    instance_id=instance.id, worker_id=silent[0].id, attempt=placement.attempt, reasons=reasons
                )
            )

    def _engine(self, worker_id: WorkerId, seen: EngineSeen) -> None:
        """What one engine's phase means for its instance, if it is the attempt that counts."""
        instance = self.fleet.instances.get(seen.instance_id)
        if instance is None:
            return
        placement = placement_of(instance.state)
        if placement is not None and placement.attempt == seen.attempt:
            self._measured(instance, placement, worker_id, seen)
        gone = seen.phase in ("exited", "stopped")
        current = placement is not None and placement.attempt == seen.attempt and placement.on(worker_id) is not None
        if placement is None or not current or isinstance(instance.state, Stopping | Failed):
            if gone:
                self._attempt_ended(worker_id, instance, seen.attempt)
            return
        match seen.phase:
            case "accepted" | "pulling":
                self._accepted(instance, placement, worker_id)
            case "loading":
                self._is_there(instance, placement, worker_id)
                self._progressed(instance.id)
            case "healthy":
                if worker_id == placement.leader.worker_id:
                    self._healthy(instance, worker_id, seen)
                else:  # it waits for the leader, which answers for all
                    self._is_there(instance, placement, worker_id)
                    self._progressed(instance.id)
            case "unhealthy":
                if _running(instance) is not None or seen.reasons:
                    reasons = seen.reasons or (EngineUnhealthy(worker_id=worker_id),)
                    if isinstance(late := reasons[0], StartTimeout) and isinstance(instance.state, Starting):
                        self._passed(
                            instance, "starting", late.after_seconds, late.model_copy(update={"worker_id": worker_id})
                        )
                    self._fail(instance, worker_id, reasons, seen=seen, engine_gone=False)
                else:  # its start was not heard of
                    self._is_there(instance, placement, worker_id)
            case "exited":
                self._fail(instance, worker_id, seen.reasons or (EngineVanished(worker_id=worker_id),), seen=seen)
            case "stopped":
                reasons = seen.reasons or (WorkerShutDown(worker_id=worker_id),)
                self._fail(instance, worker_id, reasons, seen=seen, to_blame=False)

    def _accepted(self, instance: Instance, placement: Placement, worker_id: WorkerId) -> None:
        if isinstance(instance.state, Scheduled) and self._taken_up.note(instance.id, placement, worker_id):
            fact = InstanceStarting if all_files_ready(self.fleet, placement) else InstanceDownloading
            self._say(fact(instance_id=instance.id, worker_id=worker_id, attempt=placement.attempt))
        self._progressed(instance.id)

    def _is_there(self, instance: Instance, placement: Placement, worker_id: WorkerId) -> None:
        """A member's engine has a process. It starts when all have taken it up, and is reached when all are heard."""
        where = {"instance_id": instance.id, "worker_id": worker_id, "attempt": placement.attempt}
        match instance.state:
            case Scheduled():
                if self._taken_up.note(instance.id, placement, worker_id):
                    self._say(InstanceStarting.model_validate(where))
            case Downloading():
                self._say(InstanceStarting.model_validate(where))
            case Unreachable(running=running) if not silent_members(self.fleet, placement):
                if running is None:
                    self._say(InstanceStarting.model_validate(where))
                elif worker_id != placement.leader.worker_id:
                    self._say(InstanceReachable.model_validate(where))
            case _:
                pass

    def _healthy(self, instance: Instance, worker_id: WorkerId, seen: EngineSeen) -> None:
        if not seen.ports:
            return
        address, port = self.fleet.workers[worker_id].address, seen.ports[0]
        running = _running(instance)
        if running is not None and (running.address, running.port) == (address, port):
            if isinstance(instance.state, Unreachable) and not silent_members(self.fleet, instance.state.placement):
                self._say(InstanceReachable(instance_id=instance.id, worker_id=worker_id, attempt=seen.attempt))
            return
        self._say(
            InstanceRunning(
                instance_id=instance.id,
                worker_id=worker_id,
                attempt=seen.attempt,
                address=address,
                port=port,
                image_digest=seen.image_digest,
                sealed_key=seen.sealed_key,
            )
        )
        self._lose_sight(self.fleet.instances[instance.id])  # of its other workers, if one is not heard

    def _measured(self, instance: Instance, placement: Placement, worker_id: WorkerId, seen: EngineSeen) -> None:
        """What the attempt was seen to hold at most, if that is more than was known of its like; also when it has ended."""
        machine, member = self.fleet.machines.get(worker_id), placement.on(worker_id)
        model_id = instance.model_id
        if machine is None or member is None or self.fleet.wishes[model_id].deleted:
            return
        told = told_by(seen, placement, machine)
        peak = peak_news(self.fleet.models.get(model_id, Model()).peaks, told) if told is not None else None
        if peak is None:
            return
        self._say(
            ModelPeakMeasured(
                model_id=model_id,
                revision=peak.revision,
                gpu=peak.where.gpu,
                gpus=peak.where.gpus,
                workers=peak.where.workers,
                gpu_layers=peak.where.gpu_layers,
                claimed_vram=max(member.claim.vram.values(), default=0),
                claimed_ram=member.claim.ram,
                peak_vram=peak.vram_bytes,
                peak_ram=peak.ram_bytes,
                worker_id=worker_id,
                instance_id=instance.id,
                attempt=placement.attempt,
            )
        )
        if self.policy.claims_from_peak:  # what waits may be smaller than it was thought to be
            self._fresh.add(model_id)

    def _attempt_ended(self, worker_id: WorkerId, instance: Instance, attempt: int) -> None:
        if claim_key(instance.id, attempt, worker_id) not in self.fleet.claims:
            return
        self._say(InstanceAttemptEnded(instance_id=instance.id, worker_id=worker_id, attempt=attempt))
        if isinstance(instance.state, Stopping):
            self._delete_when_gone(instance.id)

    def _file(self, worker_id: WorkerId, seen: FileSeen) -> None:
        file = self.fleet.files.get(seen.file_id)
        if file is None or file.worker_id != worker_id or seen.wanted != file.wanted:
            return
        users = self._users_of(file)
        match seen.phase:
            case "ready":
                if file.state == "wanted":
                    self._file_ready(file, seen, users)
            case "failed":
                is_known = file.state == "ready" and isinstance(
                    file.source, LocalPath
                )  # its engine says it, in its own words
                if file.state != "failed" and not is_known:
                    why = seen.reasons or (InspectionFailed(problem="it does not say why the files failed"),)
                    reasons = tuple(reason.model_copy(update={"worker_id": worker_id}) for reason in why)
                    self._say(ModelFileFailed(file_id=file.id, worker_id=worker_id, reasons=reasons))
                    for instance, _ in users:
                        if isinstance(instance.state, Scheduled | Downloading | Starting):
                            self._fail(instance, worker_id, reasons)
                        elif isinstance(instance.state, Unreachable) and instance.state.running is None:
                            self._fail(instance, worker_id, reasons, engine_gone=False)  # its agent was not heard
            case "deleted":
                self._file_deleted(file, seen, users)
            case _:
                for instance, _ in users:
                    self._progressed(instance.id)

    def _users_of(self, file: File) -> list[tuple[Instance, Placement]]:
        """Instances that are placed where it is, and run from it or are to."""
        return [
            (instance, placement)
            for instance in self.fleet.on(file.worker_id)
            if (placement := placement_of(instance.state)) is not None
            and (member := placement.on(file.worker_id)) is not None
            and file.id in member.file_ids
        ]

    def _engines_on(self, file: File) -> tuple[str, ...]:
        """Names of all that may still have an engine there that runs from it, former attempts included."""
        there = {claim.instance_id for claim in self.fleet.claims_on(file.worker_id) if file.id in claim.file_ids} | {
            instance.id for instance, _ in self._users_of(file)
        }
        instances = [self.fleet.instances.get(instance_id) for instance_id in there]
        return tuple(sorted(instance.name for instance in instances if instance is not None))

    def _file_ready(self, file: File, seen: FileSeen, users: Iterable[tuple[Instance, Placement]]) -> None:
        self._say(
            ModelFileReady(
                file_id=file.id,
                worker_id=file.worker_id,
                bytes=seen.bytes,
                paths=seen.paths,
                model_path=seen.model_path,
                digest=seen.digest,
            )
        )
        for instance, placement in users:
            self._progressed(instance.id)
            self._decision.workers.update(member.worker_id for member in placement.members)
            if isinstance(instance.state, Downloading) and all_files_ready(self.fleet, placement):
                self._say(
                    InstanceStarting(instance_id=instance.id, worker_id=file.worker_id, attempt=placement.attempt)
                )

    def _file_deleted(self, file: File, seen: FileSeen, users: Iterable[tuple[Instance, Placement]]) -> None:
        """As was asked for, or to make room; or it was found to be gone, and then it is said what. Who was promised the files
        meanwhile gets them again.
        """
        if file.state == "deleting":
            self._say(ModelFileDeleted(file_id=file.id, worker_id=file.worker_id, cause="requested"))
        elif any(not isinstance(instance.state, Stopping | Failed) for instance, _ in users):
            self._want(file)
        else:
            cause = "vanished" if seen.reasons else "evicted"
            self._say(ModelFileDeleted(file_id=file.id, worker_id=file.worker_id, cause=cause))

    def _want(self, file: File, request: int | None = None) -> None:
        self._say(
            ModelFileWanted(
                file_id=file.id,
                worker_id=file.worker_id,
                source=file.source,
                commit=file.commit,
                bytes=file.bytes,
                request=request,
            )
        )

    def _file_requested(self, file_id: FileId) -> None:
        """What a user wants of files on a worker; nothing where that was answered, or is so."""
        wish, file = self.fleet.file_wishes[file_id], self.fleet.files.get(file_id)
        if wish.seq <= self.fleet.file_answers.get(file_id, 0) or wish.worker_id not in self.fleet.workers:
            return
        if wish.want == "ready":
            if wish.source is not None and (file is None or file.state in ("failed", "deleting")):
                self._say(
                    ModelFileWanted(
                        file_id=file_id,
                        worker_id=wish.worker_id,
                        source=wish.source,
                        commit=wish.commit,
                        bytes=wish.bytes,
                        request=wish.seq,
                    )
                )
        elif file is not None and file.state != "deleting":
            if users := self._engines_on(file):
                reasons = (FileInUse(worker_id=file.worker_id, instances=users[:MOST_NAMED]),)
                self._say(
                    ModelFileDeletionRefused(
                        file_id=file_id, worker_id=file.worker_id, reasons=reasons, request=wish.seq
                    )
                )
            else:
                self._say(ModelFileDeleting(file_id=file_id, worker_id=file.worker_id, request=wish.seq))

    # -- failures and deadlines ---------------------------------------------------------------------------------------

    def _fail(
        self,
        instance: Instance,
        worker_id: WorkerId,
        reasons: tuple[Reason, ...],
        *,
        seen: EngineSeen | None = None,
        engine_gone: bool = True,
        to_blame: bool = True,
    ) -> None:
        """The attempt has ended; the next one is planned unless the user wants none."""
        placement = placement_of(instance.state)
        if placement is None:
            return
        ran_for = (self._now.at - instance.state.at).total_seconds() if isinstance(instance.state, Running) else 0.0
        crashes = crashes_in_a_row(instance.crashes, ran_for, self.policy) if to_blame else instance.crashes
        restarts = self.fleet.wishes[instance.model_id].spec.restart_on_error or not to_blame
        self._say(
            InstanceFailed.model_validate(
                {
                    "instance_id": instance.id,
                    "worker_id": worker_id,
                    "attempt": placement.attempt,
                    "phase": PHASES.get(type(instance.state), "scheduled"),
                    "reasons": [reason.model_copy(update={"worker_id": worker_id}) for reason in reasons],
                    "exit_code": seen.exit_code if seen else None,
                    "log_tail": seen.log_tail[-50:] if seen else (),
                    "engine_gone": engine_gone,
                    "restarts": crashes,
                    "final": not restarts,
                }
            )
        )
        if to_blame:
            self._judge(instance, worker_id, reasons)
        if restarts:
            self._plan_restart(instance.id, crashes if to_blame else 0)

    def _plan_restart(self, instance_id: InstanceId, crashes: int) -> None:
        delay = restart_delay_seconds(crashes, self.policy)
        at = self._now.at + timedelta(seconds=delay)
        self._say(InstanceRestartPlanned(instance_id=instance_id, delay_seconds=delay, at=at))

    def _notice_silence(self, until: float) -> None:
        ready = [worker.id for worker in self.fleet.workers.values() if worker.state != "unreachable"]
        for worker_id in self.liveness.silent_agents(ready, until):
            silent_for = round(self.liveness.agent_silent_for(worker_id, until), 1)
            self._unreachable(
                worker_id, WorkerSilent(worker_id=worker_id, silent_seconds=silent_for), engines_gone=False
            )

    def _deadline(self, instance: Instance) -> None:
        state = instance.state
        seconds = seconds_in(instance, self.policy) or 0.0
        match state:
            case Scheduled(placement=placement):
                late = self._taken_up.missing(instance.id, placement)
                why = NotAccepted(worker_id=next(iter(late), placement.leader.worker_id), after_seconds=seconds)
                self._passed(instance, "scheduled", seconds, why)
                self._move_away(self.fleet.instances[instance.id])
            case Downloading(placement=placement):
                worker_id = placement.leader.worker_id
                stalled = DownloadStalled(worker_id=worker_id, after_seconds=seconds)
                self._passed(instance, "downloading", seconds, stalled)
                self._fail(instance, worker_id, (stalled,), engine_gone=False)
            case Starting(placement=placement):
                worker_id = placement.leader.worker_id
                timeout = StartTimeout(worker_id=worker_id, after_seconds=seconds)
                self._passed(instance, "starting", seconds, timeout)
                self._fail(instance, worker_id, (timeout,), engine_gone=False)
            case Failed():
                self._place(instance)
            case Unreachable():
                self._evict(instance, seconds)
            case Stopping() if is_draining(instance):
                self._drained(instance)
            case Stopping(placement=placement):
                overdue = StopOverdue(after_seconds=seconds)
                self._passed(instance, "stopping", seconds, overdue)
                if placement is not None:
                    self._decision.workers.update(member.worker_id for member in placement.members)
            case Pending() | Running():
                return
        after = self.fleet.instances.get(instance.id)
        if after is not None and after.state == state:
            self.deadlines.again(instance.id, after, self._now.monotonic)

    def _evict(self, instance: Instance, seconds: float) -> None:
        workers = [worker.id for worker in self.fleet.workers.values()]
        silent = [
            w.id for w in self.fleet.workers.values() if w.state == "unreachable" and w.id not in self.liveness.left
        ]
        heard_for = self._now.monotonic - self.liveness.since
        if self.liveness.braked(len(silent), len(workers)) or heard_for < self.policy.lease_seconds:
            return
        self._passed(instance, "unreachable", seconds)
        self._move_away(self.fleet.instances[instance.id])
        self._give_up(self.fleet.instances[instance.id])

    def _give_up(self, instance: Instance) -> None:
        """A gang that lost a member and serves no more ends, when its next attempt fits on what its others hold."""
        state = instance.state
        if not isinstance(state, Unreachable) or not state.evictable or len(state.placement.members) == 1:
            return
        silent = silent_members(self.fleet, state.placement)
        if silent and not serves_without(self.fleet, instance) and self.placing.helps(instance):
            self._fail(instance, silent[0].id, state.reasons, engine_gone=False, to_blame=False)

    def _move_on(self, instance: Instance, workers: Iterable[WorkerId]) -> None:
        """Something changed on these workers: does one of them take the instance that wants to leave another?"""
        placed = self.placing.find_on(instance.model_id, workers, not_on=self._left_by(instance))
        if isinstance(placed, Placed):
            self._models.add(instance.model_id)
            self._schedule(instance, placed)
        else:
            self._give_up(instance)

    def _again_everywhere(self) -> None:
        """Each instance that wants to leave its worker looks at all others once."""
        for instance_id in sorted(self._movers):
            self._move_away(self.fleet.instances[instance_id])

    def _move_away(self, instance: Instance) -> None:
        self._place(instance, not_on=self._left_by(instance))

    def _left_by(self, instance: Instance) -> frozenset[WorkerId]:
        """The workers that it can't stay on: that have not taken it up in time, or are not heard."""
        match instance.state:
            case Scheduled(placement=placement):
                return frozenset(self._taken_up.missing(instance.id, placement))
            case Unreachable(placement=placement):
                silent = frozenset(worker.id for worker in silent_members(self.fleet, placement))
                return silent or frozenset(member.worker_id for member in placement.members)
            case _:
                return frozenset()

    def _passed(self, instance: Instance, state: str, seconds: float, *reasons: Reason) -> None:
        self._say(
            DeadlinePassed.model_validate(
                {
                    "instance_id": instance.id,
                    "state": state,
                    "attempt": instance.attempt,
                    "deadline_seconds": seconds,
                    "reasons": reasons,
                }
            )
        )

    # -- placing ------------------------------------------------------------------------------------------------------

    def _place(self, instance: Instance, *, not_on: frozenset[WorkerId] = frozenset()) -> None:
        """A place for one instance, wherever there is one; else it is Pending, unless it has a place that may come back."""
        answer = self.placing.find(instance.model_id, not_on=not_on)
        self._models.add(instance.model_id)
        if isinstance(answer, Placed):
            self._schedule(instance, answer)
        elif isinstance(instance.state, Pending | Failed):
            others = [i for i in self.fleet.instances_of(instance.model_id) if isinstance(i.state, Pending)]
            self._refuse(instance.model_id, answer, [*others, *([instance] if instance not in others else [])])

    def _schedule(self, instance: Instance, placed: Placed) -> None:
        for fact in self.placing.facts(instance, placed):
            self._say(fact)

    def _place_pending(self, model_id: ModelId, workers: Iterable[WorkerId] | None) -> None:
        """The model's pending instances: on these workers when all others are known to object still, else on all.

        They are alike, so the first one that finds no place speaks for the others.
        """
        pending = [each for each in self.fleet.instances_of(model_id) if isinstance(each.state, Pending)]
        if not pending:
            self.placing.waiting.forget(model_id)
            return
        self._models.add(model_id)
        self._looked += 1
        for number, instance in enumerate(pending):
            if number and self._is_full:
                self._put_off(model_id, workers)
                return
            answer = self.placing.find(model_id) if workers is None else self.placing.find_on(model_id, workers)
            if isinstance(answer, Placed):
                self._schedule(instance, answer)
                continue
            if isinstance(answer, Refused):
                self._refuse(model_id, answer, pending[number:])
            return
        self.placing.waiting.forget(model_id)

    def _place_all(self, todo: Mapping[ModelId, Iterable[WorkerId] | None]) -> None:
        """In this order: what waited for this decision, then by id. Who had a turn is behind who had none."""
        cut: list[ModelId] = []
        for model_id in (*(each for each in self._first if each in todo), *sorted(todo.keys() - set(self._first))):
            if self._is_full:
                self._put_off(model_id, todo[model_id])
            else:
                self._place_pending(model_id, todo[model_id])
                cut += [model_id] if model_id in self._later else []
        self._first = []
        for model_id in cut:
            self._later[model_id] = self._later.pop(model_id)

    def _put_off_rest(self) -> None:
        for model_id in sorted(self._fresh):
            self._put_off(model_id, None)
        for model_id in sorted(self._again):
            self._put_off(model_id, self._again[model_id])
        self._fresh, self._again = set(), {}
        self._unfinished |= self._rolling & self._models

    def _put_off(self, model_id: ModelId, workers: Iterable[WorkerId] | None) -> None:
        """To the next decision: these workers, or all, are not looked at yet."""
        known = self._later.pop(model_id, set[WorkerId]())
        self._later[model_id] = None if workers is None or known is None else known.union(workers)

    def _refuse(self, model_id: ModelId, refused: Refused, instances: Iterable[Instance]) -> None:
        stated = self.placing.refuse(model_id, refused)
        after = Pending(stated.reasons, stated.closest, stated.suggestions, stated.unlisted, explained=True)
        told = 0
        for instance in instances:
            if instance.state == after:
                continue
            told += 1
            if told > 1 and self._is_full and isinstance(instance.state, Pending):
                self._put_off(model_id, None)
                continue
            self._say(stated.fact(instance.id))

    # -- the shape of a decision --------------------------------------------------------------------------------------

    def _begin(self, now: Now) -> None:
        if now.monotonic > self._now.monotonic:  # what was decided before is in the log
            for instance_id in [each for each, since in self._draining.items() if since is None]:
                self._draining[instance_id] = self.fleet.seq
        self.traffic.listens(now.monotonic)
        self._now = now
        self._decision = Decision(at=now.at)
        self._models = set()
        self._looked = 0
        self._is_picture = False

    def _say(self, fact: Fact) -> None:
        before = self.fleet.instances.get(fact.instance_id) if isinstance(fact, InstanceFact) else None
        whom: tuple[WorkerId, ...] = ()
        file: File | None = None
        if isinstance(fact, FileStated):
            whom = whom_it_concerns(self.fleet, fact)
            file = self.fleet.files.get(fact.file_id)
            fact = self._with_open_request(fact)
        evolve(self.fleet, fact, self.fleet.seq, self._now.at)
        self.placing.note(fact)
        self._decision.facts.append(fact)
        if isinstance(fact, InstanceFact):
            after = self.fleet.instances.get(fact.instance_id)
            if after is None or not isinstance(after.state, Scheduled):
                self._taken_up.forget(fact.instance_id)
            if isinstance(fact, InstanceCreated):
                self._fresh.add(fact.model_id)
            if after is not None and _may_need_a_place(after):
                self._restless.add(after.id)
            else:
                self._restless.discard(fact.instance_id)
            if after is None or not is_draining(after):
                self._draining.pop(fact.instance_id, None)
            elif isinstance(fact, InstanceStopping):
                self._draining[after.id] = None
            if after is not None and _wants_to_move(after):
                self._movers.add(after.id)
            else:
                self._movers.discard(fact.instance_id)
            self.deadlines.watch(fact.instance_id, after, self._now.monotonic)
            for instance in (before, after):
                if instance is not None:
                    self._models.add(instance.model_id)
                    if (placement := placement_of(instance.state)) is not None:
                        self._decision.workers.update(member.worker_id for member in placement.members)
        if isinstance(fact, InstanceScheduled):
            keys = [claim_key(fact.instance_id, fact.attempt, member.worker_id) for member in fact.members]
            self._untold.update(keys)
        if isinstance(fact, FileStated):
            self._decision.workers.add(fact.worker_id)
            self._decision.workers.update(whom)
            self._files_changed(fact, file)
        if isinstance(fact, WorkerReady | WorkerUnreachable | WorkerAddressChanged):
            self._neighbour_changed(fact.worker_id)

    def _with_open_request(self, fact: FileStated) -> FileStated:
        """A user's request that needed nothing when it came is over with whatever is said next: nobody finds it open later."""
        wish = self.fleet.file_wishes.get(fact.file_id)
        if wish is None or wish.seq <= self.fleet.file_answers.get(fact.file_id, 0):
            return fact
        return fact.model_copy(update={"known_request": wish.seq})

    def _files_changed(self, fact: FileStated, before: File | None) -> None:
        """Who waits for a place may have one now, or is told otherwise."""
        after = self.fleet.files.get(fact.file_id)
        if (before is not None and before.state == "ready") == (after is not None and after.state == "ready"):
            return
        file = after or before
        if file is None:
            return
        for model_id, of_all in self.placing.note_files(file.source, file.worker_id).items():
            if of_all:
                self._fresh.add(model_id)
            else:
                self._again.setdefault(model_id, set()).add(file.worker_id)

    def _neighbour_changed(self, worker_id: WorkerId) -> None:
        """Whoever is to fetch from it, or is not to any more, is told so."""
        for file in self.fleet.files_on(worker_id):
            self._decision.workers.update(waiting_for_like(self.fleet, file.id))

    def _hear_downloader(self, worker_id: WorkerId, *, alive: bool) -> None:
        machine = self.fleet.machines.get(worker_id)
        if machine is not None and machine.downloader_alive != alive:
            self.fleet.machines.hear_downloader(worker_id, alive=alive)
            self._neighbour_changed(worker_id)

    def _settle(self) -> Decision:
        """What follows from what was said: pending instances get another look, models their status."""
        while True:
            for model_id in sorted(self._rolling.intersection(self._models)):
                self._reconcile(model_id)
            self._notice_drained()
            freed, lifted = self.placing.freed()
            todo = freed
            for model_id, workers in self._again.items():
                others = freed.get(model_id, [])
                todo[model_id] = None if others is None else sorted(workers.union(others))
            todo |= dict.fromkeys(self._fresh)
            self._fresh, self._again = set(), {}
            self._hold(todo)
            if not todo and not lifted:
                break
            self._place_all(todo)
            for instance_id in sorted(self._movers) if lifted else ():
                self._move_on(self.fleet.instances[instance_id], sorted(lifted))
            if self._is_full:
                self._put_off_rest()
                break
        for model_id in sorted(self._models):
            fact = news(model_id, self.fleet.models.get(model_id, Model()), status_of(self.fleet, model_id))
            if fact is not None:
                self._say(fact)
            is_gone = self.fleet.wishes[model_id].deleted and not self.fleet.instances_of(model_id)
            if is_gone and model_id in self.fleet.models:
                self._say(ModelEnded(model_id=model_id))
        return self._decision

    def _hold(self, todo: dict[ModelId, list[WorkerId] | None]) -> None:
        """Take out the models whose workers have not all answered; put in those that were held and need not be any more.

        The first answer must not draw all instances to its worker.
        """
        for model_id, wave in list(self._waves.items()):
            if model_id in todo and self._explain_like_others(model_id):
                wave.hold(todo.pop(model_id))
            if wave.unanswered:
                continue
            del self._waves[model_id]
            if wave.is_held and model_id in self.fleet.wishes:
                if model_id in todo:
                    wave.hold(todo[model_id])
                todo[model_id] = None if wave.whole else sorted(wave.workers)

    def _explain_like_others(self, model_id: ModelId) -> bool:
        """New instances of a model that waits for answers wait like those that waited before.

        False: there are none of those, or too many new ones for this decision.
        """
        pending = [each for each in self.fleet.instances_of(model_id) if isinstance(each.state, Pending)]
        told = next((state for each in pending if isinstance(state := each.state, Pending) and state.explained), None)
        if told is None:
            return not pending
        for each in pending:
            if isinstance(each.state, Pending) and not each.state.explained:
                if self._is_full:
                    return False
                self._models.add(model_id)
                self._say(
                    InstancePending(
                        instance_id=each.id,
                        reasons=told.reasons,
                        closest=told.closest,
                        suggestions=told.suggestions,
                        unlisted=told.unlisted,
                    )
                )
        return True

    def _notice_drained(self) -> None:
        for worker_id, operator in self.fleet.operator.items():
            if not operator.draining:
                continue
            worker = self.fleet.workers.get(worker_id)
            if worker is not None and worker.drains < operator.drains and not self.fleet.claims_on(worker_id):
                self._say(WorkerDrained(worker_id=worker_id, drains=operator.drains))

    def _progressed(self, instance_id: InstanceId) -> None:
        """Something was reported to have happened. A picture shows how things are: looking at them is no progress."""
        instance = self.fleet.instances.get(instance_id)
        if not self._is_picture and instance is not None and isinstance(instance.state, Downloading | Starting):
            self.deadlines.watch(instance_id, instance, self._now.monotonic, progressed=True)

    def _silent_downloaders(self, until: float) -> frozenset[WorkerId]:
        return self.liveness.silent_downloaders(list(self.fleet.workers), until)


def _wants_to_move(instance: Instance) -> bool:
    """It has waited long enough for its worker, and leaves as soon as another one takes it."""
    state = instance.state
    return (isinstance(state, Unreachable) and state.evictable) or (isinstance(state, Scheduled) and state.overdue)


def _may_need_a_place(instance: Instance) -> bool:
    state = instance.state
    return _wants_to_move(instance) or isinstance(state, Unreachable) or (isinstance(state, Failed) and not state.final)


FACTS_OF_A_LOOK: Final = 10
"""A search through the fleet takes as long as so many facts, or longer."""
MOST_NAMED: Final = 16
"""Instances, in a reason."""
FEWEST_ASKED: Final = 8
"""Workers that are asked at once what a model weighs there, at least."""


def _pins_nothing(about: InspectModel, weights: ModelWeights) -> bool:
    """Of a hub's model: then there would be nothing to fetch."""
    return not isinstance(about.source, LocalPath) and all(each.source != about.source for each in weights.pinned)


def _running(instance: Instance) -> Running | None:
    """The engine that runs, or ran when its worker was last heard."""
    match instance.state:
        case Running():
            return instance.state
        case Unreachable(running=running):
            return running
        case _:
            return None
