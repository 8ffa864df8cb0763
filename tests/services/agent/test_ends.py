"""Whose an end was decides whether it counts as a failure, and what people are told."""

import pytest

from schemas.reasons import EngineExited, MachineRestarted, OutOfMemory, Reason, WorkerShutDown
from services.agent.domain.runtime import EndedBy, EngineExit
from services.agent.process import Watched, phase_of_end, why_ended
from tests.services.agent.engines import an_id


@pytest.mark.parametrize(
    ("ended_by", "phase", "reason"),
    [
        ("itself", "exited", EngineExited(exit_code=1)),
        ("memory", "exited", OutOfMemory()),
        ("a_stop", "stopped", WorkerShutDown()),
        ("the_machine", "stopped", MachineRestarted()),
    ],
)
def test_an_end_is_a_failure_where_it_was_the_engines_own(ended_by: EndedBy, phase: str, reason: Reason) -> None:
    ended = EngineExit(an_id(), 1, None, (), ended_by)
    assert (phase_of_end(ended), why_ended(Watched(an_id()), ended)) == (phase, (reason,))
