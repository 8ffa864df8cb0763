"""Instances on several workers, in a share of the worlds: machines that can be members, the engines' own rendezvous, and
what must hold of a gang as of one.

A gang's engines are one program: the leader answers once all members have joined it, and breaks when it loses one.
"""

import random
from collections.abc import Iterable
from typing import Final

from schemas.facts import InstanceDownloading, InstanceRunning, InstanceStarting
from schemas.facts.instance import InstanceFact
from schemas.ids import InstanceId, WorkerId
from schemas.models import Gpu, Inventory, ModelSpec, ModelWeights
from schemas.sources import LocalPath
from services.agent.domain.runtime import EngineId
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.instance import placement_of
from services.scheduler.domain.rollout import revision_of
from tests.simulation.invariants import OUTLIVES_SECONDS, Broken, Claims, Invariant, Ledger, Life, promised
from tests.simulation.worker import Engine, Machine

GIB: Final = 2**30
SHARE: Final = 0.3
"""Of all worlds, those that have machines for gangs."""
VLLM: Final = "vLLM"
GPU_BYTES: Final = 24 * GIB
SIZES: Final = {"/models/e": 8 * GIB, "/models/f": 28 * GIB, "/models/g": 44 * GIB}
"""They take one GPU, two and three, on as many workers unless one has as many."""
GPUS: Final = {"/models/e": 1, "/models/f": 2, "/models/g": 3}
CONFIG: Final[dict[str, str | int | list[str]]] = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 4096,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
PLACED: Final = frozenset({"scheduled", "downloading", "starting", "running", "unreachable"})


def has_gangs(seed: int) -> bool:
    """Drawn with dice of their own: the other worlds' histories are what they are without gangs."""
    return random.Random(f"gangs {seed}").random() < SHARE


def a_member(dice: random.Random) -> Inventory:
    gpus = tuple(
        Gpu(index=index, vendor="nvidia", type="cuda", name="A GPU", memory_total=GPU_BYTES)
        for index in range(dice.choice((1, 1, 1, 2)))
    )
    return Inventory(os="linux", arch="amd64", cpu_count=8, memory_total=64 * GIB, gpus=gpus, backends={VLLM: "0.11"})


def paths(dice: random.Random) -> dict[str, int]:
    return {path: size for path, size in SIZES.items() if dice.random() < 0.95}


def weights(path: str, size: int) -> ModelWeights:
    return ModelWeights.model_validate(
        {"format": "safetensors", "weight_bytes": size, "files": (path,), "config": CONFIG}
    )


def a_spec(dice: random.Random, name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        replicas=dice.choice((1, 1, 1, 2)),
        source=LocalPath(path=dice.choice(("/models/e", "/models/f", "/models/f", "/models/f", "/models/g"))),
        backend=VLLM,
        restart_on_error=dice.random() < 0.85,
        start_timeout_seconds=dice.choice((15.0, 25.0)),
        placement_strategy=dice.choice(("spread", "binpack")),
    )


# -- the engines ----------------------------------------------------------------------------------------------------------


def join(leader: Engine, machines: dict[WorkerId, Machine]) -> bool:
    """Have all members started? Then they are what the leader depends on from now on."""
    found = [machines[worker_id].engines.get(leader.id) for worker_id in leader.members[1:]]
    peers = tuple(peer for peer in found if peer is not None and peer.serves)
    if len(peers) < len(found):
        return False
    leader.peers = peers
    return True


def break_apart(machines: dict[WorkerId, Machine], dice: random.Random) -> None:
    """A leader that has lost a member ends, or lives and does not answer any more."""
    for machine in machines.values():
        for engine in list(machine.engines.values()):
            if not engine.peers or engine.ends_at is not None or engine.deaf:
                continue
            there = (machines[worker_id].engines.get(engine.id) for worker_id in engine.members[1:])
            if any(now is not before for now, before in zip(there, engine.peers, strict=True)):
                if dice.random() < 0.5:
                    machine.crash(engine.id, 1)
                else:
                    engine.deaf = True


# -- what must hold -------------------------------------------------------------------------------------------------------


def check_fact(fact: InstanceFact, life: Life, fleet: Fleet, machines: dict[WorkerId, Machine]) -> None:
    """Before it is folded into the fleet."""
    if len(life.workers) == 1 or any(machines[worker_id].has_lied for worker_id in life.workers):
        return
    match fact:
        case InstanceRunning(worker_id=worker_id) if worker_id != life.workers[0]:
            raise Broken(
                Invariant.GANGS, f"{fact.instance_id} is said to answer on {worker_id}, which does not lead it"
            )
        case InstanceDownloading() | InstanceStarting() if life.state == "scheduled" and (
            missing := [w for w in life.workers if EngineId(fact.instance_id, life.attempt) not in machines[w].accepted]
        ):
            raise Broken(
                Invariant.GANGS, f"{fact.type} of {fact.instance_id}, which {', '.join(missing)} never took up"
            )
        case InstanceStarting():
            placement = placement_of(fleet.instances[fact.instance_id].state)
            for member in placement.members if placement is not None else ():
                if missing := [each for each in member.file_ids if fleet.files[each].state != "ready"]:
                    raise Broken(
                        Invariant.GANGS, f"{fact.instance_id} starts, and {member.worker_id} does not have {missing}"
                    )
        case _:
            pass


def check_claims(instance_id: InstanceId, life: Life, ledger: Ledger) -> None:
    """All or none: as long as an attempt is not said to have ended, each of its members has its memory."""
    if life.state not in PLACED:
        return
    held = {worker_id for name, attempt, worker_id in ledger.claims if (name, attempt) == (instance_id, life.attempt)}
    if held != set(life.workers):
        raise Broken(
            Invariant.GANGS,
            f"{instance_id} is {life.state} on {', '.join(life.workers)}, and holds memory on {', '.join(sorted(held))}",
        )


def check_lost(ledger: Ledger) -> None:
    """Call when a scheduler has nothing left to say: one member that is not heard is the gang not heard."""
    for instance_id, life in ledger.lives.items():
        if life.state not in PLACED or life.state == "unreachable":
            continue
        lost = [worker_id for worker_id in life.workers if ledger.worker_states.get(worker_id) in (None, "unreachable")]
        if lost:
            raise Broken(Invariant.GANGS, f"{instance_id} is {life.state}, and {', '.join(lost)} can't be heard")


def check_engines(ledger: Ledger, machines: Iterable[Machine], decides_since: float | None) -> None:
    """No member runs on when its attempt has ended. `decides_since`: None while nobody has decided to the end."""
    for machine in machines:
        link = machine.links["agent"]
        there = machine.agent is not None and link.up and not link.rough and decides_since is not None
        for engine in machine.engines.values():
            life = ledger.lives.get(engine.id.instance_id)
            stays = life is not None and (life.state in PLACED or bool(life.drains))
            goes_on = stays and life is not None and life.attempt == engine.id.attempt
            if not engine.is_member or goes_on or not there or machine.has_lied or engine.disowned:
                engine.over_since = None
            elif engine.over_since is None:
                engine.over_since = ledger.now
            elif ledger.now - max(engine.over_since, decides_since or 0.0) > OUTLIVES_SECONDS:
                raise Broken(
                    Invariant.GANGS,
                    f"attempt {engine.id.attempt} of {engine.id.instance_id} ended, and its member on {machine.id} runs on",
                )


def check_freed(ledger: Ledger, machines: dict[WorkerId, Machine]) -> None:
    """At the end of all faults: what an attempt that has ended claims, it claims because its engine is still there."""
    for instance_id, attempt, worker_id in ledger.claims:
        life = ledger.lives.get(instance_id)
        stays = life is not None and (life.state in PLACED or bool(life.drains))
        goes_on = stays and life is not None and life.attempt == attempt
        recent = life is not None and ledger.now - life.since <= OUTLIVES_SECONDS
        if goes_on or recent or EngineId(instance_id, attempt) in machines[worker_id].engines:
            continue
        raise Broken(
            Invariant.GANGS,
            f"attempt {attempt} of {instance_id} ended, has no engine on {worker_id}, and claims memory there",
        )


def check_runs(instance_id: InstanceId, life: Life, machines: dict[WorkerId, Machine]) -> None:
    for worker_id in life.workers:
        engine = machines[worker_id].engines.get(EngineId(instance_id, life.attempt))
        if engine is None or not engine.serves:
            raise Broken(Invariant.CONVERGES, f"{instance_id} is said to run, and on {worker_id} there is {engine}")


def fits(instance_id: InstanceId, ledger: Ledger, claims: Claims, machines: dict[WorkerId, Machine]) -> str | None:
    """Workers that clearly have what a pending instance of vLLM takes, together; None: there are none.

    Clearly: GPUs on which there is nothing else at all.
    """
    fleet = ledger.fleet
    model_id = ledger.lives[instance_id].model_id
    spec, _ = revision_of(fleet, model_id)
    model = fleet.models.get(model_id)
    free: dict[WorkerId, int] = {}
    for worker_id, machine in machines.items():
        operator, has = fleet.operator_of(worker_id), ledger.capacity[worker_id]
        if (
            VLLM not in has.backends
            or spec.source.label not in machine.paths
            or operator.cordoned
            or operator.draining
            or (model is not None and worker_id in model.quarantined)
            or not spec.worker_selector.items() <= operator.labels.items()
        ):
            continue
        _, vram = promised(claims, worker_id)
        free[worker_id] = sum(not gpu.memory_used_by_others and not vram.get(gpu.index) for gpu in has.gpus)
    needed = GPUS[spec.source.label]
    able = [worker_id for worker_id, count in free.items() if count]
    alone = [worker_id for worker_id in able if needed <= free[worker_id]]
    if alone or len(able) >= needed:
        return ", ".join(alone or able)
    return None
