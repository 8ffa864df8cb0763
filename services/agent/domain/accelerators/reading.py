"""What a vendor's library or tool says of one GPU, in the same words for all vendors."""

from dataclasses import dataclass


class BadOutput(ValueError):
    """A tool printed something that says nothing of GPUs. The message is for people."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU."""

    pid: int
    """In the PID namespace of the host."""
    memory_bytes: int | None = None
    """Of the GPU's memory; None: the tool does not tell."""


@dataclass(frozen=True, slots=True)
class RocePort:
    """The network port of an accelerator that has its own."""

    address: str | None = None
    up: bool = True


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment. What the tool did not tell is None."""

    vendor: str
    """The name in `vendors.py`."""
    type: str
    index: int
    """The number by which the vendor's runtime knows it (CUDA_VISIBLE_DEVICES, ASCEND_RT_VISIBLE_DEVICES …)."""
    name: str
    uuid: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    """By whomever, the driver's own share included."""
    utilisation_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    driver_version: str | None = None
    runtime_version: str | None = None
    """The newest CUDA, ROCm … that the driver can run."""
    compute_capability: str | None = None
    """NVIDIA's number (`9.0`); elsewhere the family that images are built for (`gfx942`, `910b`)."""
    unhealthy: str | None = None
    """What the driver calls wrong with it, in a few words; None: nothing, or the tool tells no health at all."""
    island: int | None = None
    """GPUs of this vendor with the same number reach each other directly; None: it reaches no other so."""
    network: RocePort | None = None
    processes: tuple[GpuProcess, ...] | None = None
    """None: the tool does not tell."""
    mig_parent: str | None = None
    """UUID of the GPU that this is a part of."""


@dataclass(frozen=True, slots=True)
class Problem:
    """GPUs of a vendor that could not be read, or not completely: what a person needs to do something about it."""

    vendor: str
    """As people call it: `Moore Threads`."""
    tried: str
    """The command, or the library."""
    said: str
    """What it answered, or that it did not."""
    install: str
    """What to install or check, in one sentence."""
