"""Packages are installed before an engine starts, in its own surroundings, and no shell reads what the author wrote."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

from services.agent.domain.containers import contained
from services.agent.domain.engines.command import command_of
from services.agent.domain.engines.packages import after_installing, packages_of
from services.agent.domain.engines.together import once_reachable
from services.agent.domain.runtime import GpuAccess
from tests.services.agent.starts import a_launch, a_start

UV = """
import json, os, sys
with open(os.environ["SEEN"], "w") as seen:
    json.dump(sys.argv[1:], seen)
sys.exit(int(os.environ.get("FAILS", "0")))
"""


def installing(
    tmp_path: Path, packages: tuple[str, ...], *command: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """With a `uv` that only tells what it is asked for: it is the only program that can be found."""
    uv = tmp_path / "uv"
    uv.write_text(f"#!{sys.executable}\n{UV}")
    uv.chmod(0o755)
    seen = {"SEEN": str(tmp_path / "seen"), "PATH": str(tmp_path), "PIP_NO_INDEX": "1"}
    argv = after_installing(packages, command)
    return subprocess.run([sys.executable, *argv[1:]], capture_output=True, text=True, check=False, env=seen | env)


def test_each_package_and_each_argument_stays_one(tmp_path: Path) -> None:
    show = "import sys; print(sys.argv[1:])"
    told = installing(tmp_path, ("a==1; echo hacked", "b[c]>2"), sys.executable, "-c", show, "$HOME", "a b")
    assert (told.returncode, told.stdout, told.stderr) == (0, "['$HOME', 'a b']\n", "")
    asked = json.loads((tmp_path / "seen").read_text())
    assert asked == ["pip", "install", "--python", sys.executable, "a==1; echo hacked", "b[c]>2"]


def test_an_engine_without_its_packages_is_not_started(tmp_path: Path) -> None:
    told = installing(tmp_path, ("a",), sys.executable, "-c", "print('started')", FAILS="1")
    assert (told.returncode, told.stdout) == (1, "")
    assert "can't be installed: a" in told.stderr


def test_nothing_to_start_is_said_in_words(tmp_path: Path) -> None:
    told = installing(tmp_path, ("a",))
    assert (told.returncode, (tmp_path / "seen").exists()) == (1, False)
    assert "give the model an entrypoint or a run command" in told.stderr


def test_packages_are_words() -> None:
    def of(text: str) -> tuple[str, ...]:
        return packages_of(a_launch("vLLM", env={"PYPI_PACKAGES_INSTALL": text}))

    assert of("a==1 'b ; python_version > \"3\"'\n c") == ("a==1", 'b ; python_version > "3"', "c")
    assert of("a 'b") == ("a", "'b")
    assert of("") == packages_of(a_launch("vLLM")) == ()


def test_an_entrypoint_of_the_authors_runs_after_the_packages() -> None:
    launch = a_launch("vLLM", env={"PYPI_PACKAGES_INSTALL": "a"}, entrypoint=("vllm", "serve"))
    start = a_start(launch)
    command = contained(start, command_of(start), "example.org/vllm:1", GpuAccess())
    assert command.container is not None
    assert command.container.entrypoint == ("python3",)
    assert command.argv[2:6] == ('["a"]', "vllm", "serve", "/models/qwen3-8b")
    assert command.container.needs.writable_root


def test_a_program_waits_until_a_port_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
    waiting = once_reachable("127.0.0.1", port, (sys.executable, "-c", "print('started')"))
    with subprocess.Popen([sys.executable, *waiting[1:]], stdout=subprocess.PIPE, text=True) as process:
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(process.communicate()[0]))
        reader.start()
        reader.join(0.3)
        assert said == []
        with socket.create_server(("127.0.0.1", port)):
            reader.join(20)
    assert said == ["started\n"]
