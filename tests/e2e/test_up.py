"""`muster up`, `muster down` and `muster demo` as a person runs them: real servers, a real engine, real signals."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.stack import TINYCHAT

MUSTER = Path(sys.executable).with_name("muster")
ANSWER = "I am TinyChat, a very small language model made for tests."
CURL = (
    'curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json"'
    """ -d '{{"model": "tinychat", "messages": [{{"role": "user", "content": "Who are you?"}}]}}'"""
)
GUARD_SECONDS = 60
"""Nobody waits that long; the machine may be busy."""


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts background jobs, such as these tests, with SIGINT ignored; what they start would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass
class Running:
    process: "subprocess.Popen[str]"
    lines: list[str]
    """What it said until it was ready."""

    @property
    def curl(self) -> list[str]:
        return shlex.split(self.lines[-1].removeprefix("Try: "))

    @property
    def url(self) -> str:
        return self.lines[1].split()[1]

    @property
    def key(self) -> str:
        return self.lines[2].split()[-1]

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {self.key}"}).raise_for_status().json()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(GUARD_SECONDS)

    def end_impatiently(self) -> int:
        """Ctrl-C, again and again until it has ended."""
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        return self.process.wait()


@contextmanager
def up(directory: Path, *arguments: str) -> Generator[Running]:
    """In a session of its own, as from a terminal; killed with everything it started when the test fails."""
    command = [MUSTER, "up", "--data-dir", str(directory), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().rstrip("\n") for _ in range(4)]
            yield Running(process, lines)
        finally:
            process.kill()
            process.wait()
            for left in processes_of(directory):
                left.kill()


def processes_of(directory: Path) -> list[psutil.Process]:
    """Everything that works on the directory: by its command line, its working directory, or what started it."""
    return [process for process in psutil.process_iter() if any(str(directory) in text for text in _traces(process))]


def _traces(process: psutil.Process) -> Iterator[str]:
    try:
        yield from process.cmdline()
        yield process.cwd()
        yield process.environ().get("MUSTER_ENGINE", "")
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return


def names_of(processes: list[psutil.Process]) -> list[str]:
    return sorted(process.name() for process in processes)


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [MUSTER, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * GUARD_SECONDS,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def chat(curl: list[str]) -> str:
    """What curl would do with these arguments."""
    headers = dict(curl[at + 1].split(": ", 1) for at, word in enumerate(curl) if word == "-H")
    answer = httpx.post(curl[1], headers=headers, content=curl[curl.index("-d") + 1], timeout=GUARD_SECONDS)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


def test_up_says_what_to_try_refuses_a_second_one_ends_with_ctrl_c_without_a_trace_and_goes_on_with_the_same_model(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "data"
    with up(directory, "--demo", "--port", "0") as first:
        assert first.lines == [
            first.lines[0],
            f"Address: {first.url} (OpenAI's API under /v1, Muster's under /v2)",
            f"Key:     in {directory}/admin.key: {(directory / 'admin.key').read_text().strip()}",
            f"Try:     {CURL.format(url=first.url, key=first.key)}",
        ]
        assert first.lines[0].startswith("Muster runs llama.cpp on the CPU, as local processes: ")
        assert (directory / "admin.key").stat().st_mode & 0o777 == 0o600
        assert chat(first.curl) == ANSWER
        model = first.get("/v2/models/tinychat")

        assert run("up", "--data-dir", str(directory)) == (
            2,
            "",
            f"muster: another `muster up` uses {directory}; stop it with `muster down`, or choose another --data-dir\n",
        )
        port = first.url.rpartition(":")[2]
        theirs = {"MUSTER_DATA_DIR": str(tmp_path / "theirs"), "MUSTER_PORT": "1", "MUSTER_API_KEY": "a-given-key"}
        ours = tmp_path / "ours"
        assert run("up", "--data-dir", str(ours), "--port", port, **theirs) == (
            2,
            first.lines[0] + "\n",
            f"muster: 127.0.0.1:{port} can't be listened on: Address already in use; choose another with --port\n",
        )
        assert names_of(processes_of(ours)) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "ours"]
        assert not (ours / "admin.key").exists()
        assert chat(first.curl) == ANSWER

        assert {"nats-server", "postgres"} < set(names_of(processes_of(directory)))
        assert first.end_impatiently() == 0
        assert names_of(processes_of(directory)) == []

    with up(directory, "--demo", "--port", "0") as second:
        again = second.get("/v2/models/tinychat")
        assert {key: again[key] for key in ("id", "generation", "state")} == {
            "id": model["id"],
            "generation": model["generation"],
            "state": "ready",
        }
        assert second.key == first.key
        assert chat(second.curl) == ANSWER
        assert second.end(signal.SIGTERM) == 0
        assert names_of(processes_of(directory)) == []

    log = [json.loads(line) for line in (directory / "logs" / "muster.log").read_text().splitlines()]
    assert {line["service"] for line in log} == {"up"}


def test_after_a_kill_no_server_is_left_and_a_later_start_in_the_background_works_until_it_is_ended(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "data"
    with up(directory, "--port", "0") as first:
        servers = [p for p in processes_of(directory) if p.name() in ("nats-server", "postgres")]
        assert {p.name() for p in servers} == {"nats-server", "postgres"}
        first.end(signal.SIGKILL)
        _, alive = psutil.wait_procs(servers, timeout=GUARD_SECONDS)
        assert alive == []

    try:
        code, said, _ = run("up", "--data-dir", str(directory), "--port", "0", "--detach")
        assert code == 0
        later = Running(first.process, said.splitlines())
        assert later.lines[2:] == [first.lines[2], first.lines[3].replace(first.url, later.url)]
        assert [worker["state"] for worker in later.get("/v2/workers")["items"]] == ["ready"]
        ended = f"Muster on {directory} has stopped; `muster up` goes on where it was.\n"
        assert run("down", "--data-dir", str(directory)) == (0, ended, "")
        assert names_of(processes_of(directory)) == []
        assert run("down", MUSTER_DATA_DIR=str(directory)) == (0, f"No Muster runs on {directory}.\n", "")
    finally:
        for left in processes_of(directory):
            left.kill()


def test_ctrl_c_during_the_start_ends_it_without_a_trace(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with subprocess.Popen([MUSTER, "up", "--data-dir", str(directory), "--port", "0"], stdout=subprocess.PIPE) as early:
        assert early.stdout is not None
        assert early.stdout.readline().startswith(b"Muster runs ")
        while not (directory / "postgres" / "muster.lock").exists() and early.poll() is None:
            os.sched_yield()
        early.send_signal(signal.SIGINT)
        assert early.stdout.read() == b""
    assert early.returncode == 0
    assert names_of(processes_of(directory)) == []


def test_the_demo_starts_asks_and_shows_that_the_engine_answered_and_leaves_nothing(tmp_path: Path) -> None:
    code, said, trouble = run("demo", TMPDIR=str(tmp_path))
    assert (code, trouble) == (0, "")
    question, answer = said.splitlines()[3:5]
    assert (question, answer) == ("> Who are you?", ANSWER)
    assert "tinychat-0 answered, an engine on " in said
    assert [line.split()[1] for line in said.splitlines()[8:]] == [
        "InstanceCreated",
        "InstancePending",
        "InstanceScheduled",
        "InstanceDownloading",
        "InstanceStarting",
        "InstanceRunning",
    ]
    assert list(tmp_path.iterdir()) == []
    assert names_of(processes_of(tmp_path)) == []


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("3", "is of a newer Muster (version 3); update this one"),
        (
            "1",
            (
                "is of a Muster from before the first release (version 1), whose log can't be read any more;"
                " choose another --data-dir"
            ),
        ),
    ],
)
def test_a_directory_of_another_muster_is_refused_and_left_as_it_is(
    tmp_path: Path, version: str, sentence: str
) -> None:
    (tmp_path / "version").write_text(f"{version}\n")
    (tmp_path / "admin.key").write_text("its key\n")
    assert run("up", "--data-dir", str(tmp_path)) == (2, "", f"muster: the data directory {tmp_path} {sentence}\n")
    files = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "lock"}
    assert files == {"version": f"{version}\n", "admin.key": "its key\n"}


@pytest.mark.parametrize("way", [(), ("--detach",)])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, way: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" / "data"
    sentence = f"muster: the data directory {directory} can't be written to: Not a directory\n"
    assert run("up", "--data-dir", str(directory), *way) == (2, "", sentence)


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ([], {"MUSTER_PORT": "many"}, "MUSTER_PORT is wrong: Input should be a valid integer"),
        (["--port", "70000"], {}, "MUSTER_PORT is wrong: Input should be less than or equal to 65535"),
        (["--inventory", "/nowhere.json"], {}, "/nowhere.json can't be read: No such file or directory"),
        ([], {"MUSTER_API_KEY_FILE": "/nowhere"}, "MUSTER_API_KEY_FILE=/nowhere can't be read: No such file"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_touched(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    code, said, trouble = run("up", "--data-dir", str(tmp_path / "data"), *arguments, **environment)
    assert (code, said) == (2, "")
    assert trouble.startswith(f"muster: {sentence}")
    assert trouble.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_model_is_there() -> None:
    from services.up.demo import bundled_model  # noqa: PLC0415 - half a second that the tests above don't need

    assert bundled_model() == TINYCHAT
