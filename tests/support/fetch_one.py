"""Fetches one file, as a program that can be killed.

    python -m tests.support.fetch_one URL DIRECTORY NAME SIZE SHA256 COMMIT [--connections N]

Killed at any moment and started again, it goes on. In the end DIRECTORY/NAME is the file, and nothing else is there.
"""

import argparse
import os
from pathlib import Path

from services.downloader.adapters.fetching import Fetch
from services.downloader.adapters.http_ranges import Location
from services.downloader.adapters.parts import DIRECTORY, Expected, Part, boot_id, discard
from services.downloader.domain.listing import RemoteFile


def fetch_one(url: str, directory: Path, file: RemoteFile, commit: str, connections: int) -> None:
    descriptor = os.open(directory, DIRECTORY)
    try:
        part = Part.open(descriptor, file.name, Expected(file.size, f"sha256:{file.sha256}"), boot_id())
        try:
            Fetch(part, file, "org/model", commit, lambda: Location(url), connections=connections).run()
            part.sync()
        finally:
            part.close()
        os.rename(f"{file.name}.part", file.name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        discard(descriptor, file.name)
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.fetch_one")
    for name in ("url", "directory", "name", "size", "sha256", "commit"):
        parser.add_argument(name)
    parser.add_argument("--connections", type=int, default=4)
    asked = parser.parse_args()
    file = RemoteFile(asked.name, int(asked.size), sha256=asked.sha256)
    fetch_one(asked.url, Path(asked.directory), file, asked.commit, asked.connections)


if __name__ == "__main__":
    main()
