"""Resources as REST shows them, read from the views of the read models."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import RowMapping, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from kernel.errors import Refused, Unavailable
from kernel.log.port import Position
from kernel.projections.marks import HighWater
from kernel.projections.tables import SCHEMA
from schemas.backends import InferenceBackend, backend_id_of, built_in
from schemas.ids import ModelId
from schemas.models import ModelSpec
from schemas.source_fields import fields_of
from schemas.sources import Source
from services.api.adapters.database import UNREACHABLE
from services.api.adapters.progress import Progress
from services.api.adapters.pulls import Pulls
from services.api.domain.downloads import Fetched, far, summed
from services.api.domain.models import written_as

Document = dict[str, Any]
PULLING: Final = ("scheduled", "downloading", "starting", "unreachable")
"""States in which an instance may wait for its image."""
USING: Final = ("scheduled", "downloading", "starting", "running", "unreachable", "stopping")
"""States in which an instance's files stay where they are."""
_SOURCE: Final[TypeAdapter[Source]] = TypeAdapter(Source)

_REASONS: Final = f"""COALESCE((SELECT jsonb_agg(jsonb_build_object('worker_id', r.worker_id, 'worker', w.name, 'code', r.code,
 'who', r.who, 'numbers', r.numbers, 'text', r.text, 'since', r.since, 'cause_seq', r.cause_seq) ORDER BY r.position)
 FROM {SCHEMA}.reasons r LEFT JOIN {SCHEMA}.workers w ON w.id = r.worker_id
 WHERE r.kind = '{{kind}}' AND r.resource_id = t.id), '[]'::jsonb) AS reasons"""

MODELS: Final = (
    f"SELECT t.*, {_REASONS.format(kind='model')}, COALESCE((SELECT jsonb_agg(jsonb_build_object('worker_id', q.worker_id,"
    f" 'worker', w.name, 'crashes', q.crashes, 'since', q.since) ORDER BY w.name) FROM {SCHEMA}.quarantines q"
    f" JOIN {SCHEMA}.workers w ON w.id = q.worker_id WHERE q.model_id = t.id), '[]'::jsonb) AS quarantined"
    f" FROM {SCHEMA}.models t"
)
INSTANCES: Final = (
    f"SELECT t.*, m.name AS model_name, k.name AS worker_name, e.address, e.port, {_REASONS.format(kind='instance')}"
    f" FROM {SCHEMA}.instances t LEFT JOIN {SCHEMA}.models m ON m.id = t.model_id"
    f" LEFT JOIN {SCHEMA}.workers k ON k.id = t.worker_id"
    f" LEFT JOIN {SCHEMA}.endpoints e ON e.instance_id = t.id AND e.attempt = t.attempt"
)
WORKERS: Final = (
    f"SELECT t.*, {_REASONS.format(kind='worker')}, COALESCE((SELECT jsonb_agg(to_jsonb(g) - 'worker_id' ORDER BY g.type,"
    f" g.index) FROM {SCHEMA}.gpus g WHERE g.worker_id = t.id), '[]'::jsonb) AS gpus FROM {SCHEMA}.workers t"
)
_USERS: Final = (
    f"SELECT f.file_id, jsonb_agg(jsonb_build_object('id', i.id, 'name', i.name, 'state', i.state, 'model_id', i.model_id)"
    f" ORDER BY i.name, i.id) AS instances FROM {SCHEMA}.instances i CROSS JOIN LATERAL (SELECT DISTINCT"
    " jsonb_array_elements_text(m -> 'file_ids') AS file_id FROM jsonb_array_elements(i.members) m) f"
    f" WHERE i.state IN ({', '.join(map(repr, USING))}){{which}} GROUP BY f.file_id"
)
_FILES: Final = (
    f"SELECT t.*, k.name AS worker_name, COALESCE(u.instances, '[]'::jsonb) AS instances, {_REASONS.format(kind='file')}"
    f" FROM {SCHEMA}.files t LEFT JOIN {SCHEMA}.workers k ON k.id = t.worker_id"
    f" LEFT JOIN ({_USERS}) u ON u.file_id = t.id"
)
FILES: Final = _FILES.format(which="")
_HAS_FILE: Final = "jsonb_build_array(jsonb_build_object('file_ids', jsonb_build_array(CAST(:key AS text))))"
FILE: Final = _FILES.format(which=f" AND i.members @> {_HAS_FILE}") + " WHERE t.id = :key"
DOWNLOADING: Final = (
    "SELECT i.id AS instance_id, i.model_id, t.id, t.worker_id, t.state, t.bytes, t.total"
    f" FROM {SCHEMA}.instances i CROSS JOIN LATERAL (SELECT DISTINCT jsonb_array_elements_text(m -> 'file_ids') AS file_id"
    f" FROM jsonb_array_elements(i.members) m) f JOIN {SCHEMA}.files t ON t.id = f.file_id"
    " WHERE i.state = 'downloading' AND t.source ->> 'type' <> 'local_path'"
)
"""What instances wait for; what lies on a worker already is not on its way."""


class Reader:
    def __init__(self, engine: AsyncEngine, high_water: HighWater, pulls: Pulls, progress: Progress) -> None:
        self._engine = engine
        self._high_water = high_water
        self._pulls = pulls
        self._progress = progress

    async def models(self) -> list[Document]:
        rows = await self._rows(f"{MODELS} ORDER BY t.name, t.id")
        downloads = await self._downloads("model_id") if rows else {}
        return [self._model(row, downloads) for row in rows]

    async def model(self, name_or_id: str) -> Document:
        row = await self._one(f"{MODELS} WHERE t.id = :key OR t.name = :key", "model", name_or_id)
        return self._model(row, await self._downloads("model_id", row["id"]))

    async def model_wish(self, name_or_id: str) -> tuple[ModelId, ModelSpec, int]:
        """Id, spec and generation, to write over. Raises Refused (not_found)."""
        row = await self._one(
            f"SELECT id, spec, replicas, generation FROM {SCHEMA}.models t WHERE t.id = :key OR t.name = :key",
            "model",
            name_or_id,
        )
        return (
            ModelId(row["id"]),
            ModelSpec.model_validate(row["spec"] | {"replicas": row["replicas"]}),
            row["generation"],
        )

    async def instances(self, model: str | None = None) -> list[Document]:
        where = " WHERE m.id = :model OR m.name = :model" if model else ""
        return await self._instances(await self._rows(f"{INSTANCES}{where} ORDER BY t.name, t.id", model=model))

    async def instance(self, name_or_id: str) -> Document:
        row = await self._one(f"{INSTANCES} WHERE t.id = :key OR t.name = :key", "instance", name_or_id)
        return (await self._instances([row]))[0]

    async def _instances(self, rows: list[RowMapping]) -> list[Document]:
        is_any = any(row["state"] == "downloading" for row in rows)
        downloads = await self._downloads("instance_id") if is_any else {}
        return [self._instance(row, downloads) for row in rows]

    async def workers(self) -> list[Document]:
        return [self._worker(row) for row in await self._rows(f"{WORKERS} ORDER BY t.name, t.id")]

    async def worker(self, name_or_id: str) -> Document:
        return self._worker(await self._one(f"{WORKERS} WHERE t.id = :key OR t.name = :key", "worker", name_or_id))

    async def files(
        self, worker: str | None = None, model: str | None = None, state: str | None = None
    ) -> list[Document]:
        """`model`: those that its instances run from, or are to."""
        conditions = {
            "t.worker_id = :worker OR k.name = :worker": worker,
            f"EXISTS (SELECT 1 FROM jsonb_array_elements(u.instances) each JOIN {SCHEMA}.models m ON"
            " m.id = each ->> 'model_id' WHERE m.id = :model OR m.name = :model)": model,
            "t.state = :state": state,
        }
        wanted = [f"({condition})" for condition, value in conditions.items() if value is not None]
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        given = {"worker": worker, "model": model, "state": state}
        rows = await self._rows(
            f"{FILES}{where} ORDER BY k.name, t.worker_id, t.created_at, t.id",
            **{name: value for name, value in given.items() if value is not None},
        )
        return [self._file(row) for row in rows]

    async def file(self, file_id: str) -> Document:
        return self._file(await self._one(FILE, "file", file_id))

    async def file_source(self, file_id: str) -> tuple[Document, Source]:
        """With the source as it is. Raises Refused (not_found)."""
        row = await self._one(FILE, "file", file_id)
        return self._file(row), _SOURCE.validate_python(row["source"])

    async def backends(self) -> dict[str, InferenceBackend]:
        """All that there are, by name: an operator's take the place of built-in ones."""
        return {name: backend for name, (backend, _) in (await self._backends()).items()}

    async def _backends(self) -> Mapping[str, tuple[InferenceBackend, RowMapping | None]]:
        """With the row of an operator's; None where the program's own is in force."""
        rows = await self._rows(f"SELECT * FROM {SCHEMA}.backends ORDER BY name")
        own = {row["name"]: (InferenceBackend.model_validate(row["definition"]), row) for row in rows}
        return {name: (backend, None) for name, backend in built_in().items()} | own

    async def backend_documents(self) -> list[Document]:
        used = await self._rows(
            f"SELECT spec ->> 'backend' AS backend, jsonb_agg(name ORDER BY name) AS models FROM {SCHEMA}.models GROUP BY 1"
        )
        models = {row["backend"]: row["models"] for row in used}
        known = (await self._backends()).items()
        found = [self._backend(backend, row, models.get(name, [])) for name, (backend, row) in known]
        return sorted(found, key=lambda document: str(document["backend_name"]).casefold())

    async def backend_document(self, name_or_id: str) -> Document:
        """Raises Refused (not_found)."""
        for document in await self.backend_documents():
            if name_or_id in (document["id"], document["backend_name"]):
                return document
        raise Refused("not_found", f"there is no backend {name_or_id[:200]}", status=404)

    def _backend(self, backend: InferenceBackend, row: RowMapping | None, models: list[str]) -> Document:
        """`built_in`: it is part of the program, and nobody changed it."""
        document = backend.model_dump(mode="json") | {
            "id": backend_id_of(backend.backend_name),
            "built_in": row is None,
            "replaces_built_in": row is not None and backend.backend_name in built_in(),
            "models": models,
            "generation": None if row is None else str(self._position(row["generation"])),
            "created_at": None if row is None else _iso(row["created_at"]),
            "updated_at": None if row is None else _iso(row["updated_at"]),
        }
        if row is not None:
            document["seq"] = str(self._position(row["seq"]))
        return document

    async def timeline(self, kind: str, resource_id: str) -> list[Document]:
        """Every fact about a resource, oldest first."""
        rows = await self._rows(
            f"SELECT seq, at, type, worker_id, actor, correlation_id, causation_id, data FROM {SCHEMA}.history"
            " WHERE kind = :kind AND resource_id = :id ORDER BY seq",
            kind=kind,
            id=resource_id,
        )
        return [{**row, "seq": str(self._position(row["seq"])), "at": _iso(row["at"])} for row in rows]

    async def attempts(self, instance_id: str) -> dict[int, str]:
        """Where each attempt of an instance was placed, also of one that is gone: the worker of its first member, by attempt."""
        rows = await self._rows(
            f"SELECT (data->>'attempt')::int AS attempt, data->'members'->0->>'worker_id' AS worker_id FROM {SCHEMA}.history"
            " WHERE kind = 'instance' AND resource_id = :id AND type = 'InstanceScheduled' ORDER BY seq",
            id=instance_id,
        )
        return {row["attempt"]: row["worker_id"] for row in rows}

    async def served_models(self) -> list[tuple[str, datetime]]:
        """Names and creation times of models that clients may ask for."""
        rows = await self._rows(f"SELECT name, created_at FROM {SCHEMA}.models ORDER BY name")
        return [(row["name"], row["created_at"]) for row in rows]

    async def _downloads(self, by: str, model_id: str | None = None) -> dict[str, Document]:
        """How far the files are that instances wait for, together: of each instance, or of each model."""
        rows = await self._rows(
            DOWNLOADING + ("" if model_id is None else " AND i.model_id = :model"),
            **({} if model_id is None else {"model": model_id}),
        )
        files: dict[str, dict[str, Fetched]] = {}
        for row in rows:
            files.setdefault(row[by], {})[row["id"]] = self._fetched(row)
        return {waiting: found for waiting, each in files.items() if (found := summed(each.values())) is not None}

    def _fetched(self, row: RowMapping) -> Fetched:
        return Fetched(row["state"], row["bytes"], row["total"], self._progress.of(row["worker_id"], row["id"]))

    # -- documents ----------------------------------------------------------------------------------------------------

    def _model(self, row: RowMapping, downloads: Mapping[str, Document]) -> Document:
        return spec_document(ModelSpec.model_validate(row["spec"] | {"replicas": row["replicas"]})) | {
            "id": row["id"],
            "state": row["state"],
            "since": _iso(row["since"]),
            "ready_replicas": row["running"],
            "reasons": row["reasons"],
            "download": downloads.get(row["id"]),
            "quarantined": row["quarantined"],
            "generation": str(self._position(row["generation"])),
            "observed_generation": str(self._position(row["observed_generation"])),
            "created_at": _iso(row["created_at"]),
            "updated_at": _iso(row["updated_at"]),
        }

    def _instance(self, row: RowMapping, downloads: Mapping[str, Document]) -> Document:
        members: list[Mapping[str, Any]] = row["members"]
        leader: Mapping[str, Any] = members[0] if members else {}
        return {
            "id": row["id"],
            "name": row["name"],
            "model_id": row["model_id"],
            "model_name": row["model_name"],
            "state": row["state"],
            "since": _iso(row["since"]),
            "reasons": row["reasons"],
            "closest_worker": row["closest_worker"],
            "suggestions": row["suggestions"],
            "attempt": row["attempt"],
            "generation": str(self._position(row["generation"])) if row["generation"] is not None else None,
            "worker_id": row["worker_id"],
            "worker_name": row["worker_name"],
            "worker_ip": row["address"],
            "port": row["port"],
            "gpu_type": leader.get("accelerator"),
            "gpu_indexes": leader.get("gpu_indexes", []),
            "computed_resource_claim": leader.get("claim"),
            "members": [
                {
                    "worker_id": member["worker_id"],
                    "role": "leader" if member["rank"] == 0 else "follower",
                    "type": member["accelerator"],
                    "gpu_indexes": member["gpu_indexes"],
                    "claim": member["claim"],
                }
                for member in members
            ],
            "parallelism": row["parallelism"],
            "memory_fraction": row["memory_fraction"],
            "overcommitted": row["overcommitted"],
            "backend_version": row["backend_version"],
            "commit": row["commit"],
            "image": row["image"],
            "image_digest": row["image_digest"],
            "pulls": self._pulls.of(row["id"], row["attempt"]) if row["state"] in PULLING else [],
            "download": downloads.get(row["id"]) if row["state"] == "downloading" else None,
            "why": row["why"],
            "unlisted": row["unlisted"],
            "restart_count": row["restarts"],
            "next_restart_at": _iso(row["next_restart_at"]),
            "exit_code": row["exit_code"],
            "failed_phase": row["failed_phase"],
            "log_tail": row["log_tail"],
            "created_at": _iso(row["created_at"]),
        }

    @staticmethod
    def _worker(row: RowMapping) -> Document:
        hidden = {"seq", "cause_seq", "since", "registered_at", "drained_at"}
        return {key: value for key, value in row.items() if key not in hidden} | {
            "ip": row["address"],
            "since": _iso(row["since"]),
            "registered_at": _iso(row["registered_at"]),
            "drained_at": _iso(row["drained_at"]),
        }

    def _file(self, row: RowMapping) -> Document:
        hidden = {"seq", "cause_seq", "since", "source", "request", "created_at", "bytes", "total"}
        users: Iterable[Mapping[str, Any]] = row["instances"]
        return (
            {key: value for key, value in row.items() if key not in hidden}
            | fields_of(_SOURCE.validate_python(row["source"]))
            | far(self._fetched(row))
            | {
                "requested": row["request"] is not None,
                "instances": [{"id": each["id"], "name": each["name"], "state": each["state"]} for each in users],
                "since": _iso(row["since"]),
                "created_at": _iso(row["created_at"]),
            }
        )

    def _position(self, sequence: int) -> Position:
        return Position(max(self._high_water.mark.generation, 1), sequence)

    # -- queries ------------------------------------------------------------------------------------------------------

    async def _rows(self, query: str, **parameters: object) -> list[RowMapping]:
        """Raises Unavailable."""
        if any("\0" in value for value in parameters.values() if isinstance(value, str)):
            return []  # PostgreSQL stores no NUL, so nothing is called so
        try:
            async with self._engine.connect() as connection:
                return list((await connection.execute(text(query), parameters)).mappings().all())
        except (DBAPIError, *UNREACHABLE) as error:
            raise Unavailable("PostgreSQL is away") from error

    async def _one(self, query: str, kind: str, key: str) -> RowMapping:
        rows = await self._rows(query, key=key)
        if not rows:
            raise Refused("not_found", f"there is no {kind} {key[:80]}", status=404)
        return next((row for row in rows if row["id"] == key), rows[0])


def spec_document(spec: ModelSpec) -> Document:
    """A model's wish with the source's fields beside the others, as the peer's API has them."""
    return written_as(spec)


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
