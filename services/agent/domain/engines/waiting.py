"""A program that starts when another machine's port can be reached. Its start timeout is the instance's."""

from typing import Final

_WAIT: Final = """
import os, socket, sys, time
address, port, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
while True:
    try:
        socket.create_connection((address, port), timeout=2).close()
        break
    except OSError:
        time.sleep(0.5)
os.execvp(command[0], command)
"""


def once_reachable(address: str, port: int, command: tuple[str, ...]) -> tuple[str, ...]:
    """The text of the program is constant, what it is to do are its arguments."""
    return ("python3", "-c", _WAIT, address, str(port), *command)
