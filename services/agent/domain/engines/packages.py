"""Python packages that are installed before an engine starts: `PYPI_PACKAGES_INSTALL` in a model's environment."""

import json
import shlex
from typing import Final

from schemas.models import Launch

VARIABLE: Final = "PYPI_PACKAGES_INSTALL"
_INSTALL: Final = """
import json, os, shutil, subprocess, sys
packages, command = json.loads(sys.argv[1]), sys.argv[2:]
if not command:
    sys.exit("There is nothing to start after the packages: give the model an entrypoint or a run command.")
uv = shutil.which("uv")
tool = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
if subprocess.run([*tool, *packages]).returncode:
    sys.exit("The packages can't be installed: " + " ".join(packages))
os.execvp(command[0], command)
"""


def packages_of(launch: Launch) -> tuple[str, ...]:
    """As many as there are words, options of pip among them. A quote that is not closed is part of its word."""
    text = launch.env.get(VARIABLE, "")
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def after_installing(packages: tuple[str, ...], argv: tuple[str, ...]) -> tuple[str, ...]:
    """The same command, once they are there. The program's text is constant: packages and command are its arguments,
    which no shell reads.
    """
    return ("python3", "-c", _INSTALL, json.dumps(packages), *argv) if packages else argv
