"""How an attempt is launched: the user's parameters, and what placement assumed where the user left it open.

What was assumed is passed to the engine, so that the two can't drift; what the user gave is never given again.
"""

from collections.abc import Iterable, Mapping

from schemas.backends import CPU, Chosen, InferenceBackend, image_for, run_command_of
from schemas.ids import WorkerId
from schemas.models import Category, Launch
from schemas.parameters import find
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.memory.vllm_cpu import CACHE_SPACE
from services.scheduler.domain.placement import Placed
from services.scheduler.domain.snapshot import Machine
from services.scheduler.domain.takes import DEFAULT_CONTEXT


def launch_of(
    request: Request, placed: Placed, machines: Mapping[WorkerId, Machine], generation: int, revision: int | None = None
) -> Launch:
    """`machines`: those that it is placed on."""
    spec, backend = request.spec, request.backend
    chosen = _chosen(request, placed, machines)
    return Launch(
        model_name=spec.name,
        generation=generation,
        revision=revision,
        backend=request.wish.backend,
        engine=spec.backend,
        backend_version=chosen.version,
        image=chosen.image or None,
        entrypoint=spec.entrypoint or chosen.entrypoint,
        run_command=run_command_of(spec, backend, chosen.version) if backend and chosen.image else spec.run_command,
        source=spec.source,
        commit=request.commit,
        parameters=(*assumed(request, placed), *spec.backend_parameters),
        env=spec.env | _assumed_env(request, placed),
        categories=_categories(request),
        lora_list=spec.lora_list,
        speculative_config=spec.speculative_config,
        extended_kv_cache=spec.extended_kv_cache,
        memory_fraction=placed.take.share,
        context_length=placed.context,
        health_path=None if backend is None else backend.health_check_path,
        parameter_format=None if backend is None else backend.parameter_format,
        needs=None if backend is None else backend.needs,
        parallelism=placed.parallelism,
        start_timeout_seconds=spec.start_timeout_seconds,
    )


def _chosen(request: Request, placed: Placed, machines: Mapping[WorkerId, Machine]) -> Chosen:
    """The model's own image, else the backend's for the leader's GPUs that every member's driver can run; what is installed,
    where no containers run.
    """
    spec, backend, place = request.spec, request.backend, placed.places[0]
    leader = machines[place.worker_id]
    if leader.inventory.runtime == "process":
        return Chosen(spec.image_name or "", spec.backend_version or leader.inventory.backends.get(spec.backend), ())
    if spec.image_name is not None or backend is None:
        return Chosen(
            spec.image_name or "", spec.backend_version, () if backend is None else backend.default_entrypoint
        )
    members = [machines[each.worker_id] for each in placed.places]
    found = image_of(backend, spec.backend_version, place.type or CPU, leader, members)
    return found or Chosen("", spec.backend_version, ())


def image_of(
    backend: InferenceBackend, version: str | None, kind: str, leader: Machine, members: Iterable[Machine]
) -> Chosen | None:
    """The backend's for the leader's GPUs of this kind (`cpu`: none) that the driver of every member, leader included, can run."""
    gpus = [gpu for machine in members for gpu in machine.inventory.gpus if gpu.type == kind]
    devices = tuple(gpu.name for gpu in leader.inventory.gpus if gpu.type == kind)
    runtimes = tuple(gpu.runtime_version for gpu in gpus)
    found = image_for(backend, version, kind, leader.platform, runtimes, devices)
    return found or image_for(backend, version, kind, leader.platform, (), devices)


def _categories(request: Request) -> tuple[Category, ...]:
    """As the author says, else as the files say."""
    if request.spec.categories or request.usual is None:
        return request.spec.categories
    found = request.usual.architecture.category
    return () if found == "unknown" else (found,)


def assumed(request: Request, placed: Placed) -> tuple[str, ...]:
    """Flags for what placement chose."""
    wanted, flags, take = request.wanted, request.wanted.flags, placed.take
    found: list[str] = []
    if take.share is not None and wanted.share is None and flags.share:
        found.append(f"{flags.share[0]}={take.share:g}")
    is_open = find(request.spec.backend_parameters, flags.context) is None
    if flags.context and is_open and _is_context_ours(request, placed):
        found.append(f"{flags.context[0]}={placed.context}")
    if take.gpu_layers is not None and wanted.gpu_layers is None and (take.gpu_layers or request.spec.cpu_offloading):
        found.append(f"--n-gpu-layers={take.gpu_layers}")
    if wanted.world_size is None:
        sizes = (
            (flags.tensor, placed.parallelism.tensor),
            (flags.pipeline, placed.parallelism.pipeline),
            (flags.data, placed.parallelism.data),
        )
        found.extend(f"{names[0]}={size}" for names, size in sizes if names and size > 1)
    return tuple(found)


def _assumed_env(request: Request, placed: Placed) -> dict[str, str]:
    if request.spec.backend != "vLLM" or placed.places[0].type is not None or request.usual is None:
        return {}
    return {CACHE_SPACE: str(request.usual.cpu_cache_gib)}


def _is_context_ours(request: Request, placed: Placed) -> bool:
    """llama.cpp is always told; the others only where the model's own context is longer than the usual."""
    if request.spec.backend == "llama.cpp":
        return True
    own = request.usual.architecture.context_length if request.usual is not None else None
    return own is not None and own > DEFAULT_CONTEXT and placed.context == DEFAULT_CONTEXT
