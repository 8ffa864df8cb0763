"""AMD: `amd-smi … --json` (ROCm documentation, "AMD SMI CLI tool usage"; outputs of ROCm 6.x and 7.x as users pasted them).

ROCm 7 wraps the list of GPUs in {"gpu_data": […]}; quantities are {"value": 196592, "unit": "MB"} or N/A; MB are MiB.
"""

from typing import Any, Final

from services.agent.domain.accelerators.answers import Answers, islands, items, json_in, mapping
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.quantities import MIB, number, whole, word
from services.agent.domain.accelerators.reading import BadOutput, GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import AMD

_UNITS: Final = {"B": 1, "KB": 1024, "MB": MIB, "GB": 1024 * MIB}
_XGMI: Final = "XGMI"


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`static` is needed; `metric`, `process`, `list`, `version` and `topology` add what they tell. Raises BadOutput."""
    static = _by_gpu(answers, "static")
    if not static:
        raise BadOutput("no GPU in its output")
    metric, process, listed = (_by_gpu(answers, name) for name in ("metric", "process", "list"))
    rocm = _rocm(answers)
    readings = each_once(
        GpuReading(
            vendor=AMD.name,
            type=AMD.type,
            index=index,
            name=word(mapping(gpu.get("asic")).get("market_name")) or "AMD GPU",
            uuid=word(listed.get(index, {}).get("uuid")),
            memory_total_bytes=_size(mapping(gpu.get("vram")).get("size"))
            or _size(mapping(metric.get(index, {}).get("mem_usage")).get("total_vram")),
            memory_used_bytes=_size(mapping(metric.get(index, {}).get("mem_usage")).get("used_vram")),
            utilisation_percent=_value(mapping(metric.get(index, {}).get("usage")).get("gfx_activity")),
            temperature_celsius=_temperature(mapping(metric.get(index, {}).get("temperature"))),
            power_watts=_value(mapping(metric.get(index, {}).get("power")).get("socket_power")),
            driver_version=word(mapping(gpu.get("driver")).get("version")),
            runtime_version=rocm,
            compute_capability=word(mapping(gpu.get("asic")).get("target_graphics_version")),
            unhealthy=_what_is_wrong(mapping(metric.get(index, {}).get("ecc"))),
            processes=_processes(process[index]) if index in process else None,
        )
        for index, gpu in static.items()
    )
    return with_islands(readings, islands(static, _links(answers)))


def _by_gpu(answers: Answers, question: str) -> dict[int, dict[str, Any]]:
    try:
        document = json_in(answers.get(question, ""))
    except BadOutput:
        return {}
    listed = items(document) or items(mapping(document).get("gpu_data"))
    gpus = [mapping(gpu) for gpu in listed]
    return {index: gpu for gpu in gpus if (index := whole(gpu.get("gpu"))) is not None}


def _rocm(answers: Answers) -> str | None:
    try:
        document = json_in(answers.get("version", ""))
    except BadOutput:
        return None
    first = mapping((items(document) or [document])[0])
    return word(first.get("rocm_version"))


def _value(quantity: Any) -> float | None:
    return number(mapping(quantity).get("value") if isinstance(quantity, dict) else quantity)


def _size(quantity: Any) -> int | None:
    """{"value": 2353860608, "unit": "B"}; without a unit it is MB."""
    found = _value(quantity)
    unit = _UNITS.get(str(mapping(quantity).get("unit", "MB")).upper())
    return whole(found * unit) if found is not None and unit is not None else None


def _temperature(sensors: dict[str, Any]) -> float | None:
    """`edge` is N/A on Instinct."""
    return next(
        (found for name in ("hotspot", "edge", "mem") if (found := _value(sensors.get(name))) is not None), None
    )


def _processes(gpu: dict[str, Any]) -> tuple[GpuProcess, ...]:
    """`process_info` is a sentence when nothing runs.

    VRAM is in `memory_usage.vram_mem`; some versions have it in `mem_usage` alone, where 0 means that it was not told.
    """
    found: list[GpuProcess] = []
    for each in items(gpu.get("process_list")):
        information = mapping(mapping(each).get("process_info", each))
        pid = whole(information.get("pid"))
        if pid is not None:
            vram = mapping(information.get("memory_usage")).get("vram_mem")
            memory = _size(information.get("vram_mem") if vram is None else vram)
            found.append(GpuProcess(pid, memory if memory is not None else _size(information.get("mem_usage")) or None))
    return tuple(found)


def _what_is_wrong(ecc: dict[str, Any]) -> str | None:
    errors = whole(ecc.get("total_uncorrectable_count"))
    return f"{errors} uncorrectable ECC errors since the driver was loaded" if errors else None


def _links(answers: Answers) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for index, gpu in _by_gpu(answers, "topology").items():
        for each in items(gpu.get("links")):
            link = mapping(each)
            other = whole(link.get("gpu"))
            if other is not None and link.get("link_type") == _XGMI and link.get("link_status") == "ENABLED":
                found.append((index, other))
    return found
