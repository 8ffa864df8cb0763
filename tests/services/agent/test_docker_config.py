"""What the Docker Engine is asked for, without one."""

from dataclasses import replace

import docker

from services.agent.adapters.docker import _config  # pyright: ignore[reportPrivateUsage]
from services.agent.domain.runtime import Container, GpuAccess
from tests.services.agent.engines import a_script


def test_no_variable_of_an_author_says_which_gpus_an_engine_sees() -> None:
    access = GpuAccess(env={"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": "0"})
    command = a_script("", NVIDIA_VISIBLE_DEVICES="all", CUDA_VISIBLE_DEVICES="0,1", MODE="x")
    container = Container(image="i", access=access)
    client = docker.APIClient(base_url="unix:///nowhere.sock", version="1.41")
    try:
        config = _config(client, replace(command, container=container), container, {})
    finally:
        client.close()
    environment = dict(each.split("=", 1) for each in config["Env"])
    assert (environment["NVIDIA_VISIBLE_DEVICES"], environment["CUDA_VISIBLE_DEVICES"]) == ("void", "0")
    assert environment["MODE"] == "x"
