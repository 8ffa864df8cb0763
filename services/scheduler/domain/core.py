"""The decider of the fleet: every input is answered with the facts that follow from it, and nothing else happens.

Pure and serial: no clock, no dice, no I/O; time comes with each input. A decision folds its own facts into the fleet as
it goes, so what follows later in it sees what went before. No news is no event: the same input twice is answered once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from schemas.asks import ModelInspection
from schemas.facts import (
    DeadlinePassed,
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDeleted,
    InstanceDeletionRequested,
    InstanceDownloading,
    InstanceFailed,
    InstancePending,
    InstanceReachable,
    InstanceRestartPlanned,
    InstanceRunning,
    InstanceScheduled,
    InstanceStarting,
    InstanceStopping,
    InstanceUnreachable,
    ModelFileFailed,
    ModelFileForgotten,
    ModelFileReady,
    ModelFileWanted,
    ModelInspected,
    WorkerAddressChanged,
    WorkerInventoryChanged,
    WorkerReady,
    WorkerRegistered,
    WorkerRemovalRequested,
    WorkerRemoved,
    WorkerRenamed,
    WorkerUnreachable,
)
from schemas.facts.base import Fact
from schemas.facts.instance import InstanceFact, StopCause
from schemas.facts.model import ModelFact
from schemas.facts.worker import WorkerFact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Launch
from schemas.parameters import find
from schemas.reasons import (
    AgentStopped,
    DownloadStalled,
    EngineUnhealthy,
    EngineVanished,
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
    WorkerLeaving,
    WorkerObserved,
)
from services.scheduler.domain.assignments import file_id_of, files_ready
from services.scheduler.domain.deadlines import Deadlines, seconds_in
from services.scheduler.domain.fleet import Fleet, Inspection, Model, claim_key, evolve
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
from services.scheduler.domain.memory import gguf
from services.scheduler.domain.placement import Placed, Refusal, Request, place
from services.scheduler.domain.policy import Policy
from services.scheduler.domain.restarts import crashes_in_a_row, restart_delay_seconds
from services.scheduler.domain.status import news, status_of


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


@dataclass(slots=True)
class Decision:
    facts: list[Fact] = field(default_factory=list[Fact])
    at: datetime | None = None
    """When it was decided: what was folded then is what a replay of the log folds."""
    workers: set[WorkerId] = field(default_factory=set[WorkerId])
    """Workers whose assignment may have changed."""


CAPACITY_FACTS = (
    InstanceCreated,
    WorkerRegistered,
    WorkerReady,
    WorkerUnreachable,
    WorkerInventoryChanged,
    WorkerRemoved,
    ModelInspected,
    InstanceAttemptEnded,
    InstanceDeleted,
    InstanceFailed,
)
"""What asks for a placement, or can change the answer of one."""


class Core:
    def __init__(self, fleet: Fleet, policy: Policy, now: Now) -> None:
        self.fleet = fleet
        self.policy = policy
        self.liveness = Liveness(policy, now.monotonic)
        self.deadlines = Deadlines(policy)
        self._counters: dict[tuple[WorkerId, str], tuple[str, int]] = {}
        self._published: dict[str, tuple[int, int]] = {}
        self._inspected_at: dict[tuple[ModelId, WorkerId], float] = {}
        self._decision = Decision()
        self._models: set[ModelId] = set()
        self._capacity_changed = False
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
            self._reconcile(model_id)
        for instance_id in list(self.fleet.deletion_requests):
            self._deletion_requested(instance_id)
        for worker_id, requests in list(self.fleet.removal_requests.items()):
            if requests > self.fleet.removals.get(worker_id, 0):
                self._removal_requested(worker_id)
        self._capacity_changed = True
        return self._settle()

    def _complete(self, instance: Instance) -> None:
        """State what should have followed from what was stated last about this instance."""
        match instance.state:
            case Failed(restart_in_seconds=None, final=False):
                self._plan_restart(instance.id, instance.crashes)
            case Stopping():
                self._delete_when_gone(instance.id)
            case Scheduled(placement) | Downloading(placement) | Starting(placement) | Running(placement):
                for member in placement.members:
                    worker = self.fleet.workers[member.worker_id]
                    failed = [file for each in member.file_ids if (file := self.fleet.files[each]).state == "failed"]
                    if worker.state == "unreachable":
                        self._lose_sight(instance, worker.id, placement.attempt, worker.reasons)
                        return
                    if failed and isinstance(instance.state, Scheduled | Downloading):
                        self._fail(instance, worker.id, failed[0].reasons)
                        return
            case Pending() | Failed() | Unreachable():
                pass

    def wished(self, fact: Fact, now: Now) -> Decision:
        """A fact of the api, which has been folded already."""
        self._begin(now)
        match fact:
            case ModelFact():
                self._models.add(fact.model_id)
                self._reconcile(fact.model_id)
                self._capacity_changed = True
            case InstanceDeletionRequested():
                self._deletion_requested(fact.instance_id)
            case WorkerRemovalRequested():
                self._removal_requested(fact.worker_id)
            case WorkerFact():
                self._capacity_changed = True
            case _:
                pass
        return self._settle()

    def heard(self, report: Report, now: Now) -> Decision:
        """A report of an agent or downloader. The sender was checked; what it says is checked here."""
        self._begin(now)
        role = "downloader" if isinstance(report, FileReported | FilesObserved) else "agent"
        last = self._counters.get((report.worker_id, role))
        if last is not None and last[0] == report.boot_id and last[1] >= report.counter:
            return self._settle()
        self._counters[report.worker_id, role] = (report.boot_id, report.counter)
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

    def beat(self, worker_id: WorkerId, role: str, now: Now) -> Decision:
        self._begin(now)
        if role == "agent":
            if worker_id not in self.liveness.left:
                self.liveness.agent_heard(worker_id, now.monotonic)
        elif self.liveness.downloader_heard(worker_id, now.monotonic):
            self._capacity_changed = True
        return self._settle()

    def inspected(self, question: Question, answer: ModelInspection, now: Now) -> Decision:
        """What a downloader said of a model's files. Nothing is stated that was known."""
        self._begin(now)
        self._inspected_at[question.model_id, question.worker_id] = now.monotonic
        wish = self.fleet.wishes.get(question.model_id)
        if (
            wish is None
            or wish.deleted
            or wish.generation != question.generation
            or question.worker_id not in self.fleet.workers
        ):
            return self._settle()
        known = self.fleet.models.get(question.model_id, Model()).inspections.get(question.worker_id)
        told = Inspection(wish.spec.source, question.generation, answer.weights, answer.reasons)
        if known != told:
            self._models.add(question.model_id)
            self._say(
                ModelInspected(
                    model_id=question.model_id,
                    worker_id=question.worker_id,
                    generation=question.generation,
                    weights=answer.weights,
                    reasons=answer.reasons,
                )
            )
        return self._settle()

    def time_passed(self, now: Now) -> Decision:
        self._begin(now)
        self._notice_silence()
        for instance_id in self.deadlines.due(now.monotonic):
            instance = self.fleet.instances.get(instance_id)
            if instance is not None:
                self._deadline(instance)
        return self._settle()

    def next_deadline(self) -> float | None:
        return self.deadlines.next_at()

    def questions(self, now: Now) -> list[Question]:
        """Whom to ask what: models that wait for a place and have not been looked at on a worker that could take them."""
        silent = self._silent_downloaders()
        found: list[Question] = []
        waiting = {
            i.model_id for i in self.fleet.instances.values() if isinstance(i.state, Pending | Failed | Unreachable)
        }
        for model_id in sorted(waiting):
            wish = self.fleet.wishes[model_id]
            inspections = self.fleet.models.get(model_id, Model()).inspections
            for worker in self.fleet.workers.values():
                if worker.state != "ready" or worker.id in silent or wish.deleted:
                    continue
                known = inspections.get(worker.id)
                asked = self._inspected_at.get((model_id, worker.id), float("-inf"))
                stale = known is None or known.source != wish.spec.source
                failed = known is not None and bool(known.reasons)
                if stale or (failed and now.monotonic - asked >= self.policy.reinspect_seconds):
                    found.append(Question(model_id, worker.id, wish.generation))
        return found

    def published(
        self, worker_id: WorkerId, instances: Iterable[tuple[InstanceId, int]], election: int, seq: int
    ) -> None:
        """An assignment went out: from here on a picture that takes it into account can be judged by it."""
        for instance_id, attempt in instances:
            self._published.setdefault(claim_key(instance_id, attempt, worker_id), (election, seq))

    # -- wishes -------------------------------------------------------------------------------------------------------

    def _reconcile(self, model_id: ModelId) -> None:
        """As many instances as are wanted: creates missing ones, stops the least useful ones."""
        wish = self.fleet.wishes[model_id]
        wanted = 0 if wish.deleted else wish.spec.replicas
        alive = [i for i in self.fleet.instances_of(model_id) if not isinstance(i.state, Stopping)]
        for _ in range(len(alive), wanted):
            number = self.fleet.models.get(model_id, Model()).created
            self._say(
                InstanceCreated(
                    instance_id=InstanceId(f"i-{model_id.removeprefix('m-')}-{number}"),
                    model_id=model_id,
                    name=f"{wish.spec.name}-{number}",
                )
            )
        surplus = sorted(alive, key=lambda i: (isinstance(i.state, Running), i.id))[: max(len(alive) - wanted, 0)]
        cause: StopCause = "model_deleted" if wish.deleted else "scaled_down"
        for instance in surplus:
            self._stop(instance, cause)

    def _deletion_requested(self, instance_id: InstanceId) -> None:
        instance = self.fleet.instances.get(instance_id)
        if instance is None or isinstance(instance.state, Stopping):
            return
        self._stop(instance, "deletion_requested")
        self._reconcile(instance.model_id)

    def _stop(self, instance: Instance, cause: StopCause) -> None:
        self._models.add(instance.model_id)
        self._say(InstanceStopping(instance_id=instance.id, cause=cause))
        self._delete_when_gone(instance.id)

    def _delete_when_gone(self, instance_id: InstanceId) -> None:
        if not any(claim.instance_id == instance_id for claim in self.fleet.claims.values()):
            self._say(InstanceDeleted(instance_id=instance_id))

    def _removal_requested(self, worker_id: WorkerId) -> None:
        worker = self.fleet.workers.get(worker_id)
        if worker is None or worker.state == "ready":
            return
        affected = [i for i in self.fleet.instances.values() if (p := placement_of(i.state)) and p.on(worker_id)]
        for instance in affected:
            if not isinstance(instance.state, Stopping | Failed):
                self._fail(instance, worker_id, (EngineVanished(worker_id=worker_id),), to_blame=False)
        for file in [file for file in self.fleet.files.values() if file.worker_id == worker_id]:
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
        if self.fleet.workers[worker_id].state != "ready":
            self._say(WorkerReady(worker_id=worker_id))
        self._decision.workers.add(worker_id)
        seen = {(engine.instance_id, engine.attempt): engine for engine in report.engines}
        for engine in report.engines:
            self._engine(worker_id, engine)
        for claim in list(self.fleet.claims_on(worker_id)):
            if (claim.instance_id, claim.attempt) not in seen and self._could_have_seen(
                report, claim.instance_id, claim.attempt
            ):
                self._engine_missing(worker_id, claim.instance_id, claim.attempt)

    def _could_have_seen(self, report: WorkerObserved, instance_id: InstanceId, attempt: int) -> bool:
        """Had the agent read an assignment with (or newer than) this attempt when it looked?"""
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
        self._unreachable(worker.id, AgentStopped(worker_id=worker.id), engines_gone=report.engines_stopped)

    def _unreachable(self, worker_id: WorkerId, reason: Reason, *, engines_gone: bool) -> None:
        self._say(WorkerUnreachable(worker_id=worker_id, reasons=(reason,)))
        for instance in list(self.fleet.instances.values()):
            placement = placement_of(instance.state)
            if placement is None or placement.on(worker_id) is None:
                continue
            if engines_gone and isinstance(instance.state, Stopping):
                self._attempt_ended(worker_id, instance, placement.attempt)
            elif engines_gone and isinstance(
                instance.state, Scheduled | Downloading | Starting | Running | Unreachable
            ):
                self._fail(instance, worker_id, (WorkerShutDown(worker_id=worker_id),), to_blame=False)
            elif isinstance(instance.state, Scheduled | Downloading | Starting | Running):
                self._lose_sight(instance, worker_id, placement.attempt, (reason,))

    def _lose_sight(self, instance: Instance, worker_id: WorkerId, attempt: int, reasons: tuple[Reason, ...]) -> None:
        self._say(InstanceUnreachable(instance_id=instance.id, worker_id=worker_id, attempt=attempt, reasons=reasons))

    def _engine(self, worker_id: WorkerId, seen: EngineSeen) -> None:
        """What one engine's phase means for its instance, if it is the attempt that counts."""
        instance = self.fleet.instances.get(seen.instance_id)
        if instance is None:
            return
        placement = placement_of(instance.state)
        gone = seen.phase in ("exited", "stopped")
        current = placement is not None and placement.attempt == seen.attempt and placement.on(worker_id) is not None
        if placement is None or not current or isinstance(instance.state, Stopping | Failed):
            if gone:
                self._attempt_ended(worker_id, instance, seen.attempt)
            return
        where = {"instance_id": instance.id, "worker_id": worker_id, "attempt": placement.attempt}
        match seen.phase:
            case "accepted" | "pulling":
                self._accepted(instance, placement, worker_id)
            case "loading":
                if isinstance(instance.state, Scheduled | Downloading | Unreachable) and _running(instance) is None:
                    self._say(InstanceStarting.model_validate(where))
                self._progressed(instance.id)
            case "healthy":
                self._healthy(instance, worker_id, seen)
            case "unhealthy":
                if _running(instance) is not None:
                    self._fail(
                        instance, worker_id, (EngineUnhealthy(worker_id=worker_id),), seen=seen, engine_gone=False
                    )
            case "exited":
                self._fail(instance, worker_id, seen.reasons or (EngineVanished(worker_id=worker_id),), seen=seen)
            case "stopped":
                self._fail(instance, worker_id, (WorkerShutDown(worker_id=worker_id),), seen=seen, to_blame=False)

    def _accepted(self, instance: Instance, placement: Placement, worker_id: WorkerId) -> None:
        member = placement.on(worker_id)
        if member is None:
            return
        if isinstance(instance.state, Scheduled):
            fact = InstanceStarting if files_ready(self.fleet, member) else InstanceDownloading
            self._say(fact(instance_id=instance.id, worker_id=worker_id, attempt=placement.attempt))
        self._progressed(instance.id)

    def _healthy(self, instance: Instance, worker_id: WorkerId, seen: EngineSeen) -> None:
        if not seen.ports:
            return
        address, port = self.fleet.workers[worker_id].address, seen.ports[0]
        running = _running(instance)
        if running is not None and (running.address, running.port) == (address, port):
            if isinstance(instance.state, Unreachable):
                self._say(InstanceReachable(instance_id=instance.id, worker_id=worker_id, attempt=seen.attempt))
            return
        self._say(
            InstanceRunning(
                instance_id=instance.id, worker_id=worker_id, attempt=seen.attempt, address=address, port=port
            )
        )

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
        users = [
            (instance, placement, member)
            for instance in list(self.fleet.instances.values())
            if (placement := placement_of(instance.state)) is not None
            and (member := placement.on(worker_id)) is not None
            and file.id in member.file_ids
        ]
        match seen.phase:
            case "ready":
                if file.state == "wanted":
                    self._say(ModelFileReady(file_id=file.id, worker_id=worker_id, bytes=seen.bytes, paths=seen.paths))
                    for instance, placement, member in users:
                        if isinstance(instance.state, Downloading) and files_ready(self.fleet, member):
                            self._say(
                                InstanceStarting(
                                    instance_id=instance.id, worker_id=worker_id, attempt=placement.attempt
                                )
                            )
            case "failed":
                if file.state == "wanted":
                    reasons = tuple(reason.model_copy(update={"worker_id": worker_id}) for reason in seen.reasons)
                    self._say(ModelFileFailed(file_id=file.id, worker_id=worker_id, reasons=reasons))
                    for instance, _, _ in users:
                        if isinstance(instance.state, Scheduled | Downloading | Starting):
                            self._fail(instance, worker_id, reasons)
            case _:
                for instance, _, _ in users:
                    self._progressed(instance.id)

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
        if restarts:
            self._plan_restart(instance.id, crashes if to_blame else 0)

    def _plan_restart(self, instance_id: InstanceId, crashes: int) -> None:
        delay = restart_delay_seconds(crashes, self.policy)
        at = self._now.at + timedelta(seconds=delay)
        self._say(InstanceRestartPlanned(instance_id=instance_id, delay_seconds=delay, at=at))

    def _notice_silence(self) -> None:
        ready = [worker.id for worker in self.fleet.workers.values() if worker.state != "unreachable"]
        for worker_id in self.liveness.silent_agents(ready, self._now.monotonic):
            silent_for = round(self.liveness.agent_silent_for(worker_id, self._now.monotonic), 1)
            self._unreachable(
                worker_id, WorkerSilent(worker_id=worker_id, silent_seconds=silent_for), engines_gone=False
            )

    def _deadline(self, instance: Instance) -> None:
        state = instance.state
        seconds = seconds_in(instance, self.policy) or 0.0
        match state:
            case Scheduled(placement=placement):
                why = NotAccepted(worker_id=placement.leader.worker_id, after_seconds=seconds)
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

    def _move_away(self, instance: Instance) -> None:
        placement = placement_of(instance.state)
        if placement is not None:
            self._place(instance, not_on=frozenset(member.worker_id for member in placement.members))

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
        wish = self.fleet.wishes[instance.model_id]
        inspections = self.fleet.models.get(instance.model_id, Model()).inspections
        answer = place(Request(wish.spec, inspections, not_on), self.fleet, self._silent_downloaders())
        self._models.add(instance.model_id)
        match answer:
            case Placed(member=member, context=context):
                file_id = file_id_of(wish.spec.source, None, member.worker_id)
                file = self.fleet.files.get(file_id)
                if file is None or file.state == "failed":
                    self._say(ModelFileWanted(file_id=file_id, worker_id=member.worker_id, source=wish.spec.source))
                spec = wish.spec
                chosen = context is not None and find(spec.backend_parameters, gguf.CONTEXT_FLAGS) is None
                parameters = (f"--ctx-size={context}",) if chosen else ()
                launch = Launch(
                    model_name=spec.name,
                    generation=wish.generation,
                    backend=spec.backend,
                    backend_version=spec.backend_version,
                    source=spec.source,
                    parameters=(*parameters, *spec.backend_parameters),
                    env=spec.env,
                    start_timeout_seconds=spec.start_timeout_seconds,
                )
                members = (member.model_copy(update={"file_ids": (file_id,)}),)
                self._say(
                    InstanceScheduled(
                        instance_id=instance.id, attempt=instance.attempt + 1, launch=launch, members=members
                    )
                )
            case Refusal() if isinstance(instance.state, Pending | Failed):
                after = Pending(answer.reasons, answer.closest, answer.suggestions, explained=True)
                if instance.state != after:
                    self._say(
                        InstancePending(
                            instance_id=instance.id,
                            reasons=answer.reasons,
                            closest=answer.closest,
                            suggestions=answer.suggestions,
                        )
                    )
            case Refusal():
                pass

    # -- the shape of a decision --------------------------------------------------------------------------------------

    def _begin(self, now: Now) -> None:
        self._now = now
        self._decision = Decision(at=now.at)
        self._models = set()
        self._capacity_changed = False
        self._is_picture = False

    def _say(self, fact: Fact) -> None:
        before = self.fleet.instances.get(fact.instance_id) if isinstance(fact, InstanceFact) else None
        evolve(self.fleet, fact, self.fleet.seq, self._now.at)
        self._decision.facts.append(fact)
        if isinstance(fact, CAPACITY_FACTS):
            self._capacity_changed = True
        if isinstance(fact, InstanceFact):
            after = self.fleet.instances.get(fact.instance_id)
            self.deadlines.watch(fact.instance_id, after, self._now.monotonic)
            for instance in (before, after):
                if instance is not None:
                    self._models.add(instance.model_id)
                    if (placement := placement_of(instance.state)) is not None:
                        self._decision.workers.update(member.worker_id for member in placement.members)
        if isinstance(fact, ModelFileReady | ModelFileWanted | ModelFileFailed):
            self._decision.workers.add(fact.worker_id)

    def _settle(self) -> Decision:
        """What follows from what was said: pending instances get another look, models their status."""
        while self._capacity_changed:
            self._capacity_changed = False
            for instance in sorted(self.fleet.instances.values(), key=lambda i: i.id):
                current = self.fleet.instances.get(instance.id)
                if current is None:
                    continue
                if isinstance(current.state, Pending):
                    self._place(current)
                elif (isinstance(current.state, Unreachable) and current.state.evictable) or (
                    isinstance(current.state, Scheduled) and current.state.overdue
                ):
                    self._move_away(current)
        for model_id in sorted(self._models):
            fact = news(model_id, self.fleet.models.get(model_id, Model()), status_of(self.fleet, model_id))
            if fact is not None:
                self._say(fact)
        return self._decision

    def _progressed(self, instance_id: InstanceId) -> None:
        """Something was reported to have happened. A picture shows how things are: looking at them is no progress."""
        if self._is_picture:
            return
        self.deadlines.watch(instance_id, self.fleet.instances.get(instance_id), self._now.monotonic, progressed=True)

    def _silent_downloaders(self) -> frozenset[WorkerId]:
        return self.liveness.silent_downloaders(list(self.fleet.workers), self._now.monotonic)


def _running(instance: Instance) -> Running | None:
    """The engine that runs, or ran when its worker was last heard."""
    match instance.state:
        case Running():
            return instance.state
        case Unreachable(running=running):
            return running
        case _:
            return None
