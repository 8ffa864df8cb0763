"""Keys of services that run apart: made once, for whom they are, and a real nats-server takes them."""

from pathlib import Path

import pytest

from kernel.accounts import public_key, worker_id_of
from kernel.settings import BadSettings
from services.up.apart import Where, make_keys

WHERE = Where(
    database="postgresql+asyncpg://muster:{password}@db/muster", nats_store=Path("/data"), nats_listen="0.0.0.0:4222"
)


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    assert make_keys(tmp_path, WHERE) == ()
    first = files(tmp_path)
    assert make_keys(tmp_path, WHERE) == ()
    assert files(tmp_path) == first


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    make_keys(tmp_path, WHERE, ("second",))
    modes = {name: mode for name, (_, mode) in files(tmp_path).items()}
    readable = {name for name, mode in modes.items() if mode != 0o600}
    assert readable == {"nats/nats.conf", "postgres/password", "worker/worker.id", "workers/second/worker.id"}


def test_the_database_s_address_has_its_password(tmp_path: Path) -> None:
    make_keys(tmp_path, WHERE)
    password = (tmp_path / "postgres" / "password").read_text(encoding="ascii").strip()
    assert len(password) >= 32
    assert (
        (tmp_path / "core" / "database.url")
        .read_text(encoding="ascii")
        .strip()
        .endswith(f"muster:{password}@db/muster")
    )


def test_a_further_worker_is_known_to_the_server_and_to_nobody_elses_keys(tmp_path: Path) -> None:
    make_keys(tmp_path, WHERE)
    before = files(tmp_path)
    assert make_keys(tmp_path, WHERE, ("second",)) == ("second",)
    assert make_keys(tmp_path, WHERE) == ("second",), "it is remembered"
    after = files(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {
        "nats/nats.conf", "workers/second/agent.seed", "workers/second/downloader.seed", "workers/second/worker.id",
    }  # fmt: skip
    config = after["nats/nats.conf"][0].decode()
    key = public_key((tmp_path / "workers/second/agent.seed").read_text(encoding="ascii").strip())
    assert key in config
    assert (tmp_path / "workers/second/worker.id").read_text(encoding="ascii").strip() == worker_id_of(key)


@pytest.mark.parametrize("name", ["..", "a/b", "", "a b"])
def test_a_worker_s_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSettings, match="no name"):
        make_keys(tmp_path, WHERE, (name,))
    assert files(tmp_path) == {}
