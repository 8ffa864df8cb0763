"""NVIDIA: what `probes/nvml_child.py` prints of NVML (NVML API Reference Guide, NVIDIA driver 13.x documentation).

Units there are NVML's: bytes, milliwatts, °C, percent.
"""

from collections.abc import Iterator
from typing import Any, Final

from services.agent.domain.accelerators.answers import Answers, islands, items, json_in, mapping
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.quantities import number, whole, word
from services.agent.domain.accelerators.reading import BadOutput, GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import NVIDIA

MIG_DEVICES: Final = 8
"""Numbers that are kept free for the MIG devices of each GPU (`nvmlDeviceGetMaxMigDeviceCount` is 7 so far)."""
FATAL_XIDS: Final = {
    46: "GPU stopped processing",
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    64: "a memory row could not be retired or remapped",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}
"""Errors after which a GPU is no good until it is reset (NVIDIA, "XID Errors"). The others are an application's, or pass."""
RECOVERY_ACTIONS: Final = {
    1: "the driver asks for a GPU reset",
    2: "the driver asks for a reboot",
    3: "the driver asks to drain P2P traffic",
    4: "the driver asks to drain and reset it",
    6: "the driver asks for a bus reset",
    7: "the driver asks for a reboot of the system",
}
"""`nvmlDeviceGpuRecoveryAction_t`."""


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`nvml` is needed. Raises BadOutput, with NVML's own words where it has some."""
    document = mapping(json_in(answers.get("nvml", "")))
    if (error := word(document.get("error"))) is not None:
        raise BadOutput(error)
    described = [mapping(gpu) for gpu in items(document.get("gpus"))]
    cuda = whole(document.get("cuda_driver_version"))
    common: dict[str, Any] = {
        "driver_version": word(document.get("driver_version")),
        "runtime_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
    }
    readings = each_once(reading for gpu in described for reading in _readings(gpu, len(described), common))
    pairs: list[tuple[int, int]] = []
    for pair in items(document.get("links")):
        match items(pair):
            case [int(one), int(other)]:
                pairs += [(one, other), (other, one)]
            case _:
                pass
    return with_islands(readings, islands((reading.index for reading in readings), pairs))


def _readings(gpu: dict[str, Any], count: int, common: dict[str, Any]) -> Iterator[GpuReading]:
    """The GPU, or in its place the MIG devices that it is split into: each has a UUID of its own, and engines are given those."""
    index = whole(gpu.get("index"))
    if index is None:
        return
    whole_gpu = _reading(
        gpu, index, common | {"unhealthy": _what_is_wrong(gpu), "compute_capability": _capability(gpu)}
    )
    mig = gpu.get("mig_devices")
    if mig is None:
        yield whole_gpu
        return
    parts = [mapping(part) for part in items(mig)]
    if not parts:
        yield _reading(
            gpu,
            index,
            common
            | {"unhealthy": whole_gpu.unhealthy or "MIG is on and it has no MIG device (`nvidia-smi mig -cgi … -C`)"},
        )
    for part in parts:
        slot = whole(part.get("slot"))
        if slot is not None and slot < MIG_DEVICES:
            shared = {
                "unhealthy": whole_gpu.unhealthy,
                "compute_capability": whole_gpu.compute_capability,
                "temperature_celsius": whole_gpu.temperature_celsius,
                "mig_parent": whole_gpu.uuid,
            }
            yield _reading(part, count + index * MIG_DEVICES + slot, common | shared)


def _reading(described: dict[str, Any], index: int, more: dict[str, Any]) -> GpuReading:
    milliwatts = number(described.get("power_milliwatts"))
    fields: dict[str, Any] = {
        "temperature_celsius": number(described.get("temperature_celsius")),
        "power_watts": None if milliwatts is None else milliwatts / 1000,
    } | more
    return GpuReading(
        vendor=NVIDIA.name,
        type=NVIDIA.type,
        index=index,
        name=word(described.get("name")) or "NVIDIA GPU",
        uuid=word(described.get("uuid")),
        memory_total_bytes=whole(described.get("memory_total_bytes")),
        memory_used_bytes=whole(described.get("memory_used_bytes")),
        utilisation_percent=number(described.get("utilisation_percent")),
        processes=_processes(described.get("processes")),
        **fields,
    )


def _capability(gpu: dict[str, Any]) -> str | None:
    match items(gpu.get("compute_capability")):
        case [int(major), int(minor)]:
            return f"{major}.{minor}"
        case _:
            return None


def _processes(listed: Any) -> tuple[GpuProcess, ...] | None:
    if not isinstance(listed, list):
        return None
    processes = [mapping(each) for each in items(listed)]
    return tuple(
        GpuProcess(pid, whole(process.get("memory_bytes")))
        for process in processes
        if (pid := whole(process.get("pid"))) is not None
    )


def _what_is_wrong(gpu: dict[str, Any]) -> str | None:
    wrong: list[str] = []
    if (lost := word(gpu.get("error"))) is not None:
        wrong.append(lost)
    action = whole(gpu.get("recovery_action"))
    if action in RECOVERY_ACTIONS:
        wrong.append(RECOVERY_ACTIONS[action])
    if gpu.get("remapping_failed") is True:
        wrong.append("a memory row could not be remapped")
    if gpu.get("retirement_pending") is True:
        wrong.append("memory pages wait for a reset to be retired")
    if errors := whole(gpu.get("uncorrected_ecc_errors")):
        wrong.append(f"{errors} uncorrected ECC errors since the driver was loaded")
    wrong += [
        f"XID {xid}: {FATAL_XIDS[xid]}" for xid in items(gpu.get("xids")) if isinstance(xid, int) and xid in FATAL_XIDS
    ]
    return "; ".join(wrong) or None
