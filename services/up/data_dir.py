"""The data directory of `muster up`: one user at a time, of a known version, with keys that nobody else can read."""

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from kernel.accounts import Role
from kernel.settings import BadSettings

VERSION: Final = 2
"""Raised when an older Muster could damage a directory of this one."""
OLDEST: Final = 2
"""Before, the log held facts that no program reads any more."""


@dataclass(slots=True)
class DataDir:
    path: Path
    _lock: IO[str]

    @staticmethod
    def open(path: Path) -> "DataDir":
        """Make or take the directory. Raises BadSettings: not writable, in use, of a newer version."""
        path = path.absolute()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (path / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise BadSettings(f"the data directory {path} can't be written to: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise BadSettings(
                f"another `muster up` uses {path}; stop it with `muster down`, or choose another --data-dir"
            ) from error
        directory = DataDir(path, lock)
        try:
            directory._check_version()
        except BaseException:
            lock.close()
            raise
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        return directory

    def close(self) -> None:
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.close()

    def api_key(self, given: str | None) -> str:
        """The bootstrap key: the given one, else the one in `admin.key`, else a new one, mode 0600."""
        if given:
            return given
        path = self.path / "admin.key"
        if path.exists():
            return path.read_text(encoding="ascii").strip()
        key = f"mk_{secrets.token_urlsafe(32)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key + "\n")
        return key

    def _check_version(self) -> None:
        path = self.path / "version"
        if not path.exists():
            path.write_text(f"{VERSION}\n", encoding="ascii")
            return
        found = path.read_text(encoding="ascii").strip()
        if not found.isdigit() or int(found) > VERSION:
            raise BadSettings(
                f"the data directory {self.path} is of a newer Muster (version {found[:20]}); update this one"
            )
        if int(found) < OLDEST:
            raise BadSettings(
                f"the data directory {self.path} is of a Muster from before the first release (version {found}), whose log"
                " can't be read any more; choose another --data-dir"
            )


def seed_file(path: Path, role: Role) -> Path:
    """Where the key of a role lies, in a data directory of this path."""
    return path / "keys" / f"{role}.seed"


def nats_address(path: Path) -> str | None:
    """Where the nats-server of the Muster that runs on this directory listens; None when nobody runs on it."""
    if running_pid(path) is None:
        return None
    for file in (path / "nats").glob("*.ports"):
        try:
            addresses: list[str] = json.loads(file.read_bytes())["nats"]
        except (OSError, ValueError, KeyError):  # it is being written
            continue
        return addresses[0]
    return None


def running_pid(path: Path) -> int | None:
    """The process that holds the directory; None when nobody does."""
    try:
        with (path / "lock").open("r+", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                text = lock.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except OSError:
        return None
