"""What one instance takes of GPUs of one kind: every number of GPUs on which it could run, and what it claims on each.

An engine with a share reserves it of every GPU it runs on: the share that is assumed here is the share that is passed to
the engine, so the two can't drift. What the model needs must fit into it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from schemas.backends import extends_cache
from schemas.models import ModelSpec, ModelWeights, Parallelism
from schemas.parameters import find, whole_number
from schemas.value import MOST_BYTES
from schemas.wanted import MOST_TOKENS, Wanted
from services.scheduler.domain.memory import gguf, mindie, vllm, vllm_cpu
from services.scheduler.domain.memory.architecture import Architecture, architecture_of
from services.scheduler.domain.memory.claims import claimed_bytes
from services.scheduler.domain.memory.fitting import fitting_tokens
from services.scheduler.domain.memory.kv_cache import sequence_bytes
from services.scheduler.domain.memory.sglang import mem_fraction_static
from services.scheduler.domain.peaks import CPU, Peak, PeakOf, Where, claimed
from services.scheduler.domain.snapshot import Profile

GIB: Final = 2**30
DEFAULT_SHARE: Final = 0.9
"""vLLM's own `--gpu-memory-utilization`; the field assumes the same for MindIE."""
DEFAULT_CONTEXT: Final = 8192
"""When the model's own context is longer and the user names none."""
ENGINE_BYTES: Final = GIB
"""Of a GPU, beside weights and KV cache: the runtime's context, activations of one step. Assumed; used for what context fits."""
ALONE: Final = Parallelism()
ON_CPU_IF_ALLOWED: Final = ("Custom", "vLLM")
"""Backends that may need no GPU, where the author says so (`cpu_offloading`)."""
CUSTOM_RAM_BYTES: Final = 2 * GIB
SHARED_BY_ALL: Final = ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification", "Qwen3VLForConditionalGeneration")
"""Architectures whose embedding and reranking models keep a KV cache, and so take a share like language models."""


@dataclass(frozen=True, slots=True)
class Take:
    """One way to run one instance on `gpus` GPUs of a profile."""

    gpus: int
    vram_bytes: int
    """Claimed on each GPU."""
    ram_bytes: int
    share: float | None = None
    parallelism: Parallelism = ALONE
    overcommitted: bool = False
    """The model needs more than the engine's share of these GPUs; allowed where the user chose them himself."""
    gpu_layers: int | None = None
    """Of llama.cpp, when some layers stay in RAM; those that lie on the GPUs."""


@dataclass(frozen=True, slots=True)
class ContextShort:
    """The smallest number of GPUs on which only the KV cache did not fit."""

    gpus: int
    tokens: int
    cache_bytes: int
    room_bytes: int
    fitting_tokens: int


@dataclass(frozen=True, slots=True)
class Takes:
    """Of one profile."""

    ways: tuple[Take, ...]
    """Fewest GPUs first."""
    context_short: ContextShort | None
    needed_bytes: int
    """Of one copy of the model, over all GPUs that share it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model with its files' facts: what it needs wherever it runs."""

    spec: ModelSpec
    wanted: Wanted
    weights: ModelWeights
    architecture: Architecture
    context: int
    needed_bytes: int
    takes_share: bool
    ram_bytes: int
    layered: gguf.Layered | None
    """llama.cpp's view of it."""
    _sizes: dict[int, tuple[Parallelism, ...]] = field(
        default_factory=dict[int, tuple[Parallelism, ...]], repr=False, compare=False
    )
    """What `parallelisms` has answered."""
    peaks: PeakOf = field(default_factory=dict[Where, Peak])
    """What was measured of it, where that is claimed in place of an estimate."""

    @property
    def is_manual(self) -> bool:
        return self.spec.gpu_selector is not None and bool(self.spec.gpu_selector.gpu_ids)

    @property
    def on_cpu(self) -> "Take":
        """Wholly in RAM."""
        if self.layered is not None:
            size, sizes = self.layered.all_bytes + gguf.OVERHEAD_BYTES, ALONE
        elif self.spec.backend == "vLLM":
            wanted, sizes = self.wanted, ALONE
            if wanted.world_size is not None:
                sizes = Parallelism(tensor=wanted.tensor or 1, pipeline=wanted.pipeline or 1, data=wanted.data or 1)
            ranks = sizes.tensor * sizes.pipeline * sizes.data
            size = vllm_cpu.ram_bytes(self.needed_bytes, self.cpu_cache_gib, ranks, sizes.data)
        else:
            size, sizes = self.needed_bytes, ALONE
        size = size if self.wanted.ram_bytes is None else self.wanted.ram_bytes
        layers = 0 if self.layered is not None else None
        return self._as_measured(Take(0, 0, min(size, MOST_BYTES), gpu_layers=layers, parallelism=sizes), CPU)

    @property
    def cpu_cache_gib(self) -> int:
        """The KV cache of each of vLLM's ranks on processors."""
        return vllm_cpu.cache_gib(self.spec.env, self._cache_bytes(self.context, ALONE))

    @property
    def may_be_on_cpu(self) -> bool:
        return self.layered is not None or (self.spec.backend in ON_CPU_IF_ALLOWED and self.spec.cpu_offloading)

    @property
    def may_claim_peak(self) -> bool:
        """A share is no estimate: the engine reserves it whatever it needs, and does not start where less is free. Nor is
        what the author says.
        """
        wanted = self.wanted
        return bool(self.peaks) and not self.takes_share and wanted.vram_bytes is None and wanted.ram_bytes is None

    def _measured(self, gpu: str, gpus: int, gpu_layers: int | None = None) -> Peak | None:
        """What is claimed in place of the estimate."""
        if not self.may_claim_peak:
            return None
        if gpus and self.wanted.gpu_layers is not None:  # as the engine is told it, whatever the model has
            gpu_layers = self.wanted.gpu_layers
        return self.peaks.get(Where(gpu, gpus, gpu_layers=gpu_layers if gpus else None))

    def _as_measured(self, take: Take, gpu: str) -> Take:
        """The same, with what was measured."""
        peak = self._measured(gpu, take.gpus, take.gpu_layers)
        if peak is None:
            return take
        return replace(
            take,
            vram_bytes=take.vram_bytes if peak.vram_bytes is None else claimed(peak.vram_bytes),
            ram_bytes=take.ram_bytes if peak.ram_bytes is None else claimed(peak.ram_bytes),
        )

    def share_on(self, profile: Profile, parallelism: Parallelism) -> float | None:
        """Of a GPU's memory. The user's, else the engine's own, as far as the system leaves it."""
        if not self.takes_share:
            return None
        if self.wanted.share is not None:
            return self.wanted.share
        left = math.floor(profile.capacity / profile.memory_total * 100) / 100
        if self.spec.packed:
            packed = vllm.packed_fraction(self._packed_bytes(profile, parallelism), profile.memory_total)
            return min(packed or left, left)
        if self.spec.backend != "SGLang":
            return min(DEFAULT_SHARE, left)
        share = mem_fraction_static(
            profile.memory_total,
            tensor=parallelism.tensor,
            pipeline=parallelism.pipeline,
            data=parallelism.data,
            dp_attention=self._is_given("--enable-dp-attention"),
            ascend=profile.type == "cann",
            speculation=self.spec.speculative_config.algorithm if self.spec.speculative_config else None,
            chunked_prefill=self._given("--chunked-prefill-size"),
            largest_batch=self._given("--cuda-graph-max-bs"),
            piecewise_tokens=self._given("--piecewise-cuda-graph-max-tokens"),
            architecture=self.architecture,
        )
        return min(share, left)

    def _packed_bytes(self, profile: Profile, parallelism: Parallelism) -> int:
        """What the engine must be given of one GPU at least."""
        weights = self.weights
        needed = vllm.needed_bytes(
            weights.weight_bytes + weights.lora_bytes + weights.draft_bytes,
            self.architecture,
            tokens=self.context,
            memory_total=profile.memory_total,
            element_bytes=self._element_bytes,
            tensor=parallelism.tensor,
            pipeline=parallelism.pipeline,
            eager=self.wanted.eager,
            batched_tokens=self._given("--max-num-batched-tokens"),
            sequences=self._given("--max-num-seqs"),
        )
        if needed is None or self.wanted.vram_bytes is not None:
            each = -(-self.needed_bytes // (parallelism.tensor * parallelism.pipeline))
            needed = each + (self._cache_bytes(self.context, parallelism) or 0)
        return min(needed, MOST_BYTES)

    @property
    def _element_bytes(self) -> float:
        return self.wanted.cache_bytes or float(self.architecture.element_bytes)

    def _cache_bytes(self, tokens: int, parallelism: Parallelism) -> int | None:
        """Of one sequence, on one GPU."""
        return sequence_bytes(
            self.architecture,
            tokens,
            self._element_bytes,
            tensor=parallelism.tensor,
            pipeline=parallelism.pipeline,
        )

    def _is_given(self, flag: str) -> bool:
        return find(self.spec.backend_parameters, (flag,)) is not None

    def _given(self, flag: str) -> int | None:
        text = find(self.spec.backend_parameters, (flag,))
        number = whole_number(text) if text is not None else None
        return number if number is not None and 0 < number <= MOST_TOKENS else None

    def takes(self, profile: Profile, most: int) -> Takes:
        """On 1 to `most` GPUs of this profile in one worker."""
        ways: list[Take] = []
        short: ContextShort | None = None
        for gpus in self.counts(most):
            for parallelism in self.parallelisms(gpus):
                way = self.take(profile, gpus, parallelism)
                if isinstance(way, Take):
                    ways.append(way)
                elif way is not None and short is None:
                    short = way
        return Takes(tuple(ways), short if not ways else None, self.needed_bytes)

    def counts(self, most: int) -> Iterator[int]:
        """Numbers of GPUs that come into question."""
        if self.wanted.gpus is not None:
            if self.wanted.gpus <= most:
                yield self.wanted.gpus
            return
        if not self._is_parallel and self.layered is None and self.spec.backend != "Custom":
            yield 1
            return
        for gpus in range(1, most + 1):
            if self.divides(gpus):
                yield gpus

    @property
    def _is_parallel(self) -> bool:
        return self.takes_share

    def divides(self, tensor: int) -> bool:
        """Can the model be shared out among so many GPUs by tensor parallelism?"""
        if self.spec.backend in ("llama.cpp", "Custom"):
            return True
        heads = self.architecture.attention_heads
        if heads is None:
            return tensor & (tensor - 1) == 0
        return not self.undivided(tensor)

    def undivided(self, tensor: int) -> tuple[tuple[str, int], ...]:
        """What of the model can't be divided by this size: `("attention", heads)` …"""
        whole = (
            ("attention", self.architecture.attention_heads),
            ("vision", self.architecture.vision_heads),
            ("vocabulary", self.architecture.vocabulary_size),
        )
        return tuple((what, number) for what, number in whole if number is not None and number % tensor)

    def parallelisms(self, gpus: int) -> tuple[Parallelism, ...]:
        """Sizes for so many GPUs of one worker: the user's, else ours; all tensor parallel where nothing divides."""
        found = self._sizes.get(gpus)
        if found is None:
            wanted = self.wanted
            if wanted.world_size is not None and gpus in (wanted.world_size, wanted.gpus):
                one = Parallelism(tensor=wanted.tensor or 1, pipeline=wanted.pipeline or 1, data=wanted.data or 1)
            else:
                one = self.divided(gpus, gpus) or Parallelism(tensor=gpus)
            found = self._sizes[gpus] = (one,)
        return found

    @property
    def may_pipeline(self) -> bool:
        """Of language models: what reads a text all at once has no stages in its engines."""
        return self.wanted.may_pipeline and self.takes_share

    def divided(self, gpus: int, each: int) -> Parallelism | None:
        """Sizes that share the model out among so many GPUs, `each` of a worker: as much tensor parallelism as divides
        it and stays inside a worker, the rest a pipeline. None: no sizes do.
        """
        for tensor in range(each, 0, -1):
            if each % tensor or not self.divides(tensor):
                continue
            stages = gpus // tensor
            if stages == 1 or (self.may_pipeline and (self.architecture.layers or stages) >= stages):
                return Parallelism(tensor=tensor, pipeline=stages)
        return None

    def take(self, profile: Profile, gpus: int, parallelism: Parallelism) -> Take | ContextShort | None:
        """None: too large for so many GPUs like these, even empty ones."""
        if profile.memory_total <= 0:
            return None
        if self.layered is not None:
            return self._llama_cpp(profile, gpus)
        if self.spec.backend == "Custom":
            each = self.held_bytes(gpus, ALONE)
            return self._fitting(profile, Take(gpus, each, self.ram_bytes, parallelism=ALONE))
        each = self.needed_on(profile, gpus, parallelism)
        share = self.share_on(profile, parallelism)
        if share is None:
            ram = self.ram_bytes + self._extended_cache_bytes(profile, gpus * each)
            return self._fitting(profile, Take(gpus, each, ram, parallelism=parallelism))
        if share <= 0:  # the system keeps all of it
            return None
        reserved = int(share * profile.memory_total)
        ram = self.ram_bytes + self._extended_cache_bytes(profile, gpus * reserved)
        take = Take(gpus, reserved, ram, share, parallelism)
        if each > reserved and not self.is_manual:
            return self._cache_short(profile, gpus, reserved, parallelism)
        if not self.is_manual and (short := self._context_short(gpus, reserved, parallelism)) is not None:
            return short
        return self._fitting(profile, replace(take, overcommitted=each > reserved))

    def _extended_cache_bytes(self, profile: Profile, vram: int) -> int:
        """RAM on a worker for what does not fit into the KV cache there; `vram`: of all its GPUs that are taken."""
        wanted = self.spec.extended_kv_cache
        if wanted is None or self.wanted.ram_bytes is not None or not extends_cache(self.spec.backend, profile.type):
            return 0
        return int(wanted.ram_ratio * vram if wanted.ram_size is None else wanted.ram_size * 2**30)

    def _fitting(self, profile: Profile, take: Take) -> Take | None:
        take = self._as_measured(take, profile.name)
        return take if take.vram_bytes <= profile.capacity else None

    def _context_short(self, gpus: int, reserved: int, parallelism: Parallelism) -> ContextShort | None:
        """Where the engine's share holds the weights, and not the cache of one sequence beside them."""
        cache = self._cache_bytes(self.context, parallelism)
        if cache is None:
            return None
        held = -(-(self.weights.weight_bytes + self.weights.lora_bytes) // (parallelism.tensor * parallelism.pipeline))
        room = max(reserved - held - ENGINE_BYTES, 0)
        if cache <= room:
            return None
        fitting = fitting_tokens(
            room, self.architecture, self._element_bytes, tensor=parallelism.tensor, pipeline=parallelism.pipeline
        )
        return ContextShort(gpus, self.context, cache, room, fitting or 0)

    def _cache_short(self, profile: Profile, gpus: int, reserved: int, parallelism: Parallelism) -> ContextShort | None:
        """Where the share, or of a packed model all of a GPU, holds what is needed beside the cache that is counted in it."""
        if self._is_packed:
            tensor, pipeline, among = parallelism.tensor, parallelism.pipeline, 1
        elif self.spec.backend == "MindIE" and self.wanted.vram_bytes is None:  # counted whole, and shared out evenly
            tensor, pipeline, among = 1, 1, parallelism.tensor * parallelism.pipeline
        else:
            return None
        cache = sequence_bytes(self.architecture, self.context, self._element_bytes, tensor=tensor, pipeline=pipeline)
        if cache is None:
            return None
        each = cache // among
        room = reserved - (self.needed_on(profile, gpus, parallelism) - each)
        fitting = fitting_tokens(
            max(room, 0) * among, self.architecture, self._element_bytes, tensor=tensor, pipeline=pipeline
        )
        return ContextShort(gpus, self.context, each, room, fitting) if room > 0 and fitting else None

    def _llama_cpp(self, profile: Profile, gpus: int) -> Take | None:
        layered = self.layered
        if layered is None:
            raise AssertionError("only of llama.cpp")
        on_gpu = self._layers_on_gpu(layered)
        if on_gpu == 0:
            return None
        each = self.held_bytes(gpus, ALONE)
        rest = 0 if on_gpu == layered.layers else layered.rest_bytes
        ram = (layered.layers - on_gpu) * layered.layer_bytes + rest + gguf.OVERHEAD_BYTES
        if self.wanted.ram_bytes is not None:
            ram = self.wanted.ram_bytes
        partial = on_gpu if on_gpu < layered.layers else None
        return self._fitting(profile, Take(gpus, each, ram, gpu_layers=partial))

    def _layers_on_gpu(self, layered: gguf.Layered) -> int:
        given = self.wanted.gpu_layers
        return layered.layers if given is None else min(given, layered.layers)

    def needed_on(self, profile: Profile, gpus: int, parallelism: Parallelism) -> int:
        """What each of so many GPUs like these must have for the model."""
        if self._is_packed:
            return self._packed_bytes(profile, parallelism)
        peak = self._measured(profile.name, gpus)
        if peak is not None and peak.vram_bytes is not None:
            return claimed(peak.vram_bytes)
        return self.held_bytes(gpus, parallelism)

    @property
    def _is_packed(self) -> bool:
        return self.takes_share and self.spec.packed and self.wanted.share is None

    def held_bytes(self, gpus: int, parallelism: Parallelism) -> int:
        """What each of so many GPUs must hold of the model."""
        if self.layered is not None and self.wanted.vram_bytes is None:
            on_gpu = self._layers_on_gpu(self.layered)
            rest = self.layered.rest_bytes if on_gpu == self.layered.layers else 0
            return -(-on_gpu // gpus) * self.layered.layer_bytes + rest + gguf.OVERHEAD_BYTES
        if self.layered is not None or self.spec.backend == "Custom":
            return -(-self.needed_bytes // gpus)
        return -(-self.needed_bytes // (parallelism.tensor * parallelism.pipeline))

    def partly(self, free: int, gpu: str) -> Take | None:
        """llama.cpp with so many layers as fit into this much of one GPU, the others in RAM; None: not even one does."""
        layered = self.layered
        if layered is None or not self.spec.cpu_offloading or self.wanted.gpu_layers is not None:
            return None
        most = min((free - gguf.OVERHEAD_BYTES) // max(layered.layer_bytes, 1), layered.layers - 1)
        for layers in range(most, 0, -1):
            take = Take(
                1,
                layers * layered.layer_bytes + gguf.OVERHEAD_BYTES,
                (layered.layers - layers) * layered.layer_bytes + layered.rest_bytes + gguf.OVERHEAD_BYTES,
                gpu_layers=layers,
            )
            take = self._as_measured(take, gpu)
            if take.vram_bytes <= free:  # it was measured to hold more than the estimate says
                return take
        return None


MOST_FILE_BYTES: Final = 2**50
"""Larger sizes are mistakes or lies. Whatever a formula makes of this one is still a size (`MOST_BYTES`)."""


def _believable(weights: ModelWeights) -> ModelWeights:
    """What nobody has is too large for every fleet as it is, and as large as can be counted with."""
    sizes = {
        name: min(size, MOST_FILE_BYTES)
        for name in ("weight_bytes", "lora_bytes", "draft_bytes", "layer_bytes", "state_bytes")
        if (size := getattr(weights, name)) is not None and size > MOST_FILE_BYTES
    }
    whole = sizes.get("weight_bytes", weights.weight_bytes)
    if weights.layer_bytes is not None and weights.layer_bytes > whole:  # a part that is larger than the whole
        sizes["layer_bytes"] = whole
    return weights.model_copy(update=sizes) if sizes else weights


def estimate_of(spec: ModelSpec, wanted: Wanted, weights: ModelWeights, peaks: PeakOf | None = None) -> Estimate:
    """`peaks`: what is claimed in place of estimates, where the operator allows it."""
    weights = _believable(weights)
    architecture = architecture_of(weights)
    if spec.categories:
        architecture = replace(architecture, category=spec.categories[0])
    own = architecture.context_length
    usual = own or DEFAULT_CONTEXT
    context = wanted.context or (usual if wanted.whole_context else min(usual, DEFAULT_CONTEXT))
    layered = None
    if spec.backend == "llama.cpp":
        layered = gguf.layered(weights, architecture, context, wanted.cache_bytes)
        needed = layered.all_bytes + gguf.OVERHEAD_BYTES
    elif spec.backend == "MindIE":
        element = wanted.cache_bytes or float(architecture.element_bytes)
        needed = mindie.estimated_bytes(
            weights.weight_bytes + weights.lora_bytes, architecture, tokens=context, element_bytes=element
        ) or claimed_bytes(weights, architecture.category)
    else:
        needed = claimed_bytes(weights, architecture.category)
    if wanted.vram_bytes is not None:
        needed = wanted.vram_bytes
    language = architecture.category in ("llm", "unknown") or (architecture.name or "") in SHARED_BY_ALL
    takes_share = spec.backend == "MindIE" or (spec.backend in ("vLLM", "SGLang") and language)
    match spec.backend:
        case "llama.cpp":
            ram = gguf.OVERHEAD_BYTES
        case "MindIE":
            ram = mindie.ram_bytes(wanted.swap_gib)
        case "Custom":
            ram = max(needed // 10, CUSTOM_RAM_BYTES)
        case _:
            ram = 0
    return Estimate(
        spec=spec,
        wanted=wanted,
        weights=weights,
        architecture=architecture,
        context=context,
        needed_bytes=needed,
        takes_share=takes_share,
        ram_bytes=ram if wanted.ram_bytes is None else wanted.ram_bytes,
        layered=layered,
        peaks=peaks or {},
    )
