"""An invariant that has never failed is not yet a test: the simulation finds every bug that is planted."""

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.invariants import Invariant
from tests.simulation.planted import PLANTED, Planted, find

WITHIN = 300
"""Histories."""


@pytest.fixture(autouse=True)
def _in_silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_the_simulation_finds_it(bug: Planted) -> None:
    count, told = find(bug, WITHIN, bug.likely)

    assert told.invariant is not None, f"not found in {count} histories: {bug.what}"
    assert told.invariant in bug.found_by, told.problem


def test_every_invariant_finds_a_bug_that_no_other_finds_first() -> None:
    assert {invariant for bug in PLANTED if len(bug.found_by) == 1 for invariant in bug.found_by} == set(Invariant)


def test_there_are_many() -> None:
    assert len(PLANTED) >= 25
    assert len({bug.name for bug in PLANTED}) == len(PLANTED)
