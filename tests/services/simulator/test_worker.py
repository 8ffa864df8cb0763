"""What a simulated worker does and says: the same fleet that is assigned the same does the same."""

import json
from typing import Any

from schemas.asks import InspectModel, ModelInspection
from schemas.assignment import Assigned, AssignedFile, AssignedInstance, Neighbour
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Launch
from schemas.reasons import (
    EngineExited,
    HubUnreachable,
    MachineRestarted,
    ModelNotFound,
    OutOfMemory,
    RepositoryNotFound,
)
from schemas.reports import EngineSeen, FileSeen
from schemas.sources import HuggingFace, LocalPath
from services.simulator.domain.files import inspect
from services.simulator.domain.fleet import Fleet, read_fleet
from services.simulator.domain.worker import Join, Key, Leave, Look, Serve, ServeNoMore, Step, Tell, Worker

ENGINES: dict[str, Any] = {"start_seconds": 2, "stop_seconds": 1}
KEY: Key = (InstanceId("i-a-0"), 1)


def a_worker(*, name: str = "gpu-0", seed: int = 0, engines: dict[str, Any] = ENGINES, **more: Any) -> Worker:
    described = {"name": name, "cpu_count": 8, "memory_total": 2**36, "engines": engines} | more
    models = {"/m": {"format": "gguf", "weight_bytes": 100}}
    fleet = read_fleet(json.dumps({"seed": seed, "workers": [described], "models": models}).encode())
    return Worker(fleet.workers[0], fleet)


def joined(**more: Any) -> Worker:
    """Has joined and read an assignment of nothing."""
    worker = a_worker(**more)
    assert worker.joins() == [Join()]
    assert worker.assigned(a_document(worker, 1), 0) == [Look()]
    return worker


def an_instance(key: Key = KEY, *, want: Any = "running", model: str = "chat") -> AssignedInstance:
    return AssignedInstance(
        instance_id=key[0],
        model_id=ModelId("m-a"),
        attempt=key[1],
        rank=0,
        world_size=1,
        members=(),
        leader_address="",
        launch=Launch(model_name=model, generation=1, backend="llama.cpp", source=LocalPath(path="/m")),
        want=want,
    )


def a_document(
    worker: Worker, seq: int, *instances: AssignedInstance, election: int = 1, files: tuple[AssignedFile, ...] = ()
) -> Assigned:
    return Assigned(election=election, seq=seq, worker_id=worker.described.id, instances=instances, files=files)


def seen(phase: Any, key: Key = KEY, **more: Any) -> Tell:
    return Tell(EngineSeen(instance_id=key[0], attempt=key[1], phase=phase, **more))


def serve(key: Key = KEY, *, first_token: float = 0.05, token: float = 0.01) -> Serve:
    return Serve(key, "chat", first_token, token)


# -- engines ----------------------------------------------------------------------------------------------------------


def test_an_engine_is_accepted_loads_is_served_and_is_healthy() -> None:
    worker = joined()

    assert worker.assigned(a_document(worker, 2, an_instance()), 10.0) == [seen("accepted"), seen("loading")]
    assert worker.next_at() == 12.0
    assert worker.time_passed(11.9) == []
    assert worker.time_passed(12.0) == [serve()]
    assert worker.opened(KEY, 4711) == [seen("healthy", ports=(4711,))]
    assert (worker.next_at(), worker.time_passed(1e9)) == (None, [])
    assert worker.engines() == (seen("healthy", ports=(4711,)).seen,)


def test_the_peaks_that_an_engine_is_told_are_said_from_when_it_is_healthy_until_it_has_ended() -> None:
    crash = {"after_seconds": 60}
    worker = joined(engines=ENGINES | {"peak_ram": 2**30, "peak_vram": [2**33, 2**33], "crash": crash})
    instance = an_instance().model_copy(update={"gpu_indexes": (1, 3)})
    peaks: dict[str, Any] = {"peak_ram": 2**30, "peak_vram": {1: 2**33, 3: 2**33}}

    assert worker.assigned(a_document(worker, 2, instance), 0) == [seen("accepted"), seen("loading")]
    worker.time_passed(2.0)
    assert worker.opened(KEY, 4711) == [seen("healthy", ports=(4711,), **peaks)]
    assert worker.engines() == (seen("healthy", ports=(4711,), **peaks).seen,)
    (_, ended) = worker.time_passed(60.0)
    assert isinstance(ended, Tell)
    assert isinstance(ended.seen, EngineSeen)
    assert (ended.seen.peak_ram, ended.seen.peak_vram) == (2**30, {1: 2**33, 3: 2**33})


def test_peaks_are_drawn_and_of_an_engine_that_never_answered_none_is_said() -> None:
    worker = joined(engines=ENGINES | {"peak_ram": [2**20, 2**30], "crash": {"after_seconds": 1}})
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    (_, ended) = worker.time_passed(1.0)
    assert isinstance(ended, Tell)
    assert isinstance(ended.seen, EngineSeen)
    assert ended.seen.peak_ram is None

    drawn: set[int | None] = set()
    for number in range(2):
        worker = joined(seed=number, engines=ENGINES | {"peak_ram": [2**20, 2**30]})
        worker.assigned(a_document(worker, 2, an_instance()), 0)
        worker.time_passed(2.0)
        (told,) = worker.opened(KEY, 4711)
        assert isinstance(told, Tell)
        assert isinstance(told.seen, EngineSeen)
        drawn.add(told.seen.peak_ram)
    assert len(drawn) == 2
    assert all(peak is not None and 2**20 <= peak <= 2**30 for peak in drawn)


def test_what_is_only_prepared_is_not_started() -> None:
    worker = joined()

    assert worker.assigned(a_document(worker, 2, an_instance(want="prepared")), 0) == [seen("accepted")]
    assert worker.time_passed(1e9) == []
    assert worker.assigned(a_document(worker, 3, an_instance()), 5.0) == [seen("loading")]


def test_what_is_no_longer_assigned_stops() -> None:
    worker = joined()
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    worker.time_passed(2.0)
    worker.opened(KEY, 4711)

    assert worker.assigned(a_document(worker, 3), 10.0) == [ServeNoMore(KEY)]
    assert worker.assigned(a_document(worker, 4), 10.5) == []
    assert worker.time_passed(11.0) == [seen("stopped")]
    assert worker.engines() == ()


def test_an_engine_that_was_stopped_while_its_port_was_opened_is_not_served() -> None:
    worker = joined()
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    assert worker.time_passed(2.0) == [serve()]
    worker.assigned(a_document(worker, 3), 2.0)
    assert worker.opened(KEY, 4711) == [ServeNoMore(KEY)]


def test_an_engine_without_a_port_ends_and_says_why() -> None:
    worker = joined()
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    worker.time_passed(2.0)
    (told,) = worker.not_opened(KEY, "too many open files")
    assert isinstance(told, Tell)
    assert isinstance(told.seen, EngineSeen)
    assert (told.seen.phase, told.seen.log_tail[-1]) == ("exited", "too many open files")


def test_one_that_does_not_serve_says_that_it_is_healthy() -> None:
    worker = joined(engines=ENGINES | {"serves": False})
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    assert worker.time_passed(2.0) == [seen("healthy", ports=(9,))]


def test_a_long_start_tells_of_its_progress() -> None:
    worker = joined(engines=ENGINES | {"start_seconds": 40})
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    assert worker.time_passed(10.0) == [seen("loading", progress=0.25)]
    assert worker.time_passed(15.0) == []
    assert worker.time_passed(20.0) == [seen("loading", progress=0.5)]


def test_an_engine_crashes_as_told() -> None:
    crash = {"after_seconds": 30, "exit_code": 137, "reason": {"code": "out_of_memory"}, "log": ["oh no"]}
    worker = joined(engines=ENGINES | {"crash": crash})
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    worker.time_passed(2.0)
    worker.opened(KEY, 4711)

    assert worker.time_passed(29.9) == []
    steps = worker.time_passed(30.0)
    (log, *_) = [step.seen.log_tail for step in steps if isinstance(step, Tell) and isinstance(step.seen, EngineSeen)]
    assert log[-1] == "oh no"
    ended = seen("exited", exit_code=137, reasons=(OutOfMemory(),), log_tail=log)
    assert steps == [ServeNoMore(KEY), ended]
    assert worker.engines() == (ended.seen,), "until it is no longer assigned"
    assert worker.assigned(a_document(worker, 3, an_instance()), 31.0) == [], "an attempt is started once"
    assert worker.log_of(KEY[0], None) == (1, log)

    second: Key = (KEY[0], 2)
    assert worker.assigned(a_document(worker, 4, an_instance(second)), 32.0) == [
        seen("accepted", second),
        seen("loading", second),
    ]
    assert worker.log_of(KEY[0], 1) is None


def test_one_that_crashes_before_it_has_started_never_runs() -> None:
    worker = joined(engines=ENGINES | {"crash": {"after_seconds": 1}})
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    (_, told) = worker.time_passed(5.0)
    assert isinstance(told, Tell)
    assert isinstance(told.seen, EngineSeen)
    assert (told.seen.phase, told.seen.exit_code, told.seen.reasons) == ("exited", 1, (EngineExited(exit_code=1),))


def test_a_slow_engine_starts_and_answers_so_many_times_slower() -> None:
    worker = joined(engines=ENGINES | {"slow": {"factor": 10}})
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    assert worker.time_passed(19.9)[-1:] != [serve(first_token=0.5, token=0.1)]
    assert worker.time_passed(20.0) == [serve(first_token=0.5, token=0.1)]


# -- chance -----------------------------------------------------------------------------------------------------------

CHANCY: dict[str, Any] = {
    "start_seconds": [1, 20],
    "crash": {"probability": 0.5, "after_seconds": [10, 50]},
    "slow": {"probability": 0.3, "factor": 3},
}


def a_life(worker: Worker, prefix: str = "i") -> list[tuple[float, Step]]:
    """Forty engines of two models, until nothing more happens."""
    happened: list[tuple[float, Step]] = []
    worker.joins()
    worker.assigned(a_document(worker, 1), 0)
    instances = [an_instance((InstanceId(f"{prefix}-{n}"), 1), model=f"m{n % 2}") for n in range(40)]
    happened += [(0.0, step) for step in worker.assigned(a_document(worker, 2, *instances), 0)]
    while (at := worker.next_at()) is not None:
        for step in worker.time_passed(at):
            happened.append((at, step))
            if isinstance(step, Serve):
                happened += [(at, more) for more in worker.opened(step.key, 4711)]
    return happened


def test_the_same_seed_lives_the_same_life_and_another_seed_another() -> None:
    assert a_life(a_worker(engines=CHANCY, seed=1)) == a_life(a_worker(engines=CHANCY, seed=1))
    assert a_life(a_worker(engines=CHANCY, seed=1)) != a_life(a_worker(engines=CHANCY, seed=2))
    assert a_life(a_worker(engines=CHANCY, seed=1)) != a_life(a_worker(engines=CHANCY, seed=1, name="gpu-1"))


def test_ids_that_others_draw_change_nothing() -> None:
    """An instance's id is the fleet's; what happens to the n-th engine of a model is the seed's."""
    one, other = (a_life(a_worker(engines=CHANCY), prefix) for prefix in ("i-x", "i-y"))
    assert [(at, type(step)) for at, step in one] == [(at, type(step)) for at, step in other]


# -- assignments ------------------------------------------------------------------------------------------------------


def test_an_older_document_and_the_same_one_again_change_nothing() -> None:
    worker = joined()
    worker.assigned(a_document(worker, 5, an_instance()), 0)
    for seq in (5, 4):
        assert worker.assigned(a_document(worker, seq), 1.0) == []
    assert len(worker.engines()) == 1


def test_after_an_election_the_complete_picture_is_sent() -> None:
    worker = joined()
    worker.assigned(a_document(worker, 5, an_instance()), 0)
    assert worker.assigned(a_document(worker, 1, an_instance(), election=2), 1.0) == [Look()]


def test_who_is_away_does_nothing() -> None:
    worker = a_worker()
    assert worker.assigned(a_document(worker, 1, an_instance()), 0) == []
    assert worker.engines() == ()


# -- the machine starts again -----------------------------------------------------------------------------------------


def test_a_simulator_that_starts_again_has_lost_its_engines_and_its_picture_says_so() -> None:
    worker = a_worker()
    worker.joins()
    prepared: Key = (InstanceId("i-b-0"), 1)

    steps = worker.assigned(a_document(worker, 9, an_instance(), an_instance(prepared, want="prepared")), 0)

    lost = seen("stopped", reasons=(MachineRestarted(),))
    assert steps == [lost, seen("accepted", prepared), Look()]
    assert worker.engines() == (lost.seen, seen("accepted", prepared).seen)
    assert worker.assigned(a_document(worker, 10), 3.0) == [ServeNoMore(prepared), seen("stopped", prepared)]


def test_a_lost_engine_that_is_no_longer_assigned_is_forgotten() -> None:
    worker = a_worker()
    worker.joins()
    worker.assigned(a_document(worker, 9, an_instance()), 0)
    assert worker.assigned(a_document(worker, 10), 1.0) == []
    assert worker.engines() == ()


def test_it_leaves_and_returns_without_its_engines() -> None:
    life = {"leaves_at_seconds": 100, "returns_at_seconds": 200}
    worker = joined(life=life)
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    worker.time_passed(2.0)
    worker.opened(KEY, 4711)

    assert worker.next_at() == 100.0
    assert worker.time_passed(100.0) == [ServeNoMore(KEY), Leave(says_goodbye=True)]
    assert (worker.is_here, worker.engines(), worker.next_at()) == (False, (), 200.0)
    assert worker.time_passed(199.0) == []
    assert worker.time_passed(200.0) == [Join()]
    assert worker.next_at() is None
    # What is assigned when it is back is new: everything before has ended with its goodbye.
    second: Key = (KEY[0], 2)
    assert worker.assigned(a_document(worker, 9, an_instance(second)), 201.0) == [
        seen("accepted", second),
        seen("loading", second),
        Look(),
    ]


def test_when_it_was_silent_only_what_it_had_is_lost() -> None:
    life = {"leaves_at_seconds": 100, "returns_at_seconds": 200, "says_goodbye": False}
    worker = joined(life=life)
    worker.assigned(a_document(worker, 2, an_instance()), 0)
    assert worker.time_passed(100.0) == [ServeNoMore(KEY), Leave(says_goodbye=False)]
    worker.time_passed(200.0)

    new: Key = (InstanceId("i-new"), 1)
    lost = seen("stopped", reasons=(MachineRestarted(),))
    assert worker.assigned(a_document(worker, 9, an_instance(), an_instance(new)), 201.0) == [
        lost,
        seen("accepted", new),
        seen("loading", new),
        Look(),
    ]
    assert worker.engines() == (lost.seen, seen("loading", new).seen)


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_are_verified_and_are_ready_or_missing() -> None:
    worker = joined(files={"verify_seconds": 3})
    there = AssignedFile(file_id=FileId("f-1"), source=LocalPath(path="/m"), wanted=7)
    gone = AssignedFile(file_id=FileId("f-2"), source=LocalPath(path="/gone"), wanted=8)
    verifying = [Tell(FileSeen(file_id=file.file_id, wanted=file.wanted, phase="verifying")) for file in (there, gone)]

    assert worker.assigned(a_document(worker, 2, files=(there, gone)), 0) == verifying
    assert worker.time_passed(2.9) == []
    ready = FileSeen(file_id=FileId("f-1"), wanted=7, phase="ready", bytes=100, total=100, paths=("/m",))
    failed = FileSeen(file_id=FileId("f-2"), wanted=8, phase="failed", reasons=(ModelNotFound(path="/gone"),))
    assert worker.time_passed(3.0) == [Tell(ready), Tell(failed)]
    assert worker.files() == (ready, failed)
    assert worker.assigned(a_document(worker, 3, files=(there, gone)), 4.0) == []
    again = there.model_copy(update={"wanted": 9})
    assert worker.assigned(a_document(worker, 4, files=(again,)), 5.0) == [
        Tell(FileSeen(file_id=FileId("f-1"), wanted=9, phase="verifying"))
    ]
    assert len(worker.files()) == 1


HUB = HuggingFace(repo_id="muster/tiny")
LORA = HuggingFace(repo_id="muster/lora")


def hub_fleet(*, cut_off: bool = False) -> Fleet:
    """Of one worker, and a hub that has one model and one adapter for it."""
    missing_on = ["gpu-*"] if cut_off else []
    models = {
        HUB.label: {"format": "gguf", "weight_bytes": 100, "missing_on": missing_on},
        LORA.label: {"format": "safetensors", "weight_bytes": 7},
    }
    described = {"name": "gpu-0", "cpu_count": 8, "memory_total": 2**36, "engines": ENGINES}
    return read_fleet(json.dumps({"seed": 0, "workers": [described], "models": models}).encode())


def of_a_hub(*, cut_off: bool = False) -> Worker:
    fleet = hub_fleet(cut_off=cut_off)
    worker = Worker(fleet.workers[0], fleet)
    worker.joins()
    worker.assigned(a_document(worker, 1), 0)
    return worker


def asked(fleet: Fleet, *adapters: HuggingFace, source: HuggingFace = HUB) -> ModelInspection:
    return inspect(fleet, "gpu-0", InspectModel(source=source, adapters=adapters))


def test_a_hubs_model_is_pinned_with_what_is_loaded_beside_it() -> None:
    found = asked(hub_fleet(), LORA)

    assert found.weights is not None
    assert [(each.source, each.bytes, len(each.commit)) for each in found.weights.pinned] == [
        (HUB, 100, 40), (LORA, 7, 40),
    ]  # fmt: skip


def test_a_hub_says_what_it_does_not_have_and_is_not_reached_by_all() -> None:
    other = HuggingFace(repo_id="muster/other")

    assert asked(hub_fleet(), source=other).reasons == (RepositoryNotFound(repository="muster/other"),)
    assert asked(hub_fleet(), other).reasons == (RepositoryNotFound(repository="muster/other"),)
    assert asked(hub_fleet(cut_off=True)).reasons == (HubUnreachable(host="hub.invalid", problem="no route to host"),)


def test_a_worker_that_does_not_reach_the_hub_fetches_from_who_has_the_files() -> None:
    worker = of_a_hub(cut_off=True)
    near = Neighbour(worker_id=WorkerId("w-2"), file_id=FileId("f-2"), address="10.0.0.2", ready=True)
    alone = AssignedFile(file_id=FileId("f-1"), source=HUB, commit="c", wanted=1)
    worker.assigned(a_document(worker, 2, files=(alone,)), 0)
    worker.time_passed(10.0)
    assert [(file.phase, file.reasons[0].code) for file in worker.files()] == [("failed", "hub_unreachable")]

    worker.assigned(a_document(worker, 3, files=(alone.model_copy(update={"wanted": 2, "neighbours": (near,)}),)), 11.0)
    worker.time_passed(20.0)

    (file,) = worker.files()
    assert (file.phase, file.model_path, file.digest is None) == ("ready", HUB.label, False)


def test_files_that_are_not_wanted_any_more_are_deleted_once_and_that_is_in_each_picture() -> None:
    worker = of_a_hub()
    there = AssignedFile(file_id=FileId("f-1"), source=HUB, commit="c", wanted=1)
    worker.assigned(a_document(worker, 2, files=(there,)), 0)
    worker.time_passed(10.0)
    unwanted = there.model_copy(update={"wanted": 2, "want": "deleted"})
    deleted = FileSeen(file_id=FileId("f-1"), wanted=2, commit="c", phase="deleted")

    assert worker.assigned(a_document(worker, 3, files=(unwanted,)), 11.0) == [Tell(deleted)]
    assert worker.assigned(a_document(worker, 4, files=(unwanted,)), 12.0) == []
    assert worker.time_passed(60.0) == []
    assert worker.files() == (deleted,)
    again = there.model_copy(update={"wanted": 3})
    assert [
        step.seen.phase
        for step in worker.assigned(a_document(worker, 5, files=(again,)), 61.0)
        if isinstance(step, Tell)
    ] == ["verifying"]
