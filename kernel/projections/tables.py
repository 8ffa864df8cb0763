"""The tables that outlive every projection: the log's second copy and where its reader stands."""

from typing import Final

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, LargeBinary, MetaData, Table, Text

SCHEMA: Final = "muster"
"""Views for readers live here; the read models themselves in `read_<n>`, replaced as a whole."""

metadata: Final = MetaData(schema=SCHEMA)

event_log: Final = Table(
    "event_log",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=True),
    Column("type", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("worker_id", Text, nullable=True),
    Column("at", DateTime(timezone=True), nullable=True),
    Column("correlation_id", Text, nullable=True),
    Column("causation_id", Text, nullable=True),
    Column("command_id", Text, nullable=True),
    Column("actor", Text, nullable=True),
    Column("problem", Text, nullable=True),
    Column("subject", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Index("event_log_id", "id"),
    Index("event_log_resource", "kind", "resource_id", "seq"),
    Index("event_log_command", "command_id", postgresql_where="command_id IS NOT NULL"),
    Index("event_log_correlation", "correlation_id"),
    comment="Every fact with its sequence; hash = sha256(hash of the one before, sequence, subject, body).",
)

EVENT_LOG_COLUMNS: Final = tuple(column.name for column in event_log.columns)

checkpoint: Final = Table(
    "checkpoint",
    metadata,
    Column("name", Text, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("stream_created", DateTime(timezone=True), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("last_event_id", Text, nullable=True),
    Column("hash", LargeBinary, nullable=False),
    Column("read_schema", Text, nullable=False),
    Column("projection_version", Integer, nullable=False),
)
