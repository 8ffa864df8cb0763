"""Alembic's environment: migrations run on the connection that is handed over, in its transaction."""

from alembic import context
from sqlalchemy import Connection, text

from kernel.projections.tables import SCHEMA, metadata

connection: Connection = context.config.attributes["connection"]
connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
context.configure(connection=connection, target_metadata=metadata, version_table_schema=SCHEMA, include_schemas=True)
with context.begin_transaction():
    context.run_migrations()
