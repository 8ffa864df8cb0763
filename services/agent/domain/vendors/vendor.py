"""What a vendor's driver, its hook in the container engine and its frameworks call a GPU."""

from dataclasses import dataclass
from typing import Literal

from services.agent.domain.runtime import Mount

CalledBy = Literal["index", "uuid"]


@dataclass(frozen=True, slots=True)
class Vendor:
    visible: tuple[str, ...]
    """Variables by which frameworks choose among the GPUs that a process could reach: comma-separated indexes."""
    cdi_kind: str
    """Of the qualified names that its CDI specification gives: `nvidia.com/gpu`."""
    cdi_by: CalledBy = "index"
    hook: str | None = None
    """The variable that its hook reads: which GPUs go into the container. None: there is no hook."""
    hook_by: CalledBy = "index"
    hook_off: str | None = None
    """The value that keeps the hook quiet: images may say `all`, and the hook may be in the usual runtime."""
    runtime: str | None = None
    """The container runtime that brings the hook; None: there is none, and a request or the nodes themselves are used."""
    requests: str | None = None
    """The driver of device requests, for which no runtime is needed: Docker's `--gpus`."""
    shared_nodes: tuple[str, ...] = ()
    """Under /dev: what every process needs, whichever GPU is its own."""
    own_nodes: tuple[str, ...] = ()
    """Under /dev, of one GPU; `{index}`, and `{render}`: 128 and up (DRM's render nodes)."""
    mounts: tuple[Mount, ...] = ()
    """Of the driver, where only nodes are handed in: a hook or a CDI specification brings its own."""
    groups: tuple[str, ...] = ()
