"""Facts of former versions: any chain of steps gives what the newest version would have been written with."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.facts import FACTS
from schemas.upcasts import STEPS, Step, upcast


def chain(newest: int) -> dict[tuple[str, int], Step]:
    """Steps that note which versions the data went through; each gives a new document."""

    def step(version: int) -> Step:
        return lambda data: data | {"went": [*data["went"], version]}

    return {("T", version): step(version) for version in range(1, newest)}


@given(st.integers(1, 12), st.integers(1, 12))
def test_data_goes_through_every_version_from_its_own_to_the_newest(version: int, newest: int) -> None:
    data: dict[str, Any] = {"went": []}
    after = upcast("T", version, newest, data, chain(newest))
    assert after == {"went": list(range(version, newest))}
    assert data == {"went": []}


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6))
def test_going_in_two_parts_is_going_at_once(version: int, first: int, second: int) -> None:
    middle, newest = version + first, version + first + second
    steps = chain(newest)
    at_once = upcast("T", version, newest, {"went": []}, steps)
    in_parts = upcast("T", middle, newest, upcast("T", version, middle, {"went": []}, steps), steps)
    assert in_parts == at_once


@given(st.integers(2, 8), st.data())
def test_a_step_that_is_missing_is_no_silent_hole(newest: int, data: st.DataObject) -> None:
    steps = chain(newest)
    del steps["T", data.draw(st.integers(1, newest - 1))]
    with pytest.raises(KeyError):
        upcast("T", 1, newest, {"went": []}, steps)


def test_no_step_is_for_a_version_that_there_is_not() -> None:
    versions = {fact.type: fact.version for fact in FACTS}
    assert [key for key in STEPS if key[0] not in versions or not 1 <= key[1] < versions[key[0]]] == []
