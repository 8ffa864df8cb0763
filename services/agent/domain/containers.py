"""An engine's container: its image, what is mounted, which GPUs go in, and what it needs beyond a locked-down one."""

import math
import posixpath
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from schemas.models import Launch
from schemas.models import Needs as Declared
from services.agent.domain.engines.local import path_of
from services.agent.domain.engines.packages import after_installing, packages_of
from services.agent.domain.engines.start import Start
from services.agent.domain.runtime import Container, EngineCommand, GpuAccess, Mount, Needs

SHM_GIB: Final = "GPUSTACK_MODEL_RUNTIME_SHM_SIZE_GIB"
UID: Final = "GPUSTACK_MODEL_RUNTIME_UID"
GID: Final = "GPUSTACK_MODEL_RUNTIME_GID"
"""Of a model's environment, as the peer's users know them."""
DEFAULT_SHM_BYTES: Final = 10 * 2**30
MOST_SHM_GIB: Final = 4096
_WRITES_NOTHING: Final = frozenset({"llama.cpp"})
"""Of old launches, which do not tell: engines that run on a read-only image. All others compile kernels beside their packages."""
_ASCENDS_NETWORK: Final = Mount("/etc/hccn.conf")
"""The addresses of Ascend's own network ports, which HCCL reads."""


def contained(start: Start, command: EngineCommand, image: str, access: GpuAccess) -> EngineCommand:
    """The same engine in a container of this image. Its program is the entrypoint, whatever the image's own is.

    Only `Custom` without an entrypoint has words that are arguments of the image's own. Packages that the model asks for
    are installed before, in the container, by a program that then becomes the engine.
    """
    container, packages = container_of(start, command, image, access), packages_of(start.launch)
    if start.engine == "Custom" and not start.launch.entrypoint and not packages:
        return replace(command, container=container)
    argv = after_installing(packages, command.argv)
    return replace(command, argv=argv[1:], container=replace(container, entrypoint=argv[:1]))


def container_of(start: Start, command: EngineCommand, image: str, access: GpuAccess) -> Container:
    launch = start.launch
    return Container(
        image=image,
        mounts=_mounts(start, command),
        access=access,
        needs=_needs(start),
        shm_bytes=_shm_bytes(launch),
        publish_on=start.address,
    )


def _mounts(start: Start, command: EngineCommand) -> tuple[Mount, ...]:
    """Model files at the same path as on the host, which the engine can't change; its caches, which it can."""
    launch = start.launch
    gguf = [path for path in start.weights if path.lower().endswith(".gguf")]
    draft = launch.speculative_config.draft_model if launch.speculative_config is not None else None
    read = dict.fromkeys(
        (
            *(gguf or (path_of(launch.source),)),
            *(path_of(adapter.source) for adapter in launch.lora_list),
            *((path_of(draft),) if draft is not None else ()),
            *sorted({posixpath.dirname(path) for path in command.files}),
        )
    )
    return (
        *(Mount(path) for path in read),
        *((Mount(start.cache, read_only=False),) if start.cache is not None else ()),
        *((_ASCENDS_NETWORK,) if start.nodes > 1 and start.assigned.accelerator == "cann" else ()),
    )


def _needs(start: Start) -> Needs:
    """What its backend declares. On several machines the members talk on ports that libraries choose: the host's network.
    RDMA pins memory.
    """
    launch, several = start.launch, start.nodes > 1
    declared = launch.needs or Declared(writable_root=start.engine not in _WRITES_NOTHING)
    return Needs(
        capabilities=tuple(dict.fromkeys((*(("IPC_LOCK",) if several else ()), *declared.capabilities))),
        writable_root=declared.writable_root or bool(packages_of(launch)),
        host_network=declared.host_network or several,
        host_ipc=declared.host_ipc,
        user=_user(launch),
    )


def not_allowed(launch: Launch, allowed: Collection[str]) -> tuple[str, ...]:
    """Of what its backend declares, what the worker's operator does not allow."""
    return tuple(name for name in (launch.needs.names if launch.needs is not None else ()) if name not in allowed)


def _user(launch: Launch) -> str | None:
    uid, gid = launch.env.get(UID, ""), launch.env.get(GID, "")
    if not uid.isdecimal():
        return None
    return f"{uid}:{gid}" if gid.isdecimal() else f"{uid}:{uid}"


def _shm_bytes(launch: Launch) -> int:
    """What is no size is as if it were not given."""
    try:
        gib = float(launch.env.get(SHM_GIB, ""))
    except ValueError:
        return DEFAULT_SHM_BYTES
    return int(gib * 2**30) if math.isfinite(gib) and 0 < gib <= MOST_SHM_GIB else DEFAULT_SHM_BYTES
