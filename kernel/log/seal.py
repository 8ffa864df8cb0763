"""From a fact or report to an envelope: who, when, why."""

from dataclasses import dataclass
from datetime import datetime

from kernel.log.port import Draft, Guard
from schemas.envelope import Envelope, dataschema
from schemas.facts.base import Fact
from schemas.reports import Report


@dataclass(frozen=True, slots=True)
class Cause:
    """What an event follows from."""

    correlation_id: str | None = None
    causation_id: str | None = None
    command_id: str | None = None
    actor: str | None = None
    traceparent: str | None = None


def seal_fact(
    fact: Fact, *, event_id: str, at: datetime, source: str, cause: Cause, guard: Guard | None = None
) -> Draft:
    return Draft(
        subject=fact.subject,
        envelope=Envelope(
            id=event_id,
            source=source,
            type=fact.type,
            subject=f"{fact.kind}/{fact.resource_id}",
            time=at,
            dataschema=dataschema(fact.type, fact.version),
            data=fact.to_data(),
            correlationid=cause.correlation_id or event_id,
            causationid=cause.causation_id,
            commandid=cause.command_id,
            actor=cause.actor,
            traceparent=cause.traceparent,
        ),
        guard=guard,
    )


def seal_report(report: Report, *, event_id: str, source: str, traceparent: str | None = None) -> Envelope:
    return Envelope(
        id=event_id,
        source=source,
        type=report.type,
        subject=f"{report.kind}/{report.resource_id}",
        time=report.observed_at,
        dataschema=dataschema(report.type, report.version),
        data=report.model_dump(mode="json"),
        actor=f"worker/{report.worker_id}",
        traceparent=traceparent,
    )
