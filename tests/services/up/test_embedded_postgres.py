"""Against the real PostgreSQL."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from services.up import child_launcher, embedded_postgres
from services.up.child import ServerFailed, command_of
from services.up.embedded_postgres import BINARIES_VARIABLE, EmbeddedPostgres, installed, major_version, processes_in

REPOSITORY = Path(__file__).parents[3]
NOBODY = 65534
LAUNCHER = [sys.executable, "-I", "-S", child_launcher.__file__]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
WAYS = [pytest.param(True, id="user namespace"), pytest.param(False, id="nobody", marks=ROOT)]

RUN = """
import asyncio, sys
from pathlib import Path
from services.up.child import ServerFailed
from services.up.embedded_postgres import EmbeddedPostgres

async def main():
    postgres = EmbeddedPostgres(Path(sys.argv[1]), user_namespace=sys.argv[2] == "True")
    try:
        await postgres.start()
    except ServerFailed as failure:
        print(failure.sentence, flush=True)
        return
    print(postgres.pid, flush=True)
    if sys.argv[3] == "stay":
        await asyncio.Event().wait()
    await postgres.stop()

asyncio.run(main())
"""


@asynccontextmanager
async def connected(postgres: EmbeddedPostgres) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(**postgres.dsn_parts)
    try:
        yield connection
    finally:
        await connection.close()


async def remember(postgres: EmbeddedPostgres, what: str) -> None:
    async with connected(postgres) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS remembered (what text)")
        await connection.execute("INSERT INTO remembered VALUES ($1)", what)


async def remembered(postgres: EmbeddedPostgres) -> list[str]:
    async with connected(postgres) as connection:
        return [row["what"] for row in await connection.fetch("SELECT what FROM remembered")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.002)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner(path: Path) -> int:
    return path.stat().st_uid


def owners_inside(directory: Path) -> set[int]:
    return {owner(path) for path in directory.rglob("*") if path.name != "muster.lock"}


def names_inside(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="session")
async def a_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("template") / "data"
    async with EmbeddedPostgres(data_dir) as postgres:
        await remember(postgres, "the first run")
    return data_dir


@pytest.fixture
def used(tmp_path: Path, a_template: Path) -> Path:
    """A data directory that was used before, and stopped properly."""
    return Path(shutil.copytree(a_template, tmp_path / "data"))


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that the user nobody can reach; pytest's own can't be."""
    directory = Path(tempfile.mkdtemp(prefix="muster-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


async def test_the_first_start_makes_a_database_that_is_reached_by_its_socket_alone(tmp_path: Path) -> None:
    parent_mode = mode(tmp_path)
    async with EmbeddedPostgres(tmp_path / "new" / "data") as postgres:
        async with connected(postgres) as connection:
            setting = {
                row["name"]: row["setting"] for row in await connection.fetch("SELECT name, setting FROM pg_settings")
            }
            encoding = await connection.fetchval(
                "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database WHERE datname = 'muster'"
            )
        assert encoding == "UTF8 C"
        wanted = {"listen_addresses": "", "fsync": "on", "synchronous_commit": "on", "wal_level": "minimal"}
        wanted |= {"max_wal_senders": "0", "max_connections": "60", "unix_socket_permissions": "0700"}
        assert wanted.items() <= setting.items()
        assert postgres.socket_dir == tmp_path / "new" / "data" / "socket"
        assert (mode(postgres.data_dir), mode(postgres.socket_dir)) == (0o700, 0o700)
    assert mode(tmp_path) == parent_mode
    assert names_inside(tmp_path / "new") == ["data", "postgres.log"]


async def test_sqlalchemy_connects_with_the_url(used: Path) -> None:
    async with EmbeddedPostgres(used) as postgres:
        engine = create_async_engine(postgres.url)
        async with engine.connect() as connection:
            assert (
                await connection.execute(text("SELECT current_user || '@' || current_database()"))
            ).scalar_one() == ("muster@muster")
        await engine.dispose()


async def test_what_was_written_is_there_after_stop_and_start(used: Path) -> None:
    postgres = EmbeddedPostgres(used)
    async with postgres:
        await remember(postgres, "the second run")
    async with postgres:
        assert await remembered(postgres) == ["the first run", "the second run"]


async def test_stopping_ends_the_server_properly_although_clients_are_connected(used: Path) -> None:
    postgres = EmbeddedPostgres(used)
    await postgres.start()
    async with connected(postgres):
        pid, exited = postgres.pid, postgres.exited
        await postgres.stop()
    assert (exited.result(), command_of(pid)) == (0, [])
    with pytest.raises(RuntimeError, match="doesn't run"):
        _ = postgres.url


async def test_what_was_committed_survives_a_kill_of_the_server(used: Path) -> None:
    postgres = EmbeddedPostgres(used)
    await postgres.start()
    await remember(postgres, "the kill")
    os.kill(postgres.pid, signal.SIGKILL)
    assert await postgres.exited == -signal.SIGKILL
    assert (used / "postmaster.pid").exists()
    await postgres.stop()
    async with postgres:
        assert await remembered(postgres) == ["the first run", "the kill"]


async def killed_run(data_dir: Path, *, user_namespace: bool) -> int:
    """Returns the process number of its postmaster right after the run was killed."""
    command = [sys.executable, "-c", RUN, str(data_dir), str(user_namespace), "stay"]
    run = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert run.stdout is not None
    pid = int(await run.stdout.readline())
    assert pid in processes_in(data_dir)
    run.kill()
    await run.wait()
    return pid


@pytest.mark.parametrize("user_namespace", WAYS)
async def test_no_server_outlives_a_run_that_was_killed(reachable: Path, *, user_namespace: bool) -> None:
    await killed_run(reachable / "data", user_namespace=user_namespace)
    await until(lambda: not any(processes_in(reachable / "data")))


async def test_a_run_may_start_while_the_server_of_a_killed_one_still_ends(used: Path) -> None:
    pid = await killed_run(used, user_namespace=True)
    async with EmbeddedPostgres(used) as postgres:
        assert (postgres.pid != pid, command_of(pid)) == (True, [])
        assert await remembered(postgres) == ["the first run"]


async def test_a_server_that_a_killed_run_left_behind_is_ended_first(used: Path) -> None:
    former, later = EmbeddedPostgres(used), EmbeddedPostgres(used)
    await former.start()
    (used / "muster.lock").unlink()  # as if the process that held it had ended
    async with later:
        assert await former.exited == 0
        assert await remembered(later) == ["the first run"]
    await former.stop()


async def test_somebody_elses_server_on_the_directory_is_left_alone(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded_postgres, "_SETTINGS", ("listen_addresses=",))
        foreign = EmbeddedPostgres(used)
        await foreign.start()
    (used / "muster.lock").unlink()
    with pytest.raises(ServerFailed, match=rf"Another PostgreSQL \(process {foreign.pid}\) runs on"):
        await EmbeddedPostgres(used).start()
    assert await remembered(foreign) == ["the first run"]
    await foreign.stop()


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["of another program", "of nobody"])
async def test_a_stale_pid_file_does_not_keep_the_server_from_starting(used: Path, pid: int) -> None:
    (used / "postmaster.pid").write_text(
        f"{pid}\n{used}\n1700000000\n5432\n{used}/socket\n\n  5432001    0\nready   \n"
    )
    async with EmbeddedPostgres(used) as postgres:
        assert await remembered(postgres) == ["the first run"]


async def test_a_second_run_on_the_same_directory_is_refused_and_the_first_goes_on(used: Path) -> None:
    async with EmbeddedPostgres(used) as postgres:
        with pytest.raises(ServerFailed, match="Another `muster up` runs on"):
            await EmbeddedPostgres(used).start()
        assert await remembered(postgres) == ["the first run"]


async def test_a_first_start_that_was_cut_off_in_initdb_begins_again(tmp_path: Path) -> None:
    half_done = tmp_path / "data" / "initdb.unfinished" / "base"
    half_done.mkdir(parents=True)
    (half_done.parent / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(tmp_path / "data") as postgres:
        await remember(postgres, "it works")
    assert not half_done.parent.exists()


async def test_a_first_start_that_was_cut_off_after_initdb_goes_on(used: Path) -> None:
    finished = used / "initdb.finished"
    finished.mkdir()
    for name in ("base", "global", "PG_VERSION"):
        (used / name).rename(finished / name)
    async with EmbeddedPostgres(used) as postgres:
        assert await remembered(postgres) == ["the first run"]
    assert not finished.exists()


async def test_a_path_too_long_for_a_socket_gets_a_temporary_one(tmp_path: Path, a_template: Path) -> None:
    long = Path(shutil.copytree(a_template, tmp_path / ("x" * 100)))
    postgres = EmbeddedPostgres(long)
    async with postgres:
        socket_dir = postgres.socket_dir
        assert mode(socket_dir) == 0o700
        assert not socket_dir.is_relative_to(long)
        assert await remembered(postgres) == ["the first run"]
    assert not socket_dir.exists()


async def test_a_directory_of_another_version_is_refused(used: Path) -> None:
    (used / "PG_VERSION").write_text("12\n")
    have = " and ".join(str(version) for version in sorted([await major_version(path) for path in installed()]))
    with pytest.raises(
        ServerFailed, match=f"was written by PostgreSQL 12, and this is PostgreSQL {have}: choose another"
    ):
        await EmbeddedPostgres(used).start()


async def test_another_postgresql_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, binaries = min([(await major_version(path), path) for path in installed()])
    monkeypatch.setenv(BINARIES_VARIABLE, str(binaries))
    async with EmbeddedPostgres(tmp_path / "data") as postgres, connected(postgres) as connection:
        assert connection.get_server_version().major == version


async def test_a_named_directory_without_postgresql_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINARIES_VARIABLE, str(tmp_path))
    with pytest.raises(ServerFailed) as failure:
        await EmbeddedPostgres(tmp_path / "data").start()
    assert str(failure.value) == (
        f"MUSTER_POSTGRES_BIN={tmp_path} has no initdb: name the directory of PostgreSQL's programs."
    )


async def test_a_directory_goes_on_with_the_version_it_was_begun_with(tmp_path: Path) -> None:
    version, binaries = min([(await major_version(path), path) for path in installed()])
    async with EmbeddedPostgres(tmp_path / "data", binaries=binaries) as postgres:
        await remember(postgres, "the old days")
    async with EmbeddedPostgres(tmp_path / "data") as postgres:
        assert await remembered(postgres) == ["the old days"]
    assert (tmp_path / "data" / "PG_VERSION").read_text() == f"{version}\n"


async def test_a_directory_with_other_files_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir(mode=0o755)
    thesis.touch()
    with pytest.raises(ServerFailed, match=r"holds other files \(thesis\.tex\): choose an empty --data-dir"):
        await EmbeddedPostgres(thesis.parent).start()
    assert (mode(thesis.parent), names_inside(thesis.parent)) == (0o755, ["thesis.tex"])


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerFailed) as failure:
        await EmbeddedPostgres(tmp_path / "file" / "data").start()
    assert str(failure.value) == f"{tmp_path}/file/data can't be written: Not a directory. Choose another --data-dir."


def as_an_ordinary_user(data_dir: Path) -> str:
    """What RUN says when it isn't root; under root by way of a user namespace."""
    command = [*LAUNCHER, "--as-ordinary-user", "--", sys.executable, "-c", RUN, str(data_dir), "True", "go"]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def test_an_ordinary_user_runs_it_as_himself(used: Path) -> None:
    assert as_an_ordinary_user(used).isdigit()


def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert as_an_ordinary_user(tmp_path / "data") == (
        f"{tmp_path}/data can't be written: Permission denied. Choose another --data-dir."
    )
    assert mode(tmp_path) == 0o500


@ROOT
def test_another_users_directory_is_named(used: Path) -> None:
    os.chown(used, NOBODY, NOBODY)
    assert as_an_ordinary_user(used) == (
        f"{used} belongs to user {NOBODY}: run as that user, or choose another --data-dir."
    )


@ROOT
async def test_under_root_the_files_stay_roots(used: Path) -> None:
    async with EmbeddedPostgres(used) as postgres:
        await remember(postgres, "something")
        assert owners_inside(used) == {0}


@ROOT
async def test_without_user_namespaces_the_data_directory_alone_becomes_nobodys(reachable: Path) -> None:
    async with EmbeddedPostgres(reachable / "new" / "data", user_namespace=False) as postgres:
        assert owner(Path(f"/proc/{postgres.pid}")) == NOBODY
        await remember(postgres, "something")
        assert (owner(postgres.data_dir), owners_inside(postgres.data_dir)) == (NOBODY, {NOBODY})
    made = [reachable, reachable / "new", reachable / "new" / "postgres.log"]
    assert [(owner(path), mode(path)) for path in made] == [(0, 0o755), (0, 0o755), (0, 0o600)]


@ROOT
async def test_a_directory_changes_hands_once_and_then_its_owner_runs_it(reachable: Path, a_template: Path) -> None:
    data_dir = Path(shutil.copytree(a_template, reachable / "data"))
    async with EmbeddedPostgres(data_dir, user_namespace=False) as postgres:
        await remember(postgres, "as nobody")
    async with EmbeddedPostgres(data_dir) as postgres:
        assert owner(Path(f"/proc/{postgres.pid}")) == NOBODY
        assert await remembered(postgres) == ["the first run", "as nobody"]


@ROOT
async def test_a_long_path_works_without_user_namespaces_too(reachable: Path, a_template: Path) -> None:
    data_dir = Path(shutil.copytree(a_template, reachable / ("x" * 100)))
    async with EmbeddedPostgres(data_dir, user_namespace=False) as postgres:
        assert await remembered(postgres) == ["the first run"]


@ROOT
async def test_a_directory_that_nobody_can_reach_is_named_and_left_as_it_was(used: Path) -> None:
    used.parent.chmod(0o700)
    with pytest.raises(ServerFailed) as failure:
        await EmbeddedPostgres(used, user_namespace=False).start()
    assert str(failure.value) == (
        f"postgres doesn't run as root, and user {NOBODY}, as whom it would run instead, can't reach {used.parent}: "
        "choose another --data-dir, or run Muster as an ordinary user."
    )
    assert (owner(used), mode(used.parent)) == (0, 0o700)


async def test_a_start_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    start = asyncio.create_task(EmbeddedPostgres(data_dir).start())
    await until((data_dir / "initdb.unfinished" / "PG_VERSION").exists)
    start.cancel()
    assert isinstance((await asyncio.gather(start, return_exceptions=True))[0], asyncio.CancelledError)
    await until(lambda: not any(processes_in(data_dir)))
    async with EmbeddedPostgres(data_dir) as postgres:
        await remember(postgres, "it works")
