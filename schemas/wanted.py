"""What a model's parameters say to placement: sizes, shares, lengths; and what is wrong with them.

Every form is understood (`schemas/parameters.py`); a user's value always wins. Names of flags: the engines' own
references (vLLM `vllm serve --help`, SGLang server arguments, MindIE's service configuration, llama.cpp's server).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from schemas.backends import InferenceBackend, built_in, effective, info_of, knows_version
from schemas.models import ModelSpec
from schemas.ours import not_the_authors
from schemas.parameters import find, whole_number
from schemas.reasons import (
    BackendDisabled,
    BackendUnknown,
    BackendVersionUnknown,
    GpuTypesMixed,
    ParameterInvalid,
    ParametersContradict,
    Reason,
    TooFewGpusSelected,
    WorldSizeDoesNotMatch,
)
from schemas.value import MOST_BYTES

SKIP_COUNT_CHECK: Final = ("GPUSTACK_SKIP_GPU_COUNT_CHECK",)
VRAM_CLAIM: Final = ("GPUSTACK_MODEL_VRAM_CLAIM",)
RAM_CLAIM: Final = ("GPUSTACK_MODEL_RAM_CLAIM",)
"""Environment of a model that the peer's users know; `claim_override` says the same. Bytes."""

MOST_GPUS: Final = 4096
MOST_TOKENS: Final = 100_000_000
_THOUSANDS: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([kKmM])")


@dataclass(frozen=True, slots=True)
class Flags:
    """What an engine calls what placement must know. The first name is the one that Muster passes."""

    share: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    tensor: tuple[str, ...] = ()
    pipeline: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    cache_type: tuple[str, ...] = ()
    eager: tuple[str, ...] = ()


FLAGS: Final[Mapping[str, Flags]] = {
    "vLLM": Flags(
        share=("--gpu-memory-utilization",),
        context=("--max-model-len",),
        tensor=("--tensor-parallel-size", "-tp"),
        pipeline=("--pipeline-parallel-size", "-pp"),
        data=("--data-parallel-size", "-dp"),
        cache_type=("--kv-cache-dtype",),
        eager=("--enforce-eager",),
    ),
    "SGLang": Flags(
        share=("--mem-fraction-static",),
        context=("--context-length",),
        tensor=("--tp-size", "--tensor-parallel-size", "--tp"),
        pipeline=("--pp-size", "--pipeline-parallel-size"),
        data=("--dp-size", "--data-parallel-size", "--dp"),
        cache_type=("--kv-cache-dtype",),
        eager=("--disable-cuda-graph",),
    ),
    "MindIE": Flags(
        share=("--npu-memory-fraction",),
        context=("--max-seq-len",),
        tensor=("--tensor-parallel-size", "--tp"),
        pipeline=("--pipeline-parallel-size", "--pp"),
        data=("--data-parallel-size", "--dp"),
    ),
    "llama.cpp": Flags(context=("--ctx-size", "-c"), cache_type=("--cache-type-k", "-ctk")),
    "Custom": Flags(),
}

CPU_MEMORY: Final = ("--cpu-mem-size",)
"""Of MindIE: GiB of RAM to which it may swap its cache."""
MOST_CPU_GIB: Final = 2**20
LAYERS: Final = ("--n-gpu-layers", "--gpu-layers", "-ngl")
SLOTS: Final = ("--parallel", "-np")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user fixed; None where the choice is ours."""

    flags: Flags
    share: float | None = None
    context: int | None = None
    whole_context: bool = False
    """The model's own, however long: llama.cpp's `--ctx-size 0`."""
    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    cache_bytes: float | None = None
    """Of one number in the KV cache."""
    eager: bool = False
    gpus: int | None = None
    """For one instance."""
    may_pipeline: bool = False
    """Its engine can divide the layers among GPUs, and no parameter excludes it."""
    gpu_layers: int | None = None
    swap_gib: int = 0
    """RAM that MindIE may use for its cache."""
    vram_bytes: int | None = None
    ram_bytes: int | None = None
    """What the author says that it takes."""
    problems: tuple[Reason, ...] = ()

    @property
    def world_size(self) -> int | None:
        """None when no size is given."""
        if self.tensor is None and self.pipeline is None and self.data is None:
            return None
        return (self.tensor or 1) * (self.pipeline or 1) * (self.data or 1)


_CACHE_BYTES: Final[Mapping[str, float]] = {
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "int8": 1, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "f16": 2,
    "half": 2, "f32": 4, "float32": 4, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
    "iq4_nl": 18 / 32, "fp4_e2m1": 0.5,
}  # fmt: skip
"""ggml's quantised types hold 32 numbers and their scale in a block."""


@dataclass(slots=True)
class _Reader:
    parameters: Sequence[str]
    problems: list[Reason] = field(default_factory=list[Reason])

    def integer(self, names: tuple[str, ...], low: int, high: int) -> int | None:
        text = find(self.parameters, names) if names else None
        if text is None:
            return None
        value = whole_number(text)
        if value is None or not low <= value <= high:
            self.problems.append(
                ParameterInvalid(parameter=names[0], value=text[:80], expected=f"a whole number from {low} to {high}")
            )
            return None
        return value

    def tokens(self, names: tuple[str, ...]) -> int | None:
        """`8192`, and as vLLM reads them `8k` (thousands), `8K` (1024s); `auto`, `-1` and 0 are the engine's own choice."""
        text = find(self.parameters, names) if names else None
        if text is None or text.lower() in ("auto", "-1", "0"):
            return None
        value = whole_number(text)
        if value is None and (match := _THOUSANDS.fullmatch(text)) is not None:
            value = round(float(match[1]) * {"k": 1000, "K": 1024, "m": 10**6, "M": 2**20}[match[2]])
        if value is None or not 1 <= value <= MOST_TOKENS:
            self.problems.append(
                ParameterInvalid(
                    parameter=names[0], value=text[:80], expected=f"a number of tokens from 1 to {MOST_TOKENS}"
                )
            )
            return None
        return value

    def share(self, names: tuple[str, ...]) -> float | None:
        text = find(self.parameters, names) if names else None
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= 1:
            self.problems.append(
                ParameterInvalid(parameter=names[0], value=text[:80], expected="a share above 0 and at most 1")
            )
            return None
        return value

    def cache_bytes(self, names: tuple[str, ...]) -> float | None:
        text = find(self.parameters, names) if names else None
        if text is None or text.lower() == "auto":
            return None
        value = _CACHE_BYTES.get(text.lower())
        if value is None:
            self.problems.append(
                ParameterInvalid(parameter=names[0], value=text[:80], expected=f"one of {', '.join(_CACHE_BYTES)}")
            )
        return value


def wanted_of(spec: ModelSpec, backends: Mapping[str, InferenceBackend] | None = None) -> Wanted:
    """What the parameters fix; `problems` holds what is wrong with the wish, whatever the fleet is.

    `backends`: those that there are, by name; None: the built-in ones.
    """
    backends = built_in() if backends is None else backends
    backend = backends.get(spec.backend)
    if backend is None:
        return Wanted(Flags(), problems=(BackendUnknown(backend=spec.backend, known=tuple(backends)),))
    spec, info = effective(spec, backend), info_of(backend)
    flags = FLAGS[spec.backend]
    reader = _Reader(spec.backend_parameters)
    layers = find(spec.backend_parameters, LAYERS) if spec.backend == "llama.cpp" else None
    wanted = Wanted(
        flags,
        share=reader.share(flags.share),
        context=reader.tokens(flags.context),
        whole_context=spec.backend == "llama.cpp" and find(spec.backend_parameters, flags.context) == "0",
        tensor=reader.integer(flags.tensor, 1, MOST_GPUS),
        pipeline=reader.integer(flags.pipeline, 1, MOST_GPUS),
        data=reader.integer(flags.data, 1, MOST_GPUS),
        cache_bytes=reader.cache_bytes(flags.cache_type),
        eager=find(spec.backend_parameters, flags.eager) not in (None, "false", "False") if flags.eager else False,
        gpu_layers=_gpu_layers(layers, reader),
        swap_gib=(reader.integer(CPU_MEMORY, 0, MOST_CPU_GIB) or 0) if spec.backend == "MindIE" else 0,
        vram_bytes=_claimed(spec, "vram", VRAM_CLAIM, reader),
        ram_bytes=_claimed(spec, "ram", RAM_CLAIM, reader),
    )
    version = spec.backend_version
    if version is not None and spec.image_name is None and not knows_version(backend, version):
        known = tuple(version for version in (info.oldest, info.newest) if version is not None)
        reader.problems.append(BackendVersionUnknown(backend=backend.backend_name, version=version, known=known))
    if not backend.enabled:
        reader.problems.append(BackendDisabled(backend=backend.backend_name))
    excluded = _excludes_pipelines(spec)
    _contradictions(wanted, excluded, reader)
    gpus, count_problems = gpus_of(spec, wanted)
    return replace(
        wanted,
        gpus=gpus,
        may_pipeline=info.pipeline_parallel and not excluded,
        problems=(*not_the_authors(spec), *reader.problems, *count_problems),
    )


def gpus_of(spec: ModelSpec, wanted: Wanted) -> tuple[int | None, tuple[Reason, ...]]:
    """How many GPUs one instance is to have, where that is fixed; and whether what fixes it contradicts itself."""
    selector = spec.gpu_selector
    world = wanted.world_size
    if selector is None:
        return world, ()
    problems: list[Reason] = []
    ids = tuple(dict.fromkeys(selector.gpu_ids))
    kinds = tuple(sorted({part[1] for gpu_id in ids if len(part := gpu_id.rsplit(":", 2)) == 3}))
    if len(kinds) > 1 and spec.replicas <= 1:
        problems.append(GpuTypesMixed(types=kinds))
    selected = selector.gpus_per_replica
    if selected is None and ids:
        share = max(len(ids) // max(spec.replicas, 1), 1)
        selected = share if world is not None and share == world else 1 << (share.bit_length() - 1)
    if ids and selected is not None and selected > len(ids):
        problems.append(TooFewGpusSelected(needed=selected, selected=len(ids)))
    if selected is not None and world is not None and selected != world and not _is_set(spec, SKIP_COUNT_CHECK):
        problems.append(WorldSizeDoesNotMatch(world_size=world, selected=selected))
    return (world if world is not None else selected), tuple(problems)


_SPECULATION: Final = "--speculative-algorithm"
_MIXED_CHUNKS: Final = "--enable-mixed-chunk"


def _excludes_pipelines(spec: ModelSpec) -> tuple[tuple[str, str], ...]:
    """Flag and problem, of SGLang's own checks; vLLM's pipelines speculate."""
    if spec.backend != "SGLang":
        return ()
    speculates = find(spec.backend_parameters, (_SPECULATION,)) is not None or spec.speculative_config is not None
    mixes = find(spec.backend_parameters, (_MIXED_CHUNKS,)) not in (None, "false", "False")
    return (
        *(((_SPECULATION, "a pipeline of several stages can't speculate"),) if speculates else ()),
        *(((_MIXED_CHUNKS, "a pipeline of several stages can't mix chunks"),) if mixes else ()),
    )


def _contradictions(wanted: Wanted, excluded: Sequence[tuple[str, str]], reader: _Reader) -> None:
    """Of SGLang's own checks, too: mixed chunks exclude speculation."""
    if (wanted.pipeline or 1) > 1:
        for name, problem in excluded:
            reader.problems.append(ParametersContradict(parameters=(wanted.flags.pipeline[0], name), problem=problem))
    if len(excluded) > 1:
        reader.problems.append(
            ParametersContradict(
                parameters=(_SPECULATION, _MIXED_CHUNKS), problem="mixed chunks must be off for speculative decoding"
            )
        )


def _gpu_layers(text: str | None, reader: _Reader) -> int | None:
    if text is None or text.lower() in ("auto", "all", "-1"):
        return None
    value = whole_number(text)
    if value is None or value < 0:
        reader.problems.append(
            ParameterInvalid(parameter=LAYERS[0], value=text[:80], expected="a number of layers, `auto` or `all`")
        )
        return None
    return value


def _claimed(spec: ModelSpec, what: str, names: tuple[str, ...], reader: _Reader) -> int | None:
    said = getattr(spec.claim_override, what) if spec.claim_override is not None else None
    if said is not None:
        return int(said)
    text = _env(spec, names)
    if text is None:
        return None
    value = whole_number(text)
    if value is None or not 0 <= value <= MOST_BYTES:
        reader.problems.append(
            ParameterInvalid(parameter=names[0], value=text[:80], expected="a number of bytes", field="env")
        )
        return None
    return value


def _is_set(spec: ModelSpec, names: tuple[str, ...]) -> bool:
    return (_env(spec, names) or "0").lower() not in ("0", "false")


def _env(spec: ModelSpec, names: tuple[str, ...]) -> str | None:
    return next((spec.env[name] for name in names if spec.env.get(name)), None)
