"""Which replica decides: a key with a time to live. It only saves wasted work; the log fences whoever believes wrongly."""

import asyncio
import logging
from typing import Final

import nats.errors
import nats.js.errors
from nats.js.client import JetStreamContext
from nats.js.kv import KeyValue

from kernel.bus import Bus, keeping_cancellation

log = logging.getLogger(__name__)

BUCKET: Final = "muster_lease"
KEY: Final = "scheduler"


class Lease:
    def __init__(self, bus: Bus, replica: str, ttl_seconds: float) -> None:
        self._bus = bus
        self._replica = replica
        self._ttl = ttl_seconds
        self._revision = 0
        self._bucket: KeyValue | None = None

    async def acquire(self) -> None:
        """Wait until this replica holds the lease."""
        while True:
            try:
                self._revision = await keeping_cancellation(self._create())
            except (nats.js.errors.Error, nats.errors.Error, TimeoutError, OSError) as error:
                log.debug("standing by: %s", error)
                await asyncio.sleep(self._ttl / 8)
            else:
                return

    async def keep(self) -> None:
        """Renew until another replica has it; returns then. One that ran out while nobody else wanted it is taken again."""
        misses = 0
        while True:
            await asyncio.sleep(self._ttl / 4)
            try:
                await keeping_cancellation(self._renew())
                misses = 0
            except nats.js.errors.KeyWrongLastSequenceError:
                log.warning("the lease went to another scheduler")
                return
            except (nats.js.errors.Error, nats.errors.Error, TimeoutError, OSError) as error:
                misses += 1
                log.debug("could not renew the lease: %s", error)
                if misses > 3:
                    return

    async def release(self) -> None:
        """Let a standby take over at once."""
        try:
            if self._revision and self._bus.is_connected:
                await (await self._open()).delete(KEY, last=self._revision)
        except (nats.js.errors.Error, nats.errors.Error, TimeoutError, OSError) as error:
            log.debug("could not release the lease: %s", error)
        self._revision = 0

    async def _renew(self) -> None:
        """Raises KeyWrongLastSequenceError when another replica has it."""
        try:
            bucket = await self._open()
            self._revision = await bucket.update(KEY, self._replica.encode(), last=self._revision)
        except nats.js.errors.KeyWrongLastSequenceError:
            self._revision = await self._create()
            log.warning("the lease had run out: this scheduler was too busy to renew it, and nobody else took it")

    async def _create(self) -> int:
        return await (await self._open()).create(KEY, self._replica.encode())

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            context: JetStreamContext = self._bus.client.jetstream(timeout=2)
            try:
                self._bucket = await context.key_value(BUCKET)
            except nats.js.errors.BucketNotFoundError:
                self._bucket = await context.create_key_value(bucket=BUCKET, ttl=self._ttl, history=1)
        return self._bucket
