"""What an engine's end and its last lines mean. Every row has a recorded log in tests/services/agent/recorded/."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

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

LINES_OF_EVIDENCE: Final = 50
BYTES_OF_EVIDENCE: Final = 16 * 1024
"""A worker's complete picture has the evidence of every engine that ended, and is one message of at most 1 MiB."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a reason needs besides the line that was found."""

    exit_code: int | None
    port: int
    program: str
    model: str
    """The file that the engine says it failed to load."""


@dataclass(frozen=True, slots=True)
class Symptom:
    pattern: re.Pattern[str]
    reason: Callable[[re.Match[str], Context], Reason]


def evidence(log_tail: tuple[str, ...]) -> tuple[str, ...]:
    """The last lines, as many as a report has room for."""
    room, kept = BYTES_OF_EVIDENCE, 0
    for line in reversed(log_tail[-LINES_OF_EVIDENCE:]):
        room -= len(line.encode())
        if room < 0:
            break
        kept += 1
    return log_tail[len(log_tail) - kept :]


def diagnose(
    exit_code: int | None, signal: int | None, log_tail: tuple[str, ...], *, program: str, port: int
) -> tuple[Reason, ...]:
    """An engine that a signal ended can have run out of memory; what else is in its log did not end it."""
    if signal is None and exit_code is not None and 128 < exit_code <= 128 + 64:
        signal = exit_code - 128  # as shells and containers tell it
    log = "\n".join(log_tail)
    model = _LOADED.findall(log)
    context = Context(exit_code, port, program, model[-1] if model else "the model's file")
    for symptom in _MEMORY if signal is not None else (*_MEMORY, *_START):
        if match := symptom.pattern.search(log):
            return (symptom.reason(match, context),)
    if signal is not None:
        return (EngineKilled(signal=signal),)
    return (EngineExited(exit_code=exit_code),)


def _refused(names: str, value: str | None) -> UnknownParameter:
    """`-c/--ctx-size` and `many` → `--ctx-size=many`."""
    name = names.rpartition("/")[2]
    return UnknownParameter(parameter=name if value is None else f"{name}={value}")


_LOADED: Final = re.compile(r"load_model: failed to load model, '(.+)'")

_MEMORY: Final = tuple(
    Symptom(re.compile(pattern, re.MULTILINE), lambda _match, _context: OutOfMemory())
    for pattern in (
        r"ggml_aligned_malloc: insufficient memory",  # llama.cpp: ggml/src/ggml.c
        r"unable to allocate \S+ buffer",  # llama.cpp: src/llama-model.cpp
        r"failed to allocate (\S+ )?buffer (of size|for kv cache)",  # llama.cpp: ggml-backend.cpp, llama-kv-cache.cpp
        r"(cudaMalloc failed|CUDA error): out of memory",  # llama.cpp: ggml/src/ggml-cuda
        r"OutOfMemoryError: (CUDA|HIP|NPU) out of memory",  # torch
        r"std::bad_alloc",
        r"^MemoryError\b",
    )
)

_START: Final = (
    Symptom(  # tini, the first process of a container
        re.compile(r"\[FATAL tini \(\d+\)\] exec \S+ failed: (?:No such file|Permission denied|Not a directory)"),
        lambda _, context: EngineNotInstalled(program=context.program),
    ),
    Symptom(
        re.compile(r"No module named '([^']+)'"),
        lambda match, _: EngineNotInstalled(program=match[1]),
    ),
    Symptom(  # of the dynamic loader, for a program and for a module of Python
        re.compile(r"(\S+\.so\S*): cannot open shared object file"),
        lambda match, _: EngineNotInstalled(program=match[1]),
    ),
    Symptom(  # argparse, so vLLM's too
        re.compile(r"error: unrecognized arguments: (-[^\s=]*|\S+)"),
        lambda match, _: UnknownParameter(parameter=match[1]),
    ),
    Symptom(
        re.compile(r"error: argument (?P<names>[^:\s]+): (?:invalid .*?value: '?(?P<value>.*?)'?$)?", re.MULTILINE),
        lambda match, _: _refused(match["names"], match["value"]),
    ),
    Symptom(  # llama-server itself: common/arg.cpp
        re.compile(r"error: (?:invalid argument: |while handling argument \")([^\s\"]+)"),
        lambda match, _: UnknownParameter(parameter=match[1]),
    ),
    Symptom(  # before the rows about ports: llama.cpp says of both that it "couldn't bind"
        re.compile(r"Cannot assign requested address"),
        lambda _, context: EngineExited(exit_code=context.exit_code),
    ),
    Symptom(
        re.compile(r"couldn't bind HTTP server socket, hostname: \S+, port: (\d+)"),
        lambda match, _: PortInUse(port=int(match[1])),
    ),
    Symptom(
        re.compile(r"\[Errno 98\]|Address already in use"),
        lambda _, context: PortInUse(port=context.port),
    ),
    Symptom(
        re.compile(r"unknown (?:model architecture|pre-tokenizer type): '.*?'"),
        lambda match, _: UnsupportedModel(detail=match[0]),
    ),
    Symptom(  # before the row about the model's own file: the loader says of both that it failed to open them
        re.compile(r"failed to load GGUF split from (.+)$", re.MULTILINE),
        lambda match, context: ModelFilesIncomplete(path=context.model, missing=(match[1],)),
    ),
    Symptom(
        re.compile(r"failed to open GGUF file '(.+)' \(No such file or directory\)"),
        lambda match, _: ModelNotFound(path=match[1]),
    ),
    Symptom(  # the header can't be read: the line before says what is wrong with it
        re.compile(r"gguf_init_from_(?:file|reader): (.+)$", re.MULTILINE),
        lambda match, context: ModelFileInvalid(path=context.model, problem=match[1]),
    ),
    Symptom(  # the header is fine, what it announces isn't there
        re.compile(r"error loading model: (.+)$", re.MULTILINE),
        lambda match, context: ModelFileInvalid(path=context.model, problem=match[1]),
    ),
)
