"""How far model files are: of each, and of all that an instance or a model waits for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from schemas.reports import FileProgress

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on its way to a worker, or there."""

    state: str
    bytes: int | None
    """Of what is there; None: it is not ready."""
    total: int | None
    """As it was known when it was wanted."""
    progress: FileProgress | None = None
    """As it was told just now."""


def far(file: Fetched) -> Document:
    """How far it is. What is ready is there, whatever was heard last."""
    told = file.progress if file.state in ("wanted", "deleting") else None
    if told is None:
        return {
            "phase": None,
            "bytes": file.bytes,
            "total": file.total,
            "bytes_per_second": None,
            "remaining_seconds": None,
            "origin": None,
            "parts": [],
            "files_ready": None,
            "files": None,
        }
    document = told.model_dump(mode="json", exclude={"file_id"})
    return document | {"total": file.total if told.total is None else told.total}


def summed(files: Iterable[Fetched]) -> Document | None:
    """Of all together; None when there are none. The total is not known before each one's is."""
    each = [far(file) for file in files]
    if not each:
        return None
    totals = [one["total"] for one in each]
    rates = [one["bytes_per_second"] for one in each if one["bytes_per_second"] is not None]
    so_far, rate = sum(one["bytes"] or 0 for one in each), sum(rates) if rates else None
    total = None if None in totals else sum(totals)
    remaining = max(total - so_far, 0) / rate if total is not None and rate else None
    return {"bytes": so_far, "total": total, "bytes_per_second": rate, "remaining_seconds": remaining}
