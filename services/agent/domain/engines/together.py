"""Programs that start together with others: when another machine's port can be reached, or with a helper beside them.

The text of each program is constant, what it is to do are its arguments. It becomes the engine (`execvp`): what ends is the
engine, and what is stopped with it is whatever it began.
"""

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
_BESIDE: Final = """
import os, subprocess, sys
count = int(sys.argv[1])
helper, command = sys.argv[2:2 + count], sys.argv[2 + count:]
subprocess.Popen(helper, stdin=subprocess.DEVNULL)
os.execvp(command[0], command)
"""


def once_reachable(address: str, port: int, command: tuple[str, ...]) -> tuple[str, ...]:
    """Its start timeout is the instance's."""
    return ("python3", "-c", _WAIT, address, str(port), *command)


def with_beside(helper: tuple[str, ...], command: tuple[str, ...]) -> tuple[str, ...]:
    """The helper is of the same group and container: it goes when the engine goes. When it goes first, that is the engine's to
    notice, whose log has the helper's last words too.
    """
    return ("python3", "-c", _BESIDE, str(len(helper)), *helper, *command)
