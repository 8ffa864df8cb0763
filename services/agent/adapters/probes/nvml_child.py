"""Answers each line on its input with what NVML says of all GPUs, as one line of JSON. Ends when its input does.

A process of its own, because a call into a driver that hangs comes back never, and can't be interrupted. It stays, because starting an
interpreter and NVML costs more than a hundred answers. `services.agent.domain.accelerators.nvidia` reads the answers.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

GPU_RECOVERY_ACTION: Final = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION."""
UNCORRECTED, SINCE_THE_DRIVER_WAS_LOADED = 1, 0
"""NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC."""
P2P_READ, P2P_NVLINK = 0, 2
"""NVML_P2P_CAPS_INDEX_READ (a tuple in pynvml 13.615, by a comma too many), NVML_P2P_CAPS_INDEX_NVLINK."""
ONE_PCIE_SWITCH: Final = 10
"""NVML_TOPOLOGY_SINGLE."""
XID: Final = 8
"""nvmlEventTypeXidCriticalError."""
MOST_EVENTS: Final = 1000


class Nvml:
    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._started = False
        self._events: Any = None
        self._registered: set[int] = set()
        self._links: tuple[int, list[list[int]]] | None = None
        self._xids: dict[int, list[int]] = {}

    def answer(self) -> dict[str, Any]:
        nvml = self._nvml
        try:
            if not self._started:
                nvml.nvmlInit()
                self._started = True
            count: int = nvml.nvmlDeviceGetCount()
            self._notice_xids(count)
            return {
                "driver_version": self._told(nvml.nvmlSystemGetDriverVersion),
                "cuda_driver_version": self._told(nvml.nvmlSystemGetCudaDriverVersion_v2),
                "gpus": [self._gpu(index) for index in range(count)],
                "links": self._linked(count),
            }
        except nvml.NVMLError as error:
            self._stop()
            return {"error": f"NVML: {error}"}

    def _stop(self) -> None:
        """The driver may be another when it is asked next."""
        self._links, self._events = None, None
        self._registered.clear()
        self._xids.clear()
        if self._started:
            self._started = False
            self._told(self._nvml.nvmlShutdown)

    def _told(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """None: this GPU, or this driver, does not tell."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return None

    def _gpu(self, index: int) -> dict[str, Any]:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            return {"index": index, "error": str(error), "xids": self._xids.get(index, [])}
        rows = self._told(nvml.nvmlDeviceGetRemappedRows, handle)
        utilisation = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        pending = self._told(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return {
            "index": index,
            "name": self._told(nvml.nvmlDeviceGetName, handle),
            "uuid": self._told(nvml.nvmlDeviceGetUUID, handle),
            "memory_total_bytes": memory.total,
            "memory_used_bytes": memory.used,
            "utilisation_percent": None if utilisation is None else utilisation.gpu,
            "temperature_celsius": self._told(nvml.nvmlDeviceGetTemperature, handle, 0),
            "power_milliwatts": self._told(nvml.nvmlDeviceGetPowerUsage, handle),
            "compute_capability": self._told(nvml.nvmlDeviceGetCudaComputeCapability, handle),
            "processes": self._processes(handle),
            "uncorrected_ecc_errors": self._told(
                nvml.nvmlDeviceGetTotalEccErrors, handle, UNCORRECTED, SINCE_THE_DRIVER_WAS_LOADED
            ),
            "remapping_failed": None if rows is None else bool(rows[3]),
            "retirement_pending": None if pending is None else bool(pending),
            "recovery_action": self._recovery_action(handle),
            "xids": self._xids.get(index, []),
            "mig_devices": self._mig_devices(handle),
        }

    def _processes(self, handle: Any) -> list[dict[str, Any]] | None:
        compute = self._told(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        graphics = self._told(self._nvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
        if compute is None:
            return None
        held: dict[int, int | None] = {}
        for process in (
            *compute,
            *(graphics or ()),
        ):  # a process that does both is told by both, with all that it holds
            held[process.pid] = process.usedGpuMemory
        return [{"pid": pid, "memory_bytes": memory} for pid, memory in held.items()]

    def _recovery_action(self, handle: Any) -> int | None:
        values = self._told(self._nvml.nvmlDeviceGetFieldValues, handle, [GPU_RECOVERY_ACTION])
        return int(values[0].value.uiVal) if values and values[0].nvmlReturn == 0 else None

    def _mig_devices(self, handle: Any) -> list[dict[str, Any]] | None:
        """None: MIG is off."""
        nvml = self._nvml
        mode = self._told(nvml.nvmlDeviceGetMigMode, handle)
        if not mode or not mode[0]:
            return None
        found: list[dict[str, Any]] = []
        for slot in range(self._told(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._told(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
            memory = None if part is None else self._told(nvml.nvmlDeviceGetMemoryInfo, part)
            if part is not None:
                found.append(
                    {
                        "slot": slot,
                        "name": self._told(nvml.nvmlDeviceGetName, part),
                        "uuid": self._told(nvml.nvmlDeviceGetUUID, part),
                        "memory_total_bytes": None if memory is None else memory.total,
                        "memory_used_bytes": None if memory is None else memory.used,
                        "processes": self._processes(part),
                    }
                )
        return found

    def _linked(self, count: int) -> list[list[int]]:
        """Pairs that reach each other over NVLink, or over one PCIe switch. Asked once: a machine is not rewired while it runs."""
        if self._links is None or self._links[0] != count:
            handles = [self._told(self._nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
            pairs = [[a, b] for a in range(count) for b in range(a + 1, count) if self._reach(handles[a], handles[b])]
            self._links = (count, pairs)
        return self._links[1]

    def _reach(self, one: Any, other: Any) -> bool:
        nvml = self._nvml
        if one is None or other is None:
            return False
        if self._told(nvml.nvmlDeviceGetP2PStatus, one, other, P2P_NVLINK) == 0:
            return True
        over = self._told(nvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
        return (
            over is not None
            and over <= ONE_PCIE_SWITCH
            and self._told(nvml.nvmlDeviceGetP2PStatus, one, other, P2P_READ) == 0
        )

    def _notice_xids(self, count: int) -> None:
        """NVML tells an error once, to who listens when it happens: it is remembered until the driver is loaded anew."""
        nvml = self._nvml
        if self._events is None:
            self._events = self._told(nvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for index in range(count):
            if index not in self._registered:
                self._registered.add(index)
                handle = self._told(nvml.nvmlDeviceGetHandleByIndex, index)
                if handle is not None:
                    self._told(nvml.nvmlDeviceRegisterEvents, handle, XID, self._events)
        for _ in range(MOST_EVENTS):
            event = self._told(nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            index = self._told(nvml.nvmlDeviceGetIndex, event.device)
            if event.eventType == XID and index is not None and event.eventData not in self._xids.setdefault(index, []):
                self._xids[index].append(event.eventData)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        nvml = Nvml(importlib.import_module("pynvml"))
    except ImportError:
        nvml = None
    for _ in sys.stdin:
        before = time.process_time()
        answer: dict[str, Any] = (
            {"error": "the Python package nvidia-ml-py is not installed"} if nvml is None else nvml.answer()
        )
        answer["cpu_seconds"] = round(time.process_time() - before, 6)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
