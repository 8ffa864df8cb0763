"""Which way a request takes to a worker."""

import pytest

from schemas.ids import WorkerId
from schemas.models import Reach
from services.api.domain.reach import RELAYED_SECONDS, Reaches

HERE = WorkerId("w-1")


@pytest.mark.parametrize(
    ("reach", "way", "may"), [("auto", "direct", True), ("direct", "direct", False), ("relay", "relay", False)]
)
def test_a_worker_says_how_it_is_reached(reach: Reach, way: str, may: bool) -> None:
    reaches = Reaches()
    reaches.says(HERE, reach)
    assert (reaches.way(HERE), reaches.may_relay(HERE)) == (way, may)


def test_a_worker_that_says_nothing_is_dialled_first_and_one_that_is_not_known_is_only_dialled() -> None:
    reaches = Reaches()
    assert (reaches.way(HERE), reaches.may_relay(HERE)) == ("direct", True)
    assert (reaches.way(None), reaches.may_relay(None)) == ("direct", False)


def test_what_was_relayed_is_relayed_until_dialling_works_and_one_request_in_a_while_tries() -> None:
    reaches = Reaches()
    reaches.was_relayed(HERE, now=100.0)
    assert reaches.way(HERE) == "relay"
    assert not reaches.tries_direct(HERE, now=100.0 + RELAYED_SECONDS - 1)
    later = 100.0 + RELAYED_SECONDS
    assert reaches.tries_direct(HERE, now=later)
    assert not reaches.tries_direct(HERE, now=later), "one is enough"
    assert reaches.way(HERE) == "relay", "until it is known to work"
    assert reaches.tries_direct(HERE, now=later + RELAYED_SECONDS)
    reaches.forget(HERE)
    assert reaches.way(HERE) == "direct"
    assert not reaches.tries_direct(HERE, now=later + 10 * RELAYED_SECONDS)


def test_a_worker_that_says_something_else_is_found_out_anew() -> None:
    reaches = Reaches()
    reaches.was_relayed(HERE, now=0.0)
    reaches.says(HERE, "direct")
    assert reaches.way(HERE) == "direct"
    reaches.says(HERE, "auto")
    assert reaches.way(HERE) == "direct"
    reaches.was_relayed(HERE, now=0.0)
    reaches.says(HERE, "auto")
    assert reaches.way(HERE) == "relay", "an inventory that changed elsewhere is no news"
    reaches.removed(HERE)
    assert reaches.way(HERE) == "direct"


def test_a_worker_that_is_only_to_be_dialled_is_not_remembered_as_relayed() -> None:
    reaches = Reaches()
    reaches.says(HERE, "direct")
    reaches.was_relayed(HERE, now=0.0)
    assert reaches.way(HERE) == "direct"
