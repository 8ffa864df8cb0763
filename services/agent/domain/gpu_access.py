"""How an engine gets at the GPUs that are assigned to it, and at no other.

`process`: a plain process could reach every GPU of the machine; variables narrow what its framework takes.
`hook`: the container engine, or the vendor's hook in it, hands in what is assigned.
`cdi`: the container engine does, by a specification that the vendor's tool wrote (Container Device Interface).
`nodes`: device nodes and the driver's directories, where neither is installed.

Where a vendor has no hook, its nodes are handed in; where no nodes are known, its hook does it.

Inside a container there is nothing but the assigned GPUs, so that they are counted from 0, whatever they are outside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from schemas.models import Launch
from schemas.reasons import ParameterInvalid
from services.agent.domain.engines.packages import VARIABLE as PACKAGES
from services.agent.domain.runtime import DeviceRequest, EngineCommand, EngineNotStarted, GpuAccess
from services.agent.domain.vendors.amd import AMD
from services.agent.domain.vendors.ascend import ASCEND
from services.agent.domain.vendors.cambricon import CAMBRICON
from services.agent.domain.vendors.hygon import HYGON
from services.agent.domain.vendors.iluvatar import ILUVATAR
from services.agent.domain.vendors.metax import METAX
from services.agent.domain.vendors.moore_threads import MOORE_THREADS
from services.agent.domain.vendors.nvidia import NVIDIA
from services.agent.domain.vendors.t_head import T_HEAD
from services.agent.domain.vendors.vendor import CalledBy, Vendor

How = Literal["process", "hook", "cdi", "nodes"]

VENDORS: Final[Mapping[str, Vendor]] = {
    "cuda": NVIDIA,
    "rocm": AMD,
    "cann": ASCEND,
    "dtk": HYGON,
    "musa": MOORE_THREADS,
    "corex": ILUVATAR,
    "maca": METAX,
    "neuware": CAMBRICON,
    "hggc": T_HEAD,
}

_FIRST_RENDER_NODE: Final = 128
_NONE: Final = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
"""An index that no GPU has: the list ends before it (CUDA C++ Programming Guide, environment variables)."""


@dataclass(frozen=True, slots=True)
class AssignedGpu:
    index: int
    """Among the worker's GPUs of this type."""
    uuid: str | None = None
    nodes: tuple[str, ...] = ()
    """Its own under /dev, where a probe found them; none: those that its driver usually makes."""


def gpu_access(accelerator: str | None, gpus: Sequence[AssignedGpu], how: How) -> GpuAccess:
    """`accelerator`: `cuda rocm cann dtk musa corex maca neuware hggc`; None: the engine runs on the processor alone.

    One that nobody here knows gets nothing.
    """
    vendor = VENDORS.get(accelerator or "")
    if vendor is None or not gpus:
        return GpuAccess(env=_NONE if how == "process" else {"NVIDIA_VISIBLE_DEVICES": "void"})
    if how == "process":
        numbers = _listed(str(gpu.index) for gpu in gpus)
        return GpuAccess(env=dict.fromkeys(vendor.visible, numbers) | _order(vendor, is_needed=True))
    inside = _listed(str(number) for number in range(len(gpus)))
    env = dict.fromkeys(vendor.visible, inside) | _order(vendor, is_needed=len(gpus) > 1)
    if how == "cdi":
        env |= {vendor.hook: vendor.hook_off} if vendor.hook is not None and vendor.hook_off is not None else {}
        names = tuple(f"{vendor.cdi_kind}={_called(gpu, vendor.cdi_by)}" for gpu in gpus)
        return GpuAccess(env=env, requests=(DeviceRequest(driver="cdi", ids=names),), groups=vendor.groups)
    has_nodes, has_hook = bool(vendor.own_nodes), vendor.runtime is not None or vendor.requests is not None
    if has_nodes and (how == "nodes" or not has_hook):
        return _by_nodes(vendor, gpus, env)
    return _by_hook(vendor, gpus, env)


def as_process(
    command: EngineCommand, access: GpuAccess, launch: Launch, *, may_name_programs: bool = False
) -> EngineCommand:
    """The same engine as a process of this machine: which GPUs it takes is not the user's to say.

    Raises EngineNotStarted where it wants packages, which would be installed into the machine's own Python; and where its
    author names the program: a shell, say, that would do on the machine whatever the agent's user may.
    """
    told = {PACKAGES: ("env", command.env.get(PACKAGES))}
    if not may_name_programs:
        told["entrypoint"] = ("entrypoint", " ".join(launch.entrypoint))
        told["run_command"] = ("run_command", launch.run_command)
    for parameter, (field, value) in told.items():
        if value:
            reason = ParameterInvalid(
                parameter=parameter,
                value=value[:80],
                expected="unset where engines run without containers",
                field=field,
            )
            raise EngineNotStarted((reason,), reason.sentence())
    return replace(command, env={**command.env, **access.env})


def _by_hook(vendor: Vendor, gpus: Sequence[AssignedGpu], env: Mapping[str, str]) -> GpuAccess:
    """A request names the driver: the usual runtime does. Else the vendor's runtime reads its variable."""
    called = tuple(_called(gpu, vendor.hook_by) for gpu in gpus)
    if vendor.requests is not None:
        request = DeviceRequest(driver=vendor.requests, ids=called, capabilities=("gpu", "compute", "utility"))
        return GpuAccess(env=env, requests=(request,), groups=vendor.groups)
    variable = {} if vendor.hook is None else {vendor.hook: _listed(called)}
    return GpuAccess(env=dict(env) | variable, runtime=vendor.runtime, groups=vendor.groups)


def _by_nodes(vendor: Vendor, gpus: Sequence[AssignedGpu], env: Mapping[str, str]) -> GpuAccess:
    own = tuple(node for gpu in gpus for node in (gpu.nodes or _usual_nodes(vendor, gpu)))
    return GpuAccess(env=env, devices=(*vendor.shared_nodes, *own), mounts=vendor.mounts, groups=vendor.groups)


def _usual_nodes(vendor: Vendor, gpu: AssignedGpu) -> tuple[str, ...]:
    return tuple(node.format(index=gpu.index, render=_FIRST_RENDER_NODE + gpu.index) for node in vendor.own_nodes)


def _order(vendor: Vendor, *, is_needed: bool) -> dict[str, str]:
    """CUDA counts the fastest first unless it is told to count as the driver does."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if is_needed and vendor is NVIDIA else {}


def _called(gpu: AssignedGpu, by: CalledBy) -> str:
    return gpu.uuid if by == "uuid" and gpu.uuid is not None else str(gpu.index)


def _listed(numbers: Iterable[str]) -> str:
    return ",".join(numbers)
