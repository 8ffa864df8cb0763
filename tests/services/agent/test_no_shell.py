"""Whatever an author writes reaches the engine as it was written, one argument each; no shell ever reads it."""

import json
import shlex
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agent.domain.containers import contained
from services.agent.domain.engines.command import ENGINES, command_of
from services.agent.domain.engines.start import Start
from services.agent.domain.gpu_access import as_process, gpu_access
from services.agent.domain.runtime import ContainerRuntime, EngineCommand, GpuAccess
from tests.services.agent.engines import an_id, next_exit
from tests.services.agent.starts import MODEL, a_launch, a_start

NASTY = st.text(st.sampled_from("""ab $`"'\\;|&<>(){}*?!#~\n\t=é-""")) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
)
WRITTEN = (
    *("--a=$(id)", "--b=`id`", "--c=; id;", "--d=| id > /tmp/x", "--e=${HOME}", "--f='\"", "--g=* ?", "--h=\n id"),
    *("--i", "a b && id", "--j=\\", "--k=#", "--l=~", "--m={a,b}", "--n=!!", "--o=é", "$(id)", ";", ""),
)
OTHERS = sorted(ENGINES.keys() - {"MindIE"})
"""MindIE reads a file instead, and refuses what it has no key for."""


def words_of(command: EngineCommand, start: Start) -> tuple[str, ...]:
    """In a container, from the program on."""
    inside = contained(start, command, "image", gpu_access("cuda", (), "hook"))
    assert inside.container is not None
    return (*(inside.container.entrypoint or ()), *inside.argv)


@pytest.mark.parametrize("backend", OTHERS)
@given(value=NASTY)
def test_a_parameter_is_one_argument(backend: str, value: str) -> None:
    start = a_start(a_launch(backend, f"--x={value}", "--last"))
    command = command_of(start)
    assert command.argv[-2:] == (f"--x={value}", "--last")
    assert words_of(command, start)[-2:] == (f"--x={value}", "--last")


@pytest.mark.parametrize("backend", OTHERS)
@given(value=NASTY)
def test_so_it_is_behind_packages_that_are_installed_first(backend: str, value: str) -> None:
    start = a_start(a_launch(backend, f"--x={value}", env={"PYPI_PACKAGES_INSTALL": f"a;{value}"}, entrypoint=("e",)))
    words = words_of(command_of(start), start)
    assert words[-1] == f"--x={value}"
    assert words[0] == "python3"


@pytest.mark.parametrize("backend", OTHERS)
@given(value=NASTY)
def test_the_words_of_an_entrypoint_and_of_a_run_command_stay_as_they_are(backend: str, value: str) -> None:
    launch = a_launch(backend, entrypoint=("/e", value), run_command=f"run {shlex.quote(value)}")
    assert command_of(a_start(launch)).argv[:4] == ("/e", value, "run", value)


@pytest.mark.parametrize("backend", ["vLLM", "SGLang"])
@given(value=NASTY)
def test_the_path_of_an_adapter_stays_inside_its_argument(backend: str, value: str) -> None:
    lora: dict[str, Any] = {"lora_name": "mine", "source": {"path": f"/loras/{value}"}}
    argv = command_of(a_start(a_launch(backend, lora_list=(lora,)))).argv
    said = {
        "vLLM": json.dumps({"name": "mine", "path": f"/loras/{value}"}, separators=(",", ":"), ensure_ascii=False),
        "SGLang": f"mine=/loras/{value}",
    }[backend]
    assert argv.count(said) == 1


@given(value=NASTY)
def test_mindies_shell_is_a_constant_one_and_gets_no_word_of_an_author(value: str) -> None:
    plain = command_of(a_start(a_launch("MindIE"), "cann"))
    told = command_of(a_start(a_launch("MindIE", f"--template-name={value}", env={"X": value}), "cann"))
    assert told.argv == plain.argv


async def test_a_real_engine_reads_what_was_written(runtime: ContainerRuntime) -> None:
    """From the launch to the process: a program in the place of llama-server shows what it was given."""
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    start = a_start(a_launch("llama.cpp", *WRITTEN), None, program=(sys.executable, "-c", show))
    command = as_process(command_of(start), GpuAccess(), start.launch)
    await runtime.start(an_id(), command, {})
    given_to_it: list[str] = json.loads((await next_exit(runtime)).log_tail[0])
    assert given_to_it[:2] == ["--model", MODEL]
    assert given_to_it[-len(WRITTEN) :] == list(WRITTEN)
