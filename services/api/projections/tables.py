"""The read models: what the log adds up to, for REST, the dashboard and people with SQL.

Columns are stable names for SQL users; `seq` is the last event that touched the row.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, Index, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata: Final = MetaData()


def _instant(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


workers: Final = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("state", Text, nullable=False),
    _instant("since", nullable=False),
    Column("cause_seq", BigInteger, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("cordoned", Boolean, nullable=False),
    Column("draining", Boolean, nullable=False),
    _instant("drained_at"),
    Column("agent_version", Text, nullable=False),
    Column("os", Text, nullable=False),
    Column("arch", Text, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_total", BigInteger, nullable=False),
    Column("memory_reserved", BigInteger, nullable=False),
    Column("runtime", Text, nullable=False),
    Column("backends", JSONB, nullable=False),
    Column("reach", Text, nullable=False),
    _instant("registered_at", nullable=False),
    Column("seq", BigInteger, nullable=False),
)

gpus: Final = Table(
    "gpus",
    metadata,
    Column("worker_id", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("vendor", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("uuid", Text, nullable=True),
    Column("memory_total", BigInteger, nullable=False),
    Column("memory_used_by_others", BigInteger, nullable=False),
    Column("compute_capability", Text, nullable=True),
    Column("driver_version", Text, nullable=True),
)

models: Final = Table(
    "models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("replicas", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("observed_generation", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    _instant("since", nullable=False),
    Column("cause_seq", BigInteger, nullable=False),
    Column("running", Integer, nullable=False),
    _instant("created_at", nullable=False),
    _instant("updated_at", nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("models_name", "name"),
)

instances: Final = Table(
    "instances",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    _instant("since", nullable=False),
    Column("cause_seq", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("generation", BigInteger, nullable=True),
    Column("worker_id", Text, nullable=True),
    Column("members", JSONB, nullable=False),
    Column("parallelism", JSONB, nullable=True),
    Column("memory_fraction", Float, nullable=True),
    Column("overcommitted", Boolean, nullable=False),
    Column("commit", Text, nullable=True, comment="Of a hub's repository, that it runs."),
    Column("image", Text, nullable=True),
    Column("image_digest", Text, nullable=True),
    Column("backend_version", Text, nullable=True),
    Column("why", JSONB, nullable=True, comment="Why it was placed where it is: scores and runners-up."),
    Column("restarts", Integer, nullable=False),
    Column("exit_code", Integer, nullable=True),
    Column("log_tail", JSONB, nullable=False),
    Column("failed_phase", Text, nullable=True),
    _instant("next_restart_at"),
    Column("closest_worker", Text, nullable=True),
    Column("suggestions", JSONB, nullable=False),
    Column("unlisted", JSONB, nullable=False, comment="Code → workers that object beyond those in `reasons`."),
    _instant("created_at", nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("instances_model", "model_id"),
    Index("instances_worker", "worker_id"),
)

endpoints: Final = Table(
    "endpoints",
    metadata,
    Column("instance_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("sealed_key", Text, nullable=True, comment="The key that the engine asks for; only gateways can open it."),
    comment="Where attempts answer; the gateway routes to the newest of each instance.",
)

files: Final = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("worker_id", Text, nullable=False),
    Column("source", JSONB, nullable=False),
    Column("commit", Text, nullable=True),
    Column("state", Text, nullable=False),
    _instant("since", nullable=False),
    Column("cause_seq", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=True, comment="Of what is on the disk; NULL until it is ready."),
    Column("total", BigInteger, nullable=True, comment="As far as it is known before they are there."),
    Column("paths", JSONB, nullable=False),
    Column("model_path", Text, nullable=True),
    Column("digest", Text, nullable=True),
    Column(
        "request", BigInteger, nullable=True, comment="The user's request that it answers; NULL: instances want it."
    ),
    _instant("created_at", nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("files_worker", "worker_id"),
)

reasons: Final = Table(
    "reasons",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("resource_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("code", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("worker_id", Text, nullable=True),
    Column("numbers", JSONB, nullable=False),
    Column("text", Text, nullable=False),
    _instant("since", nullable=False),
    Column("cause_seq", BigInteger, nullable=False),
    Index("reasons_code", "code"),
    comment="Why something is Pending, in Error, Degraded or Unreachable now; former reasons are in event_log.",
)

quarantines: Final = Table(
    "quarantines",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    Column("crashes", Integer, nullable=False),
    _instant("since", nullable=False),
    Column("cause_seq", BigInteger, nullable=False),
    comment="Models that are not placed on a worker any more, since their engine crashed there again and again.",
)

backends: Final = Table(
    "backends",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column("generation", BigInteger, nullable=False),
    _instant("created_at", nullable=False),
    _instant("updated_at", nullable=False),
    Column("seq", BigInteger, nullable=False),
    comment="Backends that operators defined; built-in ones are part of the program.",
)

TABLES: Final = (workers, gpus, models, instances, endpoints, files, reasons, quarantines, backends)
