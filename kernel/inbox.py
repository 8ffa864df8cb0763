"""Work handlers and questions on FastStream, with the house rules that its defaults lack.

Traps that shape this file (each reproduced, see STYLE): the default acknowledgement policy terminates a message whose
handler raised; a pull subscriber runs a fetched batch concurrently; a stream that is declared is reset; after too many
reconnects, or when the consumer was deleted, the loop spins in silence.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from faststream.nats.security import NatsNKey
from nats.js.api import ConsumerConfig
from pydantic import TypeAdapter, ValidationError

from kernel.bus import Bus, JetStreamError
from kernel.errors import Conflict, Corrupt, Refused, Unavailable
from kernel.settings import BusSettings

log = logging.getLogger(__name__)

ACK_WAIT_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 15.0
CONSUMER_NOT_FOUND: Final = 10014
BACKOFF_SECONDS: Final[tuple[float, ...]] = (1.0, 5.0, 15.0, 60.0)

T = TypeVar("T")
Handler = Callable[[T, NatsMessage], Awaitable[None]]


def make_broker(name: str, settings: BusSettings) -> NatsBroker:
    """A broker that reconnects for ever and acknowledges nothing by itself."""
    options: dict[str, Any] = {}
    if settings.nkey_seed is not None:
        options["security"] = NatsNKey.from_seed(settings.nkey_seed.get_secret_value())
    if settings.inbox_prefix is not None:
        options["inbox_prefix"] = settings.inbox_prefix
    return NatsBroker(
        list(settings.servers),
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        ack_policy=AckPolicy.MANUAL,
        graceful_timeout=2.0,
        logger=None,
        **options,
    )


def work(
    broker: NatsBroker,
    subject: str,
    *,
    stream: str,
    durable: str,
    at_once: int = 1,
    ack_wait_seconds: float = ACK_WAIT_SECONDS,
    backoff_seconds: Sequence[float] = BACKOFF_SECONDS,
) -> Callable[[Handler[T]], Handler[T]]:
    """Subscribe a work handler to a stream that is provisioned elsewhere; its first parameter's type reads the JSON body.

    Done: acknowledged. `Refused`, and a body that can't be read: terminated, it would be refused again. `Unavailable`,
    `Conflict` and everything unforeseen: told again later, with growing delay. While it works the server is told so.
    """

    def decorate(handler: Handler[T]) -> Handler[T]:
        parameter = next(iter(inspect.signature(handler, eval_str=True).parameters.values()))
        reader: TypeAdapter[T] = TypeAdapter(parameter.annotation)

        async def handle(message: NatsMessage) -> None:
            # FastStream would never acknowledge a body that it can't read, nor say a word: nothing after it would be told.
            try:
                body = reader.validate_json(message.body)
            except ValidationError as error:
                log.error("%s can't read what came on %s, it is refused for good: %s", durable, subject, error)  # noqa: TRY400
                await message.reject()
                return
            ticking = asyncio.create_task(_tick(message, ack_wait_seconds / 3))
            try:
                await handler(body, message)
            except Refused as error:
                log.warning("%s on %s is refused for good: %s", durable, subject, error)
                await message.reject()
            except Corrupt as error:
                log.critical("%s on %s: %s", durable, subject, error)
                raise
            except Exception as error:  # noqa: BLE001 - the one home of unforeseen errors in handlers: told again later
                delay = backoff_seconds[min(_deliveries(message) - 1, len(backoff_seconds) - 1)]
                expected = isinstance(error, Unavailable | Conflict)
                log.log(logging.INFO if expected else logging.ERROR, "%s again in %s s: %s", durable, delay, error)
                await message.nack(delay=delay)
            else:
                await message.ack()
            finally:
                ticking.cancel()

        broker.subscriber(
            subject,
            stream=JStream(stream, declare=False),
            durable=durable,
            pull_sub=PullSub(batch_size=1, timeout=5.0),
            max_workers=at_once,
            ack_policy=AckPolicy.MANUAL,
            config=ConsumerConfig(ack_wait=ack_wait_seconds, max_ack_pending=max(at_once, 1), max_deliver=-1),
        )(handle)
        return handler

    return decorate


async def watch_consumer(bus: Bus, stream: str, durable: str, *, every_seconds: float = WATCH_SECONDS) -> None:
    """Ends with Unavailable when the consumer is gone: its subscriber would spin in silence, so the service restarts."""
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await bus.js_api(f"CONSUMER.INFO.{stream}.{durable}")
        except JetStreamError as error:
            if error.err_code == CONSUMER_NOT_FOUND:
                raise Unavailable(f"consumer {durable} of {stream} was deleted") from error
        except Unavailable as error:
            log.debug("can't look at consumer %s: %s", durable, error)


async def _tick(message: NatsMessage, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        await message.in_progress()


def _deliveries(message: NatsMessage) -> int:
    raw = message.raw_message
    messages = raw if isinstance(raw, list) else [raw]
    return messages[0].metadata.num_delivered or 1
