"""How an attempt is launched: the user's parameters, and what placement assumed where the user left it open.

What was assumed is passed to the engine, so that the two can't drift; what the user gave is never given again.
"""

from schemas.models import Category, Launch, ModelSpec
from schemas.parameters import find
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.placement import Placed
from services.scheduler.domain.takes import DEFAULT_CONTEXT


def launch_of(
    spec: ModelSpec, request: Request, placed: Placed, generation: int, revision: int | None = None
) -> Launch:
    return Launch(
        model_name=spec.name,
        generation=generation,
        revision=revision,
        backend=spec.backend,
        backend_version=spec.backend_version,
        image=spec.image_name,
        entrypoint=spec.entrypoint,
        run_command=spec.run_command,
        source=spec.source,
        parameters=(*assumed(request, placed), *spec.backend_parameters),
        env=spec.env,
        categories=_categories(request),
        lora_list=spec.lora_list,
        speculative_config=spec.speculative_config,
        extended_kv_cache=spec.extended_kv_cache,
        memory_fraction=placed.take.share,
        context_length=placed.context,
        parallelism=placed.parallelism,
        start_timeout_seconds=spec.start_timeout_seconds,
    )


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


def _is_context_ours(request: Request, placed: Placed) -> bool:
    """llama.cpp is always told; the others only where the model's own context is longer than the usual."""
    if request.spec.backend == "llama.cpp":
        return True
    own = request.usual.architecture.context_length if request.usual is not None else None
    return own is not None and own > DEFAULT_CONTEXT and placed.context == DEFAULT_CONTEXT
