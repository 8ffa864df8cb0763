"""The api's shell: HTTP in front, the log behind, one projector among all replicas."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from typing import Any, Final

import uvicorn
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from kernel.accounts import inbox_prefix
from kernel.bus import Bus
from kernel.clock import Clock, SystemClock
from kernel.engine_keys import SealedKeys
from kernel.errors import Corrupt, Unavailable, first_cause
from kernel.log.jetstream import JetStreamLog
from kernel.log.streams import verify
from kernel.process import retry_until_connected
from kernel.projections.marks import HighWater, Mark, announce, follow
from kernel.projections.projector import Projector
from kernel.projections.tables import SCHEMA
from schemas.facts import UnknownType, read
from services.api.adapters.database import make_engine, raw_connect, wait_until_prepared
from services.api.adapters.feed import Feed
from services.api.adapters.files import ModelFiles
from services.api.adapters.gateway.counts import Counts
from services.api.adapters.gateway.proxy import Gateway
from services.api.adapters.gateway.relay import Relay
from services.api.adapters.http import backends, events, files, images, logs, resources
from services.api.adapters.http.app import make_app
from services.api.adapters.images import BackendImages
from services.api.adapters.logs import Logs
from services.api.adapters.progress import Progress
from services.api.adapters.pulls import Pulls
from services.api.adapters.reader import Reader
from services.api.adapters.writer import Writer
from services.api.domain.routing import Endpoint, Routes
from services.api.projections.fleet import FleetProjection
from services.api.settings import ApiSettings

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 2


class ApiProcess:
    name = "api"

    def __init__(self, settings: ApiSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._why_not_ready: str | None = "connecting"
        self._projector: Projector | None = None
        self.port = settings.port
        seeds = settings.engine_key_seed.get_secret_value().split(",") if settings.engine_key_seed else []
        self._keys = SealedKeys(seeds)
        self.high_water = HighWater()
        self.routes = Routes()
        self.ready = asyncio.Event()

    def not_ready(self) -> str | None:
        return self._why_not_ready or (self._projector.failure if self._projector else None)

    async def run(self) -> None:
        engine = make_engine(self._settings.database_url)
        bus = await self._connect()
        try:
            await wait_until_prepared(engine)
            event_log = JetStreamLog(bus)
            await follow(bus, self.high_water)
            projector = self._projector = Projector(
                event_log, FleetProjection(), raw_connect(self._settings.database_url), self.high_water
            )
            projector.on_commit = lambda mark: announce(bus, mark)
            reading = engine.execution_options(isolation_level="AUTOCOMMIT")  # one round trip a question, not three
            feed = Feed(event_log, reading, self.high_water)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(projector.run())
                await self._serve(tasks, bus, engine, reading, event_log, feed)
        except ExceptionGroup as group:
            corrupt, _ = group.split(Corrupt)
            if corrupt is None:
                raise
            raise Corrupt(str(first_cause(corrupt))) from group  # whatever else failed, failed for that
        finally:
            await bus.close()
            with contextlib.suppress(Exception):
                await engine.dispose()

    async def _serve(
        self,
        tasks: asyncio.TaskGroup,
        bus: Bus,
        engine: AsyncEngine,
        reading: AsyncEngine,
        event_log: JetStreamLog,
        feed: Feed,
    ) -> None:
        await self._wait_for_first_mark(event_log)
        start = await self._load_routes(engine)
        tasks.create_task(feed.run(start))
        tasks.create_task(self._fold_routes(feed, start))
        pulls = Pulls(bus)
        await pulls.listen()
        progress = Progress(bus)
        await progress.listen()
        reader = Reader(reading, self.high_water, pulls, progress)
        writer = Writer(event_log, reading, self._clock, self.high_water, feed, self._settings)
        relay_bus = await self._connect("api relay")
        relay = Relay(relay_bus)
        await relay.start()
        tasks.create_task(relay.run())
        gateway = Gateway(self.routes, reader, self._keys)
        gateway.start(relay)
        counts = Counts(self.routes, bus)
        await counts.tell()
        tasks.create_task(counts.run())
        routers = [
            resources.make_router(reader, writer, self.high_water, bus),
            files.make_router(reader, ModelFiles(reader, writer, bus), self.high_water),
            backends.make_router(reader, writer, self.high_water),
            images.make_router(reader, BackendImages(reader, bus)),
            logs.make_router(reader, Logs(reader, bus)),
            events.make_router(feed, self.high_water),
        ]

        async def not_ready() -> str | None:
            """A projector that has nothing to write does not notice that PostgreSQL is away."""
            return self.not_ready() or (None if await writer.postgres_answers() else "PostgreSQL is away")

        app: Any = make_app(self._settings, routers, gateway, not_ready)
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                loop="none",
                http="httptools",
                timeout_graceful_shutdown=DRAIN_SECONDS,
                timeout_keep_alive=30,
                server_header=False,
            )
        )
        listener = listen(self._settings.host, self._settings.port)
        self.port = listener.getsockname()[1]
        self._why_not_ready = None
        self.ready.set()
        log.info("the api listens on http://%s:%d", self._settings.host, self.port)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            feed.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                async with asyncio.timeout(DRAIN_SECONDS + 1):
                    await serving
            await gateway.close()
            await relay_bus.close()

    async def _connect(self, name: str = "api") -> Bus:
        buses: list[Bus] = []

        async def connect() -> None:
            bus = await Bus.connect(name, self._settings.bus(inbox_prefix=inbox_prefix("api")), timeout_seconds=3)
            try:
                await verify(bus)
            except BaseException:
                await bus.close()
                raise
            buses.append(bus)

        await retry_until_connected("NATS", connect)
        return buses[0]

    async def _wait_for_first_mark(self, event_log: JetStreamLog) -> None:
        """Reads begin with what the log held when this replica started."""
        state = await event_log.state()
        risen = self.high_water.listen()
        while self.high_water.mark < Mark(state.generation, state.last_sequence):
            await risen.wait()
            risen.clear()

    async def _load_routes(self, engine: AsyncEngine) -> int:
        """Where everything runs as of a sequence, from Postgres; facts after it are folded from the feed."""
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            mark = (await connection.execute(text(f"SELECT seq FROM {SCHEMA}.checkpoint"))).scalar_one()  # noqa: S608
            for row in await connection.execute(text(f"SELECT id, name FROM {SCHEMA}.models")):  # noqa: S608
                self.routes.models[row.id] = row.name
                self.routes.names[row.name] = row.id
            for row in await connection.execute(text(f"SELECT id, model_id FROM {SCHEMA}.instances")):  # noqa: S608
                self.routes.instances[row.id] = row.model_id
            for row in await connection.execute(text(f"SELECT id, reach FROM {SCHEMA}.workers")):  # noqa: S608
                self.routes.reaches.says(row.id, row.reach)
            rows = await connection.execute(
                text(
                    "SELECT e.instance_id, e.attempt, e.address, e.port, e.worker_id, e.sealed_key, m.name"  # noqa: S608
                    f" FROM {SCHEMA}.endpoints e JOIN {SCHEMA}.instances i ON i.id = e.instance_id"
                    f" LEFT JOIN {SCHEMA}.models m ON m.id = i.model_id"
                )
            )
            for row in rows:
                endpoint = Endpoint(
                    row.instance_id, row.attempt, row.address, row.port, "", row.worker_id, row.sealed_key
                )
                self.routes.endpoints.setdefault(row.instance_id, {})[row.attempt] = endpoint
        self.routes.seq = int(mark)
        return int(mark)

    async def _fold_routes(self, feed: Feed, after: int) -> None:
        while True:
            try:
                async for batch in feed.after(after):
                    for event in batch:
                        after = event.sequence
                        with contextlib.suppress(UnknownType, ValidationError):  # noted by the projector
                            self.routes.evolve(read(event.envelope))
                        self.routes.seq = after
            except (OSError, DBAPIError, Unavailable) as error:
                log.warning("routes are behind: %s", error)
                await asyncio.sleep(0.2)
            else:
                return  # the feed was closed: the api stops


class _Server(uvicorn.Server):
    """Signals belong to the process that runs all services, not to one of its servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Raises Unavailable when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortTaken(f"{host}:{port} can't be listened on: {error.strerror}; choose another with --port") from error
    return listener


class PortTaken(Unavailable):
    """Another program listens there."""
