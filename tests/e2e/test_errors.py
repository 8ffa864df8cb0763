"""An engine that fails: Error carries exit code, last log lines and a diagnosis; it is started again, later each time."""

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from services.agent.process import AgentProcess
from tests.e2e.machines import QUICK
from tests.support.stack import EXAMPLES, TINYCHAT, Client, Stack


async def engine_pid(stack: Stack) -> int:
    agent = stack.services["agent-0"]
    assert isinstance(agent, AgentProcess)
    (engine,) = await agent._runtime.list()  # pyright: ignore[reportPrivateUsage]
    return int(engine.handle)


async def failures(client: Client, instance: str) -> list[dict[str, Any]]:
    timeline = (await client.get(f"/v2/model-instances/{instance}/timeline"))["items"]
    return [event for event in timeline if event["type"] == "InstanceFailed"]


async def a_copy_that_runs(stack: Stack, client: Client) -> Path:
    """A model on the real llama.cpp from a file that the test may spoil."""
    path = stack.directory / "copy.gguf"
    shutil.copy(TINYCHAT, path)
    await client.deploy("copy", path)
    await client.until_state("/v2/models/copy", "ready")
    return path


async def test_an_engine_that_was_killed_comes_back_and_its_end_is_explained(stack: Stack) -> None:
    await stack.start_all()
    client = stack.client()
    await a_copy_that_runs(stack, client)

    os.killpg(await engine_pid(stack), signal.SIGKILL)
    await client.until("/v2/model-instances/copy-0", lambda i: i["state"] == "running" and i["attempt"] == 2)

    (failed,) = await failures(client, "copy-0")
    assert failed["data"]["phase"] == "running"
    assert failed["data"]["exit_code"] == 137
    assert [reason["code"] for reason in failed["data"]["reasons"]] == ["engine_killed"]
    assert any("model loaded" in line or "listening" in line for line in failed["data"]["log_tail"])


async def test_a_model_whose_file_vanished_fails_with_the_engines_own_words(stack: Stack) -> None:
    await stack.start_all()
    client = stack.client()
    path = await a_copy_that_runs(stack, client)

    path.unlink()
    os.killpg(await engine_pid(stack), signal.SIGKILL)
    failed = await client.until(
        "/v2/model-instances/copy-0", lambda i: [r["code"] for r in i["reasons"]] == ["model_not_found"]
    )
    assert (failed["state"], failed["exit_code"], failed["failed_phase"]) == ("error", 1, "starting")
    assert failed["reasons"][0]["numbers"] == {"path": str(path)}
    assert any("No such file" in line for line in failed["log_tail"])
    assert failed["next_restart_at"] > failed["since"]


async def test_a_model_whose_file_was_cut_off_fails_with_a_diagnosis(stack: Stack) -> None:
    await stack.start_all()
    client = stack.client()
    path = await a_copy_that_runs(stack, client)

    whole = path.read_bytes()
    path.unlink()  # the running engine keeps its own
    path.write_bytes(whole[: len(whole) // 2])
    os.killpg(await engine_pid(stack), signal.SIGKILL)
    failed = await client.until(
        "/v2/model-instances/copy-0", lambda i: [r["code"] for r in i["reasons"]] == ["model_file_invalid"]
    )
    assert (failed["state"], failed["exit_code"]) == ("error", 1)
    assert failed["reasons"][0]["who"] == "author"
    assert failed["log_tail"] != []


async def test_restarts_come_later_each_time_until_the_cause_is_gone(stack: Stack) -> None:
    await stack.start_scheduler(restart_base_seconds=0.2)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("dies", backend_parameters=["--exit-after=0.2", "--exit-code=7"])
    failed = await client.until("/v2/model-instances/dies-0", lambda i: i["restart_count"] >= 3)
    assert failed["exit_code"] in (7, None)

    timeline = (await client.get("/v2/model-instances/dies-0/timeline"))["items"]
    delays = [event["data"]["delay_seconds"] for event in timeline if event["type"] == "InstanceRestartPlanned"]
    assert delays[:3] == [0.2, 0.4, 0.8]
    codes = {event["data"]["exit_code"] for event in timeline if event["type"] == "InstanceFailed"}
    assert codes == {7}

    status, _, _ = await client.request("PATCH", "/v2/models/dies", {"backend_parameters": []})
    assert status == 200
    await client.until_state("/v2/models/dies", "ready")


async def test_without_restart_on_error_it_stays_in_error_and_says_who_must_act(stack: Stack) -> None:
    await stack.start_all(**QUICK)
    client = stack.client()
    await client.deploy("dies", backend_parameters=["--exit-after=0.2"], restart_on_error=False)
    failed = await client.until_state("/v2/model-instances/dies-0", "error")
    assert (failed["next_restart_at"], failed["attempt"]) == (None, 1)
    assert [(r["code"], r["who"]) for r in failed["reasons"]] == [("engine_exited", "author")]
    model = await client.until_state("/v2/models/dies", "pending")
    assert [r["code"] for r in model["reasons"]] == ["engine_exited"]


async def test_a_port_that_somebody_else_holds_is_named(stack: Stack) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        await stack.start_all(engine_ports=f"{port}-{port}", **QUICK)
        client = stack.client()
        await client.deploy("model")
        failed = await client.until(
            "/v2/model-instances/model-0", lambda i: [r["code"] for r in i["reasons"]] == ["port_in_use"]
        )
        assert failed["state"] == "error"
        assert failed["reasons"][0]["numbers"] == {"port": port}
        assert failed["reasons"][0]["text"] == f"port {port} is used by another process"
    await client.until_state("/v2/models/model", "ready")


async def test_an_engine_that_is_not_installed_is_named(stack: Stack) -> None:
    await stack.start_all(llama_cpp_command="/nonexistent/llama-server")
    client = stack.client()
    await client.deploy("model")
    failed = await client.until_state("/v2/model-instances/model-0", "error")
    assert [(r["code"], r["who"], r["numbers"]) for r in failed["reasons"]] == [
        ("engine_not_installed", "operator", {"program": "/nonexistent/llama-server"})
    ]


async def test_a_parameter_that_the_engine_does_not_know_is_named(stack: Stack) -> None:
    await stack.start_all()
    client = stack.client()
    await client.deploy("model", EXAMPLES / "tinychat-q8_0.gguf", backend_parameters=["--no-such-flag=1"])
    failed = await client.until_state("/v2/model-instances/model-0", "error")
    assert [(r["code"], r["numbers"]) for r in failed["reasons"]] == [
        ("unknown_parameter", {"parameter": "--no-such-flag"})
    ]
