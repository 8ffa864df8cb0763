"""A whole Muster for a test: a real nats-server with both accounts, a database of its own, services in this process or
in processes of their own (to be killed, stopped, doubled).
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import orjson
from pydantic import SecretStr

from kernel.accounts import Principal, Role, new_seed, public_key, render_server_config, worker_id_of
from kernel.bus import Bus
from kernel.log.streams import provision
from kernel.process import Service
from kernel.settings import BusSettings
from schemas.ids import WorkerId
from services.agent.process import AgentProcess
from services.agent.settings import AgentSettings
from services.api.process import ApiProcess
from services.api.settings import ApiSettings
from services.downloader.process import DownloaderProcess
from services.downloader.settings import DownloaderSettings
from services.scheduler.process import SchedulerProcess
from services.scheduler.settings import SchedulerSettings
from services.simulator.process import SimulatorProcess
from services.simulator.settings import SimulatorSettings
from services.up.embedded_nats import EmbeddedNats
from services.up.embedded_postgres import EmbeddedPostgres

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
TINYCHAT = EXAMPLES / "tinychat-f16.gguf"
KEY = "test-key"


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    name: str
    agent_seed: str
    downloader_seed: str

    @property
    def id(self) -> WorkerId:
        return worker_id_of(public_key(self.agent_seed))


@dataclass(slots=True)
class Bench:
    """Servers that tests share; each test takes a database and streams of its own."""

    directory: Path
    postgres: EmbeddedPostgres
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def new_database(self) -> str:
        """The SQLAlchemy address of a fresh database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        connection = await asyncpg.connect(**self.postgres.dsn_parts)
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        return self.postgres.url.replace("/muster?", f"/{name}?")


class Stack:
    """`async with Stack(directory, database_url, workers=2) as stack:`; nothing runs until it is started."""

    def __init__(self, directory: Path, database_url: str, *, workers: int = 1, simulator: bool = False) -> None:
        self.directory = directory
        self.database_url = database_url
        core: tuple[Role, ...] = ("operator", "api", "scheduler", "observer")
        self.seeds: dict[Role, str] = {role: new_seed() for role in core}
        self.engine_key_seed = new_seed()
        if simulator:
            self.seeds["simulator"] = new_seed()
        self.workers = [WorkerKeys(f"worker-{n}", new_seed(), new_seed()) for n in range(workers)]
        self.nats = EmbeddedNats(self._write_config(), log_file=directory / "nats.log")
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: list[asyncio.subprocess.Process] = []
        self._clients: list[aiohttp.ClientSession] = []
        self._buses: list[Bus] = []
        self.services: dict[str, Service] = {}

    async def __aenter__(self) -> Self:
        await self.nats.start()
        await provision(await self.bus("operator"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                await process.wait()
        for name in sorted(self._tasks):
            await self.stop(name)
        self.end_engines()
        for bus in self._buses:
            await bus.close()
        await self.nats.stop(grace_seconds=2)

    # -- in this process ----------------------------------------------------------------------------------------------

    async def start_api(self, name: str = "api", **settings: Any) -> ApiProcess:
        api = ApiProcess(ApiSettings.model_validate(self._common("api") | self._api() | {"replica": name} | settings))
        await self._start(name, api, api.ready)
        return api

    async def start_api_and_fail(self, **settings: Any) -> BaseException:
        """Start an api that must refuse to run; what it says."""
        api = ApiProcess(ApiSettings.model_validate(self._common("api") | self._api() | settings))
        try:
            async with asyncio.timeout(30):
                await api.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            return error
        raise AssertionError("the api ended without an error")

    async def start_scheduler(self, name: str = "scheduler", **settings: Any) -> SchedulerProcess:
        scheduler = SchedulerProcess(SchedulerSettings.model_validate(self._scheduler() | {"replica": name} | settings))
        await self._start(name, scheduler, None)
        return scheduler

    async def start_agent(self, number: int = 0, name: str | None = None, **settings: Any) -> AgentProcess:
        agent = AgentProcess(AgentSettings.model_validate(self._agent(number) | settings))
        await self._start(name or f"agent-{number}", agent, None)
        return agent

    async def start_downloader(self, number: int = 0, name: str | None = None, **settings: Any) -> DownloaderProcess:
        downloader = DownloaderProcess(DownloaderSettings.model_validate(self._downloader(number) | settings))
        await self._start(name or f"downloader-{number}", downloader, None)
        return downloader

    async def start_worker(self, number: int = 0, **agent_settings: Any) -> WorkerId:
        await self.start_downloader(number)
        await self.start_agent(number, **agent_settings)
        return self.workers[number].id

    async def start_simulator(self, fleet: Mapping[str, Any]) -> SimulatorProcess:
        """A Stack with `simulator=True` has the key for one."""
        simulator = SimulatorProcess(SimulatorSettings.model_validate(self._simulator(fleet)))
        await self._start("simulator", simulator, None)
        return simulator

    async def start_all(self, **agent_settings: Any) -> ApiProcess:
        """One of each."""
        await self.start_scheduler()
        await self.start_worker(0, **agent_settings)
        return await self.start_api()

    async def stop(self, name: str) -> None:
        """In order, as SIGTERM would."""
        task = self._tasks.pop(name, None)
        self.services.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # -- engines outlive their agents -----------------------------------------------------------------------------------

    def engines(self, number: int = 0) -> dict[tuple[str, int], int]:
        """What lives of this worker's engines: (instance, attempt) → process id, which is its group's too."""
        found: dict[tuple[str, int], int] = {}
        for record in sorted((self.directory / self.workers[number].name / "engines").glob("*/*.json")):
            noted: dict[str, Any] = orjson.loads(record.read_bytes())
            if noted["pid"] is not None and _lives(noted["pid"], noted["start_ticks"]):
                found[record.parent.name, int(record.stem)] = noted["pid"]
        return found

    def end_engines(self) -> None:
        for number in range(len(self.workers)):
            for pid in self.engines(number).values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def restart_machine(self, number: int = 0) -> None:
        """As its power failing and returning would, while its agent does not run: engines are gone, records of another boot."""
        for pid in self.engines(number).values():
            os.killpg(pid, signal.SIGKILL)
        for record in (self.directory / self.workers[number].name / "engines").glob("*/*.json"):
            noted: dict[str, Any] = orjson.loads(record.read_bytes())
            record.write_bytes(orjson.dumps(noted | {"boot_id": "before"}))

    def failure_of(self, name: str) -> BaseException | None:
        task = self._tasks[name]
        return task.exception() if task.done() and not task.cancelled() else None

    async def _start(self, name: str, service: Service, ready: asyncio.Event | None) -> None:
        self.services[name] = service
        task = self._tasks[name] = asyncio.create_task(service.run(), name=name)
        task.add_done_callback(_say_why)
        if ready is not None:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            waiting.cancel()
            if task.done():
                task.result()

    # -- in processes of their own ------------------------------------------------------------------------------------

    async def spawn_api(self, *, port: int | None = None, **settings: Any) -> tuple[asyncio.subprocess.Process, int]:
        """The api as a process, once it answers; and its port."""
        port = port or free_port()
        process = await self.spawn("api", port=port, **settings)
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, (self.directory / "api.log").read_text()[-4000:]
                try:
                    async with aiohttp.request("GET", f"http://127.0.0.1:{port}/readyz") as answer:
                        if answer.status == 200:
                            return process, port
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)

    async def spawn(
        self, service: str, *, number: int = 0, before: Sequence[str] = (), **settings: Any
    ) -> asyncio.subprocess.Process:
        """`python -m services.<service>`, to be killed or stopped by the test. Logs go to `<directory>/<service>.log`.

        `before`: a program that starts it.
        """
        values: dict[str, Any] = {
            "api": lambda: self._common("api") | self._api() | {"port": settings.get("port", 0)},
            "scheduler": self._scheduler,
            "agent": lambda: self._agent(number),
            "downloader": lambda: self._downloader(number),
            "simulator": lambda: self._simulator(settings.pop("described")),
        }[service]()
        values |= settings
        environment = {
            f"MUSTER_{key.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for key, value in values.items()
            if value is not None
        }
        with (self.directory / f"{service}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *before,
                sys.executable,
                "-m",
                f"services.{service}",
                env={**_plain_environment(), **environment},
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    # -- talking to it ------------------------------------------------------------------------------------------------

    @property
    def operator(self) -> Bus:
        """A connection that may do everything in CORE."""
        return self._buses[0]

    async def bus(self, role: Role, number: int | None = None) -> Bus:
        """A connection with this role's credentials."""
        if role in ("agent", "downloader"):
            keys = self.workers[number or 0]
            seed = keys.agent_seed if role == "agent" else keys.downloader_seed
            prefix = f"_INBOX_{keys.id}_{role}"
        else:
            seed, prefix = self.seeds[role], f"_INBOX_{role}"
        bus = await Bus.connect(
            f"test {role}", BusSettings(servers=(self.nats.url,), nkey_seed=SecretStr(seed), inbox_prefix=prefix)
        )
        self._buses.append(bus)
        return bus

    def client(self, port: int | None = None, key: str = KEY) -> "Client":
        """A REST client of the api on this port (default: the one started as `api`)."""
        if port is None:
            api = self.services["api"]
            assert isinstance(api, ApiProcess)
            port = api.port
        session = aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"})
        self._clients.append(session)
        return Client(f"http://127.0.0.1:{port}", session)

    async def sql(self) -> asyncpg.Connection:
        from services.api.adapters.database import raw_connect  # noqa: PLC0415

        return await raw_connect(self.database_url)()

    # -- settings -----------------------------------------------------------------------------------------------------

    def _common(self, role: Role) -> dict[str, Any]:
        return {"nats_servers": self.nats.url, "nats_nkey_seed": SecretStr(self.seeds[role]), "log_format": "text"}

    def _api(self) -> dict[str, Any]:
        return {
            "database_url": self.database_url,
            "api_key": SecretStr(KEY),
            "port": 0,
            "engine_key_seed": SecretStr(self.engine_key_seed),
        }

    def _scheduler(self) -> dict[str, Any]:
        return self._common("scheduler") | {"engine_key_public": public_key(self.engine_key_seed)}

    def _agent(self, number: int) -> dict[str, Any]:
        keys = self.workers[number]
        return {
            "nats_servers": self.nats.url,
            "agent_nkey_seed": SecretStr(keys.agent_seed),
            "data_dir": self.directory / keys.name,
            "worker_name": keys.name,
            "worker_ip": "127.0.0.1",
            "stop_grace_seconds": 1.0,
            "log_format": "text",
        }

    def _downloader(self, number: int) -> dict[str, Any]:
        keys = self.workers[number]
        return {
            "nats_servers": self.nats.url,
            "downloader_nkey_seed": SecretStr(keys.downloader_seed),
            "data_dir": self.directory / keys.name,
            "worker_id": str(keys.id),
            "log_format": "text",
        }

    def _simulator(self, fleet: Mapping[str, Any]) -> dict[str, Any]:
        file = self.directory / "fleet.json"
        file.write_bytes(orjson.dumps(fleet))
        return self._common("simulator") | {"fleet": file}

    def _write_config(self) -> Path:
        principals = [Principal(role, public_key(seed)) for role, seed in self.seeds.items()]
        for keys in self.workers:
            principals.append(Principal("agent", public_key(keys.agent_seed), keys.id))
            principals.append(Principal("downloader", public_key(keys.downloader_seed), keys.id))
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nats.conf"
        path.write_text(render_server_config(principals, store_dir=self.directory / "store", ports_dir=self.directory))
        return path


@dataclass(frozen=True, slots=True)
class Client:
    url: str
    session: aiohttp.ClientSession

    async def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        data = body if isinstance(body, bytes) else None if body is None else orjson.dumps(body)
        more = {"content-type": "application/json"} if data is not None else {}
        async with self.session.request(
            method, self.url + path, data=data, headers=more | dict(headers or {})
        ) as answer:
            raw = await answer.read()
            return answer.status, orjson.loads(raw) if raw else {}, answer.headers

    async def get(self, path: str) -> dict[str, Any]:
        status, body, _ = await self.request("GET", path)
        assert status == 200, (path, status, body)
        return body

    async def deploy(self, name: str, path: Path | str = TINYCHAT, **fields: Any) -> dict[str, Any]:
        status, body, _ = await self.request("POST", "/v2/models", {"name": name, "local_path": str(path)} | fields)
        assert status in (201, 202), (status, body)
        return body

    async def until_written(
        self, method: str, path: str, body: object = None, *, seconds: float = 60.0
    ) -> dict[str, Any]:
        """Write, and once more while the api is away or refuses: one key, so it is one write."""
        last: object = None
        headers = {"idempotency-key": str(uuid.uuid4())}
        for _ in range(int(seconds / 0.1)):
            try:
                status, answer, _ = await self.request(method, path, body, headers)
            except aiohttp.ClientError as error:
                last = error
            else:
                if status < 300:
                    return answer
                assert status == 503, (status, answer)
                last = answer
            await asyncio.sleep(0.1)
        raise AssertionError(f"{method} {path} was never taken; last: {last}")

    async def until(
        self, path: str, condition: Callable[[dict[str, Any]], bool], *, seconds: float = 30.0
    ) -> dict[str, Any]:
        """Read until the document satisfies the condition; the guard is generous, the machine may be busy."""
        body: dict[str, Any] = {}
        for _ in range(int(seconds / 0.05)):
            try:
                status, body, _ = await self.request("GET", path)
            except aiohttp.ClientConnectionError as error:  # the api is being restarted
                status, body = 0, {"error": str(error)}
            if status == 200 and condition(body):
                return body
            await asyncio.sleep(0.05)
        raise AssertionError(f"{path} never became as expected; last: {body}")

    async def until_state(self, path: str, state: str, *, seconds: float = 30.0) -> dict[str, Any]:
        return await self.until(path, lambda body: body["state"] == state, seconds=seconds)

    async def ask(self, model: str, question: str = "Who are you?") -> tuple[int, dict[str, Any]]:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        status, answer, _ = await self.request("POST", "/v1/chat/completions", body)
        return status, answer

    async def events(self, since: str = "0") -> list[dict[str, Any]]:
        """Every fact after this position, as far as it is projected: the envelopes, with their id."""
        async with self.session.get(f"{self.url}/v2/events", params={"since": since, "follow": "false"}) as answer:
            assert answer.status == 200, await answer.text()
            return parse_sse(await answer.text())

    async def watch(self, since: str | None = None, **filters: str) -> AsyncIterator[dict[str, Any]]:
        """Events as they come, for ever."""
        params = ({"since": since} if since else {}) | filters
        async with self.session.get(
            f"{self.url}/v2/events", params=params, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            assert answer.status == 200, await answer.text()
            text = ""
            async for chunk in answer.content.iter_any():
                text += chunk.decode()
                while "\n\n" in text:
                    block, _, text = text.partition("\n\n")
                    for event in parse_sse(block + "\n\n"):
                        yield event


def parse_sse(text: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            events.append(orjson.loads(fields["data"]) | {"position": fields["id"]})
    return events


def _lives(pid: int, start_ticks: int) -> bool:
    """Is this still the process that was started then, and no zombie?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = stat[stat.rindex(b")") + 2 :].split()
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == start_ticks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say_why(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.getLogger("stack").error("%s ended", task.get_name(), exc_info=error)


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
