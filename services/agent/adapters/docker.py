"""Engines as containers of a Docker Engine. The SDK is synchronous: every call of it runs in a thread.

An engine's container is named after its attempt and carries labels by which the next agent of the same worker adopts it;
containers without this worker's label are never touched. It keeps its log after its end: the last attempts' are kept.
While the Docker Engine is away, calls wait for it: engines run on (`live-restore`), and what happened meanwhile is told then.
"""

import asyncio
import itertools
import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import CancellableStream, LogConfig, Ulimit
from docker.types import DeviceRequest as SdkDeviceRequest
from docker.utils import parse_host
from requests.exceptions import RequestException

from schemas.ids import InstanceId
from schemas.reasons import (
    ContainerNotStarted,
    DevicesNotAvailable,
    DiskFull,
    EngineNotInstalled,
    ImageForAnotherPlatform,
    NotEnoughDisk,
    PortInUse,
    Reason,
    UnknownParameter,
)
from schemas.reasons import ImageNotFound as NoSuchImage
from schemas.reasons import ImageNotPulled as NotPulled
from services.agent.adapters.written_files import prepare
from services.agent.domain.log_lines import last_lines, shown
from services.agent.domain.runtime import (
    LINES_OF_PROGRESS,
    Activity,
    Container,
    EndedBy,
    EngineCommand,
    EngineExit,
    EngineId,
    EngineNotStarted,
    ImageNotPulled,
    LogPart,
    Mount,
    PullProgress,
    RunningEngine,
    log_mark,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

WORKER: Final = "muster.worker"
INSTANCE: Final = "muster.instance"
ATTEMPT: Final = "muster.attempt"
PORT: Final = "muster.port"
DETAILS: Final = "muster.details"
IMAGE: Final = "muster.image"
"""Labels."""

LOGS_KEPT: Final = 5
"""Attempts of one instance whose containers, and so whose logs, are kept, the current one included."""
DAYS_KEPT: Final = 7
"""… and so long those of instances that are gone."""
LOG_OPTIONS: Final = {"max-size": "50m", "max-file": "3", "compress": "true"}
EXIT_LOG_LINES: Final = 300
"""In which the reason of an end is looked for: vLLM writes a hundred lines of tracebacks after it."""
PART_BYTES: Final = 256 * 1024
"""Of one part of a log: an answer must fit into a message of the bus."""
AWAY_SECONDS: Final = 0.5
"""Between two tries to reach a Docker Engine that is away."""
CALL_SECONDS: Final = 60
ANY_VERSION: Final = "1.41"
"""Asks for no version at all where it is asked for one that the engine may have left behind."""
STOP_SECONDS: Final = 30
"""What the Docker Engine may take to kill what did not end in its grace."""
_RUNS_TOO: Final = {"amd64": "386", "arm64": "arm"}
"""Programs of which other architecture a processor runs."""
_AWAY: Final = (RequestException, ConnectionError)


class DockerRuntime:
    """A ContainerRuntime. It adopts what runs the first time that it is asked for what runs, or for ends."""

    def __init__(self, directory: Path, worker: str, *, base_url: str | None = None) -> None:
        """`directory`: for notes about ends. `base_url`: as DOCKER_HOST; None: what the environment says."""
        self._directory = directory.absolute()
        self._worker = worker
        self._base_url = base_url
        self._client: docker.APIClient | None = None
        self._exits: asyncio.Queue[EngineExit] = asyncio.Queue()
        self._told: set[EngineId] = set()
        self._watching: asyncio.Task[None] | None = None
        self._events: CancellableStream[Any] | None = None
        self._closed = False

    # -- images -------------------------------------------------------------------------------------------------------

    async def has_image(self, image: str) -> bool:
        return await self._call(lambda client: _has_image(client, image))

    async def pull(self, container: Container) -> AsyncIterator[PullProgress]:
        image = container.image
        if await self.has_image(image):
            return
        try:
            async with aclosing(self._pulled(container)) as pulled:
                async for progress in pulled:
                    yield progress
            if not await self.has_image(image):
                raise ImageNotPulled((NoSuchImage(image=image),), f"no image {image}")
            if (ours := await self._call(lambda client: _other_platform(client, image))) is not None:
                reason = ImageForAnotherPlatform(image=image, platform=ours)
                raise ImageNotPulled((reason,), reason.sentence())
        except APIError as error:
            text = error.explanation or str(error)
            raise ImageNotPulled((_why_not_pulled(container, text, None),), text) from error

    async def _pulled(self, container: Container) -> AsyncGenerator[PullProgress]:
        """Raises ImageNotPulled, APIError."""
        root = await self._root()
        free = _free_bytes(root)
        layers: dict[str, tuple[int, int]] = {}
        async with aclosing(self._pulling(container)) as lines:
            async for line in lines:
                if "error" in line:
                    text = str(line["error"])
                    raise ImageNotPulled((_why_not_pulled(container, text, root),), text)
                detail = line.get("progressDetail") or {}
                if line.get("status") == "Downloading" and detail.get("total"):
                    layers[line["id"]] = (detail["current"], detail["total"])
                elif (
                    line.get("status") in ("Download complete", "Pull complete", "Extracting")
                    and line.get("id") in layers
                ):
                    layers[line["id"]] = (layers[line["id"]][1], layers[line["id"]][1])
                else:
                    continue
                done, total = (sum(each) for each in zip(*layers.values(), strict=True))
                if free is not None and total - done > free:
                    reason = NotEnoughDisk(needed_bytes=total, free_bytes=free, image=container.image)
                    raise ImageNotPulled((reason,), reason.sentence())
                yield PullProgress(done, total)

    async def _pulling(self, container: Container) -> AsyncGenerator[dict[str, Any]]:
        """What the Docker Engine says of it, line by line; closing the stream breaks it off, what was pulled is kept."""
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        client = await asyncio.to_thread(connect, self._base_url)
        over = threading.Event()

        def say(line: dict[str, Any] | None) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def read() -> None:
            try:
                stream = cast(
                    "Iterable[dict[str, Any]]",
                    client.pull(*_split(container.image), stream=True, decode=True, platform=container.platform),
                )
                for line in stream:
                    if over.is_set():
                        return
                    say(line)
            except APIError as error:
                say({"error": error.explanation or str(error)})
            except (DockerException, *_AWAY) as error:
                say({"error": str(error)})
            finally:
                say(None)

        reading = asyncio.create_task(asyncio.to_thread(read))
        try:
            while (line := await lines.get()) is not None:
                yield line
        finally:
            over.set()
            client.close()
            with suppress(Exception):
                await asyncio.wait_for(asyncio.shield(reading), 1)

    async def _root(self) -> str:
        """Where images and containers are kept."""
        return str((await self._call(lambda client: client.info())).get("DockerRootDir", ""))

    # -- the life of a container --------------------------------------------------------------------------------------

    async def start(self, engine: EngineId, command: EngineCommand, details: Mapping[str, object]) -> RunningEngine:
        self._watch()
        bad = [argument for argument in command.argv if "\0" in argument]
        bad += [name for name, value in command.env.items() if not name or "=" in name or "\0" in name + value]
        if bad:
            raise EngineNotStarted((UnknownParameter(parameter=repr(bad[0])),), "no container can be given this")
        await asyncio.to_thread(prepare, command)
        if command.container is None:
            raise EngineNotStarted((EngineNotInstalled(program=command.program),), "it has no image")
        labels = {
            WORKER: self._worker,
            INSTANCE: engine.instance_id,
            ATTEMPT: str(engine.attempt),
            PORT: str(command.port),
            DETAILS: json.dumps(dict(details)),
        }
        container, name = command.container, self._name(engine)
        await self._tidy(engine)
        self._marks(engine, "stopped").unlink(missing_ok=True)
        self._marks(engine, "answered").unlink(missing_ok=True)

        def work(client: docker.APIClient) -> dict[str, Any]:
            known = _inspected(client, name)
            if known is not None and known["State"]["Running"]:
                return known
            if known is not None:  # it was made, and never ran; or it ended, and is wanted again
                client.remove_container(name, force=True)
            known_by = labels | {IMAGE: _digest(client, container.image)}
            if (ours := _other_platform(client, container.image)) is not None:
                reason = ImageForAnotherPlatform(image=container.image, platform=ours)
                raise EngineNotStarted((reason,), reason.sentence())
            client.create_container_from_config(_config(client, command, container, known_by), name)
            try:
                client.start(name)
            except APIError:
                client.remove_container(name, force=True)
                raise
            return cast("dict[str, Any]", client.inspect_container(name))

        try:
            found = await self._call(work)
        except APIError as error:
            text = error.explanation or str(error)
            reason = _why_not_started(command, container, error, text)
            if _is_for_want_of_room(text):
                reason = DiskFull(path=await self._root())
            raise EngineNotStarted((reason,), text) from error
        self._told.discard(engine)
        return _running(found)

    async def stop(self, engine: EngineId, grace_seconds: float) -> None:
        name = self._name(engine)
        if not await self._call(lambda client: _is_running(client, name)):
            return
        mark = self._marks(engine, "stopped")
        with suppress(OSError):  # the disk is full: the next agent takes it for an end by itself
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()

        def work(client: docker.APIClient) -> None:
            with suppress(NotFound):
                client.kill(name, signal="SIGTERM") if grace_seconds else client.kill(name)

        with suppress(APIError):  # it has ended meanwhile
            await self._call(work)
        if await self._until_gone(name, grace_seconds):
            return
        with suppress(APIError):
            await self._call(lambda client: client.kill(name))
        await self._until_gone(name, STOP_SECONDS)

    async def forget(self, engine: EngineId) -> None:
        if not await self._call(lambda client: _is_running(client, self._name(engine))):
            mark = self._marks(engine, "answered")
            with suppress(OSError):  # the disk is full: the next agent tells of this end once more
                mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                mark.touch()

    async def list(self) -> tuple[RunningEngine, ...]:
        self._watch()
        running = await self._ours(ended=False)
        return tuple(_running(found) for found in running if found["State"]["Running"])

    async def exits(self) -> AsyncIterator[EngineExit]:
        self._watch()
        while True:
            yield await self._exits.get()

    async def log_tail(self, engine: EngineId, lines: int) -> tuple[str, ...]:
        return await self._call(lambda client: _log_tail(client, self._name(engine), lines))

    async def log_part(self, engine: EngineId, lines: int, after: str | None) -> LogPart | None:
        return await self._call(lambda client: _log_part(client, self._name(engine), lines, after))

    async def kept_logs(self, instance_id: InstanceId) -> tuple[int, ...]:
        ours = [_engine_of(found) for found in await self._ours()]
        return tuple(sorted(each.attempt for each in ours if each.instance_id == instance_id))

    async def peak_ram(self, engine: EngineId) -> int | None:
        """Control groups of version 1 keep the peak; of version 2 what is held now is told, and the caller keeps the most."""
        name = self._name(engine)

        def work(client: docker.APIClient) -> int | None:
            try:
                stats = cast("dict[str, Any]", client.stats(name, stream=False, one_shot=True))["memory_stats"]
            except (NotFound, KeyError):
                return None
            cached = stats.get("stats", {}).get("inactive_file", 0)
            return stats.get("max_usage") or max(stats.get("usage", 0) - cached, 0) or None

        return await self._call(work)

    async def activity(self, engine: EngineId, besides: str | None = None) -> Activity | None:
        """Of all that its control groups count; time in the queue of a processor is not among that, so throttling is added."""
        name = self._name(engine)

        def work(client: docker.APIClient) -> Activity | None:
            try:
                stats = cast("dict[str, Any]", client.stats(name, stream=False, one_shot=True))
                used = stats["cpu_stats"]["cpu_usage"]["total_usage"]
            except (APIError, KeyError):
                return None
            throttled = stats["cpu_stats"].get("throttling_data", {}).get("throttled_time", 0)
            blocks = stats.get("blkio_stats", {}).get("io_service_bytes_recursive") or []
            read = sum(each["value"] for each in blocks if each["op"].lower() == "read")
            mark = log_mark(_log_tail(client, name, LINES_OF_PROGRESS), besides)
            return Activity((used + throttled) / 1e9, read, mark)

        return await self._call(work)

    async def close(self) -> None:
        self._closed = True
        if self._events is not None:
            with suppress(Exception):  # it is closed under the reader's hands
                self._events.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._client is not None:
            self._client.close()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._watching is None and not self._closed:
            self._watching = asyncio.create_task(self._keep_watching())

    async def _keep_watching(self) -> None:
        """First the events, then the picture: whatever ends after it was drawn is heard of."""
        while True:
            try:
                await self._watch_once()
                log.warning("the Docker Engine is away; engines run on if it is configured so (live-restore)")
            except APIError as error:
                log.warning("the Docker Engine does not tell what ended: %s", error)
            await asyncio.sleep(AWAY_SECONDS)

    async def _watch_once(self) -> None:
        """As long as the Docker Engine answers. Raises APIError."""
        died: asyncio.Queue[bool] = asyncio.Queue()
        filters = {"type": "container", "event": ["die"], "label": f"{WORKER}={self._worker}"}
        events = self._events = await self._call(lambda client: client.events(decode=True, filters=filters))
        reading = asyncio.create_task(asyncio.to_thread(_read_events, events, asyncio.get_running_loop(), died))
        try:
            await self._tell_ends()
            while await died.get():
                await self._tell_ends()
        finally:
            with suppress(Exception):  # it is closed under the reader's hands
                events.close()
            await asyncio.gather(reading, return_exceptions=True)

    async def _tell_ends(self) -> None:
        for found in await self._ours():
            engine = _engine_of(found)
            state = found["State"]
            if (
                state["Status"] not in ("exited", "dead")
                or engine in self._told
                or self._marks(engine, "answered").exists()
            ):
                continue
            self._told.add(engine)
            code = int(state["ExitCode"])
            signal = code - 128 if 128 < code <= 128 + 64 else None
            lines = await self.log_tail(engine, EXIT_LOG_LINES)
            exit_code = None if signal is not None else code
            self._exits.put_nowait(EngineExit(engine, exit_code, signal, lines, self._ended_by(engine, state)))

    def _ended_by(self, engine: EngineId, state: Mapping[str, Any]) -> EndedBy:
        if state.get("OOMKilled"):
            return "memory"
        if self._marks(engine, "stopped").exists():
            return "a_stop"
        booted = _booted_at()
        if _instant(state["StartedAt"]) < booted <= _instant(state["FinishedAt"]):
            return "the_machine"
        return "itself"

    async def _until_gone(self, name: str, seconds: float) -> bool:
        """Looks in growing steps: waiting at the Docker Engine would hold a thread."""
        ends, wait = asyncio.get_running_loop().time() + seconds, 0.01
        while await self._call(lambda client: _is_running(client, name)):
            if asyncio.get_running_loop().time() >= ends:
                return False
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 0.25)
        return True

    # -- what is there ------------------------------------------------------------------------------------------------

    async def _ours(self, *, ended: bool = True) -> Sequence[dict[str, Any]]:
        """`ended`: those too, of which many are kept for their logs."""
        label = f"{WORKER}={self._worker}"

        def work(client: docker.APIClient) -> Sequence[dict[str, Any]]:
            listed = cast("list[dict[str, Any]]", client.containers(all=ended, filters={"label": label}))
            found = (_inspected(client, each["Id"]) for each in listed if INSTANCE in each["Labels"])
            return [each for each in found if each is not None]

        return await self._call(work)

    async def _tidy(self, engine: EngineId) -> None:
        """Ends of former attempts are answered by this one; old containers go, and their logs with them."""
        ours = [found for found in await self._ours() if not found["State"]["Running"]]
        former = sorted(
            (_engine_of(found) for found in ours if _engine_of(found).instance_id == engine.instance_id),
            key=lambda each: each.attempt,
            reverse=True,
        )
        former = [each for each in former if each != engine]
        for each in former:
            await self.forget(each)
        ago = datetime.now(UTC) - timedelta(days=DAYS_KEPT)
        old = [
            _engine_of(found)
            for found in ours
            if _engine_of(found).instance_id != engine.instance_id and _instant(found["State"]["FinishedAt"]) < ago
        ]
        for each in [*former[LOGS_KEPT - 1 :], *old]:
            await self._remove(each)

    async def _remove(self, engine: EngineId) -> None:
        with suppress(APIError):  # somebody else removes it
            await self._call(lambda client: client.remove_container(self._name(engine)))
        for mark in ("stopped", "answered"):
            self._marks(engine, mark).unlink(missing_ok=True)

    def _marks(self, engine: EngineId, what: str) -> Path:
        return self._directory / engine.instance_id / f"{engine.attempt}.{what}"

    def _name(self, engine: EngineId) -> str:
        """Two agents may share a Docker Engine."""
        return f"muster-{self._worker}-{engine.instance_id}-{engine.attempt}"

    async def _call(self, work: Callable[[docker.APIClient], T]) -> T:
        """In a thread; again and again while the Docker Engine is away. Raises APIError."""
        told = False
        while True:
            try:
                return await asyncio.to_thread(self._work, work)
            except APIError:
                raise
            except (DockerException, *_AWAY) as error:
                away = error
            if not told:
                log.warning("the Docker Engine does not answer: %s", away)
                told = True
            await asyncio.sleep(AWAY_SECONDS)

    def _work(self, work: Callable[[docker.APIClient], T]) -> T:
        if self._client is None:
            self._client = connect(self._base_url)
        else:
            knock(self._base_url or os.environ.get("DOCKER_HOST"))
        return work(self._client)


def connect(base_url: str | None) -> docker.APIClient:
    """With the engine's own version of the API, as `version="auto"` would, and nothing left open when it is away."""
    base_url = base_url or os.environ.get("DOCKER_HOST")
    knock(base_url)
    probe = docker.APIClient(base_url=base_url, timeout=CALL_SECONDS, version=ANY_VERSION)
    try:
        version = probe.version(api_version=False)["ApiVersion"]
    finally:
        probe.close()
    return docker.APIClient(base_url=base_url, timeout=CALL_SECONDS, version=version)


def knock(base_url: str | None) -> None:
    """Raises ConnectionError. The SDK never closes a Unix socket that was refused."""
    scheme, _, path = str(parse_host(base_url, is_win32=False)).partition("://")
    if scheme == "http+unix":
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(CALL_SECONDS)
            try:
                door.connect(path)
            except OSError as error:
                raise ConnectionError(f"{path}: {error}") from error


def _read_events(
    events: "CancellableStream[Any]", loop: asyncio.AbstractEventLoop, died: "asyncio.Queue[bool]"
) -> None:
    """In a thread; True for each end, False when there will be no more."""
    try:
        for _ in events:
            loop.call_soon_threadsafe(died.put_nowait, True)  # noqa: FBT003 - what the queue holds
    except Exception as error:  # noqa: BLE001 - whatever a stream that breaks off raises in the SDK and below it
        log.debug("the Docker Engine's events ended: %s", error)
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(died.put_nowait, False)  # noqa: FBT003 - what the queue holds


# -- from our words to Docker's ---------------------------------------------------------------------------------------


def _config(
    client: docker.APIClient, command: EngineCommand, container: Container, labels: Mapping[str, str]
) -> dict[str, Any]:
    """Locked down as far as the engine declares that it can be (facts about Docker Engine API 1.41)."""
    needs, access = container.needs, container.access
    writable = {} if needs.writable_root else {"/tmp": "rw,exec,mode=1777", "/run": "rw,mode=755"}  # noqa: S108 - in the container
    home = {} if needs.writable_root else {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/.cache"}  # noqa: S108 - in the container
    port = f"{command.port}/tcp"
    host = client.create_host_config(
        binds=[_bind(mount) for mount in (*container.mounts, *access.mounts)],
        network_mode="host" if needs.host_network else "bridge",
        port_bindings=None if needs.host_network else {port: (container.publish_on, command.port)},
        ipc_mode="host" if needs.host_ipc else "private",
        shm_size=None if needs.host_ipc else container.shm_bytes,
        cap_drop=["ALL"],
        cap_add=list(needs.capabilities),
        security_opt=["no-new-privileges:true"],
        read_only=not needs.writable_root,
        tmpfs=writable,
        pids_limit=container.pids,
        mem_limit=container.memory_bytes,
        memswap_limit=container.memory_bytes,
        devices=[f"{node}:{node}:rwm" for node in access.devices],
        device_requests=[
            SdkDeviceRequest(driver=each.driver, device_ids=list(each.ids), capabilities=[list(each.capabilities)])
            for each in access.requests
        ],
        runtime=access.runtime,
        group_add=list(access.groups),
        ulimits=[Ulimit(name="memlock", soft=-1, hard=-1)] if access.devices or access.requests else None,
        log_config=LogConfig(type=LogConfig.types.JSON, config=dict(LOG_OPTIONS)),
        init=True,
    )
    return cast(
        "dict[str, Any]",
        client.create_container_config(
            image=container.image,
            command=list(command.argv),
            entrypoint=None if container.entrypoint is None else list(container.entrypoint),
            environment=home | {"TINI_KILL_PROCESS_GROUP": "1"} | dict(command.env) | dict(access.env),
            user=needs.user,
            labels=dict(labels),
            ports=None if needs.host_network else [(str(command.port), "tcp")],
            host_config=host,
            healthcheck={"test": ["NONE"]},
        ),
    )


def _bind(mount: Mount) -> str:
    return f"{mount.path}:{mount.target or mount.path}:{'ro' if mount.read_only else 'rw'}"


def _split(image: str) -> tuple[str, str | None]:
    """Name, and tag or digest."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    name, colon, tag = image.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (image, "latest")


def _free_bytes(root: str) -> int | None:
    """None where that is on another machine, or hidden from us."""
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return None


def _is_for_want_of_room(text: str) -> bool:
    """`strerror` of ENOSPC and EDQUOT, in the words of Go."""
    said = text.lower()
    return "no space left on device" in said or "disk quota exceeded" in said


def _why_not_pulled(container: Container, text: str, root: str | None) -> Reason:
    """`root`: where the Docker Engine keeps images."""
    said = text.lower()
    if "no matching manifest" in said or "does not match the specified platform" in said:
        return ImageForAnotherPlatform(image=container.image, platform=container.platform or "this machine")
    if any(each in said for each in ("not found", "does not exist", "manifest unknown", "repository name not known")):
        return NoSuchImage(image=container.image)
    if _is_for_want_of_room(text):
        return DiskFull(path=root)
    return NotPulled(image=container.image, problem=_short(text))


def _why_not_started(command: EngineCommand, container: Container, error: APIError, text: str) -> Reason:
    said = text.lower()
    if isinstance(error, ImageNotFound):
        return NoSuchImage(image=container.image)
    if "port is already allocated" in said or "address already in use" in said:
        return PortInUse(port=command.port)
    if any(
        each in said
        for each in ("executable file not found", "no such file or directory: unknown", "permission denied")
    ):
        return EngineNotInstalled(program=command.program)
    if "exec format error" in said:
        return ImageForAnotherPlatform(image=container.image, platform=container.platform or "this machine")
    if any(each in said for each in ("device driver", "gathering device information", "unknown runtime", "cdi device")):
        return DevicesNotAvailable(problem=_short(text))
    return ContainerNotStarted(problem=_short(text))


def _short(text: str) -> str:
    """The beginning says what failed, the end says why."""
    return text if len(text) <= 300 else f"{text[:100]} … {text[-200:]}"


# -- from Docker's words to ours --------------------------------------------------------------------------------------


def _inspected(client: docker.APIClient, name: str) -> dict[str, Any] | None:
    try:
        return cast("dict[str, Any]", client.inspect_container(name))
    except NotFound:
        return None


def _is_running(client: docker.APIClient, name: str) -> bool:
    found = _inspected(client, name)
    return found is not None and bool(found["State"]["Running"])


def _has_image(client: docker.APIClient, image: str) -> bool:
    try:
        client.inspect_image(image)
    except ImageNotFound:
        return False
    except APIError as error:  # no name that could be one
        log.debug("the Docker Engine does not look for %s: %s", image, error)
        return False
    return True


def _other_platform(client: docker.APIClient, image: str) -> str | None:
    """The Docker Engine's, when it can't run the image, which it pulls all the same where there is but one variant.

    Raises ImageNotFound.
    """
    found, version = client.inspect_image(image), client.version(api_version=False)
    ours, its = str(version["Arch"]), str(found.get("Architecture") or "")
    return None if its in ("", ours, _RUNS_TOO.get(ours)) else f"{version['Os']}/{ours}"


def _digest(client: docker.APIClient, image: str) -> str:
    """By which anybody can pull the same again; the image's own id, where it comes from no registry. Raises ImageNotFound."""
    found = cast("dict[str, Any]", client.inspect_image(image))
    return str(next(iter(found.get("RepoDigests") or ()), found["Id"]))


def _log_tail(client: docker.APIClient, name: str, lines: int) -> tuple[str, ...]:
    if lines <= 0:
        return ()
    try:
        text = client.logs(name, tail=lines)
    except NotFound:
        return ()
    return last_lines(text.decode(errors="replace"), lines)


def _log_part(client: docker.APIClient, name: str, lines: int, after: str | None) -> LogPart | None:
    """The Docker Engine notes when each line was written (nanoseconds): that is a line's name, and the place after it.

    What it dropped when it rotated its own files is not counted: the SDK can't ask for a line by its number.
    """
    options: dict[str, Any] = {"tail": lines} if after is None else {"since": _seconds(after)}
    try:
        stream = cast("Iterable[bytes]", client.logs(name, timestamps=True, stream=True, follow=False, **options))
    except NotFound:
        return None
    taken: list[str] = []
    place, size = after or "", 0
    for stamp, text in _stamped(stream):
        if after is not None and stamp <= after:
            continue
        size += len(text)
        if len(taken) == lines or size > PART_BYTES:
            break
        taken.append(text)
        place = stamp
    else:
        return LogPart(_all_shown(taken), place)
    with suppress(Exception):  # whatever closing under the hands of the SDK raises: what follows is not read
        cast("CancellableStream[bytes]", stream).close()
    return LogPart(_all_shown(taken), place)


def _all_shown(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(line for text in lines for line in shown(text + "\n"))


def _stamped(stream: Iterable[bytes]) -> Iterable[tuple[str, str]]:
    """When and what; a line without an end comes last, when its container is gone."""
    rest = b""
    for chunk in itertools.chain(stream, (b"\n",)):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            stamp, _, text = line.partition(b" ")
            if stamp:
                yield stamp.decode(), text.decode(errors="replace")


def _seconds(stamp: str) -> float:
    """Rounded down to what the Docker Engine and a float agree on; 1: since ever."""
    return max(_instant(stamp).timestamp(), 1.0) if stamp else 1.0


def _engine_of(found: Mapping[str, Any]) -> EngineId:
    labels = found["Config"]["Labels"]
    return EngineId(InstanceId(labels[INSTANCE]), int(labels[ATTEMPT]))


def _running(found: Mapping[str, Any]) -> RunningEngine:
    labels = found["Config"]["Labels"]
    return RunningEngine(
        _engine_of(found),
        str(found["Id"]),
        int(labels[PORT]),
        _instant(found["State"]["StartedAt"]),
        json.loads(labels[DETAILS]),
        labels.get(IMAGE),
    )


def _instant(text: str) -> datetime:
    """Docker tells nanoseconds; Python reads microseconds."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")


def _booted_at() -> datetime:
    """`btime` of /proc/stat (`man 5 proc_stat`): the machine's, also in a container."""
    line = next(
        line for line in Path("/proc/stat").read_text(encoding="ascii").splitlines() if line.startswith("btime")
    )
    return datetime.fromtimestamp(int(line.split()[1]), UTC)
