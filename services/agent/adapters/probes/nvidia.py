"""NVIDIA's GPUs, through NVML in a child process that stays.

While it stays the driver can't be unloaded, nor a GPU be reset by hand: as with any monitor, stop the agent for that.
"""

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.agent.adapters.probes.probe import Probed
from services.agent.adapters.probes.tool import DYING_SECONDS, MOST_BYTES, Lookup, ToolFailed, environment
from services.agent.domain.accelerators import nvidia
from services.agent.domain.accelerators.answers import json_in, mapping
from services.agent.domain.accelerators.quantities import number
from services.agent.domain.accelerators.reading import BadOutput, Problem
from services.agent.domain.accelerators.vendors import NVIDIA

CHILD: Final = Path(__file__).with_name("nvml_child.py")
TIMEOUT_SECONDS: Final = 15.0
"""NVML's first answer loads the driver's state when nothing else holds it (no persistence mode): seconds with eight GPUs."""


class NvmlProbe:
    vendor = NVIDIA

    def __init__(self, *, timeout_seconds: float = TIMEOUT_SECONDS, given: Mapping[str, str] = os.environ) -> None:
        """`given`: the environment of which the child gets the few variables that it needs."""
        self._timeout_seconds = timeout_seconds
        self._env = environment(NVIDIA, given, python=True)
        self._child: subprocess.Popen[bytes] | None = None
        self._left: subprocess.Popen[bytes] | None = None

    def read(self, lookup: Lookup) -> Probed:  # noqa: ARG002 - NVML is a library, and the loader finds it
        if self._left is not None:
            if self._left.poll() is None:
                return Probed(problems=(self._problem("it still hangs in the driver and can't be killed"),))
            self._left = None
        try:
            answer = self._ask()
        except (ToolFailed, OSError) as failed:
            self._end()
            return Probed(problems=(self._problem(str(failed)),))
        try:
            cost = number(mapping(json_in(answer)).get("cpu_seconds")) or 0.0
            return Probed(nvidia.parse({"nvml": answer}), cpu_seconds=cost)
        except BadOutput as error:
            return Probed(problems=(self._problem(str(error)),))

    @property
    def child_pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        self._end()

    def _ask(self) -> str:
        child = self._child
        if child is None or child.poll() is not None:
            self._end()
            child = self._child = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        if child.stdin is None or child.stdout is None:
            raise ToolFailed("its pipes are closed")
        try:
            child.stdin.write(b"\n")
            child.stdin.flush()
        except OSError as error:
            raise ToolFailed("the process that asks NVML ended") from error
        return self._line(child.stdout.fileno(), time.monotonic() + self._timeout_seconds)

    def _line(self, fd: int, deadline: float) -> str:
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ToolFailed(f"no answer within {self._timeout_seconds:g} s")
                chunk = os.read(fd, 65536)
                if not chunk:
                    raise ToolFailed("the process that asks NVML ended")
                answer += chunk
                if len(answer) > MOST_BYTES:
                    raise ToolFailed(f"more than {MOST_BYTES} bytes of output")
        return answer.decode(errors="replace")

    def _end(self) -> None:
        """One that can't be killed is kept, so that no second is started beside it."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        child.kill()
        try:
            child.wait(DYING_SECONDS)
        except subprocess.TimeoutExpired:
            self._left = child

    def _problem(self, said: str) -> Problem:
        return Problem(NVIDIA.label, "NVML (libnvidia-ml.so.1)", said, NVIDIA.install)
