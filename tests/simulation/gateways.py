"""Gateways and the requests that they pass on. Routes and counts are the real ones; mirrored is what waits for HTTP:
`services/api/adapters/gateway/proxy.py` (`forward`), `counts.py` beside it, and how `services/api/process.py` folds the routes.
"""

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from schemas.facts import InstanceDrained
from schemas.ids import InstanceId
from schemas.reports import RequestsInFlight
from services.agent.domain.runtime import EngineId
from services.api.adapters.gateway.counts import TELL_SECONDS
from services.api.domain.routing import Endpoint, Routes
from tests.simulation.clock import VirtualClock
from tests.simulation.invariants import Broken, Invariant, Ledger
from tests.simulation.lines import Entry
from tests.simulation.worker import Engine, Machine

LASTS_SECONDS: Final = (0.2, 1.0, 3.0, 8.0, 15.0, 70.0)
AN_INSTANT: Final = 1e-6
"""Sums of seconds are as exact as that."""
CALM_SECONDS: Final = 1.0
Tell = Callable[["Gateway", RequestsInFlight, bool], None]
"""Bring it to whoever listens; True: before anything else happens."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """One client's request, and the engine that answers it."""

    instance_id: InstanceId
    engine: Engine
    machine: Machine
    ends_at: float

    def is_over(self, now: float) -> bool:
        return now >= self.ends_at or self.machine.engines.get(self.engine.id) is not self.engine


class Gateway:
    def __init__(self, name: str, entries: list[Entry], tell: Tell) -> None:
        self.name = name
        self.requests: list[InFlight] = []
        self.is_behind_until = 0.0
        """Until then it folds nothing: its database or its log is slow."""
        self._routes = Routes()
        self._entries = entries
        self._tell = tell
        self._told: RequestsInFlight | None = None
        self._told_at = float("-inf")
        self.fold()
        self.tell(0.0, first=True)

    def fold(self) -> None:
        for entry in self._entries[self._routes.seq :]:
            self._routes.evolve(entry.fact)
            self._routes.seq = entry.sequence

    def candidates(self, model: str, now: float) -> list[Endpoint]:
        return self._routes.candidates(model, now)

    def begin(self, request: InFlight) -> None:
        self._routes.in_flight.begins(request.instance_id)
        self.requests.append(request)

    def end_what_is_over(self, now: float) -> None:
        for request in [each for each in self.requests if each.is_over(now)]:
            self.requests.remove(request)
            self._routes.in_flight.ends(request.instance_id)

    def tell(self, now: float, *, first: bool = False) -> None:
        picture = self._routes.picture(self.name)
        if picture != self._told or now - self._told_at >= TELL_SECONDS:
            self._told, self._told_at = picture, now
            self._tell(self, picture, first)


class Gateways:
    """None, one or two of them, and the clients. Their dice are their own: nothing else happens otherwise because of them."""

    def __init__(
        self,
        seed: int,
        clock: VirtualClock,
        entries: list[Entry],
        ledger: Ledger,
        machines: Iterable[Machine],
        tell: Tell,
    ) -> None:
        self._dice = random.Random(f"requests of {seed}")
        self._clock = clock
        self._entries = entries
        self._ledger = ledger
        self._machines = machines
        self._tell = tell
        self._names = itertools.count(1)
        self.calm = False
        self._gateways = [self._start() for _ in range(self._dice.choice((0, 1, 1, 2)))]

    def _start(self) -> Gateway:
        return Gateway(f"g{next(self._names)}", self._entries, self._tell)

    def pump(self) -> None:
        dice, now = self._dice, self._clock.seconds
        for number, gateway in enumerate(self._gateways):
            if not self.calm and dice.random() < 0.002:
                self._gateways[number] = self._start()  # it was killed, and its clients' requests with it
                continue
            gateway.end_what_is_over(now)
            if not self.calm and dice.random() < 0.03:
                gateway.is_behind_until = now + dice.choice((1.0, 4.0, 9.0))
            if self.calm or now >= gateway.is_behind_until:
                gateway.fold()
            for model in sorted(spec.name for spec in self._ledger.specs.values()):
                if dice.random() < 0.3:
                    self._forward(gateway, model, now)
            gateway.tell(now)

    def _forward(self, gateway: Gateway, model: str, now: float) -> None:
        for endpoint in gateway.candidates(model, now):
            found = self._engine_at(endpoint)
            if found is not None:
                lasts = CALM_SECONDS if self.calm else self._dice.choice(LASTS_SECONDS)
                gateway.begin(InFlight(endpoint.instance_id, *found, now + lasts))
                return

    def _engine_at(self, endpoint: Endpoint) -> tuple[Engine, Machine] | None:
        for machine in self._machines:
            engine = machine.engines.get(EngineId(endpoint.instance_id, endpoint.attempt))
            if engine is not None and engine.port == endpoint.port and engine.serves and engine.ends_at is None:
                return engine, machine
        return None

    def heal(self) -> None:
        """Clients of the past leave, others ask for little."""
        self.calm = True
        for gateway in self._gateways:
            gateway.requests = [
                InFlight(each.instance_id, each.engine, each.machine, self._clock.seconds + CALM_SECONDS)
                for each in gateway.requests
            ]

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check_fact(self, entry: Entry) -> None:
        """Call before the ledger takes it."""
        if isinstance(entry.fact, InstanceDrained):
            self.check_may_end(entry.fact.instance_id, "is said to have drained")

    def check_may_end(self, instance_id: InstanceId, what: str) -> None:
        life, now = self._ledger.lives.get(instance_id), self._clock.seconds
        if life is None or now >= life.finishes_until - AN_INSTANT or life.model_id not in self._ledger.specs:
            return
        if instance_id in self._ledger.fleet.deletion_requests:
            return
        waiting = [
            f"one of {gateway.name} for {request.ends_at - now:.1f} s"
            for gateway in self._gateways
            for request in gateway.requests
            if request.instance_id == instance_id and not request.is_over(now) and not request.machine.has_lied
        ]
        if waiting:
            raise Broken(
                Invariant.STREAMS,
                f"{instance_id} {what} {life.finishes_until - now:.1f} s early, with requests in flight: {', '.join(waiting)}",
            )
