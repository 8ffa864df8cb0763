"""What the child calls of pynvml, over the GPUs in `scenario.json` beside this file: a recorded answer of the child itself.

Read anew at each `nvmlInit`; a file `replaced` beside it means that the driver is away. Names and results as in nvidia-ml-py 13.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCENARIO = Path(__file__).with_name("scenario.json")
_state: dict[str, Any] = {}


class NVMLError(Exception):
    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.value = value


def nvmlInit() -> None:  # noqa: N802
    _state.clear()
    _state.update(json.loads(SCENARIO.read_text(encoding="utf-8")))
    _state["events"] = [(gpu["index"], xid) for gpu in _state.get("gpus", ()) for xid in gpu.get("xids", ())]
    if _state.get("hangs"):
        time.sleep(1000)
    if _state.get("error"):
        raise NVMLError(_state["error"])


def nvmlShutdown() -> None:  # noqa: N802
    _state.clear()


def nvmlDeviceGetCount() -> int:  # noqa: N802
    if SCENARIO.with_name("replaced").exists():
        raise NVMLError("Driver Not Loaded")
    return len(_state["gpus"])


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return _state["driver_version"]


def nvmlSystemGetCudaDriverVersion_v2() -> int:  # noqa: N802
    return _state["cuda_driver_version"]


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:  # noqa: N802
    gpu = _state["gpus"][index]
    if gpu.get("error"):
        raise NVMLError(gpu["error"])
    return gpu


def _of(handle: dict[str, Any], name: str) -> Any:
    if handle.get(name) is None:
        raise NVMLError("Not Supported")
    return handle[name]


def nvmlDeviceGetMemoryInfo(handle: dict[str, Any]) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(total=_of(handle, "memory_total_bytes"), used=_of(handle, "memory_used_bytes"))


def nvmlDeviceGetName(handle: dict[str, Any]) -> str:  # noqa: N802
    return _of(handle, "name")


def nvmlDeviceGetUUID(handle: dict[str, Any]) -> str:  # noqa: N802
    return _of(handle, "uuid")


def nvmlDeviceGetIndex(handle: dict[str, Any]) -> int:  # noqa: N802
    return _of(handle, "index")


def nvmlDeviceGetUtilizationRates(handle: dict[str, Any]) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=_of(handle, "utilisation_percent"), memory=0)


def nvmlDeviceGetTemperature(handle: dict[str, Any], sensor: int) -> int:  # noqa: N802
    assert sensor == 0, "NVML_TEMPERATURE_GPU"
    return _of(handle, "temperature_celsius")


def nvmlDeviceGetPowerUsage(handle: dict[str, Any]) -> int:  # noqa: N802
    return _of(handle, "power_milliwatts")


def nvmlDeviceGetCudaComputeCapability(handle: dict[str, Any]) -> tuple[int, int]:  # noqa: N802
    return tuple(_of(handle, "compute_capability"))


def nvmlDeviceGetComputeRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:  # noqa: N802
    return [SimpleNamespace(pid=each["pid"], usedGpuMemory=each["memory_bytes"]) for each in _of(handle, "processes")]


def nvmlDeviceGetGraphicsRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:  # noqa: N802
    return nvmlDeviceGetComputeRunningProcesses(handle)[:1]  # one that does both is told by both


def nvmlDeviceGetTotalEccErrors(handle: dict[str, Any], error: int, counter: int) -> int:  # noqa: N802
    assert (error, counter) == (1, 0), "uncorrected, volatile"
    return _of(handle, "uncorrected_ecc_errors")


def nvmlDeviceGetRemappedRows(handle: dict[str, Any]) -> tuple[int, int, int, int]:  # noqa: N802
    return (0, 0, 0, int(_of(handle, "remapping_failed")))


def nvmlDeviceGetRetiredPagesPendingStatus(handle: dict[str, Any]) -> int:  # noqa: N802
    return int(_of(handle, "retirement_pending"))


def nvmlDeviceGetFieldValues(handle: dict[str, Any], fields: list[int]) -> list[SimpleNamespace]:  # noqa: N802
    assert fields == [230], "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"
    action = handle.get("recovery_action")
    return [SimpleNamespace(nvmlReturn=3 if action is None else 0, value=SimpleNamespace(uiVal=action or 0))]


def nvmlDeviceGetMigMode(handle: dict[str, Any]) -> list[int]:  # noqa: N802
    on = int(handle.get("mig_devices") is not None)
    return [on, on]


def nvmlDeviceGetMaxMigDeviceCount(_handle: dict[str, Any]) -> int:  # noqa: N802
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: dict[str, Any], slot: int) -> dict[str, Any]:  # noqa: N802
    for part in handle["mig_devices"]:
        if part["slot"] == slot:
            return part
    raise NVMLError("Not Found")


def nvmlDeviceGetP2PStatus(one: dict[str, Any], other: dict[str, Any], capability: int) -> int:  # noqa: N802
    links = _state["links"] if capability == 2 else _state.get("p2p", [])
    return 0 if [one["index"], other["index"]] in links else 5


def nvmlDeviceGetTopologyCommonAncestor(one: dict[str, Any], other: dict[str, Any]) -> int:  # noqa: N802
    return 10 if [one["index"], other["index"]] in _state.get("switch", []) else 40


def nvmlEventSetCreate() -> str:  # noqa: N802
    return "events"


def nvmlDeviceRegisterEvents(_handle: dict[str, Any], kinds: int, _events: str) -> None:  # noqa: N802
    assert kinds == 8, "nvmlEventTypeXidCriticalError"


def nvmlEventSetWait_v2(_events: str, milliseconds: int) -> SimpleNamespace:  # noqa: N802
    assert milliseconds == 0, "it does not wait"
    if not _state["events"]:
        raise NVMLError("Timeout")
    index, xid = _state["events"].pop()
    return SimpleNamespace(device=_state["gpus"][index], eventType=8, eventData=xid)
