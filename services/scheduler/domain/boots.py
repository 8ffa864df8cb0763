"""Which reports are news. A report may come twice, late, or from an agent whose machine has been started anew since.

A boot has an id and counts its reports. Which boot is the present one is told by its beats, which are never stored and so
never late; until one is heard, by the order of reports and by when they were made.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from schemas.ids import WorkerId
from schemas.reports import Report

REMEMBERED: Final = 8


@dataclass(slots=True)
class Sender:
    counters: dict[str, int] = field(default_factory=dict[str, int])
    """Boot → its last report; the boot that was heard last comes last."""
    beating: str | None = None
    observed_at: datetime | None = None
    """When the last report that was news was made, by its own clock."""

    def is_news(self, report: Report) -> bool:
        boot = report.boot_id
        counter = self.counters.get(boot)
        if counter is not None and counter >= report.counter:
            return False
        if boot != self.beating and self.counters and not self._may_be_the_present_one(boot, report.observed_at):
            return False
        self.counters.pop(boot, None)
        self.counters[boot] = report.counter
        if len(self.counters) > REMEMBERED:
            del self.counters[next(iter(self.counters))]
        self.observed_at = report.observed_at
        return True

    def _may_be_the_present_one(self, boot: str, observed_at: datetime) -> bool:
        """Of a boot that has not been heard to beat: it is the last that was news, or it is new and speaks of later."""
        if boot in self.counters:
            return boot == next(reversed(self.counters))
        return self.observed_at is None or observed_at >= self.observed_at


class Boots:
    def __init__(self) -> None:
        self._senders: dict[tuple[WorkerId, str], Sender] = {}

    def is_news(self, report: Report, role: str) -> bool:
        return self._senders.setdefault((report.worker_id, role), Sender()).is_news(report)

    def beat(self, worker_id: WorkerId, role: str, boot_id: str) -> None:
        self._senders.setdefault((worker_id, role), Sender()).beating = boot_id

    def is_beating(self, worker_id: WorkerId, role: str, boot_id: str) -> bool:
        sender = self._senders.get((worker_id, role))
        return sender is not None and sender.beating == boot_id

    def is_another(self, worker_id: WorkerId, role: str, boot_id: str | None) -> bool:
        """Was another boot heard to beat before? Then what this one has said may have been taken for late."""
        sender = self._senders.get((worker_id, role))
        return sender is not None and boot_id is not None and sender.beating not in (None, boot_id)

    def is_spoken_for(self, worker_id: WorkerId, role: str, boot_id: str | None) -> bool:
        """Was another boot believed last? It may have been of the past, and late, however new it seemed."""
        sender = self._senders.get((worker_id, role))
        return sender is not None and boot_id is not None and next(reversed(sender.counters), boot_id) != boot_id

    def heard_of(self, report: Report, role: str) -> bool:
        """It, or a later one of its boot, was news before."""
        sender = self._senders.get((report.worker_id, role))
        return sender is not None and sender.counters.get(report.boot_id, -1) >= report.counter
