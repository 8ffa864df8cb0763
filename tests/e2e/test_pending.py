"""Pending: a reason for every worker with its numbers, suggestions that are true, and a place as soon as there is one."""

import os
import shutil
from itertools import pairwise
from typing import Any

import pytest

from services.scheduler.domain.policy import Policy
from services.scheduler.settings import SchedulerSettings
from tests.chaos.what_must_hold import facts_of, of_type
from tests.e2e.machines import GIB, MIB, QUICK, a_gpu, a_machine, a_model, takes
from tests.support.stack import EXAMPLES, TINYCHAT, Client, Stack


async def until_explained(client: Client, model: str, count: int = 1) -> list[dict[str, Any]]:
    """The model's reasons, once so many workers have been looked at."""
    document = await client.until(
        f"/v2/models/{model}",
        lambda m: (
            m["state"] == "pending"
            and len(m["reasons"]) >= count
            and not any(reason["code"] in ("being_inspected", "no_workers") for reason in m["reasons"])
        ),
    )
    return document["reasons"]


async def started(stack: Stack) -> Client:
    await stack.start_scheduler()
    await stack.start_api()
    return stack.client()


async def test_a_model_that_fits_nowhere_has_a_reason_for_every_worker_and_is_placed_when_one_that_fits_joins(
    stack: Stack,
) -> None:
    client = await started(stack)
    model = a_model(stack.directory, "large", weights=2 * GIB)
    small = a_machine(stack.directory, "small", ram=GIB, memory_reserved=200 * MIB)
    await stack.start_worker(0, inventory=small, **QUICK)
    made = await client.deploy("large", model)

    (reason,) = await until_explained(client, "large")
    assert (reason["code"], reason["worker"], reason["who"]) == ("not_enough_ram", "worker-0", "operator")
    assert reason["numbers"] == {
        "needed_bytes": takes(model),
        "free_bytes": GIB - 200 * MIB,
        "total_bytes": GIB,
        "reserved_bytes": 200 * MIB,
    }
    assert "2.3 GiB of RAM" in reason["text"]
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    assert (instance["state"], instance["closest_worker"]) == ("pending", stack.workers[0].id)

    await stack.start_worker(1, inventory=a_machine(stack.directory, "large", ram=4 * GIB), **QUICK)
    await client.until_state("/v2/models/large", "ready")
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    assert (instance["worker_name"], instance["attempt"]) == ("worker-1", 1)
    assert instance["computed_resource_claim"] == {"ram": takes(model), "vram": {}}
    timeline = (await client.get(f"/v2/models/{made['id']}/timeline"))["items"]
    pending = [event["data"] for event in timeline if event["type"] == "ModelPending"]
    assert all(before != after for before, after in pairwise(pending)), "no news is no event"


async def test_every_worker_has_its_own_objection(stack: Stack) -> None:
    client = await started(stack)
    model = a_model(stack.directory, "large", weights=2 * GIB)
    first = a_machine(stack.directory, "first", ram=GIB)
    second = a_machine(stack.directory, "second", ram=64 * GIB, gpus=(a_gpu(0, GIB, used_by_others=MIB), a_gpu(1, GIB)))
    await stack.start_worker(0, inventory=first, **QUICK)
    await stack.start_worker(1, inventory=second, **QUICK)
    await client.deploy("large", model)

    reasons = await until_explained(client, "large", 2)

    assert [(reason["worker"], reason["code"]) for reason in reasons] == [
        ("worker-1", "not_enough_vram"),
        ("worker-0", "not_enough_ram"),
    ], "the closest one first"
    numbers = reasons[0]["numbers"]
    assert takes(model) / 2 < numbers.pop("needed_bytes") < takes(model), "a part of it on each"
    assert numbers == {"largest_free_bytes": GIB - MIB, "largest_total_bytes": GIB, "reserved_bytes": 0, "gpus": 2}
    assert reasons[0]["text"] == "needs 1.6 GiB on each of 2 GPUs, one of them has 1023 MiB of 1.0 GiB"


async def test_a_worker_selector_is_met_by_the_worker_that_has_the_labels(stack: Stack) -> None:
    client = await started(stack)
    await stack.start_worker(0, **QUICK)
    await client.deploy("chat", worker_selector={"worker-name": "worker-1", "os": "linux"})
    (reason,) = await until_explained(client, "chat")
    assert (reason["code"], reason["who"]) == ("labels_do_not_match", "operator")
    assert reason["numbers"] == {"wanted": {"worker-name": "worker-1"}}
    assert reason["text"] == "the worker lacks the label worker-name=worker-1"

    await stack.start_worker(1, **QUICK)
    await client.until_state("/v2/models/chat", "ready")
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    assert instance["worker_name"] == "worker-1"


async def test_what_asks_for_a_gpu_is_not_put_on_a_machine_without_one(stack: Stack) -> None:
    client = await started(stack)
    gpus = (a_gpu(0, GIB), a_gpu(1, GIB))
    await stack.start_worker(0, inventory=a_machine(stack.directory, "without", ram=64 * GIB), **QUICK)
    await stack.start_worker(1, inventory=a_machine(stack.directory, "with", ram=64 * GIB, gpus=gpus), **QUICK)

    await client.deploy("elsewhere", gpu_selector={"gpu_ids": ["worker-1:cuda:7"]})
    reasons = await until_explained(client, "elsewhere", 3)
    assert (reasons[0]["worker"], reasons[0]["code"]) == (None, "gpu_unknown")
    assert ("worker-1", "gpu_not_selected") in [(reason["worker"], reason["code"]) for reason in reasons]

    await client.deploy("chosen", gpu_selector={"gpu_ids": ["worker-1:cuda:1"]})
    await client.until_state("/v2/models/chosen", "ready")
    chosen = (await client.get("/v2/model-instances?model=chosen"))["items"][0]
    assert (chosen["worker_name"], chosen["gpu_indexes"]) == ("worker-1", [1])
    assert chosen["computed_resource_claim"]["vram"] == {"1": takes(TINYCHAT)}


async def test_a_suggestion_really_fits_when_it_is_followed(stack: Stack) -> None:
    client = await started(stack)
    model = a_model(stack.directory, "long", weights=100 * MIB, context=1_000_000)
    room = (takes(model, 8192) + takes(model, 1024)) // 2
    await stack.start_worker(0, inventory=a_machine(stack.directory, "small", ram=room), **QUICK)
    await client.deploy("long", model, backend_parameters=["--ctx-size=8192", "--metrics"])
    await until_explained(client, "long")

    (instance,) = (await client.get("/v2/model-instances"))["items"]
    ((change, text),) = [(suggestion["change"], suggestion["text"]) for suggestion in instance["suggestions"]]
    assert change["backend_parameters"][0] == "--metrics", "what else the author gave stays"
    assert text == f"with {change['backend_parameters'][-1]} it fits"

    status, _, _ = await client.request("PATCH", "/v2/models/long", change)
    assert status == 200
    await client.until_state("/v2/models/long", "ready")


def looks_again_soon(_: SchedulerSettings) -> Policy:
    return Policy(reinspect_seconds=0.5)


async def test_files_that_can_not_be_used_are_told_with_what_is_wrong_and_found_when_they_are_right(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SchedulerSettings, "policy", looks_again_soon)
    client = await started(stack)
    await stack.start_worker(0, **QUICK)
    files = stack.directory / "files"
    files.mkdir()
    truncated = shutil.copy(TINYCHAT, files / "truncated.gguf")
    os.truncate(truncated, 1_000_000)
    shard = shutil.copy(EXAMPLES / "tinychat-f16-00001-of-00002.gguf", files)
    (files / "invalid.gguf").write_bytes(b"GGML, once upon a time" * 100)
    expected = {
        "missing": (files / "missing.gguf", "model_not_found", {"path": str(files / "missing.gguf")}),
        "truncated": (
            truncated,
            "model_file_truncated",
            {"path": str(truncated), "expected_bytes": TINYCHAT.stat().st_size, "actual_bytes": 1_000_000},
        ),
        "shard": (
            shard,
            "model_files_incomplete",
            {"path": str(shard), "missing": ["tinychat-f16-00002-of-00002.gguf"]},
        ),
        "invalid": (files / "invalid.gguf", "model_file_invalid", None),
    }
    for name, (path, _, _) in expected.items():
        await client.deploy(name, path)
    for name, (_, code, numbers) in expected.items():
        (reason,) = await until_explained(client, name)
        assert (reason["code"], reason["who"], reason["worker"]) == (code, "author", "worker-0"), name
        assert numbers is None or reason["numbers"] == numbers, name

    for name in ("missing", "truncated", "invalid"):
        shutil.copy(TINYCHAT, files / f"{name}.gguf")
    shutil.copy(EXAMPLES / "tinychat-f16-00002-of-00002.gguf", files)
    for name in expected:
        await client.until_state(f"/v2/models/{name}", "ready")


async def test_what_a_deleted_model_held_is_given_to_one_that_waits(stack: Stack) -> None:
    client = await started(stack)
    await stack.start_worker(0, inventory=a_machine(stack.directory, "small", ram=400 * MIB), **QUICK)
    await client.deploy("first")
    await client.until_state("/v2/models/first", "ready")
    await client.deploy("second")
    (reason,) = await until_explained(client, "second")
    assert reason["code"] == "not_enough_ram"
    assert reason["numbers"]["free_bytes"] == 400 * MIB - takes(TINYCHAT)

    assert (await client.request("DELETE", "/v2/models/first"))[0] == 200

    await client.until_state("/v2/models/second", "ready")
    assert len(stack.engines()) == 1
    assert (await client.request("GET", "/v2/models/first"))[0] == 404
    assert len((await client.get("/v2/model-instances"))["items"]) == 1
    order = [
        event.subject.rpartition(".")[2]
        for event in of_type(await facts_of(stack), "InstanceStopping", "InstanceDeleted", "InstanceScheduled")
    ]
    assert order == ["InstanceScheduled", "InstanceStopping", "InstanceDeleted", "InstanceScheduled"]
