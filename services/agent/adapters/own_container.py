"""The container that the agent itself is in: engines are its siblings, and see the host's paths, not the agent's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from docker.errors import DockerException, NotFound
from requests.exceptions import RequestException

from kernel.errors import Unavailable
from kernel.settings import BadSettings
from services.agent.adapters.docker import connect

MOUNTS: Final = Path("/proc/self/mountinfo")
_ID: Final = re.compile(r"/containers/([0-9a-f]{64})/")
"""Docker mounts files of its own into each container (`/etc/resolv.conf` …), from a directory of the container's name."""


class CachePathNotShared(BadSettings):
    """`cache_path_not_shared`: what the agent writes for engines and what lies there for them is not where they look."""


def check_shared(path: Path, base_url: str | None, mounts: Path = MOUNTS) -> None:
    """Is `path` the host's own path? Raises CachePathNotShared, Unavailable. Of an agent in no container of this Docker
    Engine it is.
    """
    if (container := own_container(mounts.read_text(encoding="utf-8"))) is None:
        return
    try:
        found = _inspected(container, base_url)
    except (DockerException, RequestException, ConnectionError) as error:
        raise Unavailable(str(error)) from error
    if found is None:
        return
    there = on_host(path, found["Mounts"])
    if there == str(path):
        return
    where = "inside the agent's container alone" if there is None else f"{there} on the host"
    raise CachePathNotShared(
        f"cache_path_not_shared: {path} is {where}, and engines' containers would look at {path} on the host;"
        f" bind a directory of the host at the same path: -v {path}:{path}"
    )


def _inspected(container: str, base_url: str | None) -> Mapping[str, Any] | None:
    client = connect(base_url)
    try:
        return cast("Mapping[str, Any]", client.inspect_container(container))
    except NotFound:
        return None
    finally:
        client.close()


def own_container(mounts: str) -> str | None:
    """From /proc/self/mountinfo (`man 5 proc_pid_mountinfo`): its fourth field is what was mounted; None: in no container."""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4].startswith("/etc/") and (match := _ID.search(fields[3])) is not None:
            return match[1]
    return None


def on_host(path: Path, mounts: Sequence[Mapping[str, Any]]) -> str | None:
    """Where a path of the container lies; None: in its own layer. Of mounts within mounts the innermost counts."""
    holding = [mount for mount in mounts if path.is_relative_to(mount["Destination"])]
    if not holding:
        return None
    mount = max(holding, key=lambda each: len(Path(each["Destination"]).parts))
    return str(Path(mount["Source"]) / path.relative_to(mount["Destination"]))
