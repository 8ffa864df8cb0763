"""CloudEvents 1.0 in structured JSON mode: how every fact and report travels and is stored.

Source: cloudevents.io, specification 1.0.2 and its JSON format. Content type `application/cloudevents+json`.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from schemas.ids import Token
from schemas.value import Instant, Value

CONTENT_TYPE: Final = "application/cloudevents+json"


class Envelope(Value):
    specversion: Literal["1.0"] = "1.0"
    id: Token
    """A ULID; on FACTS also the `Nats-Msg-Id`."""
    source: str
    """`/muster/<service>/<replica>`."""
    type: str
    """`InstanceScheduled` …: a contract, written by hand."""
    subject: str
    """`<kind>/<id>`."""
    time: Instant
    dataschema: Annotated[str, Field(pattern=r"^muster:[A-Za-z]+:v[1-9][0-9]*$")]
    """`muster:<Type>:v<N>`."""
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, Any]
    correlationid: str | None = None
    """The same for everything that follows from one request."""
    causationid: str | None = None
    """The id of the event, report or request that made this happen."""
    commandid: str | None = None
    """The command that stated it: the same command never states it twice."""
    actor: str | None = None
    """`key/<id>`, `scheduler`, `worker/<id>` …: who wanted it."""
    traceparent: str | None = None

    @property
    def version(self) -> int:
        return int(self.dataschema.rpartition(":v")[2])

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


def dataschema(type_name: str, version: int) -> str:
    return f"muster:{type_name}:v{version}"
