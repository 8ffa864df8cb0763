"""Which image of a backend a worker would be given ahead of any model: by the rules and the choice of a placement."""

from typing import Any

import pytest

from schemas.backends import InferenceBackend
from schemas.ids import WorkerId
from schemas.images import ImagesAnswer, ImagesQuestion, WorkerImages
from schemas.models import Gpu
from schemas.reasons import (
    AcceleratorNotSupported,
    ComputeCapabilityTooLow,
    DriverTooOld,
    ImageMissing,
    PlatformNotSupported,
    RunsNoContainers,
    WorkerNotReady,
)
from services.scheduler.domain.candidate import Looked, Request
from services.scheduler.domain.images import images_on
from services.scheduler.domain.launching import launch_of
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.placement import Placed, place
from services.scheduler.domain.snapshot import Machine
from tests.services.scheduler.placement.fleets import GIB, a_machine, a_spec, gpus, safetensors

OLD = {"image": "mine:{version}-cu124", "accelerator": "cuda", "runtime": "12.4"}
NEW = {"image": "mine:{version}-cu129", "accelerator": "cuda", "runtime": "12.9"}
AMD = {"image": "mine:{version}-rocm", "accelerator": "rocm"}
NAMED = {"image": "mine:{version}-h20", "accelerator": "cuda", "devices": ["*H20*"], "runtime": "13.0"}
BACKEND: dict[str, Any] = {
    "backend_name": "mine",
    "engine": "vLLM",
    "images": [OLD, NEW, AMD, NAMED],
    "default_version": "1.4",
    "platforms": ["linux/amd64"],
    "compute_capability": "7.0",
}


def mine(**fields: Any) -> InferenceBackend:
    return InferenceBackend.model_validate(BACKEND | fields)


def asked(
    machine: Machine,
    backend: InferenceBackend | None = None,
    version: str | None = None,
    *,
    on_processors: bool = False,
) -> WorkerImages:
    fleet = Machines()
    fleet.put(machine)
    question = ImagesQuestion(backend="mine", version=version, on_processors=on_processors, worker_ids=(machine.id,))
    answer = images_on(question, fleet, {"mine": backend or mine()})
    assert answer is not None
    (found,) = answer.workers
    return found


def given(machine: Machine, *images: str) -> WorkerImages:
    return WorkerImages(worker_id=machine.id, images=images, supported=True)


def cuda(runtime: str | None, **fields: Any) -> tuple[Gpu, ...]:
    return gpus(2, runtime_version=runtime, **fields)


ROCM = Gpu(index=0, vendor="amd", type="rocm", name="MI300X", memory_total=192 * GIB)


@pytest.mark.parametrize(
    ("machine", "image"),
    [
        (a_machine(of=cuda("12.9")), "mine:1.4-cu129"),
        (a_machine(of=cuda("12.4")), "mine:1.4-cu124"),
        (a_machine(of=cuda(None)), "mine:1.4-cu124"),
        (a_machine(of=cuda("13.0", name="NVIDIA H20")), "mine:1.4-h20"),
        (a_machine(of=(ROCM,)), "mine:1.4-rocm"),
        (a_machine(of=cuda("12.9"), cordoned=True), "mine:1.4-cu129"),
    ],
)
def test_it_is_the_image_that_a_placement_takes(machine: Machine, image: str) -> None:
    backends = {"mine": mine()}
    assert asked(machine) == given(machine, image)

    machine.cordoned = False
    request = Request(a_spec(backend="mine"), looked={machine.id: Looked(safetensors(GIB), ())}, backends=backends)
    placed = place(request, [machine])
    assert isinstance(placed, Placed)
    assert launch_of(request, placed, {machine.id: machine}, 1).image == image


def test_a_version_that_is_asked_for_is_in_its_name() -> None:
    machine = a_machine(of=cuda("12.9"))
    assert asked(machine, version="1.3") == given(machine, "mine:1.3-cu129")


def test_a_worker_with_two_kinds_of_gpus_is_given_an_image_for_each() -> None:
    machine = a_machine(of=(*cuda("12.9"), ROCM))
    assert asked(machine) == given(machine, "mine:1.4-cu129", "mine:1.4-rocm")


def test_a_worker_without_gpus_is_given_the_image_for_processors_where_it_is_named() -> None:
    """Models get it only where their authors say so: nobody wants it on every such worker."""
    machine = a_machine()
    with_cpu = mine(images=[NEW, {"image": "mine:{version}-cpu", "accelerator": "cpu"}])
    assert asked(machine, with_cpu, on_processors=True) == given(machine, "mine:1.4-cpu")
    assert not asked(machine, with_cpu).supported


def test_what_is_in_the_way_is_told_and_whether_the_backend_is_for_such_workers_at_all() -> None:
    def refused(machine: Machine, *reasons: Any, supported: bool = False, **fields: Any) -> None:
        assert asked(machine, mine(**fields)) == WorkerImages(
            worker_id=machine.id, reasons=reasons, supported=supported
        )

    where = {"worker_id": WorkerId("w-w1")}
    about = where | {"backend": "mine"}
    refused(a_machine(of=cuda("12.9"), inventory={"runtime": "process"}), RunsNoContainers.model_validate(where))
    refused(
        a_machine(of=cuda("12.9"), inventory={"arch": "arm64"}),
        PlatformNotSupported.model_validate(about | {"platform": "linux/arm64", "supported": ("linux/amd64",)}),
    )
    refused(
        a_machine(of=(ROCM,)),
        AcceleratorNotSupported.model_validate(
            about | {"version": None, "accelerators": ("rocm",), "supported": ("cuda",)}
        ),
        images=[NEW],
    )
    refused(
        a_machine(of=cuda("12.2")),
        DriverTooOld.model_validate(
            about | {"gpu_index": 0, "runtime_version": "12.2", "needed_version": "12.4", "version": None}
        ),
        supported=True,
    )
    refused(
        a_machine(of=cuda("12.9", compute_capability="6.1")),
        ComputeCapabilityTooLow.model_validate(about | {"gpu_index": 0, "compute_capability": "6.1", "needed": "7.0"}),
        supported=True,
    )
    missing = ImageMissing.model_validate(about | {"accelerators": ("cuda",), "platform": "linux/amd64"})
    refused(a_machine(of=cuda("12.9")), missing, supported=True, images=[NAMED])
    refused(a_machine(of=cuda("12.9")), missing, supported=True, images=[])
    refused(
        a_machine(of=cuda("12.9"), state="unreachable"),
        WorkerNotReady.model_validate(where | {"state": "unreachable"}),
        supported=True,
    )


def test_a_worker_that_is_gone_and_a_backend_that_is_gone() -> None:
    worker_id = WorkerId("w-gone")
    question = ImagesQuestion(backend="mine", worker_ids=(worker_id,))
    gone = WorkerImages(worker_id=worker_id, reasons=(WorkerNotReady(worker_id=worker_id, state="gone"),))
    assert images_on(question, Machines(), {"mine": mine()}) == ImagesAnswer(workers=(gone,))
    assert images_on(question, Machines(), {}) is None
