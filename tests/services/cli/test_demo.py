"""When `muster demo` says that the engine has answered."""

import pytest

from services.up.demo import Answer

RUNNING = [{"type": "InstanceCreated"}, {"type": "InstanceRunning"}]


@pytest.mark.parametrize(
    ("text", "timeline", "verdict"),
    [("I am", RUNNING, True), (" \n", RUNNING, False), ("I am", RUNNING[:1], False), ("I am", [], False)],
)
def test_an_answer_is_the_engines_when_there_is_text_and_the_log_says_that_it_ran(
    text: str, timeline: list[dict[str, str]], verdict: bool
) -> None:
    assert Answer(text, 0.1, {}, list(timeline)).is_the_engines is verdict
