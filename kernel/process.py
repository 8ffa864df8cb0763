"""The life of a service: start, readiness, signals, an orderly stop. Tasks live in one TaskGroup."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kernel.bus import ServerTooOld
from kernel.errors import Corrupt, Unavailable
from kernel.log.streams import Drift
from kernel.settings import BadSettings, ServiceSettings
from kernel.telemetry import set_up_logging, set_up_tracing
from schemas.masking import masked

log = logging.getLogger(__name__)

EXIT_USAGE = 2
EXIT_CORRUPT = 70


class Service(Protocol):
    @property
    def name(self) -> str: ...
    def not_ready(self) -> str | None:
        """Why this service can't do its work now; None when it can."""
        ...

    async def run(self) -> None:
        """Works until cancelled; cleans up after itself when it is."""
        ...


class StopRequested(Exception):
    """Ends the task group of a service in order."""


async def run_until_stopped(service: Service, settings: ServiceSettings) -> None:
    """Run one service with its health endpoints until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = await serve_health(service, settings)
    work = asyncio.create_task(service.run(), name=service.name)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            log.info("%s stops", service.name)
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        stopping.cancel()
        if health is not None:
            await health.cleanup()


async def serve_health(service: Service, settings: ServiceSettings) -> web.AppRunner | None:
    """`/healthz`: the process turns. `/readyz`: it can do its work, or a sentence why not. `/metrics`: Prometheus."""
    if not settings.health_port:
        return None

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        why = service.not_ready()
        return web.json_response({"ready": why is None, "reason": why}, status=200 if why is None else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.health_host, settings.health_port).start()
    return runner


def main(name: str, read_settings: Callable[[], ServiceSettings], start: Callable[[], Awaitable[None]]) -> None:
    """`python -m services.<name>`: one sentence and exit code 2 for bad settings; 70 when what is stored can't be trusted."""
    try:
        settings = read_settings()
        set_up_logging(name, settings)
        set_up_tracing(name, settings)
        uvloop.run(_as_coroutine(start))
    except (BadSettings, ServerTooOld, Drift) as error:
        sys.stderr.write(masked(f"muster {name}: {error}\n"))
        sys.exit(EXIT_USAGE)
    except Corrupt as error:
        sys.stderr.write(masked(f"muster {name}: {error}\n"))
        sys.exit(EXIT_CORRUPT)
    except Unavailable as error:
        sys.stderr.write(masked(f"muster {name}: {error}\n"))
        sys.exit(1)


async def _as_coroutine(start: Callable[[], Awaitable[None]]) -> None:
    await start()


async def retry_until_connected(what: str, connect: Callable[[], Awaitable[None]]) -> None:
    """Services start in any order: wait for the others, and say so once."""
    said = False
    while True:
        try:
            await connect()
        except Unavailable as error:
            if not said:
                log.warning("waiting for %s: %s", what, error)
                said = True
            await asyncio.sleep(0.25)
        else:
            return
