"""`--detach`: the same command in a session of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence

import typer


def detach(options: Sequence[str]) -> None:
    """Returns when it is ready; it says so on a pipe, and lets go of our terminal then."""
    ready, told = os.pipe()
    # -P: what lies in the user's directory is not what we import
    command = [sys.executable, "-P", "-m", "services", *options, f"--ready-fd={told}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[told], start_new_session=True)
    os.close(told)
    try:
        is_ready = os.read(ready, 1) != b""
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(ready)
    if not is_ready:
        raise typer.Exit(max(process.wait(), 1))
    process.returncode = 0  # it is nobody's child from here on


def let_go_of_the_terminal(ready_fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    os.write(ready_fd, b"1")
    os.close(ready_fd)
