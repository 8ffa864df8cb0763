"""The event log's second copy, and where its reader stands. Read models are not migrated: they are rebuilt."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "event_log",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("resource_id", sa.Text, nullable=False),
        sa.Column("worker_id", sa.Text, nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("correlation_id", sa.Text, nullable=True),
        sa.Column("causation_id", sa.Text, nullable=True),
        sa.Column("command_id", sa.Text, nullable=True),
        sa.Column("actor", sa.Text, nullable=True),
        sa.Column("problem", sa.Text, nullable=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        schema="muster",
        comment="Every fact with its sequence; hash = sha256(hash of the one before, sequence, subject, body).",
    )
    op.create_index("event_log_id", "event_log", ["id"], schema="muster")
    op.create_index("event_log_resource", "event_log", ["kind", "resource_id", "seq"], schema="muster")
    op.create_index(
        "event_log_command", "event_log", ["command_id"], schema="muster", postgresql_where=sa.text("command_id IS NOT NULL")
    )
    op.create_index("event_log_correlation", "event_log", ["correlation_id"], schema="muster")
    op.create_table(
        "checkpoint",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("stream_created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("last_event_id", sa.Text, nullable=True),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("read_schema", sa.Text, nullable=False),
        sa.Column("projection_version", sa.Integer, nullable=False),
        schema="muster",
    )
    op.execute(
        "CREATE VIEW muster.history AS SELECT seq, at, type, kind, resource_id, worker_id, actor, correlation_id,"
        " causation_id, replace(convert_from(body, 'UTF8'), '\\u0000', '\\ufffd')::jsonb -> 'data' AS data FROM muster.event_log WHERE problem IS NULL"
    )
