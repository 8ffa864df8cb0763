"""Turns into a server that ends when `muster up` ends, however it ends, and that need not be root.

    child_launcher [--pdeathsig=TERM|INT|KILL] [--parent=PID]
                   [--as-ordinary-user [--owned=DIRECTORY]… [--no-user-namespace]] -- program arguments…

A process of its own, because what it does to itself can't be done between fork and exec of a process with threads.
Run by path with `-I -S` it imports nothing but os, pwd, sys and ctypes: 15 ms until the program starts.
"""

import ctypes
import os
import pwd
import sys

LAUNCH_FAILED = 125
"""Exit status when the program never began; the last line of standard error says why. As with env and docker run."""

SIGNALS = {"INT": 2, "KILL": 9, "TERM": 15}
_SIGPIPE, _SIGXFSZ = 13, 25
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_NOBODY = 65534
_ORDINARY_USERS = (1000, 1, _NOBODY)
"""What root may be called inside the user namespace: any number but 0 that has a name, for which initdb asks."""


class CantLaunch(Exception):
    """One sentence that says what to do."""


def main(arguments: list[str]) -> None:
    """Returns never: the process becomes the program, or ends with LAUNCH_FAILED."""
    try:
        _launch(arguments)
    except (CantLaunch, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(LAUNCH_FAILED)


def _launch(arguments: list[str]) -> None:
    begin_of_program = arguments.index("--") + 1
    program = arguments[begin_of_program:]
    death_signal, parent = 0, os.getppid()
    as_ordinary_user, user_namespace = False, True
    owned: list[str] = []
    for option in arguments[: begin_of_program - 1]:
        name, _, value = option.partition("=")
        match name:
            case "--pdeathsig":
                death_signal = SIGNALS[value]
            case "--parent":
                parent = int(value)
            case "--as-ordinary-user":
                as_ordinary_user = True
            case "--no-user-namespace":
                user_namespace = False
            case "--owned":
                owned.append(value)
            case _:
                raise CantLaunch(f"The launcher has no option {name}.")

    if os.getsid(0) != os.getpid():
        os.setsid()
    if as_ordinary_user and os.geteuid() == 0:
        _become_ordinary(program[0], owned, user_namespace=user_namespace)
    libc = ctypes.CDLL(None)
    if death_signal:
        # After the change of credentials, which would clear it.
        libc.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            raise CantLaunch("The process that wanted this server has ended.")
    # Python ignores these, and what is ignored stays ignored across exec.
    libc.signal(_SIGPIPE, None)
    libc.signal(_SIGXFSZ, None)
    try:
        os.execv(program[0], program)  # noqa: S606 - becoming the program is what this file is for
    except OSError as error:
        raise CantLaunch(f"{program[0]} can't be run: {error.strerror}.") from error


def _become_ordinary(program: str, owned: list[str], *, user_namespace: bool) -> None:
    """The owner of the first owned directory, if that isn't root; else root under another name; else nobody."""
    directory = os.stat(owned[0]) if owned else None  # noqa: PTH116 - pathlib would double the start-up time
    if directory is not None and directory.st_uid != 0:
        _become(directory.st_uid, directory.st_gid, program, owned)
    elif user_namespace and _user_namespace_works():
        _enter_user_namespace()
    else:
        _become(_NOBODY, _NOBODY, program, owned)


def _user_namespace_works() -> bool:
    """Tried in a fork: a process whose unshare succeeds and whose map is refused can't come back."""
    if (pid := os.fork()) == 0:
        try:
            _enter_user_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _enter_user_namespace() -> None:
    """The same user and files, seen under an ordinary number, and without privileges from the next exec on."""
    user, group = os.geteuid(), os.getegid()
    ordinary = ordinary_user()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{ordinary} {user} 1"),
        ("gid_map", f"{ordinary} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(content)


def ordinary_user() -> int:
    """Fresh machines and slim images have no user 1000; some user 1 they have."""
    for number in _ORDINARY_USERS:
        try:
            pwd.getpwuid(number)
        except KeyError:
            continue
        return number
    return _ORDINARY_USERS[0]


def _become(user: int, group: int, program: str, owned: list[str]) -> None:
    """Looks before it changes the owner of anything, and changes nothing outside the owned directories."""
    name = os.path.basename(program)  # noqa: PTH119
    try:
        os.setgroups([])
        os.setresgid(group, group, 0)
        os.setresuid(user, user, 0)
        for path, mode in (*((os.path.dirname(path), os.X_OK) for path in owned), (program, os.X_OK)):  # noqa: PTH120
            if not os.access(path, mode):
                raise CantLaunch(
                    f"{name} doesn't run as root, and user {user}, as whom it would run instead, can't reach {path}: "
                    "choose another --data-dir, or run Muster as an ordinary user."
                )
        os.seteuid(0)
        for path in owned:
            _give(path, user, group)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except PermissionError as error:
        raise CantLaunch(
            f"{name} doesn't run as root, and here root may not become user {user} ({error}): "
            "run Muster as an ordinary user."
        ) from error


def _give(directory: str, user: int, group: int) -> None:
    if os.stat(directory).st_uid == user:  # noqa: PTH116
        return
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            os.lchown(os.path.join(folder, name), user, group)  # noqa: PTH118
    os.chown(directory, user, group)  # last: who owns it owns all of it


if __name__ == "__main__":
    main(sys.argv[1:])
