"""Bugs on purpose: each makes one real thing wrong, in a way that somebody might. The simulation must find every one.

An invariant that has never failed is not yet a test: each one is the finder of at least one of these.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from unittest.mock import patch

from kernel.errors import Conflict
from kernel.log.memory import MemoryTail
from kernel.log.names import NameState
from kernel.log.port import Draft, EventLog, Guard, LogState, Position, Stored
from kernel.log.seal import Cause, seal_fact
from kernel.projections.changes import Batch, Change, Patch, PutChildren
from schemas.assignment import Assigned, Neighbour
from schemas.facts import (
    InstanceFailed,
    InstanceStopping,
    InstanceUnreachable,
    ModelInspected,
    WorkerInventoryChanged,
)
from schemas.facts.base import Fact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Claim, Member
from schemas.reports import EngineSeen, FileSeen, Report, WorkerObserved
from services.agent.domain import plan as planning
from services.agent.domain.plan import Plan
from services.api.adapters import writer as writer_module
from services.api.adapters.feed import Feed
from services.api.adapters.writer import Writer
from services.api.domain import routing
from services.api.projections import fleet as projection
from services.scheduler import process
from services.scheduler.adapters import board, snapshots
from services.scheduler.domain import assignments, core, deadlines, fleet, gangs, liveness, placing, rollout, traffic
from services.scheduler.domain.boots import Boots
from services.scheduler.domain.core import Core, Decision, Now
from services.scheduler.domain.draining import is_draining
from services.scheduler.domain.fleet import File, Fleet, OpenClaim, Worker, claim_key
from services.scheduler.domain.instance import (
    Failed,
    Instance,
    Placement,
    Starting,
    Stopping,
    Unreachable,
    placement_of,
)
from services.scheduler.domain.machines import Lifted, Machines
from services.scheduler.domain.peaks import Peak, Peaks
from services.scheduler.domain.snapshot import Machine
from services.scheduler.process import Reign
from tests.simulation.api import SimulatedFeed
from tests.simulation.history import Told, tell
from tests.simulation.invariants import Invariant
from tests.simulation.lines import Line

# pyright: reportPrivateUsage=false
# What is broken on purpose is often private.


@dataclass(frozen=True, slots=True)
class Planted:
    name: str
    what: str
    found_by: frozenset[Invariant]
    """Any of these may be the first to notice."""
    plant: Callable[[], AbstractContextManager[object]]
    likely: int = 0
    """A seed from which on a rare one was found soon, to save time; any other would do."""


PLANTED: Final[list[Planted]] = []


def find(bug: Planted, within: int, first: int = 0) -> tuple[int, Told]:
    """The first history in which something does not hold, and how many it took."""
    told = Told(0, 0, 0)
    for seed in range(first, first + within):
        with bug.plant():
            told = tell(seed)
        if told.invariant is not None:
            return seed - first + 1, told
    return within, told


def planted(*found_by: Invariant, likely: int = 0) -> Callable[[Callable[[], Generator[None]]], None]:
    """The function plants the bug, yields, and takes it out again; its docstring says what is wrong."""

    def note(plant: Callable[[], Generator[None]]) -> None:
        name = plant.__name__
        PLANTED.append(Planted(name, plant.__doc__ or "", frozenset(found_by), contextmanager(plant), likely))

    return note


def _always(*_given: object) -> bool:
    return True


def _never(*_given: object) -> bool:
    return False


def _nothing(*_given: object) -> None:
    return


# -- memory ---------------------------------------------------------------------------------------------------------------


@planted(Invariant.MEMORY)
def claims_end_with_the_attempt() -> Generator[None]:
    """InstanceFailed frees the memory although the engine was not seen gone."""
    real = fleet._instance

    def wrong(state: Fleet, fact: Any, at: datetime) -> None:
        real(state, fact, at)
        if isinstance(fact, InstanceFailed):
            state.close_claim(claim_key(fact.instance_id, fact.attempt, fact.worker_id))

    with patch.object(fleet, "_instance", wrong):
        yield


@planted(Invariant.MEMORY, Invariant.ENGINES)
def claims_end_with_silence() -> Generator[None]:
    """A worker that is not heard frees what its instances claim."""
    real = fleet._instance

    def wrong(state: Fleet, fact: Any, at: datetime) -> None:
        real(state, fact, at)
        if isinstance(fact, InstanceUnreachable):
            state.close_claim(claim_key(fact.instance_id, fact.attempt, fact.worker_id))

    with patch.object(fleet, "_instance", wrong):
        yield


@planted(Invariant.MEMORY)
def an_unhealthy_engine_is_taken_for_gone() -> Generator[None]:
    """What lives and does not answer is taken for dead: its memory is promised again at once."""
    real = Core._fail

    def wrong(self: Core, instance: Instance, worker_id: WorkerId, reasons: Any, **rest: Any) -> None:
        rest["engine_gone"] = True
        real(self, instance, worker_id, reasons, **rest)

    with patch.object(Core, "_fail", wrong):
        yield


@planted(Invariant.MEMORY)
def placement_forgets_claims_of_ram() -> Generator[None]:
    """What is promised of a worker's RAM is still free."""
    real = Machine.promise

    def wrong(self: Machine, model_id: ModelId | None, kind: str | None, claim: Claim) -> None:
        real(self, model_id, kind, claim)
        self.ram_free += claim.ram

    with patch.object(Machine, "promise", wrong):
        yield


@planted(Invariant.MEMORY, Invariant.ENGINES, likely=77)
def any_picture_counts() -> Generator[None]:
    """A picture that was made before the assignment was read says that the engine is gone."""
    with patch.object(Core, "_could_have_seen", _always):
        yield


# -- gangs ----------------------------------------------------------------------------------------------------------------


@planted(Invariant.GANGS)
def a_lost_follower_is_not_missed() -> Generator[None]:
    """A gang is reached as long as its leader is."""
    real = gangs.silent_members

    def wrong(state: Fleet, placement: Placement) -> list[Worker]:
        return [worker for worker in real(state, placement) if worker.id == placement.leader.worker_id]

    with patch.object(core, "silent_members", wrong):
        yield


@planted(Invariant.GANGS)
def only_the_leaders_claim_is_freed() -> Generator[None]:
    """What is heard of the end of a follower frees nothing."""
    real = Core._attempt_ended

    def wrong(self: Core, worker_id: WorkerId, instance: Instance, attempt: int) -> None:
        placement = placement_of(instance.state)
        if placement is None or placement.leader.worker_id == worker_id or placement.on(worker_id) is None:
            real(self, worker_id, instance, attempt)

    with patch.object(Core, "_attempt_ended", wrong):
        yield


@planted(Invariant.GANGS)
def a_follower_answers_for_all() -> Generator[None]:
    """The first member that is healthy makes the gang Running, at its address."""
    real = Core._engine

    def wrong(self: Core, worker_id: WorkerId, seen: EngineSeen) -> None:
        instance = self.fleet.instances.get(seen.instance_id)
        placement = placement_of(instance.state) if instance is not None else None
        is_member = placement is not None and placement.on(worker_id) is not None
        if is_member and instance is not None and seen.phase == "healthy" and seen.attempt == instance.attempt:
            if not isinstance(instance.state, Stopping | Failed):
                self._healthy(instance, worker_id, seen)
        else:
            real(self, worker_id, seen)

    with patch.object(Core, "_engine", wrong):
        yield


@planted(Invariant.GANGS)
def one_members_files_are_enough() -> Generator[None]:
    """A gang starts when the files are ready where it is led from."""

    def wrong(state: Fleet, placement: Placement) -> bool:
        return assignments.files_ready(state, placement.leader)

    with patch.object(core, "all_files_ready", wrong), patch.object(assignments, "all_files_ready", wrong):
        yield


@planted(Invariant.GANGS, likely=16)
def one_acceptance_is_enough() -> Generator[None]:
    """A gang is taken up when one of its members has done so."""

    def wrong(_self: gangs.TakenUp, _instance_id: InstanceId, _placement: Placement) -> list[WorkerId]:
        return []

    with patch.object(gangs.TakenUp, "missing", wrong):
        yield


@planted(Invariant.GANGS, likely=63)
def members_of_what_failed_run_on() -> Generator[None]:
    """The others of a gang stay assigned when one has failed."""
    real = assignments.assigned_to

    def wrong(state: Fleet, worker_id: WorkerId, election: int, **more: Any) -> Assigned:
        before = dict(state.instances)
        for instance in before.values():
            failed = instance.state
            if isinstance(failed, Failed) and failed.placement is not None and len(failed.placement.members) > 1:
                state.instances[instance.id] = replace(instance, state=Starting(failed.placement))
        document = real(state, worker_id, election, **more)
        state.instances.update(before)
        return document

    with patch.object(process, "assigned_to", wrong):
        yield


@planted(Invariant.MEMORY)
def followers_are_promised_nothing() -> Generator[None]:
    """Placement takes the memory of a gang's followers for free."""
    real = Fleet.open_claim

    def wrong(self: Fleet, claim: OpenClaim) -> None:
        follows = any(each.attempt == claim.attempt for each in self.claims_of(claim.instance_id))
        real(self, claim)
        if follows:
            self.machines.release(claim.worker_id, claim.model_id, claim.accelerator, claim.claim)

    with patch.object(Fleet, "open_claim", wrong):
        yield


@planted(Invariant.CONVERGES)
def who_is_too_small_alone_is_never_asked_again() -> Generator[None]:
    """A worker that could only be a member is not asked again about files that it could not find."""
    with patch.object(placing, "OF_CAPACITY", None):
        yield


# -- fences ---------------------------------------------------------------------------------------------------------------


@planted(Invariant.FENCE)
def appends_are_not_guarded() -> Generator[None]:
    """The facts of a scheduler carry no guard."""

    async def wrong(
        log: EventLog, election: Any, clock: Any, decided: list[tuple[Fact, Cause]], *, at: datetime | None = None
    ) -> tuple[list[Draft], tuple[int, ...]]:
        source = f"/muster/scheduler/{election.replica}"
        drafts = [
            seal_fact(fact, event_id=clock.new_id(), at=at or clock.now(), source=source, cause=cause)
            for fact, cause in decided
        ]
        return drafts, await log.append(drafts)

    with patch.object(process, "append_as_elected", wrong):
        yield


@planted(Invariant.FENCE)
def the_board_is_not_guarded() -> Generator[None]:
    """Who was deposed publishes over the newer documents."""

    async def wrong(self: Any, document: Assigned) -> None:
        found = self._bus.assignments.documents.get(document.worker_id)
        self._sequences[document.worker_id] = found[0] if found else 0

    with patch.object(board.Board, "_look_up", wrong):
        yield


# -- files ----------------------------------------------------------------------------------------------------------------


@planted(Invariant.FILES)
def deletions_ask_nobody() -> Generator[None]:
    """Files are deleted while engines run from them."""

    def wrong(_self: Core, _file: File) -> tuple[str, ...]:
        return ()

    with patch.object(Core, "_engines_on", wrong):
        yield


@planted(Invariant.FILES, likely=130)
def deletions_ask_only_who_is_well() -> Generator[None]:
    """An engine that failed, or whose attempt is not the newest, is taken for gone with its files."""

    def wrong(self: Core, file: File) -> tuple[str, ...]:
        return tuple(each.name for each, _ in self._users_of(file) if not isinstance(each.state, Failed))

    with patch.object(Core, "_engines_on", wrong):
        yield


@planted(Invariant.FILES)
def everybody_asks_the_hub() -> Generator[None]:
    """Nobody is told who else is to have the same files."""

    def wrong(_state: Fleet, _file: File) -> tuple[Neighbour, ...]:
        return ()

    with patch.object(assignments, "_neighbours", wrong):
        yield


@planted(Invariant.FILES)
def whoever_was_first_is_waited_for() -> Generator[None]:
    """Workers are sent to one that is not heard any more."""
    with patch.object(assignments, "_is_heard", _always):
        yield


@planted(Invariant.FILES)
def nobody_hears_that_the_first_one_is_lost() -> Generator[None]:
    """Whoever waits for a neighbour's files is not told when it can't be reached."""
    with patch.object(Core, "_neighbour_changed", _nothing):
        yield


@planted(Invariant.FILES)
def open_requests_are_found_again() -> Generator[None]:
    """What a user asked that needed nothing then is done by a later scheduler, when it does."""

    def wrong(_self: Core, fact: Fact) -> Fact:
        return fact

    with patch.object(Core, "_with_open_request", wrong):
        yield


@planted(Invariant.FILES, likely=290)
def the_branch_is_followed() -> Generator[None]:
    """Each scheduler pins a branch to whatever some worker said of it."""

    def wrong(_pins: object, _inspection: object) -> tuple[object, ...]:
        return ()

    with patch.object(fleet, "_with_pins", wrong):
        yield


# -- late and forged reports ----------------------------------------------------------------------------------------------


@planted(Invariant.REPORTS, Invariant.ROUTES, Invariant.MEMORY, Invariant.QUIET)
def any_attempt_counts() -> Generator[None]:
    """A report about a former attempt is taken for one about the newest."""
    real = Core._engine

    def wrong(self: Core, worker_id: WorkerId, seen: EngineSeen) -> None:
        instance = self.fleet.instances.get(seen.instance_id)
        if instance is not None and instance.attempt:
            seen = seen.model_copy(update={"attempt": instance.attempt})
        real(self, worker_id, seen)

    with patch.object(Core, "_engine", wrong):
        yield


@planted(Invariant.REPORTS, likely=139)
def any_wish_counts() -> Generator[None]:
    """The answer to a former wish for a file is taken for one to the newest."""
    real = Core._file

    def wrong(self: Core, worker_id: WorkerId, seen: FileSeen) -> None:
        file = self.fleet.files.get(seen.file_id)
        real(self, worker_id, seen.model_copy(update={"wanted": file.wanted}) if file else seen)

    with patch.object(Core, "_file", wrong):
        yield


@planted(Invariant.REPLAY)
def counters_are_not_checked() -> Generator[None]:
    """A report that comes twice, or after a newer one, is heard again."""
    real = Core.heard

    def wrong(self: Core, report: Report, now: Now) -> Decision:
        self.boots = Boots()
        return real(self, report, now)

    with patch.object(Core, "heard", wrong):
        yield


# -- routes ---------------------------------------------------------------------------------------------------------------


@planted(Invariant.ROUTES)
def the_oldest_attempt_is_routed_to() -> Generator[None]:
    """All attempts that ever ran stay, and the oldest answers."""
    real = routing.Routes.evolve

    def wrong(self: routing.Routes, fact: Any) -> None:
        before = dict(self.endpoints.get(InstanceId(getattr(fact, "instance_id", "")), {}))
        real(self, fact)
        if fact.type == "InstanceRunning" and before:
            self.endpoints[fact.instance_id] = {min(before): before[min(before)]}

    with patch.object(routing.Routes, "evolve", wrong):
        yield


@planted(Invariant.ROUTES)
def what_stops_is_still_routed_to() -> Generator[None]:
    """InstanceStopping takes nothing out of routing."""
    real = routing.Routes.evolve

    def wrong(self: routing.Routes, fact: Fact) -> None:
        if not isinstance(fact, InstanceStopping):
            real(self, fact)

    with patch.object(routing.Routes, "evolve", wrong):
        yield


# -- reasons --------------------------------------------------------------------------------------------------------------


@planted(Invariant.REASONS)
def the_projection_drops_reasons() -> Generator[None]:
    """What fails has no reason in the read models."""
    real = projection._instance

    def wrong(fact: Any, happened: Any) -> Iterable[Change]:
        for change in real(fact, happened):
            if not (isinstance(fact, InstanceFailed) and isinstance(change, PutChildren)):
                yield change

    with patch.object(projection, "_instance", wrong):
        yield


@planted(Invariant.REASONS)
def reasons_stay_behind() -> Generator[None]:
    """The reasons of a state are not taken away with it."""
    real = projection._instance

    def wrong(fact: Any, happened: Any) -> Iterable[Change]:
        for change in real(fact, happened):
            if not (fact.type == "InstanceScheduled" and isinstance(change, PutChildren)):
                yield change

    with patch.object(projection, "_instance", wrong):
        yield


@planted(Invariant.REASONS, Invariant.CONVERGES)
def who_takes_over_places_nothing() -> Generator[None]:
    """Instances whose scheduler died before it looked for a place are not looked at."""
    real = Core.took_over

    def wrong(self: Core, now: Now) -> Decision:
        with patch.object(self, "_place_pending", _nothing):
            return real(self, now)

    with patch.object(Core, "took_over", wrong):
        yield


# -- replay ---------------------------------------------------------------------------------------------------------------


@planted(Invariant.REPLAY)
def the_snapshot_lacks_a_field() -> Generator[None]:
    """A snapshot without what operators asked for."""
    real = snapshots.dump

    def wrong(state: Fleet, log_state: LogState) -> bytes:
        return real(replace(state, deletion_requests=set[InstanceId]()), log_state)

    with patch.object(snapshots, "dump", wrong):
        yield


@planted(Invariant.REPLAY, Invariant.ALIVE)
def the_tail_begins_too_late() -> Generator[None]:
    """The first fact after a snapshot is left out."""
    real = Line.tail

    def wrong(self: Line, subject_filters: Sequence[str], *, after: int) -> MemoryTail:
        return real(self, subject_filters, after=after + 1 if after else 0)

    with patch.object(Line, "tail", wrong):
        yield


@planted(Invariant.REPLAY)
def snapshots_are_saved_in_doubt() -> Generator[None]:
    """A snapshot may hold what was decided and never got into the log."""
    real = Reign._save_snapshot

    async def wrong(self: Reign) -> None:
        self._in_doubt = False
        await real(self)

    with patch.object(Reign, "_save_snapshot", wrong):
        yield


@planted(Invariant.REPLAY, Invariant.REASONS)
def batches_drop_what_follows() -> Generator[None]:
    """Of two changes of one row in a batch the first one wins."""
    real = Batch.add

    def wrong(self: Batch, change: Change) -> None:
        if isinstance(change, Patch):
            of = self._tables[change.table]
            before = of.patches.get(change.key, {})
            change = Patch(change.table, change.key, {**change.columns, **before})
        real(self, change)

    with patch.object(Batch, "add", wrong):
        yield


@planted(Invariant.REPLAY)
def time_is_taken_twice() -> Generator[None]:
    """The fact is folded with another moment than it is stored with."""
    real = Core._say

    def wrong(self: Core, fact: Fact) -> None:
        now, self._now = self._now, replace(self._now, at=self._now.at.replace(microsecond=1))
        real(self, fact)
        self._now = now

    with patch.object(Core, "_say", wrong):
        yield


# -- engines --------------------------------------------------------------------------------------------------------------


@planted(Invariant.ENGINES)
def what_is_unreachable_is_not_assigned() -> Generator[None]:
    """The assignment forgets instances whose worker is not heard: they are stopped when it is back."""
    real = assignments.assigned_to

    def wrong(state: Fleet, worker_id: WorkerId, election: int, **more: Any) -> Assigned:
        document = real(state, worker_id, election, **more)
        kept = tuple(i for i in document.instances if not isinstance(state.instances[i.instance_id].state, Unreachable))
        return document.model_copy(update={"instances": kept})

    with patch.object(process, "assigned_to", wrong):
        yield


@planted(Invariant.ENGINES)
def nothing_is_ever_stopped() -> Generator[None]:
    """The agent's plan has no stops."""
    real = planning.plan

    def wrong(*given: Any, **named: Any) -> Plan:
        return replace(real(*given, **named), stop=())

    with patch.object(planning, "plan", wrong):
        yield


@planted(Invariant.ENGINES)
def nobody_brakes() -> Generator[None]:
    """Instances are moved although half of the fleet fell silent at once."""
    with patch.object(liveness.Liveness, "braked", _never):
        yield


@planted(Invariant.ENGINES, Invariant.MEMORY, likely=29)
def an_older_assignment_counts() -> Generator[None]:
    """An agent takes whatever document it is given."""
    with patch.object(Assigned, "is_newer_than", _always):
        yield


# -- requests in flight ---------------------------------------------------------------------------------------------------


@planted(Invariant.STREAMS)
def nobody_waits_for_requests() -> Generator[None]:
    """An instance has drained as soon as it is looked at."""
    with patch.object(traffic.Traffic, "is_quiet", _always):
        yield


@planted(Invariant.STREAMS, likely=949)
def what_a_gateway_knows_is_not_asked() -> Generator[None]:
    """A gateway that counts nothing is believed, though it may send the next request there still."""
    real = traffic.Traffic.is_quiet

    def wrong(self: traffic.Traffic, instance_id: InstanceId, _since_seq: int, now: float) -> bool:
        return real(self, instance_id, 0, now)

    with patch.object(traffic.Traffic, "is_quiet", wrong):
        yield


@planted(Invariant.STREAMS)
def who_takes_over_takes_silence_for_quiet() -> Generator[None]:
    """Nobody has told what is in flight yet, so nothing is."""
    with patch.object(traffic, "LISTEN_SECONDS", 0.0):
        yield


@planted(Invariant.STREAMS)
def what_drains_is_not_assigned() -> Generator[None]:
    """The assignment forgets an instance as soon as it is to stop."""
    with patch.object(assignments, "is_draining", _never):
        yield


@planted(Invariant.CONVERGES, likely=18)
def a_drain_may_take_for_ever() -> Generator[None]:
    """No deadline is armed for what finishes its requests."""
    real = deadlines.seconds_in

    def wrong(instance: Instance, policy: Any) -> float | None:
        return None if is_draining(instance) else real(instance, policy)

    with patch.object(deadlines, "seconds_in", wrong):
        yield


# -- convergence ----------------------------------------------------------------------------------------------------------


@planted(Invariant.CONVERGES)
def a_start_may_take_for_ever() -> Generator[None]:
    """No deadline is armed for what starts."""
    real = deadlines.seconds_in

    def wrong(instance: Instance, policy: Any) -> float | None:
        return None if isinstance(instance.state, Starting) else real(instance, policy)

    with patch.object(deadlines, "seconds_in", wrong):
        yield


@planted(Invariant.GANGS, Invariant.CONVERGES)
def the_end_of_a_stop_is_not_heard() -> Generator[None]:
    """An engine that was stopped frees nothing."""
    real = Core._attempt_ended

    def wrong(self: Core, worker_id: WorkerId, instance: Instance, attempt: int) -> None:
        if not isinstance(instance.state, Stopping):
            real(self, worker_id, instance, attempt)

    with patch.object(Core, "_attempt_ended", wrong):
        yield


@planted(Invariant.CONVERGES, Invariant.GANGS)
def who_takes_over_completes_nothing() -> Generator[None]:
    """What the former scheduler left half done stays so."""
    with patch.object(Core, "_complete", _nothing):
        yield


@planted(Invariant.CONVERGES, likely=86)
def one_instance_too_many() -> Generator[None]:
    """What is being stopped is replaced, also where it is not wanted any more."""
    real = Core._deletion_requested

    def wrong(self: Core, instance_id: InstanceId) -> None:
        instance = self.fleet.instances.get(instance_id)
        real(self, instance_id)
        if instance is not None and not isinstance(instance.state, Stopping):
            number = self.fleet.models[instance.model_id].created
            name = InstanceId(f"i-{instance.model_id.removeprefix('m-')}-{number}")
            self._say(core.InstanceCreated(instance_id=name, model_id=instance.model_id, name=name))

    with patch.object(Core, "_deletion_requested", wrong):
        yield


@planted(Invariant.CONVERGES, Invariant.REASONS)
def a_label_changes_nothing() -> Generator[None]:
    """Pending instances are not looked at again when an operator uncordons a worker."""
    real = Machines.lift

    def wrong(self: Machines, worker_id: WorkerId, what: Lifted) -> None:
        real(self, worker_id, what & ~Lifted.STATE)

    with patch.object(Machines, "lift", wrong):
        yield


@planted(Invariant.CONVERGES, Invariant.REASONS, likely=16)
def freed_memory_wakes_nobody() -> Generator[None]:
    """Pending instances are not looked at again when something ends."""
    real = Machines.lift

    def wrong(self: Machines, worker_id: WorkerId, what: Lifted) -> None:
        real(self, worker_id, what & ~Lifted.MEMORY)

    with patch.object(Machines, "lift", wrong):
        yield


@planted(Invariant.CONVERGES, Invariant.REASONS)
def nothing_is_replaced_after_an_edit() -> Generator[None]:
    """Instances of a former revision are stopped, and none is made in their stead."""
    real = rollout.next_step

    def wrong(*given: Any) -> rollout.Step:
        return replace(real(*given), create=0)

    with patch.object(core, "next_step", wrong):
        yield


# -- writes ---------------------------------------------------------------------------------------------------------------


@planted(Invariant.WRITES)
def changes_are_not_guarded() -> Generator[None]:
    """A change is written over whatever somebody else has written meanwhile."""

    def wrong(_model_id: ModelId, _name: str, _sequence: int) -> Guard:
        return Guard("muster.facts.nobody", 0)

    with patch.object(writer_module, "_part_of", wrong):
        yield


@planted(Invariant.WRITES)
def names_are_free() -> Generator[None]:
    """Whoever asks is told that the name is free, and takes it without a guard."""

    async def wrong(_log: EventLog, _kind: str, _name: str) -> NameState:
        return NameState(Guard("muster.facts.nobody", 0), None, None)

    with patch.object(writer_module, "look_up_name", wrong):
        yield


@planted(Invariant.WRITES, Invariant.ROUTES)
def a_rename_is_two_appends() -> Generator[None]:
    """The old name is given up before the new one is taken."""
    real = Writer._append

    async def wrong(self: Writer, caller: Any, *facts: Any) -> tuple[int, ...]:
        found: list[int] = []
        for fact in facts:
            found.extend(await real(self, caller, fact))
            if len(facts) > 1 and self._clock.monotonic() % 1 < 0.3 and len(found) == 1:
                raise Conflict("somebody else was faster")
        return tuple(found)

    with patch.object(Writer, "_append", wrong):
        yield


@planted(Invariant.WRITES)
def a_command_is_done_again() -> Generator[None]:
    """What was done before under the same Idempotency-Key is not looked for."""

    async def wrong(_self: Writer, _caller: Any, _model: str, write: Callable[[], Any]) -> Any:
        return await write()

    async def another_name(log: EventLog, kind: str, name: str) -> NameState:
        found = await _LOOK_UP(log, kind, name)
        return replace(found, bearer=None) if found.last is not None and found.last.envelope.commandid else found

    with patch.object(Writer, "once", wrong), patch.object(writer_module, "look_up_name", another_name):
        yield


_LOOK_UP = writer_module.look_up_name


@planted(Invariant.WRITES)
def acknowledged_before_it_is_written() -> Generator[None]:
    """A write that failed is acknowledged with the sequence that it would have had."""
    real = Writer._append

    async def wrong(self: Writer, caller: Any, *facts: Any) -> tuple[int, ...]:
        try:
            return await real(self, caller, *facts)
        except Conflict:
            last = (await self._log.state()).last_sequence
            return tuple(range(last + 1, last + 1 + len(facts)))

    with patch.object(Writer, "_append", wrong):
        yield


# -- watchers -------------------------------------------------------------------------------------------------------------


@planted(Invariant.WATCHERS)
def slow_watchers_miss_one() -> Generator[None]:
    """Who is behind what is kept in memory goes on one event too late."""
    real = SimulatedFeed._from_database

    async def wrong(self: SimulatedFeed, after: int) -> list[Stored]:
        return await real(self, after + 1)

    with patch.object(SimulatedFeed, "_from_database", wrong):
        yield


@planted(Invariant.WATCHERS)
def who_resumes_begins_at_the_head() -> Generator[None]:
    """Last-Event-ID is not looked at."""

    def wrong(self: Feed, _position: Position | None) -> int:
        return self.head

    with patch.object(Feed, "resume_from", wrong):
        yield


@planted(Invariant.WATCHERS)
def what_is_kept_is_not_what_is_counted() -> Generator[None]:
    """Of the newest events that are kept in memory the oldest is let go without its number."""
    real = Feed._let_go

    def wrong(self: Feed) -> None:
        real(self)
        if len(self._kept) > 15:
            del self._kept[0]

    with patch.object(Feed, "_let_go", wrong):
        yield


# -- no news --------------------------------------------------------------------------------------------------------------


@planted(Invariant.QUIET, Invariant.REPLAY)
def every_picture_is_news() -> Generator[None]:
    """An inventory is stated whenever it is seen."""
    real = Core._observed

    def wrong(self: Core, report: WorkerObserved) -> None:
        real(self, report)
        self._say(
            WorkerInventoryChanged(
                worker_id=report.worker_id, inventory=report.inventory, agent_version=report.agent_version
            )
        )

    with patch.object(Core, "_observed", wrong):
        yield


@planted(Invariant.QUIET)
def every_inspection_is_news() -> Generator[None]:
    """What a downloader says again is stated again."""
    real = Core.inspected

    def wrong(self: Core, question: Any, answer: Any, now: Now) -> Decision:
        decision = real(self, question, answer, now)
        wish = self.fleet.wishes.get(question.model_id)
        known = question.worker_id in self.fleet.workers and wish is not None and not wish.deleted
        if not decision.facts and known and wish is not None and wish.generation == question.generation:
            self._say(
                ModelInspected(
                    model_id=question.model_id,
                    worker_id=question.worker_id,
                    generation=question.generation,
                    weights=answer.weights,
                    reasons=answer.reasons,
                )
            )
        return decision

    with patch.object(Core, "inspected", wrong):
        yield


# -- alive ----------------------------------------------------------------------------------------------------------------


@planted(Invariant.REPORTS, likely=16)
def any_worker_measures_an_engine() -> Generator[None]:
    """A peak is believed of a worker that does not run the attempt."""
    real = Core._measured

    def wrong(self: Core, instance: Instance, placement: Placement, worker_id: WorkerId, seen: EngineSeen) -> None:
        there = Member(worker_id=worker_id, address="")
        members = placement.members if placement.on(worker_id) else (there,)
        real(self, instance, replace(placement, members=members), worker_id, seen)

    with patch.object(Core, "_measured", wrong):
        yield


@planted(Invariant.QUIET)
def every_peak_is_stated() -> Generator[None]:
    """Also one that is not above what is known."""

    def wrong(_known: Peaks, told: Peak) -> Peak | None:
        return told if told.ram_bytes else None

    with patch.object(core, "peak_news", wrong):
        yield


@planted(Invariant.ALIVE, likely=8)
def a_report_of_a_stranger_is_looked_up() -> Generator[None]:
    """A report about an instance that is not there makes the scheduler fail."""
    real = Core._engine

    def wrong(self: Core, worker_id: WorkerId, seen: EngineSeen) -> None:
        if self.fleet.instances[seen.instance_id]:
            real(self, worker_id, seen)

    with patch.object(Core, "_engine", wrong):
        yield
