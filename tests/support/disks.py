"""Small disks, and full ones: file systems in memory, for tests that root runs."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def a_disk(path: Path, size: int, *, inodes: int = 0) -> Generator[Path]:
    """A file system of its own. `inodes`: so many files and directories, the topmost included; 0: any number."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        if os.path.ismount(path):  # a Docker Engine that is removed takes it along
            subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def nearly_full(disk: Path, room: int = 0) -> Generator[None]:
    """So many bytes are free on it."""
    ballast = disk / "ballast"
    found = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - room)
    try:
        yield
    finally:
        ballast.unlink()
