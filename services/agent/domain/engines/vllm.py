"""vLLM, `vllm serve`. Sources: its command line reference (0.8 to 0.32), "Parallelism and Scaling", "Data Parallel Deployment".

One instance on several machines, as the user says (`--distributed-executor-backend`), else by its version:

- `mp`, from 0.18 on: `vllm serve` on every machine; those but the first are `--headless` and answer nothing. What runs
  where depends on how many GPUs one replica of the model takes (tensor × pipeline):
  as many as a machine has, or fewer: machines hold whole replicas, and meet by `--data-parallel-address`;
  more, and one replica: machines meet by `--master-addr`; more, and several replicas: by both.
- `ray`: a Ray node runs on every machine, and `vllm serve` beside the first.
"""

import json
from typing import Any, Final

from schemas.backends import extends_cache
from schemas.models import Speculation
from schemas.parameters import find
from schemas.wanted import FLAGS
from services.agent.domain.engines.environment import interfaces, on_ascend, torch_threads
from services.agent.domain.engines.flags import Flag, arguments, flag
from services.agent.domain.engines.local import path_of
from services.agent.domain.engines.placeholders import substituted
from services.agent.domain.engines.start import Start, default_program
from services.agent.domain.engines.together import once_reachable, with_beside
from services.agent.domain.runtime import EngineCommand

PROGRAM: Final = ("vllm", "serve")
OWN_EXECUTOR: Final = (0, 18)
"""From this version on machines meet without Ray."""
EXECUTOR: Final = ("--distributed-executor-backend",)
HYBRID: Final = ("--data-parallel-hybrid-lb", "-dph")
DRAFT_TOKENS: Final = {"draft_model": 5, "eagle3": 3, "mtp": 1, "ngram": 4}
"""Where the author names no number: vLLM wants one. Ours."""
DATA_PORT, MASTER_PORT, BASE_PORT, RAY_PORT = range(4)


def vllm(start: Start) -> EngineCommand:
    """The share of memory that placement reckoned with is passed, unless the user names another."""
    env = _environment(start)
    if start.nodes > 1 and _uses_ray(start):
        return _with_ray(start, env)
    answers = start.is_leader or _is_given(start, HYBRID)
    return EngineCommand(
        argv=(*_base(start), *arguments((*_ours(start), *_several_machines(start)), start.launch.parameters)),
        env=env | start.launch.env,
        program="vllm",
        health_path="/health" if answers else None,
        port=start.listens_on(),
    )


def _base(start: Start) -> tuple[str, ...]:
    if start.launch.run_command is not None:
        return (*start.launch.entrypoint, *substituted(start.launch.run_command, start))
    return (*default_program(start, PROGRAM), start.model_path)


def _ours(start: Start) -> tuple[Flag, ...]:
    launch, flags = start.launch, FLAGS["vLLM"]
    return (
        *((flag("--omni"),) if "image" in launch.categories else ()),
        *_share(start),
        *_pooling(start),
        *_sizes(start),
        *(
            (flag(("--speculative-config", "-sc"), _speculation(launch.speculative_config)),)
            if launch.speculative_config
            else ()
        ),
        *((flag("--disable-access-log-for-endpoints", "/health,/metrics"),) if start.is_at_least(0, 16) else ()),
        *((flag("--enable-prompt-tokens-details"),) if start.is_at_least(0, 9, 1) else ()),
        *_extended_cache(start),
        *((flag(flags.eager), flag("--dtype", "float16")) if _is_310p(start) else ()),
        *_adapters(start),
        flag("--host", start.host),
        flag("--port", start.port),
        flag("--served-model-name", launch.model_name),
    )


def _share(start: Start) -> tuple[Flag, ...]:
    share = start.launch.memory_fraction
    return () if share is None else (flag(FLAGS["vLLM"].share, f"{share:g}"),)


def _pooling(start: Start) -> tuple[Flag, ...]:
    """Of models that answer with vectors or scores; `--runner` since 0.10, `--task` before."""
    if not {"embedding", "reranker"} & set(start.launch.categories):
        return ()
    if start.version is not None and not start.is_at_least(0, 10):
        return (flag(("--task", "--runner"), "embed" if "embedding" in start.launch.categories else "score"),)
    return (flag(("--runner", "--task"), "pooling"),)


def _sizes(start: Start) -> tuple[Flag, ...]:
    flags, sizes = FLAGS["vLLM"], start.launch.parallelism
    pairs = ((flags.tensor, sizes.tensor), (flags.pipeline, sizes.pipeline), (flags.data, sizes.data))
    return tuple(flag(names, size) for names, size in pairs if size > 1)


def _speculation(wanted: Speculation) -> str:
    """A draft model's own tokens are what `model` drafts; EAGLE's too. `mtp` and `ngram` need no model."""
    said: dict[str, Any] = {} if wanted.algorithm == "draft_model" else {"method": wanted.algorithm}
    if wanted.draft_model is not None:
        said["model"] = path_of(wanted.draft_model)
    said["num_speculative_tokens"] = wanted.draft_tokens or DRAFT_TOKENS[wanted.algorithm]
    return json.dumps(said, separators=(",", ":"))


def _extended_cache(start: Start) -> tuple[Flag, ...]:
    """LMCache keeps in RAM what does not fit on the GPU."""
    if _cache_gib(start) is None:
        return ()
    connector = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    return (flag("--kv-transfer-config", json.dumps(connector, separators=(",", ":"))),)


def _cache_gib(start: Start) -> float | None:
    """Of each of the worker's ranks, which share its RAM out."""
    wanted = start.launch.extended_kv_cache
    if wanted is None or not extends_cache("vLLM", start.assigned.accelerator):
        return None
    vram = start.assigned.claim.vram
    whole = wanted.ram_ratio * sum(vram.values()) / 2**30 if wanted.ram_size is None else wanted.ram_size
    return whole / max(len(vram), 1)


def _is_310p(start: Start) -> bool:
    """Ascend's 310P has neither graphs nor bfloat16."""
    return start.assigned.accelerator == "cann" and "310p" in (start.family or "").lower()


def _adapters(start: Start) -> tuple[Flag, ...]:
    adapters = start.launch.lora_list
    if not adapters:
        return ()
    modules = [
        json.dumps({"name": each.lora_name, "path": path_of(each.source)}, separators=(",", ":"), ensure_ascii=False)
        for each in adapters
    ]
    return (flag("--enable-lora"), flag("--max-loras", len(adapters)), flag("--lora-modules", *modules))


# -- several machines -------------------------------------------------------------------------------------------------


def _uses_ray(start: Start) -> bool:
    theirs = find(start.launch.parameters, EXECUTOR)
    if theirs is not None:
        return theirs == "ray"
    return start.version is not None and not start.is_at_least(*OWN_EXECUTOR)


def _several_machines(start: Start) -> tuple[Flag, ...]:
    """Machines have equally many GPUs: so they are placed."""
    if start.nodes < 2:
        return ()
    sizes = start.launch.parallelism
    replica = sizes.tensor * sizes.pipeline
    each = max(sizes.tensor * sizes.pipeline * sizes.data // start.nodes, 1)
    holds_whole_replicas = sizes.data > 1 and replica <= each
    found = [flag(EXECUTOR, "mp")]
    if sizes.data > 1:
        local = each // replica if holds_whole_replicas else 1
        first = start.assigned.rank * local if holds_whole_replicas else start.assigned.rank * each // replica
        found += (
            flag(("--data-parallel-size-local", "-dpl"), local),
            *((flag(("--data-parallel-start-rank", "-dpr"), first),) if first or _is_given(start, HYBRID) else ()),
            flag(("--data-parallel-address", "-dpa"), start.assigned.leader_address),
            flag(("--data-parallel-rpc-port", "-dpp"), start.meeting_port(DATA_PORT)),
        )
    if not holds_whole_replicas:
        found += (
            flag(("--nnodes", "-n"), start.nodes),
            flag(("--node-rank", "-r"), start.assigned.rank),
            flag("--master-addr", start.assigned.leader_address),
            flag("--master-port", start.meeting_port(MASTER_PORT)),
        )
    if not start.is_leader and not _is_given(start, HYBRID):
        found.append(flag("--headless"))
    return tuple(found)


def _with_ray(start: Start, env: dict[str, str]) -> EngineCommand:
    """The first machine's Ray node is the head; `vllm serve` starts when that can be reached, and waits for the others."""
    launch, port = start.launch, start.meeting_port(RAY_PORT)
    node = ("ray", "start", "--block", f"--node-ip-address={start.address}", "--disable-usage-stats")
    meeting = f"{start.assigned.leader_address}:{port}"
    env = env | {"RAY_ADDRESS": meeting} | launch.env
    if not start.is_leader:
        joining = once_reachable(start.assigned.leader_address, port, (*node, f"--address={meeting}"))
        return EngineCommand(argv=joining, env=env, program="ray", health_path=None, port=start.port)
    replicas = (flag(("--data-parallel-backend", "-dpb"), "ray"),) if launch.parallelism.data > 1 else ()
    serving = (
        *_base(start),
        *arguments((*_ours(start), flag(EXECUTOR, "ray"), *replicas), launch.parameters),
    )
    head = (*node, "--head", f"--port={port}", "--include-dashboard=false")
    return EngineCommand(
        argv=with_beside(head, once_reachable(start.assigned.leader_address, port, serving)),
        env=env,
        program="vllm",
        health_path="/health",
        port=start.listens_on(),
    )


def _is_given(start: Start, names: tuple[str, ...]) -> bool:
    return find(start.launch.parameters, names) is not None


def _environment(start: Start) -> dict[str, str]:
    """`VLLM_PORT`: the first of the ports that its parts use among themselves, on several machines."""
    launch = start.launch
    threads = torch_threads() if start.assigned.accelerator is not None else _on_processors(start)
    env = threads | {"SAFETENSORS_FAST_GPU": "1", "VLLM_NO_USAGE_STATS": "1"} | on_ascend(start)
    if start.cache is not None:
        env["VLLM_CACHE_ROOT"] = f"{start.cache}/vllm"
    if (cache_gib := _cache_gib(start)) is not None and launch.extended_kv_cache is not None:
        env |= {"LMCACHE_LOCAL_CPU": "True", "LMCACHE_MAX_LOCAL_CPU_SIZE": f"{cache_gib:g}"}
        if launch.extended_kv_cache.chunk_size is not None:
            env["LMCACHE_CHUNK_SIZE"] = str(launch.extended_kv_cache.chunk_size)
    if start.nodes > 1:
        env |= {"VLLM_HOST_IP": start.address, "VLLM_PORT": str(start.meeting_port(BASE_PORT))} | interfaces(start)
        if launch.parallelism.data > 1:
            env["VLLM_DP_MASTER_PORT"] = str(start.meeting_port(MASTER_PORT))
    return env


def _on_processors(start: Start) -> dict[str, str]:
    """VLLM binds a rank's threads to the processors of a NUMA node, and refuses more ranks than there are nodes: those get equal
    parts of what there is. Source: its documentation of the CPU backend (`VLLM_CPU_OMP_THREADS_BIND`).
    """
    sizes = start.launch.parallelism
    ranks = max(sizes.tensor * sizes.pipeline * sizes.data // start.nodes, 1)
    each = len(start.processors) // ranks
    if ranks == 1 or each == 0:
        return {}
    parts = (start.processors[rank * each : (rank + 1) * each] for rank in range(ranks))
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, part)) for part in parts)}
