"""docs/reference/events.md: everything that is said on the bus."""

from collections.abc import Iterator

from pydantic import BaseModel

from docs.making.examples import example
from docs.making.words import GENERATED, field_table, sentence_of, table, values_below
from schemas.asks import (
    ImagesSeen,
    InspectModel,
    LogLines,
    LookForImages,
    ModelInspection,
    PullImages,
    ServiceLines,
    TailLog,
    TailService,
)
from schemas.assignment import Assigned
from schemas.envelope import CONTENT_TYPE, Envelope
from schemas.facts import FACTS
from schemas.facts.base import Fact
from schemas.reports import REPORTS, Beat, Report, RequestsInFlight

KINDS = ("worker", "model", "instance", "file", "backend", "scheduler", "name")
ASKS = (
    (InspectModel, ModelInspection),
    (TailLog, LogLines),
    (LookForImages, ImagesSeen),
    (PullImages, ImagesSeen),
    (TailService, ServiceLines),
)


def page() -> str:
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield GENERATED
    yield from (
        "# Events",
        "",
        "What is said on the bus. Facts are history: they are kept, and everybody may read them. Reports are what workers",
        "see; nobody folds them into history. The same types as a document for tools: [asyncapi.json](asyncapi.json).",
        "",
        "Optional fields may be added to a type; anything else is a new version. Readers ignore fields they don't know.",
        "",
        "## The envelope",
        "",
        f"Every fact and report is a [CloudEvent](https://cloudevents.io) in structured JSON, `{CONTENT_TYPE}`.",
        "`data` holds the fields that are listed below for each type.",
        "",
    )
    yield from field_table(Envelope)
    yield from ("## Facts", "", "`muster.facts.<owner>.<kind>.<worker>.<id>.<Type>`, stream FACTS.", "")
    yield from table(
        ("Fact", "Owner", ""), ((_link(fact), fact.owner, sentence_of(fact)) for kind in KINDS for fact in _of(kind))
    )
    for kind in KINDS:
        yield from (f"## Facts of kind {kind}", "")
        for fact in _of(kind):
            yield from _fact(fact)
    yield from (
        "## Reports",
        "",
        "`muster.reports.<worker>.<kind>.<id>.<Type>`, stream REPORTS, kept for seven days. Every report has:",
        "",
    )
    yield from field_table(Report)
    for report in REPORTS:
        yield from _report(report)
    yield from (
        "## The assignment",
        "",
        "`muster.assigned.<worker>`, stream ASSIGNED, the newest document. No envelope.",
        "",
    )
    yield from _value(Assigned)
    yield from (
        "## Questions",
        "",
        "`muster.ask.<worker>.<verb>`: core NATS, request and reply. No envelope, nothing is stored.",
        "",
    )
    for question, answer in ASKS:
        yield from _value(question)
        yield from _value(answer)
    yield from (
        "## Beats",
        "",
        "`muster.beat.<worker>.<agent|downloader>`: core NATS. No envelope, nothing is stored.",
        "",
    )
    yield from _value(Beat)
    yield from (
        "## Requests in flight",
        "",
        "`muster.requests.<gateway>`: core NATS. No envelope, nothing is stored.",
        "",
    )
    yield from _value(RequestsInFlight)
    yield from ("## Values", "", "What the fields above are made of.", "")
    for value in values_below([*FACTS, *REPORTS, Assigned, *(each for pair in ASKS for each in pair)]):
        yield from _value(value)


def _of(kind: str) -> list[type[Fact]]:
    return [fact for fact in FACTS if fact.kind == kind]


def _link(of: type[Fact]) -> str:
    return f"[{of.__name__}](#{of.__name__.lower()})"


def _fact(fact: type[Fact]) -> Iterator[str]:
    yield from (f"### {fact.type}", "", sentence_of(fact), "")
    yield from (f"Owner: {fact.owner}. Version {fact.version}. Subject, for example: `{example(fact).subject}`", "")
    yield from field_table(fact)


def _report(report: type[Report]) -> Iterator[str]:
    yield from (f"### {report.type}", "", sentence_of(report), "")
    yield from (f"Version {report.version}. Subject, for example: `{example(report).subject}`", "")
    yield from field_table(report, without=Report.model_fields)


def _value(value: type[BaseModel]) -> Iterator[str]:
    yield from (f"### {value.__name__}", "")
    if own := vars(value).get("__doc__"):
        yield from (" ".join(str(own).split()), "")
    yield from field_table(value)
