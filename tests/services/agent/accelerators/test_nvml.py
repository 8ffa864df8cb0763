import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.adapters.probes.nvidia import CHILD, NvmlProbe
from services.agent.adapters.probes.tool import find_tool
from services.agent.domain.accelerators.vendors import NVIDIA
from tests.services.agent.accelerators.recordings import cases, read, recorded
from tests.services.agent.accelerators.tools import fake_nvml


class Machine:
    """One with a fake NVML: `has` says what that tells from the next start of NVML on."""

    def __init__(self, directory: Path, timeout_seconds: float = 20) -> None:
        self._directory = directory
        self.probe = NvmlProbe(timeout_seconds=timeout_seconds, given=fake_nvml(directory, "{}"))

    def has(self, **scenario: object) -> None:
        (self._directory / "scenario.json").write_text(json.dumps(scenario), encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.probe.close()


def scenario(case: str) -> dict[str, object]:
    return json.loads(recorded("nvidia", case)["nvml"])


@pytest.mark.parametrize("case", cases("nvidia"))
def test_the_child_prints_what_is_recorded(case: str, machine: Machine) -> None:
    machine.has(**scenario(case))
    probed = machine.probe.read(find_tool)
    assert (probed.readings, probed.problems) == (read("nvidia", case), ())
    assert 0 < probed.cpu_seconds < 5


def test_one_child_answers_all_questions(machine: Machine) -> None:
    machine.has(**scenario("eight"))
    machine.probe.read(find_tool)
    child = machine.probe.child_pid
    assert child is not None
    assert machine.probe.read(find_tool).readings == read("nvidia", "eight")
    assert machine.probe.child_pid == child


def test_gpus_on_one_pcie_switch_are_an_island_too(machine: Machine) -> None:
    three = scenario("eight") | {"links": []}
    machine.has(**three, switch=[[0, 1], [0, 2], [1, 2]])
    readings = machine.probe.read(find_tool).readings
    assert [reading.island for reading in readings] == [None] * 8  # the bus does, but the driver allows no P2P on it
    machine.probe.close()
    machine.has(**three | {"links": [[5, 6]]}, switch=[[0, 1]], p2p=[[0, 1]])
    assert [reading.island for reading in machine.probe.read(find_tool).readings] == [0, 0, *[None] * 3, 1, 1, None]


def test_an_error_is_remembered_after_it_was_told_once(machine: Machine) -> None:
    machine.has(**scenario("unhealthy"))
    first = machine.probe.read(find_tool).readings
    assert machine.probe.read(find_tool).readings == first
    assert "XID 48" in (first[2].unhealthy or "")


def test_a_driver_that_is_loaded_later_is_noticed(machine: Machine) -> None:
    machine.has(error="Driver Not Loaded")
    (problem,) = machine.probe.read(find_tool).problems
    assert (problem.vendor, problem.tried, problem.install) == ("NVIDIA", "NVML (libnvidia-ml.so.1)", NVIDIA.install)
    assert problem.said == "NVML: Driver Not Loaded"
    machine.has(**scenario("one"))
    assert machine.probe.read(find_tool).readings == read("nvidia", "one")


def test_a_driver_that_is_replaced_while_it_is_asked_is_a_problem_until_it_is_there_again(
    machine: Machine, tmp_path: Path
) -> None:
    machine.has(**scenario("one"))
    machine.probe.read(find_tool)
    (tmp_path / "replaced").touch()
    assert [problem.said for problem in machine.probe.read(find_tool).problems] == ["NVML: Driver Not Loaded"]
    (tmp_path / "replaced").unlink()
    machine.has(**scenario("eight"))
    assert machine.probe.read(find_tool).readings == read("nvidia", "eight")


def test_a_driver_that_hangs_is_a_problem_and_its_child_is_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path, timeout_seconds=1.5)
    machine.has(hangs=True)
    began = time.monotonic()
    (problem,) = machine.probe.read(find_tool).problems
    assert problem.said == "no answer within 1.5 s"
    assert time.monotonic() - began < 5
    assert machine.probe.child_pid is None
    machine.has(**scenario("one"))
    probed = machine.probe.read(find_tool)
    machine.probe.close()
    assert probed.readings == read("nvidia", "one")


def test_a_child_that_was_killed_is_started_again(machine: Machine) -> None:
    machine.has(**scenario("one"))
    machine.probe.read(find_tool)
    child = machine.probe.child_pid
    assert child is not None
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while machine.probe.read(find_tool).readings != read("nvidia", "one") or machine.probe.child_pid == child:
        assert time.monotonic() < deadline


def test_the_child_ends_when_nobody_can_ask_it_any_more() -> None:
    child = subprocess.Popen([sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 0


def test_what_a_library_prints_is_no_answer(machine: Machine, tmp_path: Path) -> None:
    machine.has(**scenario("one"))
    with (tmp_path / "pynvml.py").open("a") as module:
        module.write("import os; os.write(1, b'hello\\n'); time.sleep(0.3)\n")
    assert machine.probe.read(find_tool).readings == read("nvidia", "one")


def test_an_answer_without_an_end_is_a_problem(machine: Machine) -> None:
    machine.has(**scenario("one") | {"driver_version": "5" * 3_000_000})
    assert [problem.said for problem in machine.probe.read(find_tool).problems] == ["more than 2097152 bytes of output"]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ImportError", "the Python package nvidia-ml-py is not installed"),
        ("import sys; sys.exit(3)", "the process that asks NVML ended"),
    ],
)
def test_a_child_that_says_nothing_of_gpus_is_a_problem(
    module: str, said: str, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "pynvml.py").write_text(module)
    assert [problem.said for problem in machine.probe.read(find_tool).problems] == [said]
