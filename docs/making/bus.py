"""docs/reference/asyncapi.json: the bus for tools, made by FastStream from the types that the services use."""

import json
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any, Final, Literal, cast

from faststream.nats import NatsBroker
from faststream.specification import AsyncAPI
from pydantic import BaseModel, create_model

from docs.making.examples import example
from docs.making.words import sentence_of
from kernel.projections.marks import Mark
from schemas.asks import (
    AskShare,
    ImagesSeen,
    InspectModel,
    LogLines,
    LookForImages,
    ModelInspection,
    PullImages,
    ServiceLines,
    Shared,
    TailLog,
    TailService,
)
from schemas.assignment import Assigned
from schemas.envelope import CONTENT_TYPE, Envelope, dataschema
from schemas.facts import FACTS
from schemas.facts.base import Fact
from schemas.ids import NOBODY
from schemas.reports import REPORTS, Beat, FilesProgress, Report, RequestsInFlight
from schemas.subjects import (
    PROJECTED,
    FactSubject,
    ReportSubject,
    ask,
    assigned,
    beat,
    parse_fact_subject,
    progress,
    requests,
)

ANSWER: Final = "answer to "
PARAMETERS: Final = {
    "worker": "The worker's id.",
    "id": "The resource's id.",
    "role": "`agent` or `downloader`.",
    "gateway": "A gateway's id, drawn at each start.",
}


def document() -> dict[str, Any]:
    broker = NatsBroker()
    for fact in FACTS:
        publish(broker, fact.type, _fact_subject(fact), _event(fact), sentence_of(fact))
    for report in REPORTS:
        subject = str(ReportSubject("{worker}", report.kind, "{id}", report.type))
        publish(broker, report.type, subject, _event(report), sentence_of(report))
    publish(broker, "Assigned", assigned("{worker}"), Assigned, "What a worker is to do: the newest document is kept.")
    publish(broker, "Beat", beat("{worker}", "{role}"), Beat, sentence_of(Beat))
    publish(broker, "FilesProgress", progress("{worker}"), FilesProgress, sentence_of(FilesProgress))
    publish(broker, "RequestsInFlight", requests("{gateway}"), RequestsInFlight, sentence_of(RequestsInFlight))
    publish(broker, "Projected", PROJECTED, Mark, "How far the read models are.")
    question(broker, "inspect", InspectModel, ModelInspection)
    question(broker, "logs", TailLog, LogLines)
    question(broker, "images", LookForImages, ImagesSeen)
    question(broker, "pull", PullImages, ImagesSeen)
    question(broker, "share", AskShare, Shared)
    question(broker, "agent-log", TailService, ServiceLines)
    question(broker, "downloader-log", TailService, ServiceLines)
    specification = AsyncAPI(
        broker,
        title="Muster",
        version=version("muster"),
        description="What is said on the bus. Facts and reports are CloudEvents in structured JSON.",
        schema_version="3.0.0",
    ).to_specification()
    return _tidy(cast("dict[str, Any]", json.loads(specification.to_json())))


def publish(broker: NatsBroker, title: str, subject: str, schema: type[Any], description: str) -> None:
    broker.publisher(subject, title=title, description=description, schema=schema)


def question(broker: NatsBroker, verb: str, asked: type[BaseModel], answered: type[BaseModel]) -> None:
    broker.subscriber(ask("{worker}", verb), title=verb, description=sentence_of(asked))(_answers(asked))
    publish(broker, f"{verb}.answer", f"{ANSWER}{verb}", answered, sentence_of(answered))


def _answers(asked: type[BaseModel]) -> Callable[[Any], Coroutine[Any, Any, None]]:
    async def handler(asked: Any) -> None:
        """FastStream reads the type of the question here."""

    handler.__annotations__["asked"] = asked
    return handler


def _event(of: type[Fact] | type[Report]) -> type[Envelope]:
    """The envelope with this type in it. Its data has a name of its own: there is a reason WorkerCordoned too."""
    schema, says = dataschema(of.type, of.version), sentence_of(of)
    data = create_model(f"{of.type}Data", __base__=of, __doc__=says)
    fields: dict[str, Any] = {
        "type": (Literal[of.type], ...),
        "dataschema": (Literal[schema], ...),
        "data": (data, ...),
    }
    return create_model(f"{of.type}Event", __base__=Envelope, __doc__=says, **fields)


def _fact_subject(fact: type[Fact]) -> str:
    """With parameters in place of what differs from one event to the next."""
    shown = parse_fact_subject(example(fact).subject)
    concern = "{worker}" if shown.worker else NOBODY if shown.concern == NOBODY else "{name}"
    resource_id = shown.id if fact.kind == "scheduler" else "{id}"
    return str(FactSubject(shown.owner, shown.kind, concern, resource_id, shown.type))


def _tidy(document: dict[str, Any]) -> dict[str, Any]:
    """What AsyncAPI 3 asks for and FastStream leaves out, or says otherwise than we do."""
    text = json.dumps(document)
    for suffix in (":SubscribeMessage", ":Message"):  # a colon may not stand in the name of a component
        text = text.replace(suffix, "")
    document = json.loads(text)
    document.pop("servers")
    for channel in document["channels"].values():
        channel.pop("servers")
        channel.pop("bindings")
        address: str = channel["address"]
        if address.startswith(ANSWER):
            channel["address"] = None
        parameters = {name: {"description": text} for name, text in PARAMETERS.items() if f"{{{name}}}" in address}
        if parameters:
            channel["parameters"] = parameters
    for name, message in document["components"]["messages"].items():
        message.pop("correlationId")
        if message["payload"]["$ref"].endswith("Event"):
            message |= {"contentType": CONTENT_TYPE, "correlationId": {"location": "$message.payload#/correlationid"}}
        answer = f"{name}.answer"
        if answer in document["channels"]:
            document["operations"][name]["reply"] = {"channel": {"$ref": f"#/channels/{answer}"}}
            document["operations"].pop(answer)
    components = document["components"]
    for holder, part in (
        (document, "channels"),
        (document, "operations"),
        (components, "messages"),
        (components, "schemas"),
    ):
        holder[part] = dict(sorted(holder[part].items()))  # FastStream keeps its publishers in a set
    return document
