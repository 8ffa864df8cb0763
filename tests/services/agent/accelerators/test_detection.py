import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from services.agent.adapters.probes import amd, ascend, cambricon, hygon, iluvatar, metax, moore_threads, t_head, tool
from services.agent.adapters.probes.detection import Detected, Detector, all_probes, detect
from services.agent.adapters.probes.probe import Probed
from services.agent.adapters.probes.tool import Lookup
from services.agent.adapters.probes.tool_probe import ToolProbe
from services.agent.domain.accelerators.reading import GpuProcess, GpuReading, Problem
from services.agent.domain.accelerators.vendors import AMD, ASCEND, METAX, NVIDIA, VENDORS, Vendor
from tests.services.agent.accelerators.recordings import cases, read, recorded
from tests.services.agent.accelerators.tools import (
    FAILS,
    FLOOD,
    GARBAGE,
    HANGS,
    a_device,
    a_machine,
    a_tool,
    in_directory,
    that_prints,
)

PROBES = {
    module.probe().vendor.name: module.probe
    for module in (amd, ascend, hygon, moore_threads, iluvatar, metax, cambricon, t_head)
}
tools = pytest.mark.parametrize("vendor", PROBES)
GIB = 2**30


def a_probe(vendor: str, timeout_seconds: float = 10) -> ToolProbe:
    probe = PROBES[vendor]()
    probe.timeout_seconds = timeout_seconds
    return probe


def a_machine_with(root: Path, vendor: str, case: str) -> ToolProbe:
    """Its tool answers what is recorded."""
    probe, answers = a_probe(vendor), recorded(vendor, case)
    a_machine(root / "sys", probe.vendor)
    a_tool(root / "bin", probe.vendor.tool, that_prints(probe.questions, answers, root / "answers"))
    if vendor == "ascend":
        ports = ascend.ports(read(vendor, case))
        a_tool(root / "bin", ascend.HCCN_TOOL, that_prints(ports, answers, root / "answers"))
    return probe


def detected(root: Path, *probes: ToolProbe, patience_seconds: float = 20) -> Detected:
    return detect(
        sysfs=root / "sys", lookup=in_directory(root / "bin"), probes=probes, patience_seconds=patience_seconds
    )


def test_every_vendor_has_a_probe() -> None:
    assert {probe.vendor for probe in all_probes()} == set(VENDORS)


@pytest.mark.parametrize(("vendor", "case"), [(vendor, case) for vendor in PROBES for case in cases(vendor)])
def test_the_gpus_are_those_that_the_tool_tells_of(vendor: str, case: str, tmp_path: Path) -> None:
    probe = a_machine_with(tmp_path, vendor, case)
    assert detected(tmp_path, probe) == Detected(read(vendor, case))


@tools
def test_a_tool_that_is_missing_is_told_with_what_to_install(vendor: str, tmp_path: Path) -> None:
    probe = a_probe(vendor)
    a_machine(tmp_path / "sys", probe.vendor)
    found = detected(tmp_path, probe)
    assert found.readings == ()
    (problem,) = found.problems
    assert (problem.vendor, problem.tried) == (probe.vendor.label, probe.vendor.tool)
    assert problem.said.startswith("not found in PATH, /")
    assert problem.install == probe.vendor.install != ""


@tools
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (HANGS, "no answer within 0.3 s"),
        (FAILS, "exit code 1: driver not loaded"),
        (FLOOD, f"more than {tool.MOST_BYTES} bytes of output"),
    ],
)
def test_a_tool_that_does_not_answer_is_a_problem_and_no_exception(
    vendor: str, body: str, said: str, tmp_path: Path
) -> None:
    probe = a_probe(vendor, timeout_seconds=0.3 if body == HANGS else 20)
    a_machine(tmp_path / "sys", probe.vendor)
    a_tool(tmp_path / "bin", probe.vendor.tool, body)
    found = detected(tmp_path, probe)
    first = " ".join((probe.vendor.tool, *probe.questions[0].arguments))
    assert found == Detected((), (Problem(probe.vendor.label, first, said, probe.vendor.install),))


@tools
def test_garbage_is_a_problem_and_no_exception(vendor: str, tmp_path: Path) -> None:
    probe = a_probe(vendor)
    a_machine(tmp_path / "sys", probe.vendor)
    a_tool(tmp_path / "bin", probe.vendor.tool, GARBAGE)
    found = detected(tmp_path, probe)
    assert found.readings == ()
    assert [problem.said for problem in found.problems] in (["no GPU in its output"], ["no JSON in its output"])


def test_after_a_question_that_hangs_no_other_is_asked(tmp_path: Path) -> None:
    probe = a_probe("amd", timeout_seconds=0.3)
    a_tool(tmp_path / "bin", "amd-smi", f'echo "$1" >> {tmp_path}/asked; {HANGS}')
    probe.read(in_directory(tmp_path / "bin"))
    assert (tmp_path / "asked").read_text() == "static\n"


def test_a_question_of_less_weight_that_hangs_leaves_the_gpus_and_is_told(tmp_path: Path) -> None:
    probe = a_machine_with(tmp_path, "metax", "one")
    probe.timeout_seconds = 1
    a_tool(tmp_path / "bin", "mx-smi", f'[ "$1" = topo ] && {HANGS}\n' + (tmp_path / "bin" / "mx-smi").read_text())
    found = detected(tmp_path, probe)
    assert found.readings == read("metax", "one")
    assert [(problem.tried, problem.said) for problem in found.problems] == [("mx-smi topo -m", "no answer within 1 s")]


def test_what_does_not_change_is_asked_once(tmp_path: Path) -> None:
    probe = a_machine_with(tmp_path, "metax", "eight")
    body = (tmp_path / "bin" / "mx-smi").read_text()
    a_tool(tmp_path / "bin", "mx-smi", f'echo "$*" >> {tmp_path}/asked\n{body}')
    lookup = in_directory(tmp_path / "bin")
    assert probe.read(lookup).readings == probe.read(lookup).readings == read("metax", "eight")
    assert (tmp_path / "asked").read_text().splitlines() == ["", "-L", "topo -m", ""]


def test_a_tool_that_cannot_even_be_killed_is_not_started_again_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = a_probe("cambricon", timeout_seconds=0.2)
    a_tool(tmp_path / "bin", "cnmon", f"echo $$ >> {tmp_path}/pids; {HANGS}")
    lookup = in_directory(tmp_path / "bin")
    with monkeypatch.context() as patch:
        patch.setattr(tool, "DYING_SECONDS", 0.05)
        patch.setattr(os, "killpg", print)  # as if a driver held it in the kernel
        assert "the driver hangs" in probe.read(lookup).problems[0].said
    assert "it still hangs" in probe.read(lookup).problems[0].said
    (pid,) = (tmp_path / "pids").read_text().split()
    os.kill(int(pid), 9)
    deadline = time.monotonic() + 5
    while "still hangs" in probe.read(lookup).problems[0].said:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len((tmp_path / "pids").read_text().split()) == 2


def test_nobody_is_asked_whose_device_and_tool_are_not_here(tmp_path: Path) -> None:
    a_machine(tmp_path / "sys", AMD, device_class="0x028000")  # a network card
    a_device(tmp_path / "sys", "0000:09:00.0", "0x8086", "0x030000")  # of a vendor that we don't know
    (tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:0a:00.0").mkdir()  # one that has just gone
    assert detected(tmp_path, *(a_probe(vendor) for vendor in PROBES)) == Detected()


@pytest.mark.parametrize("device_class", ["0x030000", "0x030200", "0x0b4000", "0x120000"])
def test_a_device_of_each_class_of_accelerators_counts(device_class: str, tmp_path: Path) -> None:
    a_machine(tmp_path / "sys", ASCEND, device_class=device_class)
    assert [problem.vendor for problem in detected(tmp_path, a_probe("ascend")).problems] == ["Ascend"]


def test_where_the_bus_shows_no_device_the_tool_is_enough(tmp_path: Path) -> None:
    probe = a_machine_with(tmp_path, "thead", "one")
    found = detect(sysfs=tmp_path / "nowhere", lookup=in_directory(tmp_path / "bin"), probes=[probe])
    assert found == Detected(read("thead", "one"))


def test_two_vendors_in_one_machine_do_not_disturb_each_other(tmp_path: Path) -> None:
    healthy = a_machine_with(tmp_path / "one", "amd", "eight")
    a_device(tmp_path / "one" / "sys", "0000:77:00.0", METAX.pci_id, "0x030200")
    a_tool(tmp_path / "one" / "bin", "mx-smi", HANGS)
    found = detected(tmp_path / "one", healthy, a_probe("metax", timeout_seconds=0.3))
    assert found.readings == read("amd", "eight")
    assert [problem.vendor for problem in found.problems] == ["MetaX"]


# -- again and again --------------------------------------------------------------------------------------------------

A_GPU = GpuReading(
    vendor="nvidia", type="cuda", index=0, name="H100", memory_total_bytes=80 * GIB, memory_used_bytes=GIB
)
A_PROBLEM = Problem("NVIDIA", "NVML", "GPU is lost", "Install it.")


class Scripted:
    """A probe that answers what the test says, when it says so."""

    def __init__(self, *answers: Probed, vendor: Vendor = NVIDIA) -> None:
        self.vendor = vendor
        self.answers = list(answers)
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def read(self, lookup: Lookup) -> Probed:
        del lookup
        self.asked += 1
        self.may_answer.wait(10)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        pass


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvidia(tmp_path: Path) -> Path:
    return a_machine(tmp_path / "sys", NVIDIA)


def a_detector(sysfs: Path, clock: Clock, *probes: Scripted, patience_seconds: float = 5) -> Detector:
    return Detector(
        sysfs=sysfs,
        lookup=lambda _name, _homes: None,
        probes=probes,
        clock=clock,
        first_patience_seconds=patience_seconds,
        patience_seconds=patience_seconds,
    )


def test_who_answers_cheaply_is_asked_every_few_seconds_and_who_costs_more_less_often(
    nvidia: Path, clock: Clock
) -> None:
    cheap, dear = Scripted(Probed((A_GPU,), cpu_seconds=0.001)), Scripted(Probed((A_GPU,), cpu_seconds=1.0), vendor=AMD)
    a_device(nvidia, "0000:05:00.0", AMD.pci_id, "0x030200")
    detector = a_detector(nvidia, clock, cheap, dear)
    for _ in range(201):
        detector.look()
        clock.now += 1
    assert (cheap.asked, dear.asked) == (67, 2)  # a look each second: every third


def test_a_driver_that_hangs_does_not_keep_the_agent_waiting(nvidia: Path, clock: Clock) -> None:
    probe = Scripted(Probed((A_GPU,)), Probed((replace(A_GPU, unhealthy="lost"),)))
    probe.may_answer.clear()
    detector = a_detector(nvidia, clock, probe, patience_seconds=0.05)
    (problem,) = detector.look().problems
    assert (problem.vendor, problem.said) == ("NVIDIA", "no answer yet after 0 s")
    clock.now += 60
    began = time.monotonic()
    assert detector.look().problems[0].said == "no answer yet after 60 s"
    assert time.monotonic() - began < 2
    assert probe.asked == 1
    probe.may_answer.set()
    while detector.look() != Detected((A_GPU,)):
        time.sleep(0.01)
    probe.may_answer.clear()
    clock.now += 10
    assert detector.look() == Detected((A_GPU,))  # the answer before it counts
    probe.may_answer.set()


def test_several_threads_may_look_at_once(nvidia: Path, clock: Clock) -> None:
    probe = Scripted(Probed((A_GPU,)))
    probe.may_answer.clear()
    detector = a_detector(nvidia, clock, probe)
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(detector.look) for _ in range(4)]
        time.sleep(0.1)
        probe.may_answer.set()
        assert [look.result() for look in looks] == [Detected((A_GPU,))] * 4
    assert probe.asked == 1


def test_gpus_do_not_vanish_when_the_driver_fails_and_are_unhealthy_when_it_goes_on(nvidia: Path, clock: Clock) -> None:
    fails = Probed(problems=(A_PROBLEM,))
    detector = a_detector(nvidia, clock, Scripted(Probed((A_GPU,)), fails, fails, fails, Probed((A_GPU,))))
    told: list[Detected] = []
    for _ in range(5):
        told.append(detector.look())
        clock.now += 30
    unhealthy = replace(A_GPU, unhealthy="NVML: GPU is lost")
    assert [each.readings[0] for each in told] == [A_GPU, A_GPU, A_GPU, unhealthy, A_GPU]
    assert [each.problems for each in told] == [(), (A_PROBLEM,), (A_PROBLEM,), (A_PROBLEM,), ()]


def test_a_problem_is_logged_once_while_it_lasts(nvidia: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    fails, works = Probed(problems=(A_PROBLEM,)), Probed((A_GPU,))
    detector = a_detector(nvidia, clock, Scripted(fails, fails, works, fails))
    for _ in range(4):
        detector.gpus()
        clock.now += 30
    assert caplog.messages == ["GPUs of NVIDIA: NVML: GPU is lost. Install it."] * 2


def test_memory_that_engines_hold_is_not_others(nvidia: Path, clock: Clock) -> None:
    mine = replace(A_GPU, memory_used_bytes=50 * GIB, processes=(GpuProcess(os.getpid(), 40 * GIB),))
    detector = a_detector(nvidia, clock, Scripted(Probed((mine,))))
    assert detector.gpus([os.getsid(0)])[0].memory_used_by_others == 10 * GIB
    assert detector.gpus(["0123456789ab"])[0].memory_used_by_others == 50 * GIB


def test_where_processes_are_not_told_others_hold_what_was_used_before_engines_ran(nvidia: Path, clock: Clock) -> None:
    probe = Scripted(Probed((A_GPU,)), Probed((replace(A_GPU, memory_used_bytes=70 * GIB),)))
    detector = a_detector(nvidia, clock, probe)
    assert detector.gpus()[0].memory_used_by_others == GIB
    clock.now += 5
    assert detector.gpus([os.getsid(0)])[0].memory_used_by_others == GIB
    assert detector.gpus()[0].memory_used_by_others == 70 * GIB


def test_a_probe_that_fails_by_its_own_fault_takes_nobody_down(
    nvidia: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[object] = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    probe = Scripted(Probed())
    probe.answers.clear()
    detector = a_detector(nvidia, clock, probe)
    assert detector.look() == Detected()
    clock.now += 5
    detector.look()
    assert (probe.asked, len(faults)) == (1, 1)
    probe.answers.append(Probed((A_GPU,)))
    clock.now += 30
    assert detector.look() == Detected((A_GPU,))
