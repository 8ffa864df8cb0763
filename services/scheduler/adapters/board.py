"""Where assignments are published: the newest document per worker, guarded so that a deposed scheduler overwrites nothing."""

import base64
import logging
from typing import Final

import orjson

from kernel.bus import MOST_BYTES, Bus, JetStreamError
from kernel.errors import Deposed, Unavailable
from kernel.log.jetstream import EXPECTED_SEQUENCE, NO_MESSAGE_FOUND, WRONG_LAST_SEQUENCE
from schemas.assignment import Assigned
from schemas.ids import WorkerId
from schemas.subjects import ASSIGNED, assigned

log = logging.getLogger(__name__)

ACKNOWLEDGEMENT_SECONDS: Final = 2.0


class TooLarge(Exception):
    """What is assigned to a worker does not fit into one message: it keeps doing what it was told before."""


class Board:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._sequences: dict[WorkerId, int] = {}
        self._contents: dict[WorkerId, bytes] = {}

    async def publish(self, document: Assigned, *, always: bool = False) -> bool:
        """False when nothing has changed since the last one. Raises Deposed, Unavailable, TooLarge."""
        content = document.model_dump_json(exclude={"election", "seq", "worker_id"}).encode()
        if not always and self._contents.get(document.worker_id) == content:
            return False
        message = document.model_dump_json().encode()
        if len(message) > MOST_BYTES:
            raise TooLarge(f"the assignment of {document.worker_id} has {len(message)} bytes, {MOST_BYTES} can be sent")
        if document.worker_id not in self._sequences:
            await self._look_up(document)
        for _ in range(3):
            answer = await self._bus.request(
                assigned(document.worker_id),
                message,
                headers={EXPECTED_SEQUENCE: str(self._sequences[document.worker_id])},
                timeout_seconds=ACKNOWLEDGEMENT_SECONDS,
            )
            body = orjson.loads(answer.data)
            error = body.get("error")
            if error is None:
                self._sequences[document.worker_id] = body["seq"]
                self._contents[document.worker_id] = content
                return True
            if error.get("err_code") not in WRONG_LAST_SEQUENCE:
                raise Unavailable(f"the assignment of {document.worker_id} was refused: {error.get('description')}")
            await self._look_up(document)
        raise Unavailable(f"the assignment of {document.worker_id} could not be published")

    async def _look_up(self, document: Assigned) -> None:
        """The last document's sequence. Raises Deposed when a scheduler that was elected later wrote it."""
        try:
            found = await self._bus.js_api(f"STREAM.MSG.GET.{ASSIGNED}", {"last_by_subj": assigned(document.worker_id)})
        except JetStreamError as error:
            if error.err_code != NO_MESSAGE_FOUND:
                raise Unavailable(str(error)) from error
            self._sequences[document.worker_id] = 0
            return
        message = found["message"]
        if orjson.loads(base64.b64decode(message["data"])).get("election", 0) > document.election:
            raise Deposed(f"a later scheduler has assigned {document.worker_id}")
        self._sequences[document.worker_id] = message["seq"]
