"""Tools print garbage, or half of what they meant to. A parser says so, or leaves out what it could not read."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.domain.accelerators.gpus import gpus
from services.agent.domain.accelerators.reading import BadOutput, GpuReading
from tests.services.agent.accelerators.recordings import PARSERS, cases, read, recorded

QUESTIONS = {vendor: sorted({name for case in cases(vendor) for name in recorded(vendor, case)}) for vendor in PARSERS}
LINES = {
    vendor: sorted(
        {line for case in cases(vendor) for text in recorded(vendor, case).values() for line in text.splitlines()}
    )
    for vendor in PARSERS
}
vendors = pytest.mark.parametrize("vendor", PARSERS)


def readings(vendor: str, answers: dict[str, str]) -> tuple[GpuReading, ...]:
    """What is read can always be reported."""
    found: tuple[GpuReading, ...] = ()
    with suppress(BadOutput):
        found = PARSERS[vendor](answers)
        assert found != ()
    reported = gpus(found, {4242})
    assert [gpu.index for gpu in reported] == [reading.index for reading in found]
    return found


@vendors
@settings(max_examples=50)
@given(data=st.data())
def test_of_any_text(vendor: str, data: st.DataObject) -> None:
    answers = st.dictionaries(st.sampled_from(QUESTIONS[vendor]), st.text(max_size=300))
    readings(vendor, data.draw(answers))


@vendors
@settings(max_examples=50)
@given(data=st.data())
def test_of_its_own_lines_in_any_order(vendor: str, data: st.DataObject) -> None:
    lines = st.lists(st.sampled_from(LINES[vendor]), max_size=40).map("\n".join)
    readings(vendor, data.draw(st.dictionaries(st.sampled_from(QUESTIONS[vendor]), lines, min_size=1)))


@vendors
@settings(max_examples=50)
@given(data=st.data())
def test_of_recordings_with_characters_changed(vendor: str, data: st.DataObject) -> None:
    answers = recorded(vendor, data.draw(st.sampled_from(cases(vendor))))
    name = data.draw(st.sampled_from(sorted(answers)))
    text = answers[name]
    at = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 12))
    answers[name] = text[:at] + data.draw(st.text(max_size=12)) + text[at + length :]
    readings(vendor, answers)


@vendors
@settings(max_examples=50)
@given(data=st.data())
def test_of_recordings_that_end_too_early(vendor: str, data: st.DataObject) -> None:
    """No GPU becomes another, larger or emptier one by it."""
    case = data.draw(st.sampled_from(cases(vendor)))
    answers = recorded(vendor, case)
    name = data.draw(st.sampled_from(sorted(answers)))
    answers[name] = answers[name][: data.draw(st.integers(0, len(answers[name])))]
    complete = {reading.index: reading for reading in read(vendor, case)}
    for reading in readings(vendor, answers):
        whole = complete[reading.index]
        assert reading.memory_total_bytes in (None, whole.memory_total_bytes)
        assert reading.memory_used_bytes in (None, whole.memory_used_bytes)
        assert reading.uuid in (None, whole.uuid)
        assert reading.driver_version in (None, whole.driver_version)
        assert reading.network is None or whole.network is not None
        if reading.network is not None and whole.network is not None:
            assert reading.network.address in (None, whole.network.address)
            assert whole.network.up or not reading.network.up
        assert reading.unhealthy in (None, whole.unhealthy)


@vendors
@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, '{"gpus": ' * 10_000, "9" * 10_000, "|" * 10_000, "| 0 |\n" * 10_000, "\0"]
)
def test_of_what_breaks_parsers(vendor: str, text: str) -> None:
    assert readings(vendor, dict.fromkeys(QUESTIONS[vendor], text)) == ()
