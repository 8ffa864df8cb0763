"""The file of a simulated fleet: what it comes to, and what is refused with a code and a field."""

import json
from pathlib import Path
from typing import Any

import pytest

from kernel.errors import Refused
from schemas.asks import InspectModel
from schemas.models import Gpu, Inventory, ModelWeights
from schemas.reasons import ModelNotFound
from schemas.sources import LocalPath
from services.simulator.domain.files import inspect
from services.simulator.domain.fleet import MOST_WORKERS, FleetFile, GpuGroup, Weights, WorkerGroup, read_fleet
from services.simulator.process import loopback_of
from tests.docs.pages import ROOT, blocks

EXAMPLES = sorted((ROOT / "examples" / "fleets").glob("*.json"))
GIB = 2**30
GPU: dict[str, Any] = {"vendor": "nvidia", "type": "cuda", "name": "H100", "memory_total": 80 * GIB}
WORKER: dict[str, Any] = {"name": "gpu-0", "cpu_count": 8, "memory_total": 64 * GIB}
GGUF: dict[str, Any] = {"format": "gguf", "weight_bytes": 8 * GIB}


def a_file(*workers: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"workers": list(workers)} | more).encode()


def refusal(content: bytes) -> tuple[str, str | None]:
    with pytest.raises(Refused) as refused:
        read_fleet(content)
    assert str(refused.value)
    return refused.value.code, refused.value.field


# -- what it comes to -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_fleet(example: Path) -> None:
    fleet = read_fleet(example.read_bytes())
    assert len({worker.id for worker in fleet.workers}) == len(fleet.workers) >= 4
    assert all(worker.inventory().runtime == "simulated" for worker in fleet.workers)


def test_the_file_that_the_page_shows_is_one() -> None:
    (shown,) = blocks(ROOT / "docs" / "how-to" / "simulate-a-fleet.md", "json")
    fleet = read_fleet(shown.encode())
    assert (len(fleet.workers), len(fleet.workers[0].inventory().gpus), len(fleet.models)) == (100, 8, 1)


def test_a_group_is_as_many_workers_as_it_says_with_as_many_gpus() -> None:
    group = WORKER | {
        "name": "gpu-{n}",
        "count": 3,
        "memory_reserved": GIB,
        "backends": {"llama.cpp": "b1", "vllm": None},
    }
    others: dict[str, Any] = {
        "vendor": "nvidia",
        "type": "cuda",
        "name": "A10",
        "memory_total": 24 * GIB,
        "memory_used_by_others": GIB,
    }
    fleet = read_fleet(a_file(group | {"gpus": [GPU | {"count": 2}, others]}, WORKER | {"name": "cpu"}))

    assert [worker.name for worker in fleet.workers] == ["gpu-0", "gpu-1", "gpu-2", "cpu"]
    inventory = fleet.workers[1].inventory()
    assert [gpu.index for gpu in inventory.gpus] == [0, 1, 2]
    assert len({gpu.uuid for worker in fleet.workers for gpu in worker.inventory().gpus}) == 9
    without_uuids = tuple(gpu.model_copy(update={"uuid": None}) for gpu in inventory.gpus)
    assert inventory.model_copy(update={"gpus": without_uuids}) == Inventory(
        os="linux",
        arch="amd64",
        cpu_count=8,
        memory_total=64 * GIB,
        memory_reserved=GIB,
        gpus=(Gpu(index=0, **GPU), Gpu(index=1, **GPU), Gpu(index=2, **others)),
        backends={"llama.cpp": "b1", "vllm": None},
        runtime="simulated",
    )
    assert fleet.workers[3].inventory().gpus == ()


def test_whatever_the_schemas_know_of_machines_and_models_may_stand_in_the_file() -> None:
    """Fields that are added there are not listed here by hand."""
    assert Gpu.model_fields.keys() <= GpuGroup.model_fields.keys()
    assert Inventory.model_fields.keys() <= WorkerGroup.model_fields.keys()
    assert ModelWeights.model_fields.keys() <= Weights.model_fields.keys()
    gpu = GPU | {"index": 3, "uuid": "GPU-1", "compute_capability": "9.0", "driver_version": "580.1"}
    (worker,) = read_fleet(a_file(WORKER | {"gpus": [gpu]})).workers
    assert worker.inventory().gpus == (Gpu.model_validate(gpu),)


def test_the_same_seed_is_the_same_fleet_and_another_seed_another() -> None:
    group = WORKER | {"name": "gpu-{n}", "count": 50}
    first, again, other = (read_fleet(a_file(group, seed=seed)) for seed in (1, 1, 2))

    assert [worker.id for worker in first.workers] == [worker.id for worker in again.workers]
    assert {worker.id for worker in first.workers}.isdisjoint(worker.id for worker in other.workers)
    assert [w.draw((0, 10), "x") for w in first.workers] == [w.draw((0, 10), "x") for w in again.workers]
    assert [w.draw((0, 10), "x") for w in first.workers] != [w.draw((0, 10), "x") for w in other.workers]


def test_draws_lie_in_their_span_and_chances_come_as_often_as_they_say() -> None:
    workers = read_fleet(a_file(WORKER | {"name": "gpu-{n}", "count": 2000})).workers
    drawn = [worker.draw((2, 5), "start") for worker in workers]
    assert 2 <= min(drawn) < 2.1
    assert 4.9 < max(drawn) < 5
    assert 150 < sum(worker.happens(0.1, "crash") for worker in workers) < 250
    assert not any(worker.happens(0, "crash") for worker in workers)
    assert all(worker.happens(1, "crash") for worker in workers)


def test_workers_have_addresses_of_their_own() -> None:
    addresses = {loopback_of(number) for number in range(MOST_WORKERS)}
    assert len(addresses) == MOST_WORKERS
    assert all(all(0 <= int(part) <= 255 for part in address.split(".")) for address in addresses)


def test_a_path_is_what_the_file_says_and_nothing_otherwise() -> None:
    models = {"/m.gguf": GGUF | {"layers": 4, "missing_on": ["gpu-1*"]}, "/dir": GGUF | {"files": ["/dir/a", "/dir/b"]}}
    fleet = read_fleet(a_file(WORKER, models=models))

    found = inspect(fleet, "gpu-0", InspectModel(source=LocalPath(path="/m.gguf")))
    assert found.weights == ModelWeights(format="gguf", weight_bytes=8 * GIB, files=("/m.gguf",), layers=4)
    several = inspect(fleet, "gpu-0", InspectModel(source=LocalPath(path="/dir"))).weights
    assert several is not None
    assert several.files == ("/dir/a", "/dir/b")
    for name, path in (("gpu-1", "/m.gguf"), ("gpu-17", "/m.gguf"), ("gpu-0", "/elsewhere")):
        answer = inspect(fleet, name, InspectModel(source=LocalPath(path=path)))
        assert (answer.weights, answer.reasons) == (None, (ModelNotFound(path=path),))


def test_other_models_lie_everywhere_else() -> None:
    fleet = read_fleet(a_file(WORKER, other_models=GGUF))
    assert inspect(fleet, "gpu-0", InspectModel(source=LocalPath(path="/any"))).weights == ModelWeights(
        format="gguf", weight_bytes=8 * GIB, files=("/any",)
    )


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code", "field"),
    [
        (b"", "fleet_not_json", None),
        (b"{", "fleet_not_json", None),
        (b"\xff\xfe", "fleet_not_json", None),
        (b"[" * 100_000, "fleet_not_json", None),
        (b"[]", "fleet_invalid", None),
        (b"null", "fleet_invalid", None),
        (b"{}", "fleet_invalid", "workers"),
        (b'{"workers": [], "workers": []}', "fleet_invalid", "workers"),
        (a_file(), "no_workers", "workers"),
        (a_file(WORKER, colour="blue"), "fleet_invalid", "colour"),
        (a_file(WORKER, WORKER), "duplicate_worker", "workers.1.name"),
        (a_file(WORKER, WORKER | {"name": "GPU-0"}), "duplicate_worker", "workers.1.name"),
        (a_file(WORKER, WORKER | {"name": "gpu-{n}", "count": 2}), "duplicate_worker", "workers.1.name"),
        (a_file(WORKER | {"count": 2}), "fleet_invalid", "workers.0.name"),
        (a_file(WORKER | {"name": "no good"}), "fleet_invalid", "workers.0.name"),
        (a_file(WORKER | {"name": "x" * 64}), "fleet_invalid", "workers.0.name"),
        (a_file(WORKER | {"name": "gpu-{n}", "count": 0}), "fleet_invalid", "workers.0.count"),
        (a_file(WORKER | {"name": "gpu-{n}", "count": 10_001}), "fleet_invalid", "workers.0.count"),
        (
            a_file(WORKER | {"name": "a-{n}", "count": 9_999}, WORKER | {"name": "b-{n}", "count": 2}),
            "too_many_workers",
            "workers",
        ),
        (a_file(WORKER | {"memory": 1}), "fleet_invalid", "workers.0.memory"),
        (a_file(WORKER | {"memory_total": -1}), "fleet_invalid", "workers.0.memory_total"),
        (a_file(WORKER | {"gpus": [GPU | {"colour": "blue"}]}), "fleet_invalid", "workers.0.gpus.0.colour"),
        (a_file(WORKER | {"gpus": [GPU | {"index": 1}, GPU | {"index": 1}]}), "fleet_invalid", "workers.0.gpus"),
        (a_file(WORKER | {"gpus": [GPU | {"count": 200}, GPU | {"count": 57}]}), "fleet_invalid", "workers.0.gpus"),
        (a_file(WORKER | {"gpus": [GPU | {"type": "a b"}]}), "fleet_invalid", "workers.0.gpus.0.type"),
        (
            a_file(WORKER | {"engines": {"start_seconds": [1, 2, 3]}}),
            "fleet_invalid",
            "workers.0.engines.start_seconds",
        ),
        (
            a_file(WORKER | {"engines": {"start_seconds": -1}}),
            "fleet_invalid",
            "workers.0.engines.start_seconds.0",
        ),
        (a_file(WORKER | {"engines": {"start_seconds": [5, 2]}}), "fleet_invalid", "workers.0.engines"),
        (a_file(WORKER | {"engines": {"peak_vram": [5, 2]}}), "fleet_invalid", "workers.0.engines"),
        (a_file(WORKER | {"engines": {"peak_ram": -1}}), "fleet_invalid", "workers.0.engines.peak_ram.0"),
        (a_file(WORKER | {"engines": {"start": 1}}), "fleet_invalid", "workers.0.engines.start"),
        (
            a_file(WORKER | {"engines": {"crash": {"probability": 1.5}}}),
            "fleet_invalid",
            "workers.0.engines.crash.probability",
        ),
        (
            a_file(WORKER | {"engines": {"crash": {"reason": {"code": "bad_mood"}}}}),
            "fleet_invalid",
            "workers.0.engines.crash.reason",
        ),
        (a_file(WORKER | {"engines": {"slow": {"factor": 0.5}}}), "fleet_invalid", "workers.0.engines.slow.factor"),
        (
            a_file(WORKER | {"life": {"leaves_at_seconds": [5, 10], "returns_at_seconds": 8}}),
            "fleet_invalid",
            "workers.0.life",
        ),
        (a_file(WORKER, models={"/m": {"format": "gguf"}}), "fleet_invalid", "models./m.weight_bytes"),
        (a_file(WORKER, models={"/m": GGUF | {"colour": 1}}), "fleet_invalid", "models./m.colour"),
        (a_file(WORKER, other_models=GGUF | {"format": "zip"}), "fleet_invalid", "other_models.format"),
    ],
)
def test_a_file_that_describes_no_fleet_is_refused(content: bytes, code: str, field: str | None) -> None:
    assert refusal(content) == (code, field)


def test_not_a_number_is_no_number() -> None:
    content = a_file(WORKER | {"engines": {"start_seconds": 1}}).replace(b'"start_seconds": 1', b'"start_seconds": NaN')
    assert refusal(content)[0] == "fleet_invalid"


def test_what_is_left_out_has_a_default() -> None:
    assert FleetFile.model_validate_json(a_file(WORKER)).workers[0].backends == {"llama.cpp": None}
