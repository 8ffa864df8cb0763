"""The scheduler in a simulation: the real `Reign`, but for what waits.

`services/scheduler/process.py` appends, publishes, folds, guards and saves here as it does in production. Mirrored, because
the originals wait for NATS in tasks of their own: `run` (`begin`), `_decide` and `_wait_for_inputs` (`decide`),
`_follow_api`, `_follow_reports`, `_listen_to_beats` and `_listen_to_gateways` (`hear…`), `_inspect` (`ask`, `answered`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

from kernel.bus import Bus
from kernel.errors import Deposed, Unavailable
from kernel.log.election import elect
from kernel.log.port import LogState, Stored
from kernel.log.seal import Cause
from schemas.asks import ModelInspection
from schemas.ids import WorkerId
from schemas.reasons import InspectionFailed
from schemas.reports import RequestsInFlight
from services.scheduler.adapters import snapshots
from services.scheduler.domain.core import Core, Decision, Now, Question
from services.scheduler.domain.fleet import Fleet
from services.scheduler.process import Reign, parse_report
from services.scheduler.settings import SchedulerSettings
from tests.simulation.clock import VirtualClock, finish
from tests.simulation.lines import Line, SchedulerBus

if TYPE_CHECKING:
    from kernel.log.jetstream import JetStreamLog
    from services.scheduler.adapters.snapshots import SnapshotStore

DRAIN_SECONDS: Final = 20.0
"""Short, so that in a history some requests are over before it and some are not."""
Asking = Callable[[WorkerId], None]


class Snapshots:
    """The object store: the newest snapshot's bytes. `on_save` sees the fleet that is saved."""

    def __init__(self, on_save: Callable[[Fleet], None]) -> None:
        self.body: bytes | None = None
        self.saved = 0
        self._on_save = on_save

    async def load(self, state: LogState) -> Fleet | None:
        return None if self.body is None else snapshots.parse(self.body, state)

    async def save(self, fleet: Fleet, state: LogState) -> None:
        self.body = snapshots.dump(fleet, state)
        self.saved += 1
        read = snapshots.parse(self.body, state)
        if read is not None:
            self._on_save(read)


class SimulatedReign(Reign):
    def __init__(
        self,
        name: str,
        line: Line,
        bus: SchedulerBus,
        store: Snapshots,
        clock: VirtualClock,
        look: Asking,
        inspect: Callable[["SimulatedReign", Question], None],
        *,
        snapshot_every: int,
        claims_from_peak: bool,
        most_facts: int,
    ) -> None:
        settings = SchedulerSettings(
            replica=name,
            snapshot_every=snapshot_every,
            claims_from_peak=claims_from_peak,
            drain_seconds=DRAIN_SECONDS,
        )
        self._most_facts = most_facts
        super().__init__(cast("Bus", bus), settings, clock)
        self.name = name
        self.line = line
        self.bus = bus
        self.paused = False
        self.ends_at: float | None = None
        """When it notices by itself that its lease is lost."""
        self.decisions = 0
        self._log = cast("JetStreamLog", line)
        self._snapshots = cast("SnapshotStore", store)
        self._looks = look
        self._inspects = inspect
        self._read = 0
        self.again: list[tuple[str, Decision]] = []
        """What was decided on reports that were no news, for the invariant that says: nothing."""

    @property
    def is_settled(self) -> bool:
        """Everything that is to be decided is, and is known to be in the log."""
        return self.core is not None and not self._in_doubt and not self.core.has_more

    @property
    def has_inputs(self) -> bool:
        return bool(self._taken) or not self._inputs.empty() or (self.core is not None and self.core.has_more)

    @property
    def followed(self) -> int:
        return self._followed

    def stand(self) -> None:
        """Be elected. Raises Conflict, Unavailable."""
        self.election = finish(elect(self._log, self._clock, self.name))

    def begin(self) -> None:
        """`run`, up to where it decides. Raises Deposed, Unavailable, Corrupt."""
        if self.election is None:
            raise Deposed("not elected")
        fleet = finish(self.fold_up_to(self.election.sequence))
        policy = replace(self._settings.policy(), most_facts=self._most_facts)
        core = self.core = Core(fleet, policy, self._now())
        self._followed = self._read = self.election.sequence
        self._in_doubt = True
        workers = set(fleet.workers)
        finish(self._append((core.took_over(self._now()), Cause(actor="scheduler"))))
        finish(self._publish(workers | set(fleet.workers), always=True))

    def decide(self) -> None:
        """One round of `_decide`."""
        self.decisions += 1
        for question in finish(self._decide_once()):
            self._inspects(self, question)

    def end(self) -> None:
        """`run`, after it was interrupted."""
        if self._since_snapshot:
            finish(self._save_snapshot())

    # -- what comes in ------------------------------------------------------------------------------------------------

    def hear_api(self) -> None:
        for entry in self.line.log.entries[self._read :]:
            self._read = entry.sequence
            if entry.fact.owner == "api":
                finish(self._put(self._wish(entry.stored)))

    def hear_report(self, event: Stored) -> None:
        found = parse_report(event)
        if found is None:
            return
        report, envelope = found
        decide = self._heard(report, envelope)
        role = "downloader" if report.kind in ("file", "files") else "agent"

        def heard(now: Now) -> tuple[Decision, Cause]:
            was_heard = self._core.boots.heard_of(report, role)
            decision, cause = decide(now)
            if was_heard:
                self.again.append((f"{report.type} {report.counter} of {report.worker_id}", decision))
            return decision, cause

        finish(self._put(heard))

    def hear_beat(self, worker_id: WorkerId, role: str, boot_id: str) -> None:
        if self.core is not None:  # nobody listens before
            finish(self._beat(worker_id, role, boot_id))

    def hear_requests(self, told: RequestsInFlight) -> None:
        if self.core is not None and not self.paused:
            finish(self._requests(told))

    async def _ask_to_look(self, worker_id: WorkerId) -> None:
        self._looks(worker_id)

    def answered(self, question: Question, answer: ModelInspection | None) -> None:
        """The end of `_inspect`; None: nobody answered in time."""
        answer = answer or ModelInspection(reasons=(InspectionFailed(problem="no answer"),))
        self._asking.discard(question)
        cause = Cause(actor=f"worker/{question.worker_id}")
        finish(self._put(lambda now: (self._core.inspected(question, answer, now), cause)))


INTERRUPTED = (Deposed, Unavailable)
