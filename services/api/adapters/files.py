"""Model files on workers, ahead of any model: their downloaders say what there is to fetch before anything is written."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from kernel.bus import Bus
from kernel.errors import Refused, Unavailable
from kernel.log.port import MOST_IN_AN_APPEND
from schemas.asks import InspectModel, ModelInspection
from schemas.facts import ModelFileDeletionRequested, ModelFileRequested
from schemas.ids import FileId, WorkerId
from schemas.models import Pinned
from schemas.reasons import OF_A_WORKERS_HUB, DownloaderSilent, InspectionFailed, Reason
from schemas.source_fields import MAIN
from schemas.sources import LocalPath, Source, file_id_of
from schemas.subjects import ask
from services.api.adapters.reader import Document, Reader
from services.api.adapters.writer import Caller, Writer, Written
from services.api.domain.where import Where

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 15.0
HUB_SECONDS: Final = 45.0
"""The same, where a hub is asked too."""
ASKED_FOR_A_HUB: Final = 3
"""Workers, one after the other: one that reaches the hub is enough."""
ASKED_AT_ONCE: Final = 64
NOT_FOUND: Final = frozenset(
    {"model_not_found", "repository_not_found", "revision_not_found", "no_file_matches"},
)
STATUS: Final[Mapping[str, int]] = {"wait": 503, "operator": 409, "author": 422}
"""Of a refusal, by who must act."""
FIELD: Final[Mapping[str, Mapping[str, str]]] = {
    "huggingface": {
        "revision_not_found": "revision",
        "no_file_matches": "huggingface_filename",
        "files_ambiguous": "huggingface_filename",
    },
    "model_scope": {
        "revision_not_found": "revision",
        "no_file_matches": "model_scope_file_path",
        "files_ambiguous": "model_scope_file_path",
    },
    "local_path": {},
}
"""What of a source a refusal is about, where that is not its name."""


@dataclass(frozen=True, slots=True)
class Requested:
    items: tuple[tuple[FileId, WorkerId], ...]
    written: Written


class ModelFiles:
    def __init__(self, reader: Reader, writer: Writer, bus: Bus) -> None:
        self._reader = reader
        self._writer = writer
        self._bus = bus

    async def request(self, source: Source, where: Where, caller: Caller) -> Requested:
        """Raises Refused (not_found, worker_not_ready, and the codes of reasons), Unavailable; nothing was written then."""
        if (before := await self._writer.files_requested_before(caller)) is not None:
            facts, written = before
            return Requested(tuple((fact.file_id, fact.worker_id) for fact in facts), written)
        workers = await self._meant(where)
        if isinstance(source, LocalPath):
            await self._check_paths(source, workers)
            facts = [_requested(source, None, WorkerId(worker["id"])) for worker in workers]
        else:
            pinned = await self._pinned(source, workers)
            facts = [_requested(pinned.source, pinned, WorkerId(worker["id"])) for worker in workers]
        written = await self._writer.ask_for_files(facts, caller)
        return Requested(tuple((fact.file_id, fact.worker_id) for fact in facts), written)

    async def retry(self, file_id: str, caller: Caller) -> Written:
        """Raises Refused (not_found, file_is_ready, file_is_wanted, file_is_deleting), Unavailable."""
        found, source = await self._reader.file_source(file_id)
        if found["state"] != "error":
            raise Refused(
                f"file_is_{found['state']}", f"{found['id']} has not failed: it is {found['state']}", status=409
            )
        fact = ModelFileRequested(
            file_id=FileId(found["id"]),
            worker_id=WorkerId(found["worker_id"]),
            source=source,
            commit=found["commit"],
            bytes=found["total"],
        )
        return await self._writer.ask_for_files([fact], caller)

    async def delete(self, file_id: str, caller: Caller) -> Written:
        """Raises Refused (not_found, file_in_use), Unavailable."""
        found = await self._reader.file(file_id)
        if users := [str(each["name"]) for each in found["instances"]]:
            most = ", ".join(users[:5]) + (" …" if len(users) > 5 else "")
            raise Refused("file_in_use", f"instances run from it: {most}", status=409, instances=users[:100])
        fact = ModelFileDeletionRequested(file_id=FileId(found["id"]), worker_id=WorkerId(found["worker_id"]))
        return await self._writer.ask_for_files([fact], caller)

    async def _meant(self, where: Where) -> list[Document]:
        """By name: each must be ready; by labels: those that are."""
        field = "worker_ids" if where.labels is None else "worker_selector"
        workers = where.among(await self._reader.workers(), field)
        if not workers:
            raise Refused("not_found", "no worker has these labels", status=404, field=field)
        ready = [each for each in workers if each["state"] == "ready"]
        away = [each["name"] for each in workers if each["state"] != "ready"]
        if away and (where.labels is None or not ready):
            names = ", ".join(away[:5]) + (" …" if len(away) > 5 else "")
            raise Refused("worker_not_ready", f"not ready: {names}", status=409, field=field, workers=away[:100])
        if len(ready) > MOST_IN_AN_APPEND:
            raise Refused("too_many_workers", f"at most {MOST_IN_AN_APPEND} workers at once", field=field)
        return ready

    async def _pinned(self, source: Source, workers: Sequence[Document]) -> Pinned:
        """What the hub has now: as one worker says, for all. Raises Refused."""
        refusal = Refused("inspection_failed", "no worker could be asked", status=503)
        for worker in workers[:ASKED_FOR_A_HUB]:
            found = await self._inspect(worker, source)
            if found.weights is not None:
                pinned = next((each for each in found.weights.pinned if each.source == source), None)
                if pinned is not None:
                    return pinned
                found = ModelInspection(
                    reasons=(InspectionFailed(worker_id=WorkerId(worker["id"]), problem="it pins nothing"),)
                )
            reason = found.reasons[0]
            refusal = _refusal(source, reason, worker)
            if reason.code not in OF_A_WORKERS_HUB | {"downloader_silent", "inspection_failed"}:
                break  # it is so for every worker
        raise refusal

    async def _check_paths(self, source: LocalPath, workers: Sequence[Document]) -> None:
        """Each must have them. Raises Refused."""
        most = asyncio.Semaphore(ASKED_AT_ONCE)

        async def asked(worker: Document) -> ModelInspection:
            async with most:
                return await self._inspect(worker, source)

        answers = await asyncio.gather(*map(asked, workers))
        for worker, answer in zip(workers, answers, strict=True):
            if answer.weights is None:
                raise _refusal(source, answer.reasons[0], worker)

    async def _inspect(self, worker: Document, source: Source) -> ModelInspection:
        """Weights, or at least one reason."""
        worker_id = WorkerId(worker["id"])
        question = InspectModel(source=source).model_dump_json().encode()
        try:
            seconds = ANSWER_SECONDS if isinstance(source, LocalPath) else HUB_SECONDS
            message = await self._bus.request(ask(worker_id, "inspect"), question, timeout_seconds=seconds)
            found = ModelInspection.model_validate_json(message.data)
        except Unavailable as error:
            log.debug("%s was not asked about %s: %s", worker_id, source.label, error)
            return ModelInspection(reasons=(DownloaderSilent(worker_id=worker_id),))
        except ValidationError as error:
            log.warning("what %s says of %s can't be read: %s", worker_id, source.label, error)
            return ModelInspection(reasons=(InspectionFailed(worker_id=worker_id, problem="its answer can't be read"),))
        if found.weights is None and not found.reasons:
            return ModelInspection(reasons=(InspectionFailed(worker_id=worker_id, problem="it says nothing"),))
        return found


def _requested(source: Source, pinned: Pinned | None, worker_id: WorkerId) -> ModelFileRequested:
    commit, size = (None, None) if pinned is None else (pinned.commit, pinned.bytes)
    return ModelFileRequested(
        file_id=file_id_of(source, commit, worker_id), worker_id=worker_id, source=source, commit=commit, bytes=size
    )


def _refusal(source: Source, reason: Reason, worker: Document) -> Refused:
    status = 404 if reason.code in NOT_FOUND else STATUS[reason.whose]
    field = FIELD[source.type].get(reason.code, MAIN[source.type])
    refused = Refused(reason.code, f"{worker['name']}: {reason.sentence()}", field=field, status=status)
    refused.numbers = reason.model_dump(mode="json", exclude={"code", "worker_id"}) | {"worker_id": worker["id"]}
    return refused
