"""One file, fetched by Muster or by huggingface_hub, in a process of its own: `python -m bench.one_fetch {muster,huggingface} …`.

Prints what the fetch itself took, as JSON: in a service the program is there before it.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from services.downloader.adapters.fetching import Fetch
from services.downloader.adapters.http_ranges import Location
from services.downloader.adapters.parts import DIRECTORY, Expected, Part, boot_id
from services.downloader.domain.listing import RemoteFile

REPOSITORY = "bench/model"
NAME = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.one_fetch")
    tools = parser.add_subparsers(dest="tool", required=True)
    muster = tools.add_parser("muster")
    muster.add_argument("url")
    muster.add_argument("directory", type=Path)
    muster.add_argument("--bytes", type=int, required=True)
    muster.add_argument("--sha256", required=True)
    muster.add_argument("--commit", required=True)
    muster.add_argument("--connections", type=int, default=8)
    muster.add_argument("--unverified", action="store_true")
    huggingface = tools.add_parser("huggingface")
    huggingface.add_argument("repository")
    huggingface.add_argument("name")
    huggingface.add_argument("directory", type=Path)
    asked = parser.parse_args()
    took = _by_muster(asked) if asked.tool == "muster" else _by_huggingface(asked)
    print(json.dumps(took))


def _by_muster(asked: argparse.Namespace) -> dict[str, float]:
    file = RemoteFile(NAME, asked.bytes, asked.sha256)
    directory = os.open(asked.directory, DIRECTORY)
    part = Part.open(directory, NAME, Expected(file.size, f"sha256:{file.sha256}"), boot_id())
    fetch = Fetch(
        part,
        file,
        REPOSITORY,
        asked.commit,
        lambda: Location(asked.url),
        connections=asked.connections,
        verify=not asked.unverified,
    )
    took = _measured(fetch.run)
    part.close()
    os.close(directory)
    return took


def _by_huggingface(asked: argparse.Namespace) -> dict[str, float]:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - the other program needs none of it

    return _measured(lambda: hf_hub_download(asked.repository, asked.name, cache_dir=asked.directory))


def _measured(fetch: Callable[[], object]) -> dict[str, float]:
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    fetch()
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
    }


if __name__ == "__main__":
    main()
