"""Placement alone, on one core: decisions by the index, and a whole refusal.

The mix is the field's (facts/performance.md §3.3): of 10,000 instances 55 % take a part of a GPU, 20 % a whole one, 13 % two,
8 % four, 4 % eight; seed 7; workers with 8 GPUs of 80 GB.
"""

import random
import time
from typing import Final

from bench.figures import Figure
from schemas.ids import ModelId, WorkerId
from schemas.models import Claim, Gpu, Inventory, ModelSpec, ModelWeights
from schemas.sources import LocalPath
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.index import GpuIndex
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.placement import Refused, place
from services.scheduler.domain.snapshot import machine_of
from services.scheduler.domain.suggestions import suggestions_for

GIB: Final = 2**30
MODELS: Final = 200
CONFIG: Final = {
    "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288, "vocab_size": 151936,
    "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
}  # fmt: skip
ROUNDS: Final = 5


async def run(*, quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    for workers, instances, wanted in ((1000, 10_000, 20_000), (10_000, 20_000, 10_000)):
        for strategy in ("spread", "binpack"):
            if quick and workers > 1000:
                continue
            rates = sorted(_decide(workers, instances, strategy) for _ in range(1 if quick else ROUNDS))
            rate, placed = rates[len(rates) // 2]
            figures.append(
                Figure(
                    f"decisions by the index, {workers:,} × 8 GPUs, {strategy}",
                    rate,
                    "decisions/s",
                    f"{instances:,} requests, {placed:,} placed, the others go to `place`; processor time, median of {len(rates)}",
                    at_least=wanted,
                    peer="1.7/s (find_candidate, 1,000 workers with 1,000 instances)" if workers == 1000 else "",
                )
            )
    refusals = sorted(_refuse(1000) for _ in range(3 if quick else 15))
    bare, told = refusals[len(refusals) // 2]
    figures.append(
        Figure(
            "a refusal with all reasons of 1,000 workers",
            bare * 1e3,
            "ms",
            "one GPU, several, and groups of workers",
            at_most=20,
        )
    )
    figures.append(Figure("… with suggestions that were tried", told * 1e3, "ms", "as it is stated"))
    return figures


def a_fleet(workers: int) -> Machines:
    machines = Machines()
    gpus = tuple(
        Gpu(index=index, vendor="nvidia", type="cuda", name="H100", memory_total=80 * GIB, compute_capability="9.0")
        for index in range(8)
    )
    inventory = Inventory(os="linux", arch="amd64", cpu_count=64, memory_total=1024 * GIB, gpus=gpus, runtime="docker")
    for number in range(workers):
        machines.put(machine_of(WorkerId(f"w-{number:05}"), f"gpu-{number:05}", "10.0.0.1", "ready", inventory))
    return machines


def a_request(dice: random.Random, number: int, strategy: str) -> Request:
    roll = dice.random()
    parameters: tuple[str, ...] = ()
    size = 30
    if roll < 0.55:
        parameters, size = (f"--gpu-memory-utilization={dice.randint(10, 50) / 100}",), dice.randint(1, 3)
    elif roll >= 0.75:
        gpus = 2 if roll < 0.88 else 4 if roll < 0.96 else 8
        parameters, size = (f"--tensor-parallel-size={gpus}",), 30 * gpus
    spec = ModelSpec.model_validate(
        {
            "name": f"m-{number}",
            "source": LocalPath(path="/m"),
            "backend": "vLLM",
            "backend_parameters": parameters,
            "placement_strategy": strategy,
        }
    )
    weights = ModelWeights.model_validate({"format": "safetensors", "weight_bytes": size * GIB, "config": CONFIG})
    return Request(spec, model_id=ModelId(f"m-{number}"), known=weights, must_look=False)


def _decide(workers: int, instances: int, strategy: str) -> tuple[float, int]:
    """Decisions a second of processor time, and how many found a place."""
    dice = random.Random(7)
    machines = a_fleet(workers)
    index = GpuIndex(machines)
    requests = [a_request(dice, number, strategy) for number in range(MODELS)]
    for request in requests:
        index.place(request)
    asked = [dice.choice(requests) for _ in range(instances)]
    placed = 0
    begun = time.process_time()
    for request in asked:
        answer = index.place(request)
        if answer is not None and request.model_id is not None:
            placed += 1
            for each in answer.places:
                machines.promise(each.worker_id, request.model_id, each.type, each.claim)
    return instances / (time.process_time() - begun), placed


def _refuse(workers: int) -> tuple[float, float]:
    machines = a_fleet(workers)
    for machine in machines:
        machine.promise(None, "cuda", Claim(vram=dict.fromkeys(range(8), 30 * GIB)))
    request = a_request(random.Random(1), 0, "spread")
    whole = Request(
        request.spec.model_copy(update={"backend_parameters": ()}),
        model_id=ModelId("m-0"),
        known=request.known,
        must_look=False,
    )
    begun = time.process_time()
    answer = place(whole, machines.in_order())
    bare = time.process_time() - begun
    assert isinstance(answer, Refused)
    suggestions_for(whole, machines.in_order(), answer)
    return bare, time.process_time() - begun
