import os
import time
from pathlib import Path

import pytest

from services.agent.adapters.probes.tool import ToolFailed, environment, find_tool, run
from services.agent.domain.accelerators.vendors import AMD, ILUVATAR
from tests.services.agent.accelerators.tools import FAILS, FLOOD, HANGS, a_tool

ENV = {"PATH": "/usr/bin:/bin"}


def ran(directory: Path, body: str, *, timeout_seconds: float = 5, most_bytes: int = 2**20) -> str:
    a_tool(directory, "tool", body)
    return run((str(directory / "tool"), "-q"), timeout_seconds=timeout_seconds, env=ENV, most_bytes=most_bytes).stdout


def test_what_it_prints_is_its_answer_and_what_it_cost_is_known(tmp_path: Path) -> None:
    a_tool(tmp_path, "tool", 'echo "asked $*"; echo noise >&2; n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done')
    answer = run((str(tmp_path / "tool"), "topo", "-m"), timeout_seconds=20, env=ENV)
    assert answer.stdout == "asked topo -m\n"
    assert 0 < answer.cpu_seconds < 20


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (FAILS, r"^exit code 1: driver not loaded$"),
        ("echo 'on stdout'; exit 3", r"^exit code 3: on stdout$"),
        ("exit 2", r"^exit code 2$"),
        ("kill -9 $$", r"^ended by signal 9$"),
        (HANGS, r"^no answer within 0\.3 s$"),
        ("exec >&- 2>&-; sleep 1000", r"^no answer within 0\.3 s$"),
        (FLOOD, r"^more than 10000 bytes of output$"),
        (FLOOD + " >&2", r"^more than 10000 bytes of output$"),
    ],
)
def test_why_there_is_no_answer_is_told(body: str, said: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ToolFailed, match=said) as failed:
        ran(tmp_path, body, timeout_seconds=0.3 if "sleep" in body else 5, most_bytes=10_000)
    assert time.monotonic() - began < 5
    assert failed.value.hung == ("no answer" in said)
    assert failed.value.left is None


def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"^can't be started: No such file or directory$"):
        run((str(tmp_path / "nothing"),), timeout_seconds=1, env=ENV)
    (tmp_path / "text").write_text("no program")
    with pytest.raises(ToolFailed, match=r"^can't be started: Permission denied$"):
        run((str(tmp_path / "text"),), timeout_seconds=1, env=ENV)


def test_a_tool_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="no answer"):
        ran(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/pid; wait", timeout_seconds=0.5)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while _runs(child):
        assert time.monotonic() < deadline, "its child runs on"
        time.sleep(0.01)


def test_a_child_that_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    assert ran(tmp_path, "sleep 1000 & echo answer", timeout_seconds=20) == "answer\n"
    assert time.monotonic() - began < 10


def test_a_tool_gets_none_of_the_agents_secrets_and_finds_its_libraries() -> None:
    given = {"PATH": "/bin", "MUSTER_AGENT_NKEY_SEED": "SUA", "PYTHONPATH": "/ours", "LD_LIBRARY_PATH": "/given"}
    assert environment(AMD, given) == {"PATH": "/bin", "LD_LIBRARY_PATH": "/given", "LC_ALL": "C.UTF-8"}
    assert environment(AMD, given, python=True)["PYTHONPATH"] == "/ours"
    libraries = environment(ILUVATAR, given)["LD_LIBRARY_PATH"]
    assert libraries == "/given:/usr/local/corex/lib64:/usr/local/corex/lib"


def test_a_tool_is_found_where_its_packages_put_it(tmp_path: Path) -> None:
    a_tool(tmp_path / "home", "muster-no-such-tool", "true")
    assert find_tool("muster-no-such-tool", ()) is None
    assert (
        find_tool("muster-no-such-tool", ("/nowhere", str(tmp_path / "home"))) == f"{tmp_path}/home/muster-no-such-tool"
    )


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - a zombie waits for whoever adopted it
