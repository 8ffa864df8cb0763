"""Each reason that an engine's end can have, with the log that it was seen in (recorded/README.md)."""

import signal
from pathlib import Path

import pytest

from schemas.reasons import (
    EngineExited,
    EngineKilled,
    EngineNotInstalled,
    ModelFileInvalid,
    ModelFilesIncomplete,
    ModelNotFound,
    OutOfMemory,
    PortInUse,
    Reason,
    UnknownParameter,
    UnsupportedModel,
)
from services.agent.domain.diagnosis import diagnose, evidence

RECORDED = Path(__file__).parent / "recorded"
FOLDER = "/tmp/muster-recorded"

CAUSES: dict[str, Reason] = {
    "missing_file": ModelNotFound(path=f"{FOLDER}/missing.gguf"),
    "missing_shard": ModelFilesIncomplete(
        path=f"{FOLDER}/tinychat-f16-00001-of-00002.gguf", missing=(f"{FOLDER}/tinychat-f16-00002-of-00002.gguf",)
    ),
    "second_shard": ModelFileInvalid(
        path="/srv/muster/examples/models/tinychat-f16-00002-of-00002.gguf",
        problem="illegal split file idx: 1 (file: /srv/muster/examples/models/tinychat-f16-00002-of-00002.gguf),"
        " model must be loaded with the first split",
    ),
    "truncated_file": ModelFileInvalid(
        path=f"{FOLDER}/truncated.gguf",
        problem="tensor 'blk.1.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
    ),
    "truncated_header": ModelFileInvalid(path=f"{FOLDER}/header-cut.gguf", problem="failed to read key-value pairs"),
    "not_a_gguf": ModelFileInvalid(
        path=f"{FOLDER}/not-a-gguf.gguf", problem="invalid magic characters: '????', expected 'GGUF'"
    ),
    "unknown_architecture": UnsupportedModel(detail="unknown model architecture: 'klama'"),
    "port_taken": PortInUse(port=18500),
    "foreign_address": EngineExited(exit_code=1),
    "unknown_flag": UnknownParameter(parameter="--frobnicate"),
    "wrong_value": UnknownParameter(parameter="--ctx-size=many"),
    "llama_server_unknown_flag": UnknownParameter(parameter="--no-mmap"),
    "llama_server_wrong_value": UnknownParameter(parameter="--device"),
    "no_wheel": EngineNotInstalled(program="xllamacpp"),
    "no_libgomp": EngineNotInstalled(program="libgomp.so.1"),
    "no_library": EngineNotInstalled(program="libcuda.so.1"),
    "too_large_a_context": OutOfMemory(),
    "cuda_llama_cpp": OutOfMemory(),
    "cuda_torch": OutOfMemory(),
    "memory_error": OutOfMemory(),
    "uncaught_bad_alloc": OutOfMemory(),
}


def recorded(name: str) -> tuple[str, ...]:
    return tuple((RECORDED / f"{name}.log").read_text(encoding="utf-8").splitlines())


def why(exit_code: int | None, number: int | None, *log: str) -> tuple[Reason, ...]:
    return diagnose(exit_code, number, log, program="llama.cpp", port=18500)


@pytest.mark.parametrize("name", CAUSES)
def test_a_recorded_log_has_its_reason(name: str) -> None:
    assert why(1, None, *recorded(name)) == (CAUSES[name],)


@pytest.mark.parametrize("name", CAUSES)
def test_how_an_adopted_engine_ended_is_unknown_but_its_log_still_tells_why(name: str) -> None:
    expected = CAUSES[name] if name != "foreign_address" else EngineExited(exit_code=None)
    assert why(None, None, *recorded(name)) == (expected,)


def test_every_recorded_log_has_a_test() -> None:
    assert {path.stem for path in RECORDED.glob("*.log")} == CAUSES.keys()


def test_python_says_of_a_taken_port_only_that_it_is_taken() -> None:
    log = "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 18500): address already in use"
    assert why(1, None, log) == (PortInUse(port=18500),)


def test_a_flag_that_lacks_its_value_is_named() -> None:
    log = "llama_cpp_server: error: argument -c/--ctx-size: expected one argument"
    assert why(2, None, log) == (UnknownParameter(parameter="--ctx-size"),)


def test_a_kill_alone_is_a_kill() -> None:
    assert why(None, signal.SIGKILL, "listening") == (EngineKilled(signal=9),)
    assert why(137, None, "listening") == (EngineKilled(signal=9),)


def test_a_kill_after_an_allocation_failed_is_a_lack_of_memory() -> None:
    assert why(None, signal.SIGABRT, *recorded("uncaught_bad_alloc")) == (OutOfMemory(),)
    assert why(134, None, *recorded("uncaught_bad_alloc")) == (OutOfMemory(),)


def test_what_an_engine_survived_is_not_why_it_was_killed() -> None:
    assert why(None, signal.SIGKILL, *recorded("port_taken")) == (EngineKilled(signal=9),)


@pytest.mark.parametrize("exit_code", [0, 1, 128, 255, None])
def test_a_log_that_shows_nothing_leaves_the_exit_code(exit_code: int | None) -> None:
    assert why(exit_code, None, "listening", "bye") == (EngineExited(exit_code=exit_code),)


def test_the_evidence_is_the_last_lines_that_a_report_has_room_for() -> None:
    assert evidence(()) == ()
    assert evidence(("a", "b")) == ("a", "b")
    assert evidence(tuple(str(n) for n in range(60))) == tuple(str(n) for n in range(10, 60))
    assert evidence(tuple("ä" * 2000 for _ in range(50))) == ("ä" * 2000,) * 4
