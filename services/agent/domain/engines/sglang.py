"""SGLang, `sglang serve`. Sources: its server arguments (0.4.6 to 0.5.23), its pages on LoRA, HiCache, speculative decoding
and diffusion; the field's published command lines (2026-08).

On several machines each runs the same command with its own `--node-rank`; only the first answers requests.
"""

from typing import Final

from schemas.parameters import names_in
from schemas.wanted import FLAGS
from services.agent.domain.engines.environment import interfaces, on_ascend, torch_threads
from services.agent.domain.engines.flags import Flag, arguments, flag
from services.agent.domain.engines.local import path_of
from services.agent.domain.engines.placeholders import substituted
from services.agent.domain.engines.start import Start, default_program
from services.agent.domain.runtime import EngineCommand

PROGRAM: Final = ("sglang", "serve")
BEFORE_SERVE: Final = ("python3", "-m", "sglang.launch_server")
"""… of versions before 0.5.7, which have no `sglang serve`. The exact version is not documented; this one starts in all."""
ALGORITHMS: Final = {"draft_model": "STANDALONE", "eagle3": "EAGLE3", "mtp": "EAGLE", "ngram": "NGRAM"}
_STEPS: Final = ("--speculative-num-steps", "--speculative-eagle-topk", "--speculative-num-draft-tokens")
MEETING_PORT: Final = 0


def sglang(start: Start) -> EngineCommand:
    launch = start.launch
    makes_images = "image" in launch.categories
    ours = _of_images(start) if makes_images else _of_language(start)
    return EngineCommand(
        argv=(
            *_base(start),
            *arguments((flag(("--model-path", "--model"), start.model_path), *ours), launch.parameters),
        ),
        env=_environment(start) | launch.env,
        program="sglang",
        health_path="/health" if start.is_leader else None,
        port=start.listens_on(),
    )


def _base(start: Start) -> tuple[str, ...]:
    if start.launch.run_command is not None:
        return (*start.launch.entrypoint, *substituted(start.launch.run_command, start))
    is_old = start.version is not None and not start.is_at_least(0, 5, 7)
    return default_program(start, BEFORE_SERVE if is_old else PROGRAM)


def _of_images(start: Start) -> tuple[Flag, ...]:
    """Diffusion has parameters of its own: no share of memory, no cache, no metrics."""
    return (
        *((flag("--num-gpus", start.gpus),) if start.gpus > 1 else ()),
        flag("--host", start.host),
        flag("--port", start.port),
    )


def _of_language(start: Start) -> tuple[Flag, ...]:
    launch, flags = start.launch, FLAGS["SGLang"]
    sizes = launch.parallelism
    pairs = ((flags.tensor, sizes.tensor), (flags.pipeline, sizes.pipeline), (flags.data, sizes.data))
    reads_at_once = {"embedding", "reranker"} & set(launch.categories)
    return (
        *(flag(names, size) for names, size in pairs if size > 1),
        *((flag(flags.share, f"{launch.memory_fraction:g}"),) if launch.memory_fraction is not None else ()),
        *((flag("--is-embedding"),) if reads_at_once else ()),
        flag("--enable-metrics"),
        *(
            (flag("--uvicorn-access-log-exclude-prefixes", "/health", "/metrics"),)
            if start.is_at_least(0, 5, 9)
            else ()
        ),
        flag("--enable-cache-report"),
        *_speculation(start),
        *_several_machines(start),
        *_extended_cache(start),
        *_adapters(start),
        *((flag("--attention-backend", "ascend"),) if start.assigned.accelerator == "cann" else ()),
        flag("--host", start.host),
        flag("--port", start.port),
        flag("--served-model-name", launch.model_name),
    )


def _speculation(start: Start) -> tuple[Flag, ...]:
    """Steps, branches and tokens go together: all three, or its own choice. With one branch each step drafts one token,
    and one more is checked with them.
    """
    wanted = start.launch.speculative_config
    if wanted is None:
        return ()
    draft = wanted.draft_model
    found = [flag(("--speculative-algorithm", "--speculative-algo"), ALGORITHMS[wanted.algorithm])]
    if draft is not None:
        found.append(flag(("--speculative-draft-model-path", "--speculative-draft-model"), path_of(draft)))
    tokens = wanted.draft_tokens
    if tokens is None or not names_in(start.launch.parameters).isdisjoint(_STEPS):
        return tuple(found)
    if wanted.algorithm == "ngram":
        return (*found, flag(_STEPS[2], tokens))
    return (*found, *(flag(name, number) for name, number in zip(_STEPS, (tokens, 1, tokens + 1), strict=True)))


def _several_machines(start: Start) -> tuple[Flag, ...]:
    if start.nodes < 2:
        return ()
    return (
        flag("--nnodes", start.nodes),
        flag("--node-rank", start.assigned.rank),
        flag(
            ("--dist-init-addr", "--nccl-init-addr"),
            f"{start.assigned.leader_address}:{start.meeting_port(MEETING_PORT)}",
        ),
    )


def _extended_cache(start: Start) -> tuple[Flag, ...]:
    wanted = start.launch.extended_kv_cache
    if wanted is None:
        return ()
    size = (
        flag(("--hicache-ratio", "--hicache-size"), f"{wanted.ram_ratio:g}")
        if wanted.ram_size is None
        else flag(("--hicache-size", "--hicache-ratio"), max(round(wanted.ram_size / max(start.gpus, 1)), 1))
    )
    pages = (flag("--page-size", wanted.chunk_size),) if wanted.chunk_size is not None else ()
    return (flag("--enable-hierarchical-cache"), *pages, size)


def _adapters(start: Start) -> tuple[Flag, ...]:
    adapters = start.launch.lora_list
    if not adapters:
        return ()
    paths = (f"{each.lora_name}={path_of(each.source)}" for each in adapters)
    return (flag("--enable-lora"), flag("--lora-paths", *paths))


def _environment(start: Start) -> dict[str, str]:
    env = torch_threads() | on_ascend(start)
    if start.cache is not None:
        env |= {"TORCHINDUCTOR_CACHE_DIR": f"{start.cache}/inductor", "TRITON_CACHE_DIR": f"{start.cache}/triton"}
    if start.nodes > 1:
        env |= {"SGLANG_HOST_IP": start.address} | interfaces(start)
    return env
