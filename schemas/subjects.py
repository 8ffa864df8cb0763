"""Every subject on the bus, made and read in this one place (DESIGN: the log).

muster.facts.<owner>.<kind>.<concern>.<id>.<Type>    stream FACTS, kept for ever
muster.assigned.<worker>                             stream ASSIGNED, the newest document
muster.reports.<worker>.<kind>.<id>.<Type>           stream REPORTS, kept for days
muster.beat.<worker>.<agent|downloader>              core NATS, not stored
muster.progress.<worker>                             core NATS, not stored: how far files are
muster.requests.<gateway>                            core NATS, not stored: what a gateway counts
muster.ask.<worker>.<verb>                           core NATS, request and reply
muster.core.<verb>                                   core NATS, request and reply: questions to who decides
muster.projected                                     core NATS: the projector's high-water mark

`<concern>` is the worker that a fact concerns; in the api's facts about what bears a name it is the name, `~<digest>`, so
that one guard makes names unique; `-` when there is neither.
"""

import hashlib
from typing import Final, NamedTuple

from schemas.ids import NOBODY

FACTS: Final = "FACTS"
ASSIGNED: Final = "ASSIGNED"
REPORTS: Final = "REPORTS"

ALL_FACTS: Final = "muster.facts.>"
ALL_REPORTS: Final = "muster.reports.>"
ALL_ENGINES_REPORTED: Final = "muster.reports.*.instance.*.EngineReported"
ALL_ASSIGNED: Final = "muster.assigned.*"
ALL_BEATS: Final = "muster.beat.*.*"
ALL_REQUESTS: Final = "muster.requests.*"
ALL_PROGRESS: Final = "muster.progress.*"
ALL_ASKS: Final = "muster.ask.*.*"
PROJECTED: Final = "muster.projected"

FACTS_OF_THE_API: Final = "muster.facts.api.>"
NAME_MARK: Final = "~"
"""Tells the token of a name from that of a worker."""

ELECTION: Final = "muster.facts.scheduler.scheduler.-.core.SchedulerElected"


class FactSubject(NamedTuple):
    owner: str
    kind: str
    concern: str
    id: str
    type: str

    def __str__(self) -> str:
        return f"muster.facts.{self.owner}.{self.kind}.{self.concern}.{self.id}.{self.type}"

    @property
    def worker(self) -> str | None:
        """The worker that the fact concerns."""
        return None if self.concern == NOBODY or self.concern.startswith(NAME_MARK) else self.concern


def parse_fact_subject(subject: str) -> FactSubject:
    """Take a fact's subject apart. Raises ValueError when it isn't one."""
    parts = subject.split(".")
    if len(parts) != 7 or parts[0] != "muster" or parts[1] != "facts":
        raise ValueError(f"not the subject of a fact: {subject}")
    return FactSubject(*parts[2:])


def name_token(name: str) -> str:
    """A subject token for any name: names that differ in case only are one name."""
    return NAME_MARK + hashlib.sha256(name.casefold().encode()).hexdigest()[:32]


def api_part_of(kind: str, resource_id: str, concern: str = NOBODY) -> str:
    """All facts of the api about one resource: what a user's write is guarded by."""
    return f"muster.facts.api.{kind}.{concern}.{resource_id}.>"


def api_facts_about(kind: str, resource_id: str) -> str:
    """All facts of the api about one resource under whatever name: to read, since a guard so wide is slow."""
    return api_part_of(kind, resource_id, "*")


def facts_about(kind: str, resource_id: str) -> str:
    """One resource's whole life, whoever stated it and whichever worker it concerned."""
    return f"muster.facts.*.{kind}.*.{resource_id}.>"


def facts_under(kind: str, name: str) -> str:
    """All facts of the api about whatever has borne this name: whoever appends with its last sequence has the name."""
    return f"muster.facts.api.{kind}.{name_token(name)}.>"


def assigned(worker_id: str) -> str:
    return f"muster.assigned.{worker_id}"


class ReportSubject(NamedTuple):
    worker: str
    kind: str
    id: str
    type: str

    def __str__(self) -> str:
        return f"muster.reports.{self.worker}.{self.kind}.{self.id}.{self.type}"


def parse_report_subject(subject: str) -> ReportSubject:
    """Take a report's subject apart; the sender is who the subject says, whatever the body claims. Raises ValueError."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[0] != "muster" or parts[1] != "reports":
        raise ValueError(f"not the subject of a report: {subject}")
    return ReportSubject(*parts[2:])


def beat(worker_id: str, role: str) -> str:
    return f"muster.beat.{worker_id}.{role}"


def parse_beat(subject: str) -> tuple[str, str]:
    """Worker and role of a beat. Raises ValueError."""
    parts = subject.split(".")
    if len(parts) != 4:
        raise ValueError(f"not the subject of a beat: {subject}")
    return parts[2], parts[3]


def progress(worker_id: str) -> str:
    """Where a downloader says how far files are."""
    return f"muster.progress.{worker_id}"


def parse_progress(subject: str) -> str:
    """The worker that the files are for. Raises ValueError."""
    parts = subject.split(".")
    if len(parts) != 3 or parts[:2] != ["muster", "progress"]:
        raise ValueError(f"not the subject of progress: {subject}")
    return parts[2]


def requests(gateway: str) -> str:
    """Where a gateway says how many requests it has in flight."""
    return f"muster.requests.{gateway}"


def parse_requests(subject: str) -> str:
    """The gateway that counts. Raises ValueError."""
    parts = subject.split(".")
    if len(parts) != 3 or parts[:2] != ["muster", "requests"]:
        raise ValueError(f"not the subject of a gateway's count: {subject}")
    return parts[2]


def ask_core(verb: str) -> str:
    """A question to the scheduler that decides."""
    return f"muster.core.{verb}"


def ask(worker_id: str, verb: str) -> str:
    return f"muster.ask.{worker_id}.{verb}"
