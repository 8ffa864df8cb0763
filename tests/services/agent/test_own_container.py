"""Where the agent's own files lie on the host, when it is in a container. Mount tables as Docker 20.10 and 27 make them."""

from pathlib import Path
from typing import Any

import pytest

from services.agent.adapters.own_container import on_host, own_container

ID = "3f15ce95d1c0a7e9e2b4f6d8c0a1b3e5f7091a2b3c4d5e6f708192a3b4c5d6e7"
BARE = "21 27 0:19 / /sys rw,nosuid - sysfs sysfs rw\n27 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
IN_DOCKER = f"""
652 500 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A
660 652 254:1 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda1 rw
661 652 254:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw
"""
OTHERS = f"660 652 254:1 /var/lib/docker/containers/{ID}/a.log /logs/containers/{ID}/a.log rw - ext4 /dev/vda1 rw\n"
"""A container that looks at others' logs."""


@pytest.mark.parametrize(("mounts", "expected"), [(BARE, None), (IN_DOCKER, ID), (BARE + OTHERS, None), ("", None)])
def test_a_container_is_known_by_what_docker_mounts_into_it(mounts: str, expected: str | None) -> None:
    assert own_container(mounts) == expected


def a_mount(source: str, destination: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Destination": destination}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/muster", "/var/lib/muster"),
        ("/var/lib/muster/cache", "/var/lib/muster/cache"),
        ("/data/muster", "/srv/disk/muster"),
        ("/data/inner/x", "/other/x"),
        ("/var/lib/mustered", None),
        ("/tmp", None),
    ],
)
def test_a_path_lies_where_the_innermost_mount_comes_from(path: str, expected: str | None) -> None:
    mounts = [
        a_mount("/var/lib/muster", "/var/lib/muster"),
        a_mount("/srv/disk", "/data"),
        a_mount("/other", "/data/inner"),
    ]
    assert on_host(Path(path), mounts) == expected
