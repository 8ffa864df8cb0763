"""The fleet as of some sequence, in the object store, so that a restart needs only the tail of the log.

A snapshot of another schema, of another log, or one that can't be read means a full replay; a test proves both equal.
"""

import base64
import hashlib
import logging
from datetime import datetime
from typing import Final

import nats.errors
import nats.js.errors
from nats.js.object_store import ObjectStore
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from kernel.bus import Bus, JetStreamError, keeping_cancellation
from kernel.errors import Corrupt, Unavailable
from kernel.log.jetstream import NO_MESSAGE_FOUND
from kernel.log.port import LogState
from services.scheduler.domain.fleet import Fleet

log = logging.getLogger(__name__)

BUCKET: Final = "muster_snapshots"
NAME: Final = "fleet"
TRIES: Final = 5
SCHEMA_VERSION: Final = 6
"""Raised by hand whenever the fields of the fleet change their meaning."""


@dataclass(frozen=True)
class Snapshot:
    schema_version: int
    generation: int
    created: datetime
    fleet: Fleet


_ADAPTER: Final = TypeAdapter(Snapshot)
_FAILURES: Final = (nats.js.errors.Error, nats.errors.Error, TimeoutError, OSError)


def dump(fleet: Fleet, state: LogState) -> bytes:
    return _ADAPTER.dump_json(Snapshot(SCHEMA_VERSION, state.generation, state.created, fleet))


def parse(body: bytes, state: LogState) -> Fleet | None:
    """None when the snapshot is not of this log and schema. Raises Corrupt when the log is shorter than what was folded."""
    try:
        snapshot = _ADAPTER.validate_json(body)
    except ValidationError as error:
        log.warning("the snapshot can't be read, replaying the whole log: %s", error.errors(include_url=False)[0])
        return None
    same_log = snapshot.generation == state.generation and snapshot.created == state.created
    if same_log and snapshot.fleet.seq > state.last_sequence:
        raise Corrupt(
            f"the log ends at {state.last_sequence}, but {snapshot.fleet.seq} was folded from it: stop all writers and run"
            " `muster log restore`"
        )
    if snapshot.schema_version != SCHEMA_VERSION or not same_log:
        log.info("the snapshot is of another log or schema, replaying the whole log")
        return None
    return snapshot.fleet


class SnapshotStore:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._store: ObjectStore | None = None

    async def load(self, state: LogState) -> Fleet | None:
        """None when there is none that fits: the whole log is to be replayed. Raises Corrupt."""
        for _ in range(TRIES):
            try:
                info = await keeping_cancellation((await self._open()).get_info(NAME))
                body = await self._read(info.nuid or "", info.chunks or 0)
            except nats.js.errors.NotFoundError:
                return None
            except Replaced:
                continue
            except (*_FAILURES, Unavailable) as error:
                log.warning("no snapshot could be read, replaying the whole log: %s", error)
                return None
            if info.digest != _digest(body):
                log.warning("the snapshot is not what was saved, replaying the whole log")
                return None
            return parse(body, state)
        log.warning("the snapshot was replaced again and again while it was read, replaying the whole log")
        return None

    async def _read(self, nuid: str, chunks: int) -> bytes:
        """The object's parts, asked for one by one. nats-py subscribes to them instead, and waits for ever for those of an
        object that was replaced in between: a standby would never decide.
        """
        parts: list[bytes] = []
        sequence = 0
        for _ in range(chunks):
            wanted = {"seq": sequence + 1, "next_by_subj": f"$O.{BUCKET}.C.{nuid}"}
            try:
                message = (await self._bus.js_api(f"STREAM.MSG.GET.OBJ_{BUCKET}", wanted))["message"]
            except JetStreamError as error:
                if error.err_code == NO_MESSAGE_FOUND:
                    raise Replaced from error
                raise Unavailable(str(error)) from error
            sequence = message["seq"]
            parts.append(base64.b64decode(message.get("data", "")))
        return b"".join(parts)

    async def save(self, fleet: Fleet, state: LogState) -> None:
        try:
            await keeping_cancellation((await self._open()).put(NAME, dump(fleet, state)))
        except _FAILURES as error:
            log.warning("the snapshot could not be saved: %s", error)

    async def _open(self) -> ObjectStore:
        if self._store is None:
            context = self._bus.client.jetstream(timeout=5)
            try:
                self._store = await context.object_store(BUCKET)
            except nats.js.errors.BucketNotFoundError:
                self._store = await context.create_object_store(BUCKET)
        return self._store


class Replaced(Exception):
    """Another snapshot was saved while this one was read."""


def _digest(body: bytes) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()}"
