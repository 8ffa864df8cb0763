"""What an assignment says beside what is to run: whom an engine reaches without a proxy, for whom its key is sealed."""

from dataclasses import replace

import pytest

from schemas.ids import WorkerId
from services.scheduler.domain import assignments
from services.scheduler.domain.assignments import assigned_to
from tests.services.scheduler.test_draining import ONE, TWO, running


def test_the_addresses_of_the_fleet_go_to_whoever_starts_an_engine() -> None:
    fleet = running().core.fleet
    for worker_id, address in ((ONE, "10.0.0.1"), (TWO, "10.0.0.2")):
        fleet.workers[worker_id] = replace(fleet.workers[worker_id], address=address)
    assert assigned_to(fleet, ONE, 1, near=("gateway",)).near == ("gateway", "10.0.0.1", "10.0.0.2")
    assert assigned_to(fleet, TWO, 1, near=("gateway",)).near == ()


def test_too_many_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = running().core.fleet
    fleet.workers[WorkerId("w-three")] = fleet.workers[TWO]
    monkeypatch.setattr(assignments, "MOST_LISTED", 2)
    assert assigned_to(fleet, ONE, 1, near=("gateway",)).near == ("gateway",)


def test_each_instance_says_for_whom_its_key_is_sealed() -> None:
    fleet = running().core.fleet
    assert [each.engine_key_ref for each in assigned_to(fleet, ONE, 1, engine_key_ref="U1").instances] == ["U1"]
    assert [each.engine_key_ref for each in assigned_to(fleet, ONE, 1).instances] == [None]
