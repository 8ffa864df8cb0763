"""All services in one process, on a real nats-server and a real PostgreSQL that are its children.

The same accounts, keys and permissions as anywhere else, generated, on loopback.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final, Self

import asyncpg
from pydantic import SecretStr

from kernel.accounts import Principal, Role, public_key, read_or_make_seed, render_server_config, worker_id_of
from kernel.bus import Bus
from kernel.errors import Unavailable, first_cause
from kernel.log.jetstream import JetStreamLog
from kernel.log.streams import provision
from kernel.process import Service
from kernel.projections.projector import check_against_log, read_checkpoint
from kernel.settings import BusSettings
from services.agent.process import AgentProcess
from services.agent.settings import AgentSettings
from services.api.process import ApiProcess, listen
from services.api.settings import ApiSettings
from services.downloader.process import DownloaderProcess
from services.downloader.settings import DownloaderSettings
from services.scheduler.process import SchedulerProcess
from services.scheduler.settings import SchedulerSettings
from services.up.data_dir import DataDir, seed_file
from services.up.embedded_nats import EmbeddedNats
from services.up.embedded_postgres import EmbeddedPostgres
from services.up.settings import UpSettings

log = logging.getLogger(__name__)

ROLES: Final[tuple[Role, ...]] = ("operator", "api", "scheduler", "agent", "downloader")
RESTART_SECONDS: Final = 0.5
FOLLOW_UP_SECONDS: Final = 0.3
"""Time for the scheduler to state what the agent's farewell means before it stops too."""


class Everything:
    """Start with `async with`; `stop` happens on the way out, in the order that loses nothing."""

    def __init__(self, settings: UpSettings, directory: DataDir) -> None:
        self.settings = settings
        self.directory = directory
        self.api_key = directory.api_key(settings.api_key.get_secret_value() if settings.api_key else None)
        roles: tuple[Role, ...] = (*ROLES, "simulator") if settings.simulator else ROLES
        self.seeds: dict[Role, str] = {role: read_or_make_seed(seed_file(directory.path, role)) for role in roles}
        self._engine_key_seed = read_or_make_seed(directory.path / "keys" / "engines.seed")
        self.worker_id = worker_id_of(public_key(self.seeds["agent"]))
        self.nats = EmbeddedNats(self._write_server_config(), log_file=self._logs / "nats.log")
        self.postgres = EmbeddedPostgres(directory.path / "postgres", log_file=self._logs / "postgres.log")
        self.api: ApiProcess | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when a service ended although nobody stopped it."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        if self.api is None:
            raise Unavailable("the api does not run")
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.api.port}"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextlib.asynccontextmanager
    async def servers_only(self) -> AsyncGenerator[Bus]:
        """NATS and PostgreSQL without any service, for repairs; a connection with the operator's credentials."""
        try:
            await self._start_servers()
            bus = await self._operator()
            try:
                await provision(bus)
                yield bus
            finally:
                await bus.close()
        finally:
            await self.stop()

    async def _start_servers(self) -> None:
        async with asyncio.TaskGroup() as servers:
            servers.create_task(self.nats.start())
            servers.create_task(self.postgres.start())

    async def _operator(self) -> Bus:
        seed = SecretStr(self.seeds["operator"])
        return await Bus.connect("muster up", BusSettings(servers=(self.nats.url,), nkey_seed=seed))

    async def _start(self) -> None:
        listen(self.settings.host, self.settings.port).close()
        await self._start_servers()
        await self._provision()
        api, scheduler, downloader, agent = self._services()
        self._launch(api)
        self._launch(scheduler)
        await self._until(scheduler.deciding)
        self._launch(downloader)
        self._launch(agent)
        await self._until(api.ready)
        self._keepers = [
            asyncio.create_task(_keep_alive("nats-server", lambda: self.nats.exited, self._restart_nats)),
            asyncio.create_task(_keep_alive("PostgreSQL", lambda: self.postgres.exited, self._restart_postgres)),
        ]

    def _launch(self, service: Service) -> None:
        self._running[service.name] = asyncio.create_task(self._run(service), name=service.name)

    async def _until(self, event: asyncio.Event) -> None:
        """Raises what a service failed with, when one does before."""
        waiting = asyncio.create_task(event.wait())
        await asyncio.wait({waiting, self.failed}, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            waiting.cancel()
            self.failed.result()

    async def stop(self) -> None:
        """Agent first (it takes the engines with it and says so), servers last."""
        for keeper in self._keepers:
            keeper.cancel()
        started = time.monotonic()
        for name in ("agent", "downloader", "scheduler", "api"):
            await self._end(name)
            if name == "downloader" and time.monotonic() - started < 2:
                await asyncio.sleep(FOLLOW_UP_SECONDS)
        await asyncio.gather(
            self.nats.stop(grace_seconds=2), self.postgres.stop(grace_seconds=2), return_exceptions=True
        )
        if not self.failed.done():
            self.failed.cancel()

    async def _end(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task}, timeout=8)

    async def _run(self, service: Service) -> None:
        try:
            await service.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the whole
            log.error("%s ended: %s", service.name, error)  # noqa: TRY400 - the sentence is for people
            if not self.failed.done():
                self.failed.set_exception(first_cause(error))

    def _services(self) -> tuple[ApiProcess, SchedulerProcess, DownloaderProcess, AgentProcess]:
        settings, data = self.settings, self.directory.path
        common = {"nats_servers": self.nats.url, "log_level": settings.log_level}
        seeds = {role: SecretStr(seed) for role, seed in self.seeds.items()}
        self.api = ApiProcess(
            ApiSettings.model_validate(
                common
                | {
                    "nats_nkey_seed": seeds["api"],
                    "engine_key_seed": SecretStr(self._engine_key_seed),
                    "host": settings.host,
                    "port": settings.port,
                    "database_url": self.postgres.url,
                    "api_key": SecretStr(self.api_key),
                }
            )
        )
        scheduler = SchedulerProcess(
            SchedulerSettings.model_validate(
                common
                | {
                    "nats_nkey_seed": seeds["scheduler"],
                    "engine_key_public": public_key(self._engine_key_seed),
                    "lease_seconds": settings.lease_seconds,
                    "restart_base_seconds": settings.restart_base_seconds,
                    "cordon_unhealthy": settings.cordon_unhealthy,
                    "claims_from_peak": settings.claims_from_peak,
                    "drain_seconds": settings.drain_seconds,
                }
            )
        )
        agent = AgentSettings.model_validate(
            common
            | {
                "agent_nkey_seed": seeds["agent"],
                "data_dir": data,
                "cache_dir": settings.cache_dir,
                "worker_name": settings.worker_name,
                "worker_ip": "127.0.0.1",
                "inventory": settings.inventory,
                "vllm_command": settings.vllm_command,
                "stop_engines_on_exit": True,
                "stop_grace_seconds": 2.0,
            }
            | ({"llama_cpp_command": settings.llama_cpp_command} if settings.llama_cpp_command else {})
        )
        downloader = DownloaderSettings.model_validate(
            common
            | {
                "downloader_nkey_seed": seeds["downloader"],
                "data_dir": data,
                "cache_dir": settings.cache_dir,
                "worker_id": self.worker_id,
                "huggingface_token": settings.huggingface_token,
                "modelscope_token": settings.modelscope_token,
                "bytes_per_second": settings.bytes_per_second,
                "disk_reserve_bytes": settings.disk_reserve_bytes,
                "evict": settings.evict,
                "local_model_dirs": settings.local_model_dirs,
                "trusted_repositories": settings.trusted_repositories,
                "share": False,  # there is no other worker
            }
        )
        return self.api, scheduler, DownloaderProcess(downloader), AgentProcess(agent)

    async def _provision(self) -> None:
        bus = await self._operator()
        try:
            await provision(bus)
            await self._check_second_copy(bus)
        finally:
            await bus.close()

    async def _check_second_copy(self, bus: Bus) -> None:
        """Before anybody writes: is the log as long as what was projected from it? Raises LogRegressed."""
        connection = await asyncpg.connect(**self.postgres.dsn_parts)
        try:
            if await connection.fetchval("SELECT to_regclass('muster.checkpoint') IS NULL"):
                return
            checkpoint = await read_checkpoint(connection)
            if checkpoint is not None:
                event_log = JetStreamLog(bus)
                await check_against_log(checkpoint, event_log, await event_log.state())
        finally:
            await connection.close()

    async def _restart_nats(self) -> None:
        await self.nats.restart()

    async def _restart_postgres(self) -> None:
        await self.postgres.stop()
        await self.postgres.start()

    def _write_server_config(self) -> Path:
        principals = [
            Principal(role, public_key(seed), self.worker_id if role in ("agent", "downloader") else None)
            for role, seed in self.seeds.items()
        ]
        directory = self.directory.path / "nats"
        directory.mkdir(exist_ok=True, mode=0o700)
        path = directory / "nats.conf"
        path.write_text(
            render_server_config(principals, store_dir=directory / "store", ports_dir=directory), encoding="ascii"
        )
        return path

    @property
    def _logs(self) -> Path:
        logs = self.directory.path / "logs"
        logs.mkdir(exist_ok=True, mode=0o700)
        return logs


async def _keep_alive(
    name: str, exited: Callable[[], asyncio.Future[int]], restart: Callable[[], Awaitable[None]]
) -> None:
    """A server that ends although nobody stopped it is started again; the services wait for it."""
    while True:
        await asyncio.shield(exited())
        log.warning("%s ended; starting it again", name)
        await asyncio.sleep(RESTART_SECONDS)
        try:
            await restart()
        except Exception as error:  # noqa: BLE001 - tried again below, whatever it was
            log.error("%s could not be started: %s", name, error)  # noqa: TRY400 - the sentence is for people
            await asyncio.sleep(5)
