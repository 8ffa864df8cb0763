"""What tests have a sandboxed child do."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

from services.downloader.adapters.sandbox import Ask


def answer_backwards(argument: bytes) -> bytes:
    return argument[::-1]


def answer_so_many_bytes(argument: bytes) -> bytes:
    return bytes(int(argument))


def answer_its_limits(_: bytes) -> bytes:
    limits = (resource.RLIMIT_CPU, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)
    return repr([resource.getrlimit(limit) for limit in limits]).encode()


def answer_its_pid(_: bytes) -> bytes:
    return str(os.getpid()).encode()


def ask_twice(argument: bytes, ask: Ask) -> bytes:
    return ask(argument) + ask(argument[::-1])


def ask_and_say_what_fails(argument: bytes, ask: Ask) -> bytes:
    try:
        return ask(argument)
    except OSError as error:
        return f"failed: {error}".encode()


def burn(_: bytes) -> bytes:
    while True:
        pass


def hog(argument: bytes) -> bytes:
    kept: list[bytes] = []
    for _ in range(int(argument) // 2**20):
        kept.append(b"x" * 2**20)  # noqa: PERF401 - one after the other
    return str(len(kept)).encode()


def sleep(argument: bytes) -> bytes:
    """Tells its process id in the file that is named."""
    if argument:
        with Path(argument.decode()).open("r+b", buffering=0) as pipe:
            pipe.write(f"{os.getpid()}\n".encode())
    time.sleep(1000)
    return b""


def abort(_: bytes) -> bytes:
    os.abort()


def kill_itself(_: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def leave(_: bytes) -> bytes:
    os._exit(3)


def complain(_: bytes) -> bytes:
    raise ZeroDivisionError("\udcff" + "x" * 10_000)


def recurse(_: bytes) -> bytes:
    sys.setrecursionlimit(10**9)

    def deeper(depth: int) -> int:
        return min([depth], key=deeper)

    return str(deeper(0)).encode()


def write_a_file(argument: bytes) -> bytes:
    Path(argument.decode()).write_bytes(b"x")
    return b""
