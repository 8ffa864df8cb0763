"""A model that fits nowhere says why, for every worker, with numbers; and is placed the moment it fits."""

from pathlib import Path

from tests.e2e.machines import GIB, MIB, QUICK, a_gpu, a_machine, a_model, takes
from tests.support.stack import EXAMPLES, Stack


async def test_a_model_that_fits_nowhere_has_a_reason_for_every_worker_and_runs_when_one_that_fits_joins(
    stack: Stack,
) -> None:
    await stack.start_scheduler()
    await stack.start_api()
    small = a_machine(stack.directory, "small", ram=GIB)
    client = stack.client()
    await stack.start_worker(0, inventory=small, **QUICK)
    await client.until("/v2/workers", lambda body: len(body["items"]) == 1)
    large = a_model(stack.directory, "large", weights=2 * GIB)

    await client.deploy("large", large)
    pending = await client.until(
        "/v2/model-instances/large-0",
        lambda i: i["state"] == "pending" and [r["code"] for r in i["reasons"]] == ["not_enough_ram"],
    )
    (reason,) = pending["reasons"]
    assert reason["worker"] == "worker-0"
    assert reason["who"] == "wait"
    assert reason["numbers"] == {"needed_bytes": takes(large), "free_bytes": GIB, "total_bytes": GIB}
    assert reason["text"] == "needs 2.3 GiB of RAM, 1.0 GiB of 1.0 GiB are free"
    assert pending["closest_worker"] == stack.workers[0].id

    await stack.start_worker(1, inventory=a_machine(stack.directory, "big", ram=8 * GIB), **QUICK)
    running = await client.until_state("/v2/model-instances/large-0", "running")
    assert (running["worker_name"], running["reasons"]) == ("worker-1", [])


async def test_each_worker_has_its_own_objection(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_api()
    client = stack.client()
    gpus = (a_gpu(0, GIB), a_gpu(1, GIB, used_by_others=512 * MIB))
    await stack.start_worker(0, inventory=a_machine(stack.directory, "cpu", ram=GIB), **QUICK)
    await stack.start_worker(1, inventory=a_machine(stack.directory, "gpu", ram=64 * GIB, gpus=gpus), **QUICK)
    await client.until("/v2/workers", lambda body: len(body["items"]) == 2)
    model = a_model(stack.directory, "model", weights=3 * GIB)

    await client.deploy("model", model, worker_selector={"rack": "7"})
    pending = await client.until(
        "/v2/model-instances/model-0",
        lambda i: {r["code"] for r in i["reasons"]} == {"labels_do_not_match", "not_enough_ram", "not_enough_vram"},
    )
    codes = [(r["worker"], r["code"]) for r in pending["reasons"]]
    assert codes == [
        ("worker-0", "labels_do_not_match"),
        ("worker-0", "not_enough_ram"),
        ("worker-1", "labels_do_not_match"),
        ("worker-1", "not_enough_vram"),
    ]
    assert pending["reasons"][3]["numbers"] == {
        "needed_bytes": takes(model),
        "largest_free_bytes": GIB,
        "largest_total_bytes": GIB,
    }
    model_state = await client.get("/v2/models/model")
    assert model_state["state"] == "pending"
    assert [(r["worker"], r["code"]) for r in model_state["reasons"]] == codes


async def test_a_suggestion_makes_the_model_fit_when_it_is_followed(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_api()
    client = stack.client()
    model = a_model(stack.directory, "long", weights=300 * MIB, context=8192)
    room = takes(model, context=1024) + MIB
    assert takes(model, context=8192) > room
    await stack.start_worker(0, inventory=a_machine(stack.directory, "tight", ram=room), **QUICK)

    await client.deploy("long", model)
    pending = await client.until("/v2/model-instances/long-0", lambda i: bool(i["suggestions"]))
    (suggestion,) = pending["suggestions"]
    assert suggestion["text"] == "with --ctx-size=1024 it fits"

    status, _, _ = await client.request("PATCH", "/v2/models/long", suggestion["change"])
    assert status == 200
    await client.until_state("/v2/models/long", "ready")


async def test_files_that_cannot_be_used_say_so_before_anything_starts(stack: Stack) -> None:
    await stack.start_all(**QUICK)
    client = stack.client()
    shards = stack.directory / "shards"
    shards.mkdir()
    first = shards / "tinychat-f16-00001-of-00002.gguf"
    first.write_bytes((EXAMPLES / first.name).read_bytes())
    cut = stack.directory / "cut.gguf"
    cut.write_bytes((EXAMPLES / "tinychat-f16.gguf").read_bytes()[:-1000])
    expected: dict[str, tuple[Path, str]] = {
        "nowhere": (stack.directory / "nowhere.gguf", "model_not_found"),
        "cut": (cut, "model_file_truncated"),
        "shards": (first, "model_files_incomplete"),
        "second": (EXAMPLES / "tinychat-f16-00002-of-00002.gguf", "model_file_invalid"),
    }
    for name, (path, code) in expected.items():
        await client.deploy(name, path)
        found = await client.until(
            f"/v2/models/{name}", lambda m, code=code: [r["code"] for r in m["reasons"]] == [code]
        )
        assert (found["state"], found["reasons"][0]["who"]) == ("pending", "author")
    size = (EXAMPLES / "tinychat-f16.gguf").stat().st_size
    truncated = (await client.get("/v2/models/cut"))["reasons"][0]["numbers"]
    assert truncated == {"path": str(cut), "expected_bytes": size, "actual_bytes": size - 1000}
    assert not any(e["type"] == "InstanceScheduled" for e in await client.events())


async def test_a_file_that_was_missing_is_looked_at_again_and_the_model_runs(stack: Stack) -> None:
    await stack.start_all(**QUICK)
    client = stack.client()
    late = stack.directory / "late.gguf"
    await client.deploy("late", late)
    await client.until("/v2/models/late", lambda m: [r["code"] for r in m["reasons"]] == ["model_not_found"])

    late.write_bytes((EXAMPLES / "tinychat-f16.gguf").read_bytes())

    await client.until_state("/v2/models/late", "ready", seconds=40)


async def test_deleting_a_model_makes_room_for_the_one_that_waited(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_api()
    client = stack.client()
    await stack.start_worker(0, inventory=a_machine(stack.directory, "one-place", ram=GIB), **QUICK)
    model = a_model(stack.directory, "model", weights=600 * MIB)
    await client.deploy("first", model)
    await client.until_state("/v2/models/first", "ready")
    await client.deploy("second", model)
    waiting = await client.until(
        "/v2/model-instances/second-0", lambda i: [r["code"] for r in i["reasons"]] == ["not_enough_ram"]
    )
    assert waiting["reasons"][0]["numbers"]["free_bytes"] == GIB - takes(model)

    status, _, _ = await client.request("DELETE", "/v2/models/first")
    assert status == 200
    await client.until_state("/v2/models/second", "ready")
    await client.until("/v2/model-instances", lambda body: [i["name"] for i in body["items"]] == ["second-0"])
