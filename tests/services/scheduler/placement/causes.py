"""A fleet in which a model fits, what breaks it, and what is said to help: followed as it is written."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from schemas.ids import InstanceId, WorkerId
from schemas.models import Claim, Inventory, ModelSpec, ModelWeights
from schemas.reasons import (
    AcceleratorNotSupported,
    BackendNotAvailable,
    BeingInspected,
    ComputeCapabilityTooLow,
    ContextDoesNotFit,
    DownloaderSilent,
    DriverTooOld,
    GpuMemoryInUseByOthers,
    GpuShareNotFree,
    GpuShareTooSmall,
    GpuUnhealthy,
    InventoryIncomplete,
    LabelsDoNotMatch,
    NoGpu,
    NotEnoughDisk,
    NotEnoughGpus,
    NotEnoughRam,
    NotEnoughVram,
    PlatformNotSupported,
    Quarantined,
    Reason,
    ReasonBase,
    Suggestion,
    UnsupportedModel,
    WeightsUnknown,
    WorkerCordoned,
    WorkerDraining,
    WorkerNotReady,
)
from services.scheduler.domain.candidate import Looked, Request
from services.scheduler.domain.placement import Placed, Refused, place
from services.scheduler.domain.snapshot import Machine
from services.scheduler.domain.suggestions import OpenClaimOf, suggestions_for
from tests.services.scheduler.placement.fleets import (
    GIB,
    SOURCE,
    a_machine,
    a_spec,
    gguf,
    gpus,
    safetensors,
)

MIB = 2**20
WEIGHTS: Final = 15 * GIB
NEEDED: Final = 20 * GIB
"""15 GiB × 1.2 + 2 GiB."""
TOKEN: Final = 2 * 36 * 8 * 128 * 2
"""Bytes of KV cache: keys and values of 36 layers, 8 heads of 128, two bytes each."""
LAYER: Final = -(-(WEIGHTS * 32 // 33 + 2 * 32 * 8 * 128 * 2 * 4096) // 32)
LLAMA_NEEDED: Final = 32 * LAYER + (WEIGHTS - WEIGHTS * 32 // 33) + 256 * MIB
MINDIE_NEEDED: Final = 3 * GIB + WEIGHTS + 8192 * TOKEN + 200 * 128 * 36 * 32 * 128 * 2
"""3 GiB, the weights, the cache of 8192 tokens, and batch × block × layers × heads × head size numbers of two bytes."""
BACKENDS: Final = ("vLLM", "SGLang", "MindIE", "llama.cpp", "Custom")
NEEDED_BY: Final = {
    "vLLM": NEEDED, "SGLang": NEEDED, "MindIE": MINDIE_NEEDED, "llama.cpp": LLAMA_NEEDED, "Custom": NEEDED,
}  # fmt: skip
SHARED: Final = ("vLLM", "SGLang", "MindIE")
KIND: Final = {"vLLM": "cuda", "SGLang": "cuda", "MindIE": "cann", "llama.cpp": "cuda", "Custom": "cuda"}
SIZE: Final = {"vLLM": 80, "SGLang": 80, "MindIE": 64, "llama.cpp": 24, "Custom": 40}
SHARE: Final = {"vLLM": 0.9, "SGLang": 0.836, "MindIE": 0.9}
"""SGLang's of 80 GiB: 512 + 1.5 × 8192 + 2 × 256 + 1024/8 MiB are kept of 81920."""
SHARE_FLAG: Final = {
    "vLLM": "--gpu-memory-utilization",
    "SGLang": "--mem-fraction-static",
    "MindIE": "--npu-memory-fraction",
}
CONTEXT_FLAG: Final = {"vLLM": "--max-model-len", "SGLang": "--context-length", "MindIE": "--max-seq-len"}
TENSOR_FLAG: Final = {"vLLM": "--tensor-parallel-size", "SGLang": "--tp-size", "MindIE": "--tensor-parallel-size"}


@dataclass
class Worker:
    """One that takes the model, until something is injected."""

    name: str
    number: int
    of_all: int
    gpu: dict[str, Any]
    count: int = 2
    ram: int = 64 * GIB
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    inventory: dict[str, Any] = field(default_factory=dict[str, Any])
    held: list[Claim] = field(default_factory=list[Claim])

    @property
    def id(self) -> WorkerId:
        return WorkerId(f"w-{self.name}")

    @property
    def nearer(self) -> int:
        """Falls from worker to worker, so that the last one comes closest."""
        return self.of_all - 1 - self.number

    def machine(self) -> Machine:
        claims = [(None, self.gpu["type"], claim) for claim in self.held]
        return a_machine(
            self.name,
            gpus(self.count, **self.gpu),
            ram=self.ram,
            inventory=self.inventory,
            claims=claims,
            **self.fields,
        )


@dataclass
class Ask:
    backend: str
    strategy: str
    spec: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: ModelWeights | None = None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    looked: dict[WorkerId, Looked] = field(default_factory=dict[WorkerId, Looked])
    parameters: list[str] = field(default_factory=list[str])

    def request(self) -> Request:
        spec = a_spec(
            backend=self.backend,
            placement_strategy=self.strategy,
            **{"distributed_inference_across_workers": False, "backend_parameters": self.parameters} | self.spec,
        )
        return self.asked(spec)

    def asked(self, spec: ModelSpec) -> Request:
        fields: dict[str, Any] = {"known": self.weights, "must_look": False} | self.fields
        return Request(spec, looked=self.looked, **fields)


Inject = Callable[[Worker, Ask], tuple[ReasonBase, ...]]
Help = Callable[[Suggestion], bool]


@dataclass(frozen=True)
class Cause:
    name: str
    inject: Inject
    backends: tuple[str, ...] = BACKENDS
    helps: tuple[Help, ...] = ()
    """What must be among the suggestions."""
    closest_is_last: bool = False
    """The numbers make the last worker the closest; else the name does, and it is the first."""
    who: str = ""
    pairs: bool = False
    """May be combined with others on the same worker."""

    @property
    def is_workers_own(self) -> bool:
        """It changes nothing about the request, and so nothing on other workers."""
        worker, ask = a_fleet(1, self.backends[0])[0], an_ask(self.backends[0], "spread")
        self.inject(worker, ask)
        plain = an_ask(self.backends[0], "spread")
        plain.fields |= {name: value for name, value in ask.fields.items() if name == "crashes"}
        return ask == plain


# -- what helps -------------------------------------------------------------------------------------------------------


def action(name: str) -> Help:
    return lambda suggestion: suggestion.change.get("action") == name


def sets(**fields: Any) -> Help:
    return lambda suggestion: fields.items() <= suggestion.change.items()


def flag(flags: Mapping[str, str]) -> Help:
    """One of the backends' flags is set."""
    return lambda suggestion: any(
        parameter.startswith(f"{each}=") and f"{each}=" in suggestion.text
        for parameter in _strings(suggestion.change.get("backend_parameters"))
        for each in flags.values()
    )


def _strings(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType] - JSON


# -- causes on a worker -----------------------------------------------------------------------------------------------


def not_ready(state: str) -> Inject:
    def inject(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
        worker.fields["state"] = state
        return (WorkerNotReady(worker_id=worker.id, state=state),)

    return inject


def cordoned(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
    worker.fields["cordoned"] = True
    return (WorkerCordoned(worker_id=worker.id),)


def draining(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
    worker.fields["draining"] = True
    return (WorkerDraining(worker_id=worker.id),)


def silent(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
    worker.fields["downloader_alive"] = False
    return (DownloaderSilent(worker_id=worker.id),)


def labels(wanted: dict[str, str], has: dict[str, str]) -> Inject:
    missing = {name: value for name, value in wanted.items() if has.get(name) != value}

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.fields["labels"] = has
        ask.spec["worker_selector"] = wanted
        return (LabelsDoNotMatch(worker_id=worker.id, wanted=missing),)

    return inject


def no_ram_told(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
    worker.ram = 0
    return (InventoryIncomplete(worker_id=worker.id, field="memory_total"),)


def no_vram_told(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
    worker.inventory["gpus"] = (
        *gpus(1, **worker.gpu),
        *(gpu.model_copy(update={"index": 1}) for gpu in gpus(1, **worker.gpu | {"size": 0})),
    )
    return (InventoryIncomplete(worker_id=worker.id, field="memory_total", gpu_index=1),)


def not_installed(backends: dict[str, str | None]) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.inventory |= {"runtime": "process", "backends": backends}
        return (BackendNotAvailable(worker_id=worker.id, backend=ask.backend, available=tuple(sorted(backends))),)

    return inject


def platform(os: str, arch: str, told: str) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.inventory |= {"os": os, "arch": arch}
        return (
            PlatformNotSupported(
                worker_id=worker.id, backend=ask.backend, platform=told, supported=("linux/amd64", "linux/arm64")
            ),
        )

    return inject


def no_gpu(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
    worker.count = 0
    return (NoGpu(worker_id=worker.id),)


SUPPORTED: Final = {
    "vLLM": ("cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "hggc"),
    "SGLang": ("cuda", "rocm", "cann", "dtk", "musa", "maca", "hggc"),
    "MindIE": ("cann",),
    "llama.cpp": ("cuda", "rocm", "musa", "cann"),
}


def other_kind(kind: str, version: str | None = None) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.gpu["type"] = kind
        ask.spec["backend_version"] = version
        return (
            AcceleratorNotSupported(
                worker_id=worker.id,
                backend=ask.backend,
                version=version,
                accelerators=(kind,),
                supported=SUPPORTED[ask.backend],
            ),
        )

    return inject


def driver(kind: str, has: str, needed: Mapping[str, str] | str) -> Inject:
    """`needed`: by backend, or of all."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.gpu |= {"type": kind, "runtime_version": has}
        version = needed if isinstance(needed, str) else needed[ask.backend]
        return (
            DriverTooOld(
                worker_id=worker.id, gpu_index=0, runtime_version=has, needed_version=version, backend=ask.backend
            ),
        )

    return inject


def architecture(has: str, needed: str) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.gpu["compute_capability"] = has
        return (
            ComputeCapabilityTooLow(
                worker_id=worker.id, gpu_index=0, compute_capability=has, needed=needed, backend=ask.backend
            ),
        )

    return inject


def quarantine(crashes: int) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        ask.fields.setdefault("crashes", {})[worker.id] = crashes
        return (Quarantined(worker_id=worker.id, crashes=crashes),)

    return inject


def files(reason: Reason) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        ask.fields["must_look"] = True
        ask.looked[worker.id] = Looked(None, (reason,))
        return (reason.model_copy(update={"worker_id": worker.id}),)

    return inject


def not_looked_at(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
    ask.fields["must_look"] = True
    return (BeingInspected(worker_id=worker.id),)


def weightless(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
    ask.weights = safetensors(0)
    return (WeightsUnknown(worker_id=worker.id, path=SOURCE.path),)


def disk(free: int) -> Inject:
    def inject(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
        left = free - worker.nearer
        worker.inventory["disk_free"] = left
        return (NotEnoughDisk(worker_id=worker.id, needed_bytes=WEIGHTS, free_bytes=left),)

    return inject


def unreadable(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
    ask.weights = safetensors(WEIGHTS)
    ask.weights = ask.weights.model_copy(update={"layers": 32, "config": {}})
    return (UnsupportedModel(worker_id=worker.id, detail="llama.cpp reads GGUF files, and these are safetensors"),)


def too_few_gpus(wanted: int, has: int) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count = has
        ask.parameters = [f"{TENSOR_FLAG[ask.backend]}={wanted}"]
        return (NotEnoughGpus(worker_id=worker.id, needed=wanted, available=has),)

    return inject


def broken(problem: str, count: int) -> Inject:
    def inject(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count = count
        worker.gpu["unhealthy"] = problem
        return (GpuUnhealthy(worker_id=worker.id, gpu_indexes=tuple(range(count)), problem=problem),)

    return inject


def share_of(ask: Ask) -> float:
    return SHARE[ask.backend]


def share_not_free(gib: int, of: int = 2) -> Inject:
    """So many GiB, and one more on each farther worker, are promised on each GPU."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count = of
        held = (gib + worker.nearer) * GIB
        worker.held.append(Claim(vram=dict.fromkeys(range(of), held)))
        total = SIZE[ask.backend] * GIB
        free = total - held
        found: list[ReasonBase] = [
            GpuShareNotFree(
                worker_id=worker.id,
                share=share_of(ask),
                gpus_needed=1,
                gpus_free=0,
                freest_share=math.floor(free / total * 1000) / 1000,
                free_bytes=free,
                total_bytes=total,
            )
        ]
        needed = NEEDED_BY[ask.backend]
        if free < needed:
            found.append(
                NotEnoughVram(
                    worker_id=worker.id, needed_bytes=needed, largest_free_bytes=free, largest_total_bytes=total
                )
            )
        return tuple(found)

    return inject


def held_by_others(gib: int) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        used = (gib + worker.nearer) * GIB
        worker.gpu["memory_used_by_others"] = used
        total = SIZE[ask.backend] * GIB
        free = max(total - used, 0)
        needed = NEEDED_BY[ask.backend]
        found: list[ReasonBase] = []
        if ask.backend in SHARED:
            found.append(
                GpuShareNotFree(
                    worker_id=worker.id,
                    share=share_of(ask),
                    gpus_needed=1,
                    gpus_free=0,
                    freest_share=math.floor(free / total * 1000) / 1000,
                    free_bytes=free,
                    total_bytes=total,
                )
            )
        if free < needed:
            found.append(
                NotEnoughVram(
                    worker_id=worker.id, needed_bytes=needed, largest_free_bytes=free, largest_total_bytes=total
                )
            )
        found.append(GpuMemoryInUseByOthers(worker_id=worker.id, gpu_index=0, used_bytes=used, total_bytes=total))
        return tuple(found)

    return inject


def vram_promised(gib: float) -> Inject:
    """llama.cpp and custom images take no share: what they need must be free."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        total = SIZE[ask.backend] * GIB
        free = int(gib * GIB) - worker.nearer * MIB
        worker.held.append(Claim(vram=dict.fromkeys(range(worker.count), total - free)))
        needed = NEEDED_BY[ask.backend]
        return (
            NotEnoughVram(worker_id=worker.id, needed_bytes=needed, largest_free_bytes=free, largest_total_bytes=total),
        )

    return inject


def gpus_too_small(gib: int) -> Inject:
    """Even empty, and there is only one."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        total = gib * GIB - worker.nearer * MIB
        worker.count, worker.gpu["size"] = 1, total
        needed = NEEDED_BY[ask.backend]
        return (
            NotEnoughVram(
                worker_id=worker.id, needed_bytes=needed, largest_free_bytes=total, largest_total_bytes=total
            ),
        )

    return inject


def share_too_small(share: float) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count = 1
        ask.parameters = [f"{SHARE_FLAG[ask.backend]}={share}"]
        total = SIZE[ask.backend] * GIB
        return (
            GpuShareTooSmall(
                worker_id=worker.id,
                share=share,
                share_bytes=int(share * total),
                needed_bytes=NEEDED_BY[ask.backend],
                total_bytes=total,
            ),
        )

    return inject


def share_beyond_the_reserve(reserved: int) -> Inject:
    """The user asks for 95 %, and the system keeps more than the rest."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.inventory["vram_reserved"] = reserved * GIB
        ask.parameters = [f"{SHARE_FLAG[ask.backend]} 0.95"]
        total = SIZE[ask.backend] * GIB
        free = total - reserved * GIB
        return (
            GpuShareNotFree(
                worker_id=worker.id,
                share=0.95,
                gpus_needed=1,
                gpus_free=0,
                freest_share=math.floor(free / total * 1000) / 1000,
                free_bytes=free,
                total_bytes=total,
                reserved_bytes=reserved * GIB,
            ),
        )

    return inject


def context(tokens: int) -> Inject:
    """Beside 15 GiB of weights and 1 GiB for the engine, half a GPU leaves the rest of it for the cache."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count = 1
        ask.parameters = [f"{SHARE_FLAG[ask.backend]}=0.5", f"{CONTEXT_FLAG[ask.backend]}={tokens}"]
        room = SIZE[ask.backend] * GIB // 2 - WEIGHTS - GIB
        return (
            ContextDoesNotFit(
                worker_id=worker.id,
                context_tokens=tokens,
                fitting_tokens=room // TOKEN // 16 * 16,
                cache_bytes=tokens * TOKEN,
                room_bytes=room,
            ),
        )

    return inject


def context_of_mindie(tokens: int, share: float) -> Inject:
    """Its estimate has the cache of the whole context in it, and that is what is too large."""

    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count = 1
        ask.parameters = [f"--npu-memory-fraction={share}", f"--max-seq-len={tokens}"]
        room = int(share * SIZE["MindIE"] * GIB) - (MINDIE_NEEDED - 8192 * TOKEN)
        return (
            ContextDoesNotFit(
                worker_id=worker.id,
                context_tokens=tokens,
                fitting_tokens=room // TOKEN // 16 * 16,
                cache_bytes=tokens * TOKEN,
                room_bytes=room,
            ),
        )

    return inject


def ram(gib: float) -> Inject:
    def inject(worker: Worker, ask: Ask) -> tuple[ReasonBase, ...]:
        needed = {"MindIE": 512 * MIB, "Custom": 2 * GIB, "llama.cpp": 256 * MIB}[ask.backend]
        free = int(gib * GIB) - worker.nearer * MIB
        worker.ram = 8 * GIB
        worker.held.append(Claim(ram=8 * GIB - free))
        return (NotEnoughRam(worker_id=worker.id, needed_bytes=needed, free_bytes=free, total_bytes=8 * GIB),)

    return inject


def ram_alone(gib: int) -> Inject:
    """Wholly in RAM, where there is no GPU."""

    def inject(worker: Worker, _ask: Ask) -> tuple[ReasonBase, ...]:
        worker.count, worker.ram = 0, gib * GIB - worker.nearer * MIB
        return (
            NotEnoughRam(worker_id=worker.id, needed_bytes=LLAMA_NEEDED, free_bytes=worker.ram, total_bytes=worker.ram),
        )

    return inject


def a_fleet(count: int, backend: str) -> list[Worker]:
    gpu: dict[str, Any] = {
        "size": SIZE[backend] * GIB,
        "type": KIND[backend],
        "compute_capability": "9.0" if KIND[backend] == "cuda" else None,
        "runtime_version": {"cuda": "12.8", "cann": "8.3"}[KIND[backend]],
    }
    return [Worker(f"{chr(97 + number)}{number}", number, count, dict(gpu)) for number in range(count)]


def an_ask(backend: str, strategy: str) -> Ask:
    return Ask(backend, strategy, weights=gguf(WEIGHTS) if backend == "llama.cpp" else safetensors(WEIGHTS))


# -- following what is suggested --------------------------------------------------------------------------------------


def patched(document: Any, patch: Any) -> Any:
    """RFC 7396, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    target: dict[str, Any] = dict(document) if isinstance(document, dict) else {}  # pyright: ignore[reportUnknownArgumentType] - JSON
    for name, value in patch.items():  # pyright: ignore[reportUnknownVariableType] - JSON
        if value is None:
            target.pop(name, None)
        else:
            target[name] = patched(target.get(name), value)
    return target


def follow(
    suggestion: Suggestion, ask: Ask, machines: Sequence[Machine], held: Mapping[str, tuple[WorkerId, str, Claim]]
) -> tuple[Request, list[Machine]]:
    """The request and the fleet after somebody has done what was suggested."""
    change = suggestion.change
    request = ask.request()
    if change.get("action") == "together":
        left, after = dict(held), list(machines)
        for part in cast("list[dict[str, object]]", change["changes"]):
            then, after = follow(Suggestion(change=part, text=""), ask, after, left)
            left.pop(str(part.get("instance")), None)
            request = then if "action" not in part else request
            if part.get("action") == "clear_quarantine":
                request.crashes = then.crashes
        return request, after
    if "action" not in change:
        spec = ModelSpec.model_validate(patched(request.spec.model_dump(mode="json"), change))
        return ask.asked(spec), list(machines)
    if change["action"] == "clear_quarantine":
        named = next(machine for machine in machines if machine.name == change["worker"])
        request.crashes = {worker: crashes for worker, crashes in request.crashes.items() if worker != named.id}
        return request, list(machines)
    if change["action"] == "delete_instance":
        worker_id, kind, claim = held[str(change["instance"])]
        named = next(machine for machine in machines if machine.id == worker_id)
        named.release(None, kind, claim)
        return request, list(machines)
    after: list[Machine] = []
    for machine in machines:
        if machine.name != change["worker"]:
            after.append(machine)
            continue
        inventory = machine.inventory.model_dump()
        fields: dict[str, Any] = {
            "state": machine.state, "labels": dict(machine.labels), "cordoned": machine.cordoned,
            "draining": machine.draining, "downloader_alive": machine.downloader_alive,
        }  # fmt: skip
        match change["action"]:
            case "label_worker":
                fields["labels"] |= change["labels"]
            case "uncordon_worker":
                fields["cordoned"] = False
            case "free_gpu_memory":
                for gpu in inventory["gpus"]:
                    gpu["memory_used_by_others"] = 0
            case unknown:
                raise AssertionError(unknown)
        claims = [(None, kind, claim) for worker_id, kind, claim in held.values() if worker_id == machine.id]
        after.append(a_machine(machine.name, inventory=inventory, claims=claims, **fields))
        assert after[-1].inventory == Inventory.model_validate(inventory)
    return request, after


def check_suggestions(ask: Ask, workers: Sequence[Worker], refused: Refused) -> tuple[Suggestion, ...]:
    """Every one of them helps."""
    machines = [worker.machine() for worker in workers]
    held = {
        f"{worker.name}-{number}": (worker.id, str(worker.gpu["type"]), claim)
        for worker in workers
        for number, claim in enumerate(worker.held)
    }

    def claims_on(worker_id: WorkerId) -> list[OpenClaimOf]:
        return [
            OpenClaimOf(InstanceId(f"i-{name}"), name, where, kind, claim)
            for name, (where, kind, claim) in held.items()
            if where == worker_id
        ]

    suggestions = suggestions_for(ask.request(), machines, refused, claims_on)
    for suggestion in suggestions:
        request, after = follow(suggestion, ask, [worker.machine() for worker in workers], held)
        assert isinstance(place(request, after), Placed), suggestion
    assert len({suggestion.text for suggestion in suggestions}) == len(suggestions)
    return suggestions
