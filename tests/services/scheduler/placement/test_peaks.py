"""A claim is taken from what was measured, where the operator lets it: never in place of a share, or of the author's word."""

from typing import Any

import pytest

from schemas.ids import ModelId
from schemas.models import Claim, ModelWeights
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.index import GpuIndex
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.peaks import CPU, Peak, Where
from services.scheduler.domain.plan import needs_of
from services.scheduler.domain.snapshot import Machine
from services.scheduler.domain.suggestions import changed
from tests.services.scheduler.placement.fleets import (
    GIB,
    a_machine,
    a_request,
    a_spec,
    gguf,
    gpus,
    placed,
    refused,
    safetensors,
)

MIB = 2**20
TWO_NAMES = (*gpus(1, name="A"), *gpus(2, name="B")[1:])


def measured(where: Where, vram: int | None = None, ram: int | None = None) -> dict[Where, Peak]:
    return {where: Peak(1, where, vram, ram)}


def llama_cpp(peaks: dict[Where, Peak], weights: ModelWeights | None = None, **fields: Any) -> Request:
    parameters = ("--ctx-size=1", *fields.pop("parameters", ()))
    spec = a_spec(backend="llama.cpp", backend_parameters=parameters, **fields)
    return a_request(spec, weights or gguf(20 * GIB), peaks=peaks)


def claims(request: Request, *machines: Machine) -> Claim:
    """Of the only member; index and specification agree."""
    answer = placed(request, *machines)
    book = Machines()
    for machine in machines:
        book.put(machine)
    fast = GpuIndex(book).place(request)
    assert fast is None or fast.places == answer.places
    return answer.places[0].claim


def test_what_was_measured_is_claimed_and_a_tenth_more() -> None:
    machine = a_machine(of=gpus(1))
    assert claims(llama_cpp({}), machine).vram[0] > 20 * GIB
    assert claims(llama_cpp(measured(Where("a GPU", 1), 10 * GIB, 100 * MIB)), machine) == Claim(
        ram=110 * MIB, vram={0: 11 * GIB}
    )


def test_it_is_claimed_also_where_it_is_more_than_the_estimate() -> None:
    request = llama_cpp(measured(Where("a GPU", 1), 40 * GIB))
    assert claims(request, a_machine(of=gpus(1))).vram == {0: 44 * GIB}
    (reason,) = refused(request, a_machine(of=gpus(1, 32 * GIB))).workers[0].reasons
    assert reason.code == "not_enough_vram"
    assert reason.needed_bytes == 44 * GIB


def test_a_peak_that_is_no_whole_number_of_tenths_is_rounded_up() -> None:
    assert claims(llama_cpp(measured(Where("a GPU", 1), 10 * GIB + 1)), a_machine(of=gpus(1))).vram == {0: 11 * GIB + 2}


def test_what_was_not_measured_stays_an_estimate() -> None:
    machine = a_machine(of=gpus(1))
    without = claims(llama_cpp({}), machine)
    assert claims(llama_cpp(measured(Where("a GPU", 1), ram=GIB)), machine).vram == without.vram
    assert claims(llama_cpp(measured(Where("a GPU", 1), 10 * GIB)), machine).ram == without.ram


@pytest.mark.parametrize(
    "where",
    [Where("another GPU", 1), Where("a GPU", 2), Where("a GPU", 1, workers=2), Where("a GPU", 1, gpu_layers=8), Where(CPU, 0)],
    ids=["another GPU", "another number of them", "several workers", "some of the layers", "on the CPU"],
)  # fmt: skip
def test_what_was_measured_elsewhere_says_nothing(where: Where) -> None:
    machine = a_machine(of=gpus(1))
    assert claims(llama_cpp(measured(where, GIB, GIB)), machine) == claims(llama_cpp({}), machine)


def test_gpus_that_were_measured_take_what_others_do_not() -> None:
    """16 GiB are too few by the estimate, and enough where it was measured."""
    request = llama_cpp(measured(Where("small", 1), 12 * GIB))
    other, known = a_machine("w1", gpus(1, 16 * GIB)), a_machine("w2", gpus(1, 16 * GIB, name="small"))
    assert placed(request, other, known).places[0].worker_id == "w-w2"
    assert refused(request, other).workers[0].reasons[0].code == "not_enough_vram"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("backend", "parameters"),
    [("vLLM", ()), ("vLLM", ("--gpu-memory-utilization=0.5",)), ("SGLang", ()), ("MindIE", ())],
)
def test_a_share_is_taken_whatever_was_measured(backend: str, parameters: tuple[str, ...], packed: bool) -> None:
    machine = a_machine(of=gpus(1, type="cann" if backend == "MindIE" else "cuda"))
    spec = a_spec(backend=backend, backend_parameters=parameters, packed=packed)
    peaks = measured(Where("a GPU", 1), 20 * GIB, GIB)
    assert claims(a_request(spec, peaks=peaks), machine) == claims(a_request(spec), machine)
    assert placed(a_request(spec, peaks=peaks), machine).take.share is not None


def test_an_engine_without_a_share_is_measured() -> None:
    spec = a_spec(categories=("embedding",))
    weights = safetensors(10 * GIB, {"architectures": ["BertModel"]})
    request = a_request(spec, weights, peaks=measured(Where("a GPU", 1), 5 * GIB))
    assert claims(request, a_machine(of=gpus(1))).vram == {0: 5632 * MIB}


@pytest.mark.parametrize(
    "said",
    [{"claim_override": {"vram": 30 * GIB}}, {"claim_override": {"ram": GIB}}, {"env": {"GPUSTACK_MODEL_RAM_CLAIM": "1"}}],
    ids=["VRAM", "RAM", "in the environment"],
)  # fmt: skip
def test_what_the_author_says_is_claimed(said: dict[str, Any]) -> None:
    machine, peaks = a_machine(of=gpus(1)), measured(Where("a GPU", 1), 10 * GIB, 3 * GIB)
    assert claims(llama_cpp(peaks, **said), machine) == claims(llama_cpp({}, **said), machine)


def test_on_the_cpu_ram_is_claimed_by_what_was_measured() -> None:
    request = llama_cpp(measured(Where(CPU, 0), ram=4 * GIB))
    assert claims(request, a_machine()) == Claim(ram=4505 * MIB + 629146)
    assert needs_of(request, []).ram == 4505 * MIB + 629146
    lean = a_machine(ram=5 * GIB)
    assert claims(request, lean).ram < 5 * GIB
    assert refused(llama_cpp({}), lean).workers[0].reasons[0].code == "not_enough_ram"


def test_a_custom_engine_is_claimed_by_what_was_measured() -> None:
    spec = a_spec(backend="Custom", image_name="i", distributed_inference_across_workers=False)
    request = a_request(spec, peaks=measured(Where("a GPU", 2), 10 * GIB, GIB))
    machine = a_machine(of=gpus(2, 12 * GIB))
    assert claims(request, machine).vram == {0: 11 * GIB, 1: 11 * GIB}


def test_layers_that_were_measured_to_need_more_leave_room_for_fewer() -> None:
    """32 layers of 640 MiB; 12 GiB hold 18 of them beside the buffers, and by what was measured not more than 17."""
    weights, offloads = gguf(20 * GIB, layer_bytes=20 * GIB), {"cpu_offloading": True}
    machine = a_machine(of=gpus(1, 12 * GIB))
    most = placed(llama_cpp({}, weights, **offloads), machine).take.gpu_layers
    assert most == 18
    over = measured(Where("a GPU", 1, gpu_layers=18), 12 * GIB, GIB)
    assert placed(llama_cpp(over, weights, **offloads), machine).take.gpu_layers == 17
    under = measured(Where("a GPU", 1, gpu_layers=18), 10 * GIB, GIB)
    assert claims(llama_cpp(under, weights, **offloads), machine) == Claim(ram=1126 * MIB + 419431, vram={0: 11 * GIB})


def test_layers_that_the_author_names_are_measured_as_he_names_them() -> None:
    """He may name more than there are."""
    request = llama_cpp(measured(Where("a GPU", 1, gpu_layers=99), 10 * GIB), parameters=("-ngl=99",))
    assert claims(request, a_machine(of=gpus(1))).vram == {0: 11 * GIB}


def test_gpus_of_several_names_in_one_worker_are_measured_together() -> None:
    """Which of them an instance gets is open."""
    alone, together = measured(Where("A", 1), 10 * GIB), measured(Where("A + B", 1), 10 * GIB)
    machine = a_machine(of=TWO_NAMES)
    assert claims(llama_cpp(alone), machine) == claims(llama_cpp({}), machine)
    assert claims(llama_cpp(together), machine).vram == {0: 11 * GIB}


def test_a_change_that_is_suggested_was_not_measured() -> None:
    peaks = measured(Where("a GPU", 1), 10 * GIB)
    request = llama_cpp(peaks)
    assert changed(request, {}).peaks == peaks
    assert changed(request, {"backend_parameters": ["--ctx-size=512"]}).peaks == {}


def test_the_next_one_is_placed_by_what_was_learned_of_the_first() -> None:
    """Two instances on one GPU of 48 GiB: the estimate has room for one beside what is promised."""
    machines = Machines()
    machines.put(a_machine(of=gpus(1, 40 * GIB), claims=[(ModelId("m-m"), "cuda", Claim(vram={0: 24 * GIB}))]))
    assert GpuIndex(machines).place(llama_cpp({})) is None
    answer = GpuIndex(machines).place(llama_cpp(measured(Where("a GPU", 1), 12 * GIB)))
    assert answer is not None
