"""The child process that every embedded server is, and the launcher that it begins as."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from services.up import child_launcher
from services.up.child import Child, OrdinaryUser, ServerFailed, command_of, hold

SHELL = "/bin/sh"
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


async def never() -> bool:
    return False


def says(log_file: Path, text: str) -> bool:
    return log_file.exists() and text in log_file.read_text()


async def test_a_child_that_ends_before_it_is_ready_fails_with_its_status_and_last_words(tmp_path: Path) -> None:
    child = Child([SHELL, "-c", "echo no luck; exit 3"], log_file=tmp_path / "log")
    await child.start()
    with pytest.raises(ServerFailed) as failure:
        await child.wait_ready(never, timeout_seconds=30)
    assert failure.value.sentence == f"sh ended before it was ready (exit status 3). Its log: {tmp_path}/log"
    assert failure.value.log_tail == "no luck"


async def test_a_child_that_is_not_ready_in_time_fails_and_still_runs(tmp_path: Path) -> None:
    child = Child([SHELL, "-c", "exec sleep 60"], log_file=tmp_path / "log")
    await child.start()
    with pytest.raises(ServerFailed, match=r"0\.1 s went by before sh was ready"):
        await child.wait_ready(never, timeout_seconds=0.1)
    assert child.runs
    await child.stop(SIGTERM, grace_seconds=30)
    assert child.exited.result() == -SIGTERM


async def test_last_words_are_those_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of yesterday\n")
    child = Child([SHELL, "-c", "echo of today"], log_file=tmp_path / "log")
    await child.start()
    assert await child.exited == 0
    assert child.log_tail() == "of today"
    assert (tmp_path / "log").read_text() == "of yesterday\nof today\n"


async def test_a_child_that_does_not_listen_is_killed_with_its_whole_group(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 61 & echo helper $!; while :; do sleep 62; done"
    child = Child([SHELL, "-c", stubborn], log_file=tmp_path / "log")

    async def has_a_helper() -> bool:
        return says(tmp_path / "log", "helper")

    await child.start()
    await child.wait_ready(has_a_helper, timeout_seconds=30)
    helper = int(child.log_tail().split()[1])
    await child.stop(SIGTERM, grace_seconds=0.1)
    assert child.exited.result() == -SIGKILL

    async def helper_is_gone() -> bool:
        return not command_of(helper)

    bystander = Child([SHELL, "-c", "exec sleep 60"], log_file=tmp_path / "log")
    await bystander.start()
    await bystander.wait_until(helper_is_gone, "saw the helper end", timeout_seconds=30)
    await bystander.stop(SIGTERM, grace_seconds=30)


async def test_stopping_what_has_ended_does_nothing(tmp_path: Path) -> None:
    child = Child([SHELL, "-c", "exit 0"], log_file=tmp_path / "log")
    await child.start()
    await child.exited
    await child.stop(SIGTERM, grace_seconds=0)
    assert child.exited.result() == 0


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = Child([tmp_path / "nothing"], log_file=tmp_path / "log")
    await child.start()
    with pytest.raises(ServerFailed) as failure:
        await child.wait_ready(never, timeout_seconds=30)
    assert str(failure.value) == f"{tmp_path}/nothing can't be run: No such file or directory."


async def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    child = Child([SHELL], log_file=tmp_path / "absent" / "log")
    with pytest.raises(ServerFailed, match="absent/log can't be written: No such file or directory"):
        await child.start()


async def test_a_child_leads_its_own_session(tmp_path: Path) -> None:
    child = Child([SHELL, "-c", "exec sleep 60"], log_file=tmp_path / "log")
    await child.start()
    assert os.getsid(child.pid) == child.pid
    await child.stop(SIGKILL, grace_seconds=30)


def test_the_launcher_begins_nothing_for_a_parent_that_has_ended() -> None:
    finished = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            child_launcher.__file__,
            "--pdeathsig=TERM",
            "--parent=1",
            "--",
            SHELL,
            "-c",
            "echo ran",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (child_launcher.LAUNCH_FAILED, "")
    assert finished.stderr == "The process that wanted this server has ended.\n"


def test_the_launcher_leaves_broken_pipes_deadly() -> None:
    yes = [sys.executable, "-I", "-S", child_launcher.__file__, "--", SHELL, "-c", "kill -PIPE $$; echo survived"]
    finished = subprocess.run(yes, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (-13, "")


@ROOT
@pytest.mark.parametrize("user_namespace", [True, False])
async def test_a_child_that_may_not_be_root_is_not(tmp_path: Path, *, user_namespace: bool) -> None:
    child = Child(
        [SHELL, "-c", "id -u && id -un"],
        log_file=tmp_path / "log",
        ordinary_user=OrdinaryUser((), user_namespace=user_namespace),
    )
    await child.start()
    assert await child.exited == 0
    user = child_launcher.ordinary_user() if user_namespace else 65534
    assert child.log_tail().splitlines() == [str(user), pwd.getpwuid(user).pw_name]


@pytest.mark.parametrize(("there", "called"), [((0, 1, 1000), 1000), ((0, 1, 65534), 1), ((0, 65534), 65534)])
def test_root_is_called_by_a_number_that_has_a_name_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, there: tuple[int, ...], called: int
) -> None:
    def found(number: int) -> None:
        if number not in there:
            raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", found)
    assert child_launcher.ordinary_user() == called


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    first = hold(tmp_path / "lock", "nats-server")
    with pytest.raises(ServerFailed, match=f"Another `muster up` runs on {tmp_path}"):
        hold(tmp_path / "lock", "nats-server")
    os.close(first)
    os.close(hold(tmp_path / "lock", "nats-server"))
