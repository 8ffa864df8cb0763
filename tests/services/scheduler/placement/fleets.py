"""Fleets and models for tests of placement; and random ones, from one seed."""

import random
from collections.abc import Mapping
from typing import Any, Final

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim, Gpu, GpuNetwork, Inventory, ModelSpec, ModelWeights
from schemas.sources import LocalPath
from services.scheduler.domain.candidate import Looked, Request
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.peaks import CPU, Peak, Where
from services.scheduler.domain.placement import Placed, Refused, place
from services.scheduler.domain.snapshot import Machine, machine_of

GIB: Final = 2**30
SOURCE: Final = LocalPath(path="/models/m")
QWEN3_8B: Final[dict[str, Any]] = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
"""Its published config.json, as far as placement reads it."""


def safetensors(size: int, config: Mapping[str, Any] = QWEN3_8B, **fields: Any) -> ModelWeights:
    return ModelWeights.model_validate({"format": "safetensors", "weight_bytes": size, "config": config} | fields)


def gguf(size: int, **fields: Any) -> ModelWeights:
    numbers = {"context_length": 4096, "layers": 32, "kv_heads": 8, "head_size": 128}
    return ModelWeights.model_validate({"format": "gguf", "weight_bytes": size} | numbers | fields)


def a_gpu(index: int = 0, size: int = 80 * GIB, **fields: Any) -> Gpu:
    name = "Ascend910B2" if fields.get("type") == "cann" else "a GPU"
    return Gpu.model_validate(
        {"index": index, "vendor": "nvidia", "type": "cuda", "name": name, "memory_total": size} | fields
    )


def gpus(count: int, size: int = 80 * GIB, **fields: Any) -> tuple[Gpu, ...]:
    return tuple(a_gpu(index, size, **fields) for index in range(count))


def a_machine(
    name: str = "w1",
    of: tuple[Gpu, ...] = (),
    *,
    ram: int = 1024 * GIB,
    state: str = "ready",
    inventory: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Machine:
    machine = Inventory.model_validate(
        {"os": "linux", "arch": "amd64", "cpu_count": 64, "memory_total": ram, "gpus": of, "runtime": "docker"}
        | dict(inventory or {})
    )
    return machine_of(WorkerId(f"w-{name}"), name, "10.0.0.1", state, machine, **fields)


def a_spec(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "source": SOURCE, "backend": "vLLM"} | fields)


def a_request(
    spec: ModelSpec | None = None,
    weights: ModelWeights | None = None,
    *,
    looked: Mapping[str, ModelWeights] | None = None,
    distributed: bool | None = None,
    **fields: Any,
) -> Request:
    """The files are where they must be, and the same everywhere but on the workers in `looked`."""
    given: dict[str, Any] = {"must_look": False, "model_id": ModelId("m-m")} | fields
    spec = spec or a_spec()
    if distributed is not None:
        spec = spec.model_copy(update={"distributed_inference_across_workers": distributed})
    found = {WorkerId(f"w-{name}"): Looked(each, ()) for name, each in (looked or {}).items()}
    return Request(spec, known=weights or safetensors(15 * GIB), looked=found, **given)


def placed(request: Request, *machines: Machine) -> Placed:
    answer = place(request, machines)
    assert isinstance(answer, Placed), answer
    return answer


def refused(request: Request, *machines: Machine) -> Refused:
    answer = place(request, machines)
    assert isinstance(answer, Refused), answer
    return answer


# -- random ones ------------------------------------------------------------------------------------------------------

KINDS: Final = (
    ("cuda", "nvidia", 24),
    ("cuda", "nvidia", 48),
    ("cuda", "nvidia", 80),
    ("cann", "ascend", 64),
    ("rocm", "amd", 192),
    ("musa", "mthreads", 48),
)


MAKES: Final = ("a GPU (910B)", "a GPU (910B)", "another GPU (910B)")
"""What was measured is known by the name of the GPUs. Ascend's have images by their name."""


def random_peaks(dice: random.Random, size: int) -> dict[Where, Peak]:
    """Of a model that weighs so much: above and below what it is estimated to take, here and there."""
    found: dict[Where, Peak] = {}
    for gpu, gpus in [(CPU, 0), *((make, gpus) for make in sorted(set(MAKES)) for gpus in (1, 2, 3, 4, 8))]:
        if dice.random() < 0.6:
            where = Where(gpu, gpus, gpu_layers=dice.choice([None, None, None, 20]) if gpus else None)
            vram = int(size * dice.uniform(0.2, 2.0) / gpus) if gpus and dice.random() < 0.9 else None
            found[where] = Peak(1, where, vram, dice.choice([None, GIB // 2, 3 * GIB, int(size * 1.1)]))
    return found


def random_machine(dice: random.Random, number: int) -> Machine:
    pools = dice.choices([0, 1, 2], [1, 12, 2])[0]
    of: list[Gpu] = []
    for kind, vendor, size in dice.sample(KINDS, pools):
        if any(gpu.type == kind for gpu in of):
            continue
        islands = dice.random() < 0.2
        make = dice.choice(MAKES)
        for index in range(dice.choice([1, 2, 4, 8])):
            other = dice.random() < 0.03
            of.append(
                Gpu(
                    index=index,
                    vendor=vendor,
                    type=kind,
                    name=dice.choice(MAKES) if dice.random() < 0.01 else make,
                    memory_total=0 if dice.random() < 0.003 else (size // 2 if other else size) * GIB,
                    memory_used_by_others=dice.choice([0, 0, 0, 0, 1, 20]) * GIB,
                    compute_capability=dice.choice(["6.1", "8.0", "9.0", "9.0", "9.0"]) if kind == "cuda" else None,
                    runtime_version=dice.choice([None, "12.8", "12.8", "12.2"]) if kind == "cuda" else None,
                    island=index // 4 if islands else None,
                    unhealthy="ECC" if dice.random() < 0.02 else None,
                    network=GpuNetwork(up=dice.random() < 0.9) if kind == "cann" else None,
                )
            )
    inventory = Inventory(
        os="linux",
        arch=dice.choice(["amd64", "amd64", "arm64"]),
        cpu_count=64,
        memory_total=dice.choice([8, 64, 512]) * GIB,
        memory_reserved=dice.choice([0, 2]) * GIB,
        vram_reserved=dice.choice([0, 0, 0, 1, 16]) * GIB,
        gpus=tuple(of),
        runtime="docker",
    )
    name = dice.choice("abcdefgh") + str(number)
    return machine_of(
        WorkerId(f"w-{number}"),
        name,
        "10.0.0.1",
        dice.choice(["ready"] * 12 + ["unreachable"]),
        inventory,
        labels=dice.choice([{}, {"rack": "1"}]),
        cordoned=dice.random() < 0.04,
        downloader_alive=dice.random() < 0.97,
    )


def random_fleet(dice: random.Random, most: int = 9) -> Machines:
    machines = Machines()
    for number in range(dice.randint(1, most)):
        machines.put(random_machine(dice, number))
    return machines


def random_request(dice: random.Random, machines: Machines, model_id: ModelId) -> Request:
    backend = dice.choice(["vLLM", "vLLM", "vLLM", "SGLang", "MindIE", "llama.cpp", "Custom"])
    parameters: list[str] = []
    if dice.random() < 0.3 and backend in ("vLLM", "SGLang", "MindIE"):
        flag = "--tp-size" if backend == "SGLang" else "--tensor-parallel-size"
        parameters.append(f"{flag}={dice.choice([1, 2, 4, 8, 3])}")
    if dice.random() < 0.4 and backend == "vLLM":
        parameters.append(f"--gpu-memory-utilization={dice.choice([0.2, 0.3, 0.5, 0.95])}")
    selector = None
    if dice.random() < 0.15 and not any("-size" in parameter for parameter in parameters):
        selector = {"gpus_per_replica": dice.choice([1, 2, 3, 4, 6])}
    size = dice.choice([1, 7, 15, 30, 70, 140]) * GIB
    weights = gguf(size) if backend == "llama.cpp" else safetensors(size)
    spec = a_spec(
        backend=backend,
        backend_parameters=parameters,
        gpu_selector=selector,
        placement_strategy=dice.choice(["spread", "binpack"]),
        worker_selector=dice.choice([{}, {}, {}, {"rack": "1"}]),
        packed=backend == "vLLM" and dice.random() < 0.1,
        cpu_offloading=backend in ("llama.cpp", "Custom") and dice.random() < 0.3,
        distributed_inference_across_workers=dice.random() < 0.5,
        categories=dice.choice([(), (), ("embedding",)]),
        claim_override={"vram": size} if dice.random() < 0.05 else None,
    )
    ids = [machine.id for machine in machines]
    return Request(
        spec,
        model_id=model_id,
        known=weights,
        must_look=False,
        files_on=frozenset(dice.sample(ids, dice.randint(0, len(ids)))) if dice.random() < 0.3 else frozenset(),
        crashes={dice.choice(ids): 5} if dice.random() < 0.05 else {},
        peaks=random_peaks(dice, size) if dice.random() < 0.4 else {},
    )


def random_claim(dice: random.Random, machine: Machine) -> tuple[str | None, Claim]:
    if not machine.pools:
        return None, Claim(ram=GIB)
    pool = dice.choice(machine.pools)
    taken = dice.sample(pool.gpus, dice.randint(1, len(pool.gpus)))
    return pool.type, Claim(
        ram=dice.choice([0, 1]) * GIB,
        vram={gpu.index: int(gpu.free * dice.choice([0.1, 0.3, 0.9, 1])) for gpu in taken},
    )


def random_cluster(dice: random.Random) -> tuple[Machines, Request]:
    """Workers that are alike, and a model that is larger than each."""
    size, count = dice.choice([24, 64]) * GIB, dice.choice([1, 2, 3, 4])
    kind = dice.choice(["cuda", "cann", "rocm"])
    machines = Machines()
    for number in range(dice.randint(2, 6)):
        up = GpuNetwork(up=dice.random() < 0.9) if kind == "cann" else None
        machines.put(a_machine(f"w{number}", gpus(count, size, type=kind, network=up)))
    backend = dice.choice(["vLLM", "SGLang", "MindIE", "Custom"])
    parameters = dice.choice([[], [], ["--tensor-parallel-size=4"], ["--tensor-parallel-size=8"]])
    spec = a_spec(backend=backend, backend_parameters=[] if backend == "Custom" else parameters)
    return machines, a_request(spec, safetensors(int(dice.uniform(0.6, 2.5) * count * size)))
