"""What a real engine holds is measured, explained beside what it claims, and claimed by the next one where that is allowed."""

from dataclasses import dataclass
from typing import Any

import pytest

from schemas.facts import ModelPeakMeasured
from services.agent.adapters.probes.detection import Detector
from services.agent.adapters.probes.probe import Probed
from services.agent.adapters.probes.tool import Lookup
from services.agent.domain.accelerators.reading import GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import NVIDIA
from services.scheduler.domain.peaks import claimed
from tests.e2e.an_engine import COMMAND
from tests.services.agent.accelerators.tools import a_machine
from tests.support.stack import Client, Stack

MIB, GIB = 2**20, 2**30


async def claims(client: Client) -> list[int]:
    placement = await client.get("/v2/models/tinychat/placement")
    return [each["members"][0]["claim"]["ram"] for each in placement["instances"]]


def peaks_in(timeline: dict[str, Any]) -> list[dict[str, Any]]:
    return [event["data"] for event in timeline["items"] if event["type"] == ModelPeakMeasured.type]


async def test_the_peak_of_an_engine_that_runs_is_stated_explained_and_claimed_by_the_next_one(stack: Stack) -> None:
    await stack.spawn("scheduler", claims_from_peak=True)
    await stack.start_worker(0)
    await stack.start_api()
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")

    (peak,) = peaks_in(await client.get("/v2/models/tinychat/timeline"))
    assert (peak["gpu"], peak["gpus"], peak["peak_vram"]) == ("cpu", 0, None)
    assert 20 * MIB < peak["peak_ram"] < 1024 * MIB
    (claim,) = await claims(client)
    (measured,) = (await client.get("/v2/models/tinychat/placement"))["measured"]
    assert (measured["gpu"], measured["instances"]) == ("cpu", 1)
    assert (measured["claimed_ram"], measured["peak_ram"]) == (claim, peak["peak_ram"])
    assert measured["text"].startswith("1 instance on the CPU: claims 262 MiB of RAM, measured ")

    await client.request("PATCH", "/v2/models/tinychat", {"replicas": 2})
    await client.until("/v2/models/tinychat", lambda model: model["ready_replicas"] == 2)
    known = [each["peak_ram"] for each in peaks_in(await client.get("/v2/models/tinychat/timeline"))]
    first, second = await claims(client)
    assert first == claim
    assert second in {claimed(size) for size in known}
    assert second != claim


async def test_a_peak_that_rises_while_the_engine_runs_is_told_and_one_that_is_over_stays(stack: Stack) -> None:
    await stack.start_all(llama_cpp_command=COMMAND)
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")
    (before,) = peaks_in(await client.get("/v2/models/tinychat/timeline"))
    assert before["peak_ram"] < 100 * MIB

    assert (await client.ask("tinychat", "gorge"))[0] == 200
    timeline = await client.until(
        "/v2/models/tinychat/timeline", lambda found: peaks_in(found)[-1]["peak_ram"] > 200_000_000
    )
    told = [each["peak_ram"] for each in peaks_in(timeline)]
    assert told == sorted(told)
    assert told[-1] < 300_000_000

    await client.request("PATCH", "/v2/models/tinychat", {"replicas": 0})
    await client.until("/v2/model-instances?model=tinychat", lambda found: not found["items"])
    assert peaks_in(await client.get("/v2/models/tinychat/timeline")) == peaks_in(timeline)


async def test_what_an_engine_held_shortly_before_it_is_stopped_is_told_with_its_end(stack: Stack) -> None:
    await stack.start_all(llama_cpp_command=COMMAND)
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")

    assert (await client.ask("tinychat", "gorge"))[0] == 200
    await client.request("PATCH", "/v2/models/tinychat", {"replicas": 0})
    await client.until("/v2/model-instances?model=tinychat", lambda found: not found["items"])

    assert peaks_in(await client.get("/v2/models/tinychat/timeline"))[-1]["peak_ram"] > 200_000_000


@dataclass
class OneGpu:
    """A probe that tells of one GPU, on which every engine of a worker holds as much as the test says."""

    stack: Stack
    held: int = GIB
    vendor = NVIDIA

    def read(self, lookup: Lookup) -> Probed:
        del lookup
        processes = tuple(GpuProcess(pid, self.held) for pid in self.stack.engines().values())
        gpu = GpuReading("nvidia", "cuda", 0, "NVIDIA Test", memory_total_bytes=8 * GIB, processes=processes)
        return Probed((gpu,))

    def close(self) -> None: ...


async def test_what_an_engine_holds_of_its_gpu_is_told_and_explained(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = OneGpu(stack)
    sysfs = a_machine(stack.directory / "sys", NVIDIA)
    monkeypatch.setattr("services.agent.process.Detector", lambda: Detector(sysfs=sysfs, probes=[probe]))
    await stack.start_all(llama_cpp_command=COMMAND)
    client = stack.client()
    await client.deploy("tinychat", gpu_selector={"gpu_ids": ["worker-0:cuda:0"]})
    await client.until_state("/v2/models/tinychat", "ready")

    def vram_in(timeline: dict[str, Any]) -> list[int]:
        return [each["peak_vram"] for each in peaks_in(timeline) if each["peak_vram"] is not None]

    timeline = await client.until("/v2/models/tinychat/timeline", lambda found: bool(vram_in(found)), seconds=60)
    assert vram_in(timeline) == [GIB]
    probe.held = 2 * GIB
    timeline = await client.until("/v2/models/tinychat/timeline", lambda found: len(vram_in(found)) > 1, seconds=60)
    assert vram_in(timeline) == [GIB, 2 * GIB]
    (measured,) = (await client.get("/v2/models/tinychat/placement"))["measured"]
    assert (measured["gpu"], measured["peak_vram"]) == ("NVIDIA Test", 2 * GIB)
