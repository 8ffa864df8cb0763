"""What is said to help: flags for what they are, the smallest change of its kind, and nothing that does not help."""

from collections.abc import Sequence
from typing import Any

import pytest

from schemas.ids import InstanceId, WorkerId
from schemas.models import Claim, GpuNetwork
from schemas.reasons import Suggestion
from services.scheduler.domain import suggestions
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.placement import Placed, Refused, place
from services.scheduler.domain.snapshot import Machine
from services.scheduler.domain.suggestions import MOST, SELECTED, OpenClaimOf, changed, merged, suggestions_for
from tests.services.scheduler.placement.fleets import (
    GIB,
    a_gpu,
    a_machine,
    a_request,
    a_spec,
    gguf,
    gpus,
    placed,
    refused,
    safetensors,
)


def held(*gibs: int) -> list[tuple[None, str, Claim]]:
    """One promise on each GPU."""
    return [(None, "cuda", Claim(vram={index: gib * GIB})) for index, gib in enumerate(gibs) if gib]


def suggested(request: Request, *machines: Machine, claims: Sequence[OpenClaimOf] = ()) -> tuple[Suggestion, ...]:
    return suggestions_for(
        request,
        machines,
        refused(request, *machines),
        lambda worker_id: [claim for claim in claims if claim.worker_id == worker_id],
    )


def texts(suggestions: Sequence[Suggestion]) -> list[str]:
    return [suggestion.text for suggestion in suggestions]


def claim(name: str, worker: str, gib: int, *indexes: int) -> OpenClaimOf:
    return OpenClaimOf(
        InstanceId(f"i-{name}"), name, WorkerId(f"w-{worker}"), "cuda", Claim(vram=dict.fromkeys(indexes, gib * GIB))
    )


# -- flags for what they are ------------------------------------------------------------------------------------------


def test_the_share_is_as_large_as_is_free_and_other_parameters_stay_as_they_were() -> None:
    request = a_request(
        a_spec(backend_parameters=["--swap-space", "9", "--seed=1", "--gpu_memory_utilization", "0.95"])
    )
    first = suggested(request, a_machine("w1", gpus(2), claims=held(30, 40)))[0]
    assert first == Suggestion(
        change={"backend_parameters": ["--swap-space", "9", "--seed=1", "--gpu-memory-utilization=0.62"]},
        text="with --gpu-memory-utilization=0.62 it fits",
    )


def test_no_share_is_suggested_that_the_model_does_not_fit_into() -> None:
    """20 GiB are needed, 19 are free: only less would be free, and nothing of it is said."""
    said = texts(suggested(a_request(distributed=False), a_machine("w1", gpus(1), claims=held(61))))
    assert not any("utilization" in text for text in said)


def test_a_share_that_is_too_small_is_raised_to_what_is_needed() -> None:
    request = a_request(a_spec(backend_parameters=["--gpu-memory-utilization=0.1"]))
    assert texts(suggested(request, a_machine("w1", gpus(1))))[0] == "with --gpu-memory-utilization=0.25 it fits"


@pytest.mark.parametrize(
    ("request_", "machine"),
    [
        (a_request(weights=safetensors(100 * GIB)), a_machine("w1", gpus(1))),
        (a_request(), a_machine("w1", gpus(1), claims=held(70))),
        (a_request(), a_machine("w1", gpus(1), claims=held(30))),
        (a_request(), a_machine("w1", gpus(1), cordoned=True)),
        (a_request(a_spec(backend="Custom")), a_machine("w1", gpus(1, 12 * GIB))),
        (a_request(a_spec(backend_parameters=["-tp=8"])), a_machine("w1", gpus(4))),
    ],
)
def test_a_shorter_context_is_suggested_only_for_what_keeps_a_cache_of_it(request_: Request, machine: Machine) -> None:
    """Of a share-taking engine's claim it is no part, and weights do not shrink with it."""
    said = " ".join(texts(suggested(request_, machine)))
    assert "--max-model-len" not in said
    assert "--ctx-size" not in said


def test_a_context_is_suggested_that_fits_beside_the_weights() -> None:
    """Of 80 × 0.3 GiB, 15 are weights and 1 the engine's: 8 GiB of 147456 bytes a token, in sixteens."""
    request = a_request(a_spec(backend_parameters=["--gpu-memory-utilization=0.3", "--max-model-len", "100k"]))
    tokens = 8 * GIB // 147456 // 16 * 16
    first = suggested(request, a_machine("w1", gpus(1)))[0]
    assert first.text == f"with --max-model-len={tokens} it fits"
    assert placed(changed(request, first.change), a_machine("w1", gpus(1))).context == tokens


def test_the_context_that_the_closest_worker_can_hold_is_not_the_only_one_tried() -> None:
    """The roomier worker is cordoned: what fits there does not help."""
    request = a_request(a_spec(backend_parameters=["--gpu-memory-utilization=0.3", "--max-model-len=10M"]))
    said = texts(suggested(request, a_machine("a", gpus(1)), a_machine("b", gpus(1, 160 * GIB), cordoned=True)))
    assert f"with --max-model-len={8 * GIB // 147456 // 16 * 16} it fits" in said


def test_llama_cpp_with_a_long_context_is_told_a_shorter_one() -> None:
    request = a_request(a_spec(backend="llama.cpp", backend_parameters=["-c", "131072"]), gguf(15 * GIB))
    assert "with --ctx-size=65536 it fits" in texts(suggested(request, a_machine("w1", gpus(1, 24 * GIB))))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", ["vLLM", "SGLang"])
def test_capturing_no_graphs_is_not_suggested_where_it_frees_nothing(backend: str, packed: bool) -> None:
    for used in (10, 50, 70, 79):
        request = a_request(a_spec(backend=backend, packed=packed), distributed=False)
        machine = a_machine("w1", gpus(1), claims=held(used))
        if isinstance(place(request, [machine]), Placed):
            continue
        for suggestion in suggested(request, machine):
            assert "enforce-eager" not in suggestion.text
            assert "cuda-graph" not in suggestion.text


def test_packing_is_suggested_where_the_user_gave_no_share() -> None:
    machine = a_machine("w1", gpus(1), claims=held(30))
    assert {"packed": True} in [each.change for each in suggested(a_request(), machine)]
    given = a_request(a_spec(backend_parameters=["--gpu-memory-utilization=0.9"]))
    assert {"packed": True} not in [each.change for each in suggested(given, machine)]


# -- sizes, layers, RAM -----------------------------------------------------------------------------------------------


def test_the_nearest_size_that_divides_comes_first() -> None:
    request = a_request(a_spec(backend_parameters=["-tp=3"]), safetensors(15 * GIB))
    assert texts(suggested(request, a_machine("w1", gpus(8))))[:2] == [
        "with --tensor-parallel-size=2 it fits",
        "with --tensor-parallel-size=4 it fits",
    ]


def test_a_larger_size_is_suggested_where_a_smaller_one_does_not_hold_the_model() -> None:
    """202 GiB: three GPUs would do and divide no heads, two are too few."""
    request = a_request(a_spec(backend_parameters=["-tp=3"]), safetensors(167 * GIB))
    assert texts(suggested(request, a_machine("w1", gpus(8))))[0] == "with --tensor-parallel-size=4 it fits"
    too_few = a_request(a_spec(backend_parameters=["-tp=2"]), safetensors(167 * GIB))
    assert "with --tensor-parallel-size=4 it fits" in texts(suggested(too_few, a_machine("w1", gpus(8))))


def test_sizes_are_left_to_us_where_only_the_number_of_gpus_need_be_given() -> None:
    """Six can't divide 32 heads, and two stages of three can; six copies are too large, and one over six GPUs is not."""
    selector = {"gpus_per_replica": 6}
    six = a_request(a_spec(backend_parameters=["-tp=6"], gpu_selector=selector))
    first = suggested(six, a_machine("w1", gpus(8)))[0]
    assert first == Suggestion(change={"backend_parameters": []}, text="without parallel sizes it fits")
    copies = a_request(a_spec(backend_parameters=["-dp=6"], gpu_selector=selector), safetensors(100 * GIB))
    assert Suggestion(
        change={"backend_parameters": ["--tensor-parallel-size=2", "--pipeline-parallel-size=3"]},
        text="with --tensor-parallel-size=2 and --pipeline-parallel-size=3 it fits",
    ) in suggested(copies, a_machine("w1", gpus(8)))


def test_as_many_layers_are_suggested_as_fit() -> None:
    machine = a_machine("w1", gpus(1, 24 * GIB))
    request = a_request(a_spec(backend="llama.cpp", backend_parameters=["-ngl", "99"]), gguf(40 * GIB))
    suggestion = next(each for each in suggested(request, machine) if "--n-gpu-layers" in each.text)
    layers = int(str(suggestion.text).partition("=")[2].partition(" ")[0])
    assert suggestion.change == {"backend_parameters": [f"--n-gpu-layers={layers}"]}
    assert placed(changed(request, suggestion.change), machine).take.gpu_layers == layers
    more = changed(request, {"backend_parameters": [f"--n-gpu-layers={layers + 1}"]})
    assert not isinstance(place(more, [machine]), Placed)


def test_on_the_processor_it_is_suggested_to_leave_the_layers_there() -> None:
    request = a_request(a_spec(backend="llama.cpp", backend_parameters=["-ngl", "10"]), gguf(4 * GIB))
    assert texts(suggested(request, a_machine("w1"))) == ["with --n-gpu-layers=0 it fits"]


# -- actions of operators ---------------------------------------------------------------------------------------------


def test_the_smallest_instance_that_makes_room_is_named() -> None:
    machine = a_machine("w1", gpus(2), claims=held(9, 30))
    claims = [claim("small", "w1", 9, 0), claim("large", "w1", 30, 1)]
    deleting = [each for each in suggested(a_request(), machine, claims=claims) if "action" in each.change]
    assert deleting == [
        Suggestion(
            change={"action": "delete_instance", "instance": "small"},
            text="without small, which holds 9.0 GiB on w1, it fits",
        )
    ]


def test_an_instance_whose_end_makes_no_room_is_not_named() -> None:
    two = [(None, "cuda", Claim(vram={0: 40 * GIB})), (None, "cuda", Claim(vram={0: 39 * GIB}))]
    claims = [claim("one", "w1", 40, 0), claim("two", "w1", 39, 0)]
    said = suggested(a_request(), a_machine("w1", gpus(1), claims=two), claims=claims)
    assert not [each for each in said if each.change.get("action") == "delete_instance"]


def test_what_stands_in_the_way_of_a_group_is_named() -> None:
    """Two workers of two GPUs each: the second is cordoned, or has an instance on one of its GPUs."""
    request = a_request(weights=safetensors(200 * GIB))
    one = a_machine("a", gpus(2))
    assert "when b is uncordoned it fits" in texts(suggested(request, one, a_machine("b", gpus(2), cordoned=True)))
    said = suggested(request, one, a_machine("b", gpus(2), claims=held(0, 20)), claims=[claim("x", "b", 20, 1)])
    assert {"action": "delete_instance", "instance": "x"} in [each.change for each in said]
    labelled = a_request(a_spec(worker_selector={"rack": "1"}), safetensors(200 * GIB))
    both = suggested(labelled, a_machine("a", gpus(2), labels={"rack": "1"}), a_machine("b", gpus(2)))
    assert {"action": "label_worker", "worker": "b", "labels": {"rack": "1"}} in [each.change for each in both]


def test_a_selection_over_several_workers_is_known_while_one_of_them_is_changed() -> None:
    spec = a_spec(gpu_selector={"gpu_ids": ["a:cuda:0", "b:cuda:0"]})
    others = [a_machine(f"o{number}", gpus(1)) for number in range(9)]
    said = suggested(a_request(spec), a_machine("a", gpus(1)), a_machine("b", gpus(1), cordoned=True), *others)
    assert "when b is uncordoned it fits" in texts(said)


def test_a_label_that_is_built_in_is_nobodys_to_give() -> None:
    request = a_request(a_spec(worker_selector={"arch": "arm64"}))
    assert texts(suggested(request, a_machine("w1", gpus(1)))) == ["without a worker selector it fits"]


def test_two_things_that_are_wrong_with_a_worker_are_mended_by_two() -> None:
    request = a_request(a_spec(worker_selector={"a": "b"}))
    (said,) = suggested(request, a_machine("w1", gpus(1), cordoned=True))
    assert said == Suggestion(
        change={
            "action": "together",
            "changes": [{"worker_selector": {"a": None}}, {"action": "uncordon_worker", "worker": "w1"}],
        },
        text="without a worker selector and when w1 is uncordoned it fits",
    )


def test_a_shorter_context_and_another_share_are_one_patch() -> None:
    """Half of the GPU is taken, and in what is free the context is too long."""
    request = a_request(a_spec(backend_parameters=["--max-model-len=300000"]), safetensors(15 * GIB))
    machine = a_machine("w1", gpus(1), claims=held(40))
    (said,) = suggested(request, machine)
    tokens = 24 * GIB // 147456 // 16 * 16
    assert said.change == {"backend_parameters": ["--gpu-memory-utilization=0.5", f"--max-model-len={tokens}"]}
    assert said.text == f"with --gpu-memory-utilization=0.5 and with --max-model-len={tokens} it fits"
    assert isinstance(place(changed(request, said.change), [machine]), Placed)


def test_a_shorter_context_and_more_gpus_are_one_patch() -> None:
    """The weights need four GPUs, and beside them a million tokens have no room."""
    request = a_request(a_spec(backend_parameters=["-tp=2", "--max-model-len=10M"]), safetensors(160 * GIB))
    machine = a_machine("w1", gpus(4))
    (said,) = suggested(request, machine)
    assert "without parallel sizes and with --max-model-len=" in said.text
    assert "action" not in said.change
    assert placed(changed(request, said.change), machine).take.gpus == 4


def test_two_instances_are_deleted_where_one_is_not_enough() -> None:
    two = [(None, "cuda", Claim(vram={0: 40 * GIB})), (None, "cuda", Claim(vram={0: 30 * GIB}))]
    three = [*two, (None, "cuda", Claim(vram={0: 9 * GIB}))]
    claims = [claim("one", "w1", 40, 0), claim("two", "w1", 30, 0), claim("three", "w1", 9, 0)]
    whole = a_request(a_spec(backend_parameters=["--gpu-memory-utilization=0.85"]), safetensors(50 * GIB))
    (said,) = suggested(whole, a_machine("w1", gpus(1), claims=three), claims=claims)
    assert said == Suggestion(
        change={
            "action": "together",
            "changes": [
                {"action": "delete_instance", "instance": "one"},
                {"action": "delete_instance", "instance": "two"},
            ],
        },
        text="without one, which holds 40.0 GiB on w1 and without two, which holds 30.0 GiB on w1 it fits",
    )


def test_an_instance_is_not_deleted_twice() -> None:
    held_now = [36, 25, 18]
    promises = [(None, "cuda", Claim(vram={0: gib * GIB})) for gib in held_now]
    claims = [claim(f"x{gib}", "w1", gib, 0) for gib in held_now]
    assert (
        suggested(a_request(weights=safetensors(55 * GIB)), a_machine("w1", gpus(1), claims=promises), claims=claims)
        == ()
    )


def test_two_parameters_that_are_wrong_in_different_ways_are_mended_together() -> None:
    request = a_request(a_spec(backend_parameters=["-tp=3", "--gpu-memory-utilization=2"]))
    (said,) = suggested(request, a_machine("w1", gpus(4)))
    assert isinstance(place(changed(request, said.change), [a_machine("w1", gpus(4))]), Placed)
    assert said.text == "with --tensor-parallel-size=2 and without --gpu-memory-utilization it fits"


def test_pairs_are_few_and_only_where_nothing_helps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the way of however many workers, few places are looked for, and on few of them."""
    looked: list[int] = []

    def counted(request: Request, machines: Sequence[Machine]) -> Placed | Refused:
        looked.append(len(machines))
        return place(request, machines)

    monkeypatch.setattr(suggestions, "place", counted)
    machines = [
        a_machine(f"w{number:03}", gpus(1, 24 * GIB), claims=held(20), cordoned=True, labels={"a": str(number)})
        for number in range(200)
    ]
    spec = a_spec(worker_selector={"b": "1"})
    request = a_request(spec, safetensors(30 * GIB), crashes={machines[0].id: 5}, distributed=False)
    assert suggested(request, *machines) == ()
    assert len(looked) < 80
    assert sorted(looked)[-2:] == [6, SELECTED]  # once a group is looked for


def test_what_helps_alone_is_not_said_with_something_else() -> None:
    said = suggested(a_request(a_spec(worker_selector={"a": "b"})), a_machine("w1", gpus(1)))
    assert len(said) == 2
    assert not any(each.change.get("action") == "together" for each in said)


def test_where_nothing_helps_nothing_is_said() -> None:
    assert suggested(a_request(), a_machine("w1", state="unreachable")) == ()
    assert suggested(a_request(), a_machine("w1", gpus(1), inventory={"os": "windows"})) == ()
    down = gpus(2, 64 * GIB, type="cann", network=GpuNetwork(up=False))
    mindie = a_request(a_spec(backend="MindIE"), safetensors(150 * GIB))
    assert suggested(mindie, a_machine("a", down), a_machine("b", down)) == ()


# -- all together -----------------------------------------------------------------------------------------------------


def test_no_kind_of_change_crowds_out_the_others() -> None:
    """Twenty workers, each with something else free, half of them cordoned too."""
    machines = [
        a_machine(f"w{number:02}", gpus(1), claims=held(30 + number), cordoned=number % 2 == 1) for number in range(20)
    ]
    claims = [claim(f"x{number:02}", f"w{number:02}", 30 + number, 0) for number in range(20)]
    said = suggested(a_request(), *machines, claims=claims)
    assert texts(said) == [
        "with --gpu-memory-utilization=0.62 it fits",
        "packed it fits: the engine takes what the model needs, not its usual share",
        "without x00, which holds 30.0 GiB on w00, it fits",
        "without x02, which holds 32.0 GiB on w02, it fits",
    ]
    assert len(said) <= MOST


def test_asking_what_would_help_changes_nothing() -> None:
    machines = [a_machine("w1", gpus(1), claims=held(30)), a_machine("w2", gpus(1), cordoned=True)]
    request = a_request(a_spec(worker_selector={"a": "b"}), crashes={WorkerId("w-w1"): 1})
    before = [(dict(each.labels), each.cordoned, [gpu.free for gpu in each.gpus.values()]) for each in machines]
    one = suggested(request, *machines, claims=[claim("x", "w1", 30, 0)])
    assert [(dict(each.labels), each.cordoned, [gpu.free for gpu in each.gpus.values()]) for each in machines] == before
    assert request.crashes == {WorkerId("w-w1"): 1}
    assert suggested(request, *machines, claims=[claim("x", "w1", 30, 0)]) == one


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "foo"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_a_change_is_a_merge_patch(document: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]) -> None:
    """The examples of RFC 7396, appendix A, that are objects."""
    assert merged(document, patch) == result


def test_a_broken_gpu_helps_nobody() -> None:
    machine = a_machine("w1", (a_gpu(0, unhealthy="ECC"),))
    assert suggested(a_request(), machine) == ()


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["vllm", "VLLM", "vLM"])
def test_the_backend_that_was_meant_is_suggested_where_the_name_is_wrong(typed: str) -> None:
    request = a_request(a_spec(backend=typed))
    assert suggested(request, a_machine("w1", gpus(2))) == (
        Suggestion(change={"backend": "vLLM"}, text="with the backend vLLM it fits"),
    )


def test_no_backend_is_suggested_that_does_not_run_there_either() -> None:
    assert suggested(a_request(a_spec(backend="vllm")), a_machine("w1", gpus(2), inventory={"os": "windows"})) == ()
    assert suggested(a_request(a_spec(backend="TGI")), a_machine("w1", gpus(2))) == ()


# -- before anybody has looked at the files ---------------------------------------------------------------------------


def test_what_may_run_on_processors_is_told_so_before_anybody_knows_what_it_weighs() -> None:
    machine = a_machine("w1", (), inventory={"runtime": "process", "backends": {"vLLM": "0.32.0+cpu"}})
    request = a_request(must_look=True)
    request.known = None
    assert suggested(request, machine) == (
        Suggestion(
            change={"cpu_offloading": True},
            text="with cpu_offloading it may fit: it runs on processors, which is slower",
        ),
    )


def test_what_would_not_help_is_not_suggested_before_anybody_knows_what_it_weighs_either() -> None:
    machine = a_machine("w1", (), inventory={"runtime": "process", "backends": {"vLLM": "0.32.0"}})
    request = a_request(must_look=True)
    request.known = None
    assert suggested(request, machine) == ()
