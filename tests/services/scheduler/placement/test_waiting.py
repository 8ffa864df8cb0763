"""Who is looked at again when something changes: those whose blocker it was, on the workers where it was, and few others."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim, Inventory
from schemas.reasons import REASONS, ModelNotFound
from services.scheduler.domain.candidate import Candidate, Looked, Request
from services.scheduler.domain.fleet import Fleet, Wish
from services.scheduler.domain.machines import Lifted, Machines
from services.scheduler.domain.placement import Placed, Refused, may_gang, place
from services.scheduler.domain.placing import Placing
from services.scheduler.domain.rules import RULES
from services.scheduler.domain.snapshot import Machine
from services.scheduler.domain.waiting import LIFTED_BY, WaitingModels
from tests.services.scheduler.placement.fleets import (
    GIB,
    SOURCE,
    a_machine,
    a_request,
    a_spec,
    gpus,
    random_claim,
    random_cluster,
    random_fleet,
    random_machine,
    random_request,
    refused,
    safetensors,
)

M = ModelId("m-m")
W1, W2, W3 = WorkerId("w-w1"), WorkerId("w-w2"), WorkerId("w-w3")
OF_REQUESTS = {
    "no_workers", "gpu_unknown", "workers_do_not_add_up", "network_down", "heads_not_divisible",
    "vocabulary_not_divisible", "too_few_layers", "world_size_does_not_match", "gpu_types_mixed", "too_few_gpus_selected",
    "parameter_invalid", "parameters_contradict", "flag_is_ours", "variable_not_allowed", "backend_unknown", "backend_disabled",
    "backend_version_unknown",
}  # fmt: skip
OF_FILES = {
    "being_inspected", "model_not_found", "model_files_incomplete", "model_file_truncated", "model_file_invalid",
    "path_not_allowed", "weights_unknown", "inspection_failed", "not_the_first_shard", "repository_not_found",
    "revision_not_found", "hub_unauthorized", "hub_unreachable", "hub_rate_limited", "hub_error", "redirect_not_allowed",
    "no_file_matches", "files_ambiguous", "unsafe_format", "remote_code_not_allowed", "unsafe_file_name", "too_many_files",
    "gated_repository",
}  # fmt: skip
OF_IMAGES = {"agent_silent", "runs_no_containers"}
"""Of images that are pulled ahead."""
OF_LIFE = {
    "on_its_way", "worker_silent", "agent_stopped", "worker_shut_down", "machine_restarted", "image_not_found", "image_not_pulled",
    "image_for_another_platform", "devices_not_available", "container_not_started", "engine_exited", "engine_killed",
    "engine_vanished", "engine_unhealthy", "engine_not_installed", "need_not_allowed", "port_in_use", "out_of_memory",
    "unknown_parameter", "gpu_out_of_memory", "gpu_memory_taken", "kv_cache_too_small", "no_kernel_for_gpu",
    "gpu_driver_missing", "gpu_driver_too_old", "quantization_not_supported", "collective_timeout",
    "peer_unreachable", "shared_memory_too_small", "locked_memory_limited", "too_many_open_files",
    "disk_full", "cpu_not_supported", "remote_code_not_trusted", "size_mismatch", "checksum_mismatch",
    "revision_changed", "answer_is_no_file", "disk_error", "file_in_use",
    "chat_template_missing", "package_missing", "packages_do_not_match", "program_not_executable",
    "not_accepted", "download_stalled", "start_timeout", "finishing_requests", "stop_overdue", "rolled_back",
}  # fmt: skip
"""Of instances that have, or had, a place."""


def a_fleet(*machines: Machine) -> Machines:
    fleet = Machines()
    for machine in machines:
        fleet.put(machine)
    fleet.take_lifted()
    return fleet


def waiting_for(fleet: Machines, request: Request, listed: int = 32) -> WaitingModels:
    waiting = WaitingModels()
    waiting.refused(M, refused(request, *fleet), listed)
    return waiting


def woken(fleet: Machines, waiting: WaitingModels) -> dict[ModelId, list[WorkerId] | None]:
    return waiting.freed_by(*fleet.take_lifted())


def test_every_code_is_lifted_by_something_or_is_not_of_a_worker() -> None:
    codes = {reason.model_fields["code"].default for reason in REASONS}
    assert codes == set(LIFTED_BY) | OF_REQUESTS | OF_FILES | OF_IMAGES | OF_LIFE
    assert not set(LIFTED_BY) & (OF_REQUESTS | OF_FILES | OF_IMAGES | OF_LIFE)


def test_every_rule_but_that_of_the_files_is_named_for_the_code_that_it_states() -> None:
    assert {rule.__name__ for rule in RULES} - {"files_unusable"} == set(LIFTED_BY)


# -- one blocker, one change ------------------------------------------------------------------------------------------

FULL = [(ModelId("m-x"), "cuda", Claim(ram=0, vram={0: 70 * GIB}))]


def free(fleet: Machines) -> None:
    fleet.release(W2, *FULL[0])


def put(**fields: Any) -> Callable[[Machines], None]:
    """The worker is reported otherwise; what is promised there stays."""

    def change(fleet: Machines) -> None:
        fleet.put(a_machine("w2", fields.pop("of", gpus(1)), **fields))

    return change


def speak(fleet: Machines) -> None:
    fleet.hear_downloader(W2, alive=True)


def lift_quarantine(fleet: Machines) -> None:
    fleet.lift(W2, Lifted.QUARANTINE)


@pytest.mark.parametrize(
    ("machine", "fields", "change"),
    [
        (a_machine("w2", gpus(1), state="unreachable"), {}, put()),
        (a_machine("w2", gpus(1), cordoned=True), {}, put()),
        (a_machine("w2", gpus(1), draining=True), {}, put()),
        (a_machine("w2", gpus(1), downloader_alive=False), {}, speak),
        (a_machine("w2", gpus(1)), {"spec": a_spec(worker_selector={"a": "1"})}, put(labels={"a": "1"})),
        (a_machine("w2", gpus(1), ram=0), {}, put()),
        (a_machine("w2", gpus(1), inventory={"runtime": "process"}), {}, put()),
        (a_machine("w2", gpus(1), inventory={"os": "windows"}), {}, put()),
        (a_machine("w2"), {}, put()),
        (a_machine("w2", gpus(1, type="neuware")), {}, put()),
        (a_machine("w2", gpus(1, runtime_version="12.1")), {}, put()),
        (a_machine("w2", gpus(1, compute_capability="6.0")), {}, put()),
        (a_machine("w2", gpus(1, unhealthy="ECC")), {}, put()),
        (a_machine("w2", gpus(1, memory_used_by_others=70 * GIB)), {}, put()),
        (a_machine("w2", gpus(1, 12 * GIB)), {}, put()),
        (a_machine("w2", gpus(1), inventory={"disk_free": 1}), {}, put()),
        (a_machine("w2", gpus(1), claims=FULL), {}, free),
        (a_machine("w2", gpus(1)), {"crashes": {W2: 5}}, lift_quarantine),
    ],
)
def test_what_lifts_a_blocker_wakes_on_that_worker(
    machine: Machine, fields: dict[str, Any], change: Callable[[Machines], None]
) -> None:
    request = a_request(distributed=False, **fields)
    fleet = a_fleet(a_machine("w1"), machine, a_machine("w3"))
    waiting = waiting_for(fleet, request)
    assert woken(fleet, waiting) == {}
    change(fleet)
    assert woken(fleet, waiting) == {M: [W2]}
    request.crashes = {}
    assert isinstance(place(request, list(fleet)), Placed)


def test_a_quarantine_is_lifted_for_itself() -> None:
    """What is found of the files on the worker changes nothing about it, and nobody asks there for them in vain."""
    machines = a_fleet(a_machine("w1", gpus(1)), a_machine("w2", gpus(1)))
    request = a_request(must_look=True, crashes={W2: 5}, looked={"w2": safetensors(GIB)})
    waiting = waiting_for(machines, request, listed=0)
    machines.lift(W2, Lifted.FILES)
    assert woken(machines, waiting) == {}
    machines.lift(W2, Lifted.QUARANTINE)
    assert woken(machines, waiting) == {M: [W2]}
    fleet = Fleet()
    for machine in machines:
        fleet.machines.put(machine)
    fleet.wishes[M] = Wish(request.spec, 1)
    placing = Placing(fleet)
    placing.waiting.refused(M, refused(request, *machines), 0)
    assert placing.worth_asking(M, 9) == [W1]


@pytest.mark.parametrize(("distributed", "asked"), [(True, [W1, W2]), (False, [])])
def test_the_files_of_what_is_too_large_for_one_worker_are_looked_at_for_a_group(
    *, distributed: bool, asked: list[WorkerId]
) -> None:
    """Nobody knows yet what it weighs, and its author says two GPUs: no worker has them, and two together do."""
    fleet = Fleet()
    for machine in (a_machine("w1", gpus(1)), a_machine("w2", gpus(1))):
        fleet.machines.put(machine)
    spec = a_spec(backend_parameters=["--tensor-parallel-size=2"], distributed_inference_across_workers=distributed)
    fleet.wishes[M] = Wish(spec, 1)
    placing = Placing(fleet)
    answer = placing.find(M)
    assert isinstance(answer, Refused)
    placing.waiting.refused(M, answer, 0)
    assert placing.worth_asking(M, 9) == asked


def test_what_lifts_no_blocker_wakes_nobody() -> None:
    """Memory is freed where there is no GPU of its kind; a promise is made; a downloader speaks that spoke before."""
    fleet = a_fleet(a_machine("w1", claims=[(M, None, Claim(ram=GIB))]), a_machine("w2", gpus(1), cordoned=True))
    waiting = waiting_for(fleet, a_request())
    fleet.release(W1, M, None, Claim(ram=GIB))
    fleet.promise(W2, M, "cuda", Claim(vram={0: GIB}))
    fleet.hear_downloader(W1, alive=True)
    fleet.release(W2, M, "cuda", Claim(vram={0: GIB}))
    assert woken(fleet, waiting) == {}


def test_only_those_whose_blocker_it_was_are_woken() -> None:
    fleet = a_fleet(a_machine("w1", gpus(1), claims=[(None, "cuda", Claim(vram={0: 70 * GIB}))]))
    waiting = WaitingModels()
    by_memory, by_label = ModelId("m-memory"), ModelId("m-label")
    waiting.refused(by_memory, refused(a_request(), *fleet), 32)
    waiting.refused(by_label, refused(a_request(a_spec(worker_selector={"a": "1"}, packed=True)), *fleet), 32)
    fleet.lift(W1, Lifted.STATE)
    assert woken(fleet, waiting).keys() == {by_memory, by_label}  # both are told of this worker as it was
    waiting.refused(by_memory, refused(a_request(), *fleet), 0)
    waiting.refused(by_label, refused(a_request(a_spec(worker_selector={"a": "1"}, packed=True)), *fleet), 0)
    fleet.lift(W1, Lifted.STATE)
    assert woken(fleet, waiting) == {by_label: [W1]}
    fleet.lift(W1, Lifted.MEMORY)
    assert by_memory in woken(fleet, waiting)


def test_what_is_stated_of_a_worker_that_is_gone_is_said_anew() -> None:
    fleet = a_fleet(a_machine("w1"), a_machine("w2"))
    waiting = waiting_for(fleet, a_request())
    fleet.drop(W1)
    assert woken(fleet, waiting) == {M: None}
    waiting = waiting_for(fleet, a_request(), listed=0)
    fleet.drop(W2)
    assert woken(fleet, waiting) == {}


def test_a_new_worker_wakes_whoever_waits_for_workers() -> None:
    fleet = a_fleet()
    waiting = WaitingModels()
    waiting.refused(M, refused(a_request()), 32)
    fleet.put(a_machine("w1"))
    assert woken(fleet, waiting) == {M: None}


def test_what_only_the_author_can_change_is_not_looked_at_again() -> None:
    fleet = a_fleet(a_machine("w1", gpus(4)))
    waiting = waiting_for(fleet, a_request(a_spec(backend_parameters=["-tp=3"])))
    fleet.put(a_machine("w2", gpus(8)))
    fleet.lift(W1, Lifted.ALL)
    assert woken(fleet, waiting) == {}


def test_a_selected_gpu_that_comes_by_a_new_name_wakes() -> None:
    """A renamed worker has the GPUs that were selected, and nothing else about it changed."""
    fleet = a_fleet(*(a_machine(f"w{number}", gpus(1)) for number in range(3)))
    spec = a_spec(gpu_selector={"gpu_ids": ["other:cuda:0"]})
    waiting = waiting_for(fleet, a_request(spec), listed=0)
    known = a_machine("w1", gpus(1))
    known.name, known.labels = "other", {**known.labels, "worker-name": "other"}
    fleet.put(known)
    assert M in woken(fleet, waiting)
    assert isinstance(place(a_request(spec), list(fleet)), Placed)


def test_a_worker_to_which_nothing_is_objected_wakes_by_whatever_changes_there() -> None:
    """Of the two selected GPUs one is unknown; it is plugged into the worker that has the other."""
    spec = a_spec(gpu_selector={"gpu_ids": ["w1:cuda:0", "w1:cuda:1"], "gpus_per_replica": 1})
    fleet = a_fleet(a_machine("w1", gpus(1)))
    answer = refused(a_request(spec), *fleet)
    assert [each.reasons for each in answer.workers] == [()]
    waiting = waiting_for(fleet, a_request(spec), listed=0)
    fleet.put(a_machine("w1", gpus(2)))
    assert woken(fleet, waiting) == {M: None}


@pytest.mark.parametrize(
    ("spec", "size", "count"),
    [
        (a_spec(backend_parameters=["-tp=4"]), 15, 2),
        (a_spec(backend_parameters=["--max-model-len=400000", "--gpu-memory-utilization=0.6"]), 15, 1),
        (a_spec(backend_parameters=["--gpu-memory-utilization=0.3"]), 30, 1),
        (a_spec(backend_parameters=[]), 100, 1),
    ],
)
def test_memory_that_makes_a_group_possible_wakes(spec: Any, size: int, count: int) -> None:
    """Alone no worker is enough, full or empty: not enough GPUs, context, share. Together they are, once one is free."""
    full = [(ModelId("m-x"), "cuda", Claim(vram=dict.fromkeys(range(count), 75 * GIB)))]
    fleet = a_fleet(a_machine("w1", gpus(count)), a_machine("w2", gpus(count), claims=full))
    request = a_request(spec, safetensors(size * GIB))
    waiting = waiting_for(fleet, request)
    fleet.release(W2, *full[0])
    assert M in woken(fleet, waiting)
    assert isinstance(place(request, list(fleet)), Placed)


def test_a_member_of_a_group_is_seen_though_its_share_alone_would_not_be_free() -> None:
    """SGLang's own share falls with the size of the group: alone 0.836 of 80 GiB, in one of 2 × 2 GPUs 0.831."""
    full = [(ModelId("m-x"), "cuda", Claim(vram=dict.fromkeys(range(2), int(0.168 * 80 * GIB))))]
    more = [(ModelId("m-x"), "cuda", Claim(vram=dict.fromkeys(range(2), GIB)))]
    fleet = a_fleet(a_machine("w1", gpus(2)), a_machine("w2", gpus(2), claims=[*full, *more]))
    request = a_request(a_spec(backend="SGLang"), safetensors(200 * GIB))
    waiting = waiting_for(fleet, request)
    fleet.release(W2, *more[0])
    assert woken(fleet, waiting) == {M: [W2]}
    assert may_gang(request, Candidate(request, next(machine for machine in fleet if machine.id == W2)))
    assert isinstance(place(request, list(fleet)), Placed)


def test_a_network_that_comes_up_wakes() -> None:
    def machine(name: str, *, up: bool) -> Machine:
        return a_machine(name, gpus(1, 64 * GIB, type="cann", network={"up": up}))

    request = a_request(a_spec(backend="MindIE"), safetensors(80 * GIB))
    fleet = a_fleet(machine("w1", up=True), machine("w2", up=False))
    waiting = waiting_for(fleet, request)
    fleet.put(machine("w2", up=True))
    assert M in woken(fleet, waiting)
    assert isinstance(place(request, list(fleet)), Placed)


# -- any history ------------------------------------------------------------------------------------------------------

HISTORIES = 300


def one_step(dice: random.Random, fleet: Machines, held: list[Any], request: dict[ModelId, Request]) -> None:
    """Something happens: what is promised is kept when a worker is reported otherwise."""
    machine = dice.choice(list(fleet))
    match dice.choice(
        ["promise", "release", "release", "put", "labels", "state", "drop", "new", "downloader", "files"]
    ):
        case "promise":
            claim = random_claim(dice, machine)
            fleet.promise(machine.id, ModelId("m-x"), *claim)
            held.append((machine.id, *claim))
        case "release" if held:
            worker_id, kind, claim = held.pop(dice.randrange(len(held)))
            fleet.release(worker_id, ModelId("m-x"), kind, claim)
        case "drop" if len(fleet) > 1:
            held[:] = [each for each in held if each[0] != machine.id]
            fleet.drop(machine.id)
        case "downloader":
            fleet.hear_downloader(machine.id, alive=dice.random() < 0.7)
        case "new":
            fleet.put(random_machine(dice, dice.randint(20, 40)))
            held[:] = [each for each in held if each[0] in {machine.id for machine in fleet}]
        case "files":
            for each in request.values():
                each.look(machine.id, Looked(None, (ModelNotFound(path=SOURCE.path),) if dice.random() < 0.5 else ()))
            fleet.lift(machine.id, Lifted.FILES)
        case what:
            _report(dice, fleet, machine, what, held)


def _report(dice: random.Random, fleet: Machines, machine: Machine, what: str, held: list[Any]) -> None:
    fields: dict[str, Any] = {
        "state": machine.state, "labels": dict(machine.labels), "cordoned": machine.cordoned,
        "downloader_alive": machine.downloader_alive,
    }  # fmt: skip
    inventory = machine.inventory
    if what == "labels":
        fields["labels"] = dice.choice([{}, {"rack": "1"}])
    elif what == "state":
        fields |= {"state": dice.choice(["ready", "ready", "unreachable"]), "cordoned": dice.random() < 0.2}
    else:
        others = dice.choice([0, 0, 20]) * GIB
        broken = "ECC" if dice.random() < 0.2 else None
        inventory = Inventory.model_validate(
            inventory.model_dump()
            | {"gpus": [gpu.model_dump() | {"memory_used_by_others": others, "unhealthy": broken} for gpu in inventory.gpus]}
        )  # fmt: skip
    claims = [(ModelId("m-x"), kind, claim) for worker_id, kind, claim in held if worker_id == machine.id]
    known = a_machine(machine.name, inventory=inventory.model_dump(), claims=claims, **fields)
    known.id = machine.id
    fleet.put(known)


def test_over_any_history_nobody_who_could_be_placed_sleeps_on() -> None:
    """After each step: whose answer became a place is woken, on a worker that takes it, or for all workers.

    Woken in vain: looked at again, and still refused. It must stay rare, or the index is worth nothing.
    """
    rightly = in_vain = asked = steps = 0
    for seed in range(HISTORIES):
        dice = random.Random(seed)
        fleet, large = random_cluster(dice) if seed % 3 == 0 else (random_fleet(dice, 6), None)
        held: list[Any] = []
        for machine in list(fleet):
            for _ in range(dice.choice([0, 1, 2])):
                claim = random_claim(dice, machine)
                fleet.promise(machine.id, ModelId("m-x"), *claim)
                held.append((machine.id, *claim))
        fleet.take_lifted()
        requests: dict[ModelId, Request] = {}
        waiting = WaitingModels()
        for number in range(6):
            model_id = ModelId(f"m-{number}")
            request = large or random_request(dice, fleet, model_id)
            large = None
            answer = place(request, fleet.in_order())
            if isinstance(answer, Refused):
                requests[model_id] = request
                waiting.refused(model_id, answer, dice.choice([0, 32]))
        for _ in range(6):
            one_step(dice, fleet, held, requests)
            steps += 1
            found = waiting.freed_by(*fleet.take_lifted())
            for model_id, request in list(requests.items()):
                asked += 1
                answer = place(request, fleet.in_order())
                if isinstance(answer, Placed):
                    assert model_id in found, (seed, model_id)
                    workers = found[model_id]
                    places = {each.worker_id for each in answer.places}
                    assert workers is None or len(places) > 1 or places <= set(workers), (seed, model_id)
                    if len(places) > 1 and workers is not None:  # which those who look at these workers only must see
                        assert any(
                            may_gang(request, Candidate(request, machine)) for machine in fleet if machine.id in workers
                        )
                    rightly += 1
                    waiting.forget(model_id)
                    del requests[model_id]
                elif model_id in found:
                    in_vain += 1
                    waiting.refused(model_id, answer, 32)
    print(f"{steps} events for {asked} waiting models: {rightly} woken rightly, {in_vain} in vain")
    assert rightly > HISTORIES // 4
    assert in_vain < asked // 2
