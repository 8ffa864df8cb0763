"""Error: the exit code, the last lines, a diagnosis, who must act, and another try after a growing while."""

import asyncio
import os
import shutil
import signal
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.what_must_hold import facts_of, of_type
from tests.e2e.machines import QUICK
from tests.support.stack import TINYCHAT, Client, Stack

FAST: dict[str, Any] = {"restart_base_seconds": 0.2}


async def the_instance(client: Client) -> dict[str, Any]:
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    return instance


async def until_error(client: Client, *codes: str, after: str = "", seconds: float = 60.0) -> dict[str, Any]:
    """The one instance, once it is in error for these reasons, later than that."""
    instances = await client.until(
        "/v2/model-instances",
        lambda found: any(
            [reason["code"] for reason in i["reasons"]] == list(codes) and i["since"] > after and i["state"] == "error"
            for i in found["items"]
        ),
        seconds=seconds,
    )
    (instance,) = instances["items"]
    return instance


async def until_failed(stack: Stack, count: int) -> list[dict[str, Any]]:
    for _ in range(1200):
        failed = of_type(await facts_of(stack), "InstanceFailed")
        if len(failed) >= count:
            return [event.envelope.data for event in failed]
        await asyncio.sleep(0.05)
    raise AssertionError(f"there were never {count} failures")


async def delays(stack: Stack) -> list[float]:
    return [event.envelope.data["delay_seconds"] for event in of_type(await facts_of(stack), "InstanceRestartPlanned")]


def kill_the_engine(stack: Stack) -> None:
    ((_, engine),) = stack.engines().items()
    os.killpg(engine, signal.SIGKILL)


async def started(stack: Stack, **agent: Any) -> Client:
    await stack.start_scheduler(**FAST)
    await stack.start_worker(0, **agent)
    await stack.start_api()
    return stack.client()


# -- crashes and restarts ---------------------------------------------------------------------------------------------


async def test_an_engine_that_dies_is_started_again_after_a_growing_while_and_the_error_tells_all(stack: Stack) -> None:
    client = await started(stack, **QUICK)
    await client.deploy("chat", backend_parameters=["--exit-after=0.3", "--exit-code=7"])

    failed = await until_failed(stack, 4)
    planned = await delays(stack)

    assert planned[:3] == [0.2, 0.4, 0.8]
    assert [failure["attempt"] for failure in failed[:4]] == [1, 2, 3, 4]
    assert [failure["restarts"] for failure in failed[:4]] == [1, 2, 3, 4]
    events = of_type(await facts_of(stack), "InstanceRestartPlanned", "InstanceScheduled")
    restarts = zip(events[1::2], events[2::2], strict=False)
    for planned_at, scheduled in restarts:
        assert scheduled.envelope.time >= datetime.fromisoformat(planned_at.envelope.data["at"]), "before its time"

    instance = await until_error(client, "engine_exited")
    assert instance["exit_code"] == 7
    assert instance["failed_phase"] in ("starting", "running")
    assert "engine of chat starts" in instance["log_tail"]
    assert instance["next_restart_at"] is not None
    (reason,) = instance["reasons"]
    assert (reason["who"], reason["worker"], reason["text"]) == ("author", "worker-0", "the engine exited with code 7")
    model = await client.until("/v2/models/chat", lambda model: bool(model["reasons"]))
    assert model["state"] in ("pending", "degraded")


async def test_an_engine_that_was_killed_is_running_again_and_the_error_named_the_signal(stack: Stack) -> None:
    client = await started(stack)
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    before = await the_instance(client)

    kill_the_engine(stack)

    again = await client.until(
        f"/v2/model-instances/{before['id']}", lambda i: (i["state"], i["attempt"]) == ("running", 2), seconds=60
    )
    assert (again["exit_code"], again["failed_phase"], again["log_tail"], again["reasons"]) == (None, None, [], [])
    assert again["restart_count"] == 1
    (failure,) = await until_failed(stack, 1)
    assert (failure["phase"], failure["exit_code"]) == ("running", 128 + signal.SIGKILL)
    assert [reason["code"] for reason in failure["reasons"]] == ["engine_killed"]
    assert any("listening" in line for line in failure["log_tail"]), failure["log_tail"]
    assert (await client.ask("tinychat"))[0] == 200


async def test_an_instance_that_is_not_to_be_restarted_stays_in_error_and_says_who_must_act(stack: Stack) -> None:
    client = await started(stack, **QUICK)
    await client.deploy("chat", restart_on_error=False)
    await client.until_state("/v2/models/chat", "ready", seconds=60)

    kill_the_engine(stack)

    failed = await until_error(client, "engine_killed")
    assert failed["next_restart_at"] is None
    assert [reason["who"] for reason in failed["reasons"]] == ["operator"]
    model = await client.until_state("/v2/models/chat", "pending")
    assert [reason["code"] for reason in model["reasons"]] == ["engine_killed"]
    await client.deploy("another")  # capacity changes, and so it is looked at everywhere
    await client.until_state("/v2/models/another", "ready", seconds=60)
    assert not await delays(stack)
    assert (await client.get(f"/v2/model-instances/{failed['id']}"))["state"] == "error"

    # Who must act can: a deleted instance is replaced.
    assert (await client.request("DELETE", f"/v2/model-instances/{failed['id']}"))[0] == 200
    await client.until_state("/v2/models/chat", "ready", seconds=60)


# -- diagnoses --------------------------------------------------------------------------------------------------------


def lose(model: Path, what: str) -> None:
    if what == "deleted":
        model.unlink()
    else:
        os.truncate(model, TINYCHAT.stat().st_size // 2)


@pytest.mark.parametrize("what", ["deleted", "truncated"])
async def test_a_model_file_that_was_lost_after_it_was_verified_is_diagnosed_from_the_engines_own_words(
    stack: Stack, what: str
) -> None:
    model = Path(shutil.copy(TINYCHAT, stack.directory / "copy.gguf"))
    client = await started(stack)
    await client.deploy("tinychat", model)
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)

    lose(model, what)
    kill_the_engine(stack)

    code = "model_not_found" if what == "deleted" else "model_file_invalid"
    failed = await until_error(client, code)
    assert failed["exit_code"] == 1
    assert failed["failed_phase"] in ("starting", "scheduled", "downloading")
    assert [reason["who"] for reason in failed["reasons"]] == ["author"]
    assert str(model) in failed["reasons"][0]["text"]
    assert any("copy.gguf" in line for line in failed["log_tail"])

    shutil.copy(TINYCHAT, model)
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)


async def test_a_port_in_use_is_named_and_the_instance_runs_once_it_is_free(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        client = await started(stack, engine_ports=f"{port}-{port}", **QUICK)
        await client.deploy("chat")
        failed = await until_error(client, "port_in_use")
        assert failed["reasons"][0]["numbers"]["port"] == port
        assert (failed["reasons"][0]["who"], str(port) in failed["reasons"][0]["text"]) == ("operator", True)
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    assert (await the_instance(client))["port"] == port


async def test_an_engine_that_is_not_installed_is_named(stack: Stack) -> None:
    client = await started(stack, llama_cpp_command="/nonexistent/llama-server")
    await client.deploy("chat")
    failed = await until_error(client, "engine_not_installed")
    (reason,) = failed["reasons"]
    assert (reason["who"], reason["numbers"]["program"]) == ("operator", "/nonexistent/llama-server")
    assert failed["exit_code"] is None


async def test_a_parameter_that_the_engine_does_not_know_is_named_and_runs_without_it(stack: Stack) -> None:
    client = await started(stack)
    await client.deploy("tinychat", backend_parameters=["--make-it-fast"])
    failed = await until_error(client, "unknown_parameter")
    (reason,) = failed["reasons"]
    assert (reason["who"], reason["numbers"]["parameter"], failed["exit_code"]) == ("author", "--make-it-fast", 2)
    assert any("--make-it-fast" in line for line in failed["log_tail"])

    status, _, _ = await client.request("PATCH", "/v2/models/tinychat", {"backend_parameters": []})
    assert status == 200
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)


# -- an engine that takes its time ------------------------------------------------------------------------------------


async def test_an_engine_that_makes_no_progress_is_given_up_after_its_start_timeout(stack: Stack) -> None:
    client = await started(stack, **QUICK)
    await client.deploy("chat", backend_parameters=["--healthy-after=60"], start_timeout_seconds=1.5)
    failed = await until_error(client, "start_timeout", seconds=20)
    assert failed["reasons"][0]["numbers"]["after_seconds"] == 1.5
    assert failed["log_tail"] == ["engine of chat starts"]
    (passed,) = of_type(await facts_of(stack), "DeadlinePassed")[:1]
    assert (passed.envelope.data["state"], passed.envelope.data["deadline_seconds"]) == ("starting", 1.5)


async def test_an_engine_that_writes_to_its_log_makes_progress_and_is_given_its_time(stack: Stack) -> None:
    client = await started(stack, **QUICK)
    await client.deploy("chat", backend_parameters=["--healthy-after=5", "--chatty"], start_timeout_seconds=2)
    await client.until_state("/v2/models/chat", "ready", seconds=30)
    assert (await the_instance(client))["attempt"] == 1
