"""Which workers are meant: by name or id, or by their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernel.errors import Refused
from schemas.versions import platform_of

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Where:
    """Neither: all workers."""

    names: Sequence[str] = ()
    """Or ids."""
    labels: Mapping[str, str] | None = None

    def among(self, workers: Sequence[Document], field: str) -> list[Document]:
        """Each once. `field`: where the names stand. Raises Refused (not_found)."""
        if self.labels is not None:
            return [each for each in workers if self.labels.items() <= _labels(each).items()]
        if not self.names:
            return list(workers)
        found: dict[str, Document] = {}
        for name in self.names:
            meant = next((each for each in workers if name in (each["id"], each["name"])), None)
            if meant is None:
                raise Refused("not_found", f"there is no worker {name[:80]}", status=404, field=field)
            found[meant["id"]] = meant
        return list(found.values())


def _labels(worker: Document) -> dict[str, str]:
    """Those that are built in, and an operator's."""
    arch = platform_of(worker["os"], worker["arch"]).rpartition("/")[2]
    return {"os": worker["os"], "arch": arch, "worker-name": worker["name"]} | worker["labels"]
