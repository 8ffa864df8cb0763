"""All workers as placement sees them, kept up to date event by event, and what each event may have made possible.

`Lifted` says what changed for the better on a worker: a pending instance is looked at again when, and only when, one of its
blockers is among it (`waiting.py`).
"""

from bisect import bisect_left
from collections.abc import Iterator
from enum import IntFlag, auto
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim
from services.scheduler.domain.snapshot import Machine, copy_of


class Lifted(IntFlag):
    """What changed on a worker so that a refusal there, or what was said of it, may not hold any more."""

    STATE = auto()
    """Ready, uncordoned, its downloader heard, its labels."""
    INVENTORY = auto()
    """Its GPUs, memory, drivers, backends."""
    MEMORY = auto()
    """Something that was promised is free."""
    FILES = auto()
    """What is known of a model's files there; of one model."""
    QUARANTINE = auto()
    """A model's crashes there count no more; of one model."""
    ALL = STATE | INVENTORY | MEMORY | FILES | QUARANTINE


def _key(machine: Machine) -> tuple[str, str]:
    return (machine.name, machine.id)


class Machines:
    def __init__(self) -> None:
        self.cordon_unhealthy = False
        """Does an unhealthy GPU keep new instances off the whole worker?"""
        self._machines: dict[WorkerId, Machine] = {}
        self._in_order: list[Machine] | None = None
        self.dirty: set[WorkerId] = set()
        """Workers on which something was promised or released since the index looked last."""
        self.standing: set[WorkerId] = set()
        """… about which something else changed."""
        self.members_changed = False
        """… and whether workers came, went, or changed their order."""
        self.lifted: dict[WorkerId, Lifted] = {}
        """Since the waiting instances were looked at last."""
        self.gone: set[WorkerId] = set()
        """… and the workers that left."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """It is part of no snapshot."""
        return core_schema.is_instance_schema(cls)

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.in_order())

    def __len__(self) -> int:
        return len(self._machines)

    def get(self, worker_id: WorkerId) -> Machine | None:
        return self._machines.get(worker_id)

    def in_order(self) -> list[Machine]:
        """By name, then id."""
        if self._in_order is None:
            self._in_order = sorted(self._machines.values(), key=_key)
        return self._in_order

    def copies(self) -> list[Machine]:
        """To try something on."""
        return [copy_of(machine) for machine in self.in_order()]

    def put(self, machine: Machine) -> None:
        """New, or in place of what was known of it; its claims are those of `machine`."""
        before = self._machines.get(machine.id)
        self._machines[machine.id] = machine
        if before is None or before.name != machine.name:
            self._in_order = None
            self.members_changed = True
        else:
            if self._in_order is not None:
                position = bisect_left(self._in_order, _key(machine), key=_key)
                self._in_order[position] = machine
            self.standing.add(machine.id)
        if before is None:
            self.lift(machine.id, Lifted.ALL)
        else:
            if before.inventory != machine.inventory:
                self.lift(machine.id, Lifted.INVENTORY)
            if (before.state, before.cordoned, before.draining, before.labels, before.downloader_alive) != (
                machine.state, machine.cordoned, machine.draining, machine.labels, machine.downloader_alive,
            ):  # fmt: skip
                self.lift(machine.id, Lifted.STATE)

    def drop(self, worker_id: WorkerId) -> None:
        if self._machines.pop(worker_id, None) is not None:
            self._in_order = None
            self.members_changed = True
            self.lifted.pop(worker_id, None)
            self.gone.add(worker_id)

    def hear_downloader(self, worker_id: WorkerId, *, alive: bool) -> None:
        machine = self._machines.get(worker_id)
        if machine is not None and machine.downloader_alive != alive:
            machine.downloader_alive = alive
            self.standing.add(worker_id)
            self.lift(worker_id, Lifted.STATE)

    def promise(self, worker_id: WorkerId, model_id: ModelId, kind: str | None, claim: Claim) -> None:
        machine = self._machines.get(worker_id)
        if machine is not None:
            machine.promise(model_id, kind, claim)
            self.dirty.add(worker_id)

    def release(self, worker_id: WorkerId, model_id: ModelId, kind: str | None, claim: Claim) -> None:
        machine = self._machines.get(worker_id)
        if machine is not None:
            machine.release(model_id, kind, claim)
            self.dirty.add(worker_id)
            self.lift(worker_id, Lifted.MEMORY)

    def lift(self, worker_id: WorkerId, what: Lifted) -> None:
        self.lifted[worker_id] = self.lifted.get(worker_id, Lifted(0)) | what

    def take_lifted(self) -> tuple[dict[WorkerId, Lifted], set[WorkerId]]:
        lifted, gone = self.lifted, self.gone
        self.lifted, self.gone = {}, set()
        return lifted, gone
