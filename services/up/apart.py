"""Keys and configuration of services that run apart: made once, and once for each further worker.

`core/` is for api, scheduler and whoever migrates, `nats/` for the server (public keys alone), `postgres/` for the database,
`worker/` for this machine's agent and downloader, `workers/<name>/` for other machines': each goes where it is needed.
"""

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel.accounts import Principal, Role, public_key, read_or_make_seed, render_server_config, worker_id_of
from kernel.settings import BadSettings
from schemas.ids import NAME_PATTERN

CORE: Final[tuple[Role, ...]] = ("operator", "api", "scheduler", "observer")
OF_A_WORKER: Final[tuple[Role, ...]] = ("agent", "downloader")


@dataclass(frozen=True, slots=True)
class Where:
    """What the services call their servers, and as whom they run."""

    database: str
    """`postgresql+asyncpg://muster:{password}@postgres:5432/muster`."""
    nats_store: Path
    nats_listen: str
    user: int | None = None
    """Who owns the files of api and scheduler; None: whoever makes them."""


def make_keys(directory: Path, where: Where, workers: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Whatever is missing; what is there stays as it is. Returns the names of all workers. Raises BadSettings."""
    for name in workers:
        if not re.fullmatch(NAME_PATTERN, name):
            raise BadSettings(f"{name!r} is no name of a worker: letters, digits, `.`, `_` and `-`")
    password = _secret(directory / "postgres" / "password", None, mode=0o444)  # the server's own user reads it
    core = directory / "core"
    principals = [_principal(core, role, where.user) for role in CORE]
    _secret(core / "admin.key", where.user, prefix="mk_")
    engine_keys = core / "engine-key.seed"
    _write(core / "engine-key.public", public_key(read_or_make_seed(engine_keys)) + "\n", where.user)
    _own(engine_keys, where.user)
    _write(core / "database.url", where.database.format(password=password) + "\n", where.user)
    others = directory / "workers"
    known = {path.name for path in others.glob("*") if path.is_dir()}
    names = sorted(known | set(workers))
    for home in (directory / "worker", *(others / name for name in names)):
        principals += _worker(home)
    config = render_server_config(principals, store_dir=where.nats_store, listen=where.nats_listen)
    _write(directory / "nats" / "nats.conf", config, None, mode=0o444)
    return tuple(names)


def _worker(home: Path) -> list[Principal]:
    """Agent and downloader run as root: the one uses the Docker Engine's socket, the other writes what engines read."""
    agent = read_or_make_seed(home / "agent.seed")
    downloader = read_or_make_seed(home / "downloader.seed")
    worker_id = worker_id_of(public_key(agent))
    _write(home / "worker.id", f"{worker_id}\n", None, mode=0o444)
    home.chmod(0o755)
    return [
        Principal(role, public_key(seed), worker_id)
        for role, seed in zip(OF_A_WORKER, (agent, downloader), strict=True)
    ]


def _principal(directory: Path, role: Role, user: int | None) -> Principal:
    path = directory / f"{role}.seed"
    seed = read_or_make_seed(path)
    _own(path, user)
    _own(directory, user)
    return Principal(role, public_key(seed))


def _secret(path: Path, user: int | None, *, prefix: str = "", mode: int = 0o600) -> str:
    if not path.exists():
        _write(path, f"{prefix}{secrets.token_urlsafe(32)}\n", user, mode=mode)
    return path.read_text(encoding="ascii").strip()


def _write(path: Path, text: str, user: int | None, *, mode: int = 0o600) -> None:
    """Whole or not at all, and never readable for others in between."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    _own(part, user)
    part.chmod(mode)
    part.replace(path)


def _own(path: Path, user: int | None) -> None:
    if user is not None:
        os.chown(path, user, user)
