"""The main job on the real log, database and engine: from an empty fleet to a chat answer, and back after a crash."""

import os
import signal

from tests.support.stack import Stack


async def test_a_model_waits_for_a_worker_runs_answers_and_comes_back_after_its_engine_was_killed(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_api()
    client = stack.client()

    await client.deploy("tinychat")
    pending = await client.until_state("/v2/models/tinychat", "pending")
    assert [reason["code"] for reason in pending["reasons"]] == ["no_workers"]

    await stack.start_worker(0)
    await client.until_state("/v2/models/tinychat", "ready")
    status, answer = await client.ask("tinychat")
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "I am TinyChat, a very small language model made for tests."

    running = (await client.get("/v2/model-instances"))["items"][0]
    agent = stack.services["agent-0"]
    (engine,) = await agent._runtime.list()  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    os.killpg(engine.handle, signal.SIGKILL)
    again = await client.until("/v2/models/tinychat", lambda m: m["state"] == "ready" and m["since"] > running["since"])
    assert again["ready_replicas"] == 1
    assert (await client.ask("tinychat"))[0] == 200

    timeline = (await client.get(f"/v2/model-instances/{running['id']}/timeline"))["items"]
    failed = next(event for event in timeline if event["type"] == "InstanceFailed")
    assert failed["data"]["exit_code"] == 128 + signal.SIGKILL
    assert failed["data"]["reasons"] == [{"worker_id": stack.workers[0].id, "code": "engine_killed", "signal": 9}]
    assert [event["type"] for event in timeline][-5:] == [
        "InstanceRestartPlanned",
        "InstanceScheduled",
        "InstanceDownloading",
        "InstanceStarting",
        "InstanceRunning",
    ] or [event["type"] for event in timeline][-4:] == [
        "InstanceRestartPlanned",
        "InstanceScheduled",
        "InstanceStarting",
        "InstanceRunning",
    ]
