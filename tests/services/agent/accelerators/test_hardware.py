"""What is detected on this machine's own hardware, beside what the vendor's tool says; skipped where there is none."""

import shutil
import subprocess

import pytest

from services.agent.adapters.probes.detection import Detector

NVIDIA_SMI = shutil.which("nvidia-smi")


def said_by_nvidia_smi() -> list[list[str]]:
    """index, uuid, name, memory.total (MiB), driver, compute capability of each GPU."""
    fields = "index,uuid,name,memory.total,driver_version,compute_cap"
    command = [str(NVIDIA_SMI), f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [[each.strip() for each in line.split(",")] for line in told.splitlines() if line.strip()]


@pytest.mark.skipif(NVIDIA_SMI is None, reason="this machine has no NVIDIA GPU (no nvidia-smi)")
def test_nvml_finds_what_nvidia_smi_says() -> None:
    detector = Detector()
    try:
        found = detector.gpus()
        problems = detector.look().problems
    finally:
        detector.close()
    assert problems == ()
    told = said_by_nvidia_smi()
    assert [(str(gpu.index), gpu.uuid, gpu.name) for gpu in found] == [tuple(each[:3]) for each in told]
    for gpu, (_, _, _, memory, driver, capability) in zip(found, told, strict=True):
        assert (gpu.vendor, gpu.type) == ("nvidia", "cuda")
        assert abs(gpu.memory_total / 2**20 - float(memory)) < 2
        assert (gpu.driver_version, gpu.compute_capability) == (driver, capability)
        assert gpu.unhealthy is None
