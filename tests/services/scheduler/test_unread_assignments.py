"""A picture tells which assignment its worker has read: an older one than was sent has it sent again."""

from datetime import UTC, datetime

import pytest

from schemas.ids import WorkerId
from schemas.models import Inventory
from schemas.reports import WorkerObserved
from services.scheduler.domain.core import Core, Now
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.policy import Policy

AT = datetime(2026, 11, 25, tzinfo=UTC)
NOW = Now(AT, 1000.0)
WORKER = WorkerId("w-1")


def a_picture(counter: int, election: int, seq: int) -> WorkerObserved:
    return WorkerObserved(
        worker_id=WORKER,
        boot_id="boot",
        counter=counter,
        observed_at=AT,
        name="w",
        address="127.0.0.1",
        agent_version="1",
        inventory=Inventory(os="linux", arch="amd64", cpu_count=1, memory_total=2**30),
        assigned_election=election,
        assigned_seq=seq,
    )


@pytest.mark.parametrize(
    ("election", "seq", "is_behind"), [(0, 0, True), (1, 4, True), (1, 5, False), (1, 6, False), (2, 1, False)]
)
def test_who_has_not_read_the_newest_is_behind(election: int, seq: int, is_behind: bool) -> None:
    core = Core(Fleet(), Policy(), NOW)
    assert core.heard(a_picture(1, 0, 0), NOW).behind == set(), "nothing was sent yet"
    core.published(WORKER, (), 1, 5)
    core.published(WORKER, (), 1, 9, unchanged=True)

    assert core.heard(a_picture(2, election, seq), NOW).behind == ({WORKER} if is_behind else set())
