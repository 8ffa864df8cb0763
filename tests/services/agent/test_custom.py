"""The author's own command: words are split once, and what is put into them stays in them."""

import json
import shlex
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.domain.engines.custom import custom
from tests.services.agent.starts import a_launch, a_start

NASTY = st.text(st.sampled_from("""ab $`"'\\;|&<>(){}*?!#~\n\t=é""")) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
)


def test_placeholders_are_what_only_the_worker_knows() -> None:
    command = (
        "run --model={{model_path}} --as '{{ model_name }}' --at {{worker_ip}}:{{port}} --gpus {{gpu_count}}:{{gpu_indexes}}"
        " --mode {{MODE}} {{unknown}}"
    )
    launch = a_launch("Custom", run_command=command, env={"MODE": "fast mode", "port": "1"})
    assert custom(a_start(launch, gpus=2)).argv == (
        *("run", "--model=/models/qwen3-8b", "--as", "qwen3-8b", "--at", "10.0.0.1:40000", "--gpus", "2:0,1"),
        *("--mode", "fast mode", "{{unknown}}"),
    )


def test_the_entrypoint_comes_first_and_the_parameters_last() -> None:
    launch = a_launch("Custom", "--more=1", run_command="serve {{port}}", entrypoint=("/app/run",))
    assert custom(a_start(launch)).argv == ("/app/run", "serve", "40000", "--more=1")


@pytest.mark.parametrize(("env", "path"), [({"GPUSTACK_MODEL_HEALTH_CHECK_PATH": "/ready"}, "/ready"), ({}, None)])
def test_it_is_asked_for_its_health_where_the_author_says(env: dict[str, str], path: str | None) -> None:
    assert custom(a_start(a_launch("Custom", env=env))).health_path == path


@given(value=NASTY)
def test_what_is_put_in_stays_one_argument(value: str) -> None:
    launch = a_launch("Custom", run_command="run --a={{NASTY}} {{NASTY}} 'x {{NASTY}} y'", env={"NASTY": value})
    assert custom(a_start(launch)).argv == ("run", f"--a={value}", value, f"x {value} y")


@given(value=NASTY)
def test_what_is_put_in_is_not_looked_at_again(value: str) -> None:
    """A value that looks like a placeholder is a value."""
    launch = a_launch("Custom", run_command="{{FIRST}}", env={"FIRST": "{{SECOND}}" + value, "SECOND": "no"})
    assert custom(a_start(launch)).argv == ("{{SECOND}}" + value,)


@settings(max_examples=5, deadline=None)
@given(value=NASTY)
def test_the_program_reads_what_was_written(value: str) -> None:
    """A real one, through a real start of a process."""
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    launch = a_launch(
        "Custom", run_command=f"{sys.executable} -c {shlex.quote(show)} {{{{NASTY}}}}", env={"NASTY": value}
    )
    said = subprocess.run(custom(a_start(launch)).argv, capture_output=True, check=True)
    assert json.loads(said.stdout) == [value]
