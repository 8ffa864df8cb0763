"""What this machine has, measured or as a file describes it."""

import json
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import psutil
from pydantic import ValidationError

from kernel.settings import BadSettings
from schemas.models import Gpu, Inventory

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""As machines call themselves → as container images are labelled (OCI image index, `architecture`)."""


DISK_STEP_BYTES: Final = 2**30


def no_gpus() -> tuple[Gpu, ...]:
    return ()


def disk_free(directory: Path) -> int | None:
    """Where this directory is, or will be; bytes, in steps, since every change is a fact. None: it does not tell."""
    there = next((each for each in (directory, *directory.absolute().parents) if each.exists()), None)
    try:
        usage = None if there is None else shutil.disk_usage(there)
    except OSError:
        return None
    if usage is None:
        return None
    step = max(DISK_STEP_BYTES, usage.total // 100)
    return usage.free // step * step


def read_inventory(
    file: Path | None,
    backends: Mapping[str, str | None],
    detect_gpus: Callable[[], tuple[Gpu, ...]] = no_gpus,
    cache: Path | None = None,
) -> Inventory:
    """`cache`: where model files go.

    `file`: a JSON object with fields of Inventory; it says what the machine has, and what it leaves out is measured.

    A file with `gpus` wins over what is detected, which is not even asked then: `[]` keeps a worker from using its GPUs. Raises
    BadSettings, which names the file and the field.
    """
    machine = platform.machine()
    measured: dict[str, Any] = {
        "os": platform.system().lower(),
        "arch": ARCHITECTURES.get(machine, machine.lower()),
        "cpu_count": psutil.cpu_count() or 1,
        "memory_total": psutil.virtual_memory().total,
        "backends": dict(backends),
        "disk_free": None if cache is None else disk_free(cache),
    }
    if file is None:
        return Inventory.model_validate(measured | {"gpus": detect_gpus()})
    described = _object_in(file)
    gpus = described.get("gpus")
    _refuse_unknown(file, described, Inventory.model_fields, "")
    for index, gpu in enumerate(cast("list[Any]", gpus) if isinstance(gpus, list) else []):
        if isinstance(gpu, dict):
            _refuse_unknown(file, cast("dict[str, Any]", gpu), Gpu.model_fields, f"gpus.{index}.")
    if "gpus" not in described:
        measured["gpus"] = detect_gpus()
    try:
        return Inventory.model_validate(measured | described)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadSettings(f"{file}: {'.'.join(map(str, first['loc']))} is wrong: {first['msg']}") from error


def _object_in(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_bytes())
    except OSError as error:
        raise BadSettings(f"{file} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise BadSettings(f"{file} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise BadSettings(f"{file} is not a JSON object")
    return cast("dict[str, Any]", described)


def _refuse_unknown(file: Path, written: Mapping[str, Any], fields: Mapping[str, object], where: str) -> None:
    """On the bus an unknown field is a newer writer's; in a file that a person wrote it is a typing mistake."""
    if unknown := sorted(written.keys() - fields.keys()):
        raise BadSettings(f"{file}: {where}{unknown[0]} is no field: there are {', '.join(fields)}")
