"""kill -9 of everything there is: what was acknowledged stays, what was refused was never there, engines run on."""

import asyncio
import os
import random
import signal

from services.up.embedded_postgres import EmbeddedPostgres
from tests.chaos.deployment import Deployment
from tests.chaos.what_must_hold import attempts_of, every_answer_was_true, facts_of, of_type, the_stores_agree
from tests.chaos.writers import until_acknowledged, writing
from tests.support.stack import Stack

DEAD_SECONDS = 0.3
"""How long a part stays down under writes: long enough for requests to run into it."""


async def test_no_engine_notices_that_any_part_was_killed_and_each_part_comes_back(
    stack: Stack, postgres: EmbeddedPostgres
) -> None:
    deployment = Deployment(stack, postgres)
    await deployment.start()
    client = deployment.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    engines = stack.engines()
    assert len(engines) == 1

    for part in deployment.parts:
        await deployment.kill(part)
        await deployment.bring_back(part)
        made = await client.until_written(
            "POST", "/v2/models", {"name": f"after-{part}", "local_path": "/nowhere.gguf"}
        )
        await client.until(f"/v2/models/{made['id']}", lambda model: model["state"] == "pending", seconds=60)
        await client.until("/v2/workers", lambda workers: workers["items"][0]["state"] == "ready", seconds=60)
        await client.until_state("/v2/models/tinychat", "ready", seconds=60)
        assert (await client.ask("tinychat"))[0] == 200, part

    assert stack.engines() == engines
    assert attempts_of(await facts_of(stack), instance["id"]) == [1]
    await the_stores_agree(stack)


async def test_under_writes_no_acknowledged_one_is_lost_and_no_refused_one_leaves_a_trace(
    stack: Stack, postgres: EmbeddedPostgres
) -> None:
    deployment = Deployment(stack, postgres)
    await deployment.start()
    client = deployment.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    engines = stack.engines()

    writers = deployment.writers(4, random.Random(20261123))
    async with writing(writers):
        await until_acknowledged(writers, 5)
        for part in deployment.parts:
            await deployment.kill(part)
            await asyncio.sleep(DEAD_SECONDS)
            await deployment.bring_back(part)
            await until_acknowledged(writers, 3)

    await the_stores_agree(stack)
    writes = [write for writer in writers for write in writer.writes]
    await every_answer_was_true(stack, writes)
    assert any(write.sent > 1 for write in writes), "no write ever met a fault"
    assert stack.engines() == engines
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    assert (await client.ask("tinychat"))[0] == 200


async def test_an_instance_comes_back_when_its_agent_and_its_engine_were_killed_together(stack: Stack) -> None:
    await stack.start_scheduler(restart_base_seconds=0.2)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent")
    await stack.start_api()
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    ((_, engine),) = stack.engines().items()

    agent.kill()
    os.killpg(engine, signal.SIGKILL)
    await agent.wait()
    await stack.spawn("agent")

    again = await client.until(
        f"/v2/model-instances/{instance['id']}", lambda i: i["state"] == "running" and i["attempt"] == 2, seconds=60
    )
    assert again["worker_id"] == stack.workers[0].id
    assert (await client.ask("tinychat"))[0] == 200
    (failed,) = of_type(await facts_of(stack), "InstanceFailed")
    assert failed.envelope.data["reasons"][0]["code"] in ("engine_exited", "engine_vanished")
    assert list(stack.engines()) == [(instance["id"], 2)]


async def test_a_machine_that_was_started_anew_runs_the_next_attempt_and_nobody_is_to_blame(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_downloader(0)
    agent = await stack.spawn("agent")
    await stack.start_api()
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]

    agent.kill()
    await agent.wait()
    stack.restart_machine()
    await stack.spawn("agent")

    await client.until(
        f"/v2/model-instances/{instance['id']}", lambda i: i["state"] == "running" and i["attempt"] == 2, seconds=60
    )
    (failed,) = of_type(await facts_of(stack), "InstanceFailed")
    assert [reason["code"] for reason in failed.envelope.data["reasons"]] == ["machine_restarted"]
    assert failed.envelope.data["restarts"] == 0
    assert list(stack.engines()) == [(instance["id"], 2)]


async def test_an_agent_that_takes_its_engines_with_it_starts_none_of_them_again_as_the_same_attempt(
    stack: Stack,
) -> None:
    """Its goodbye is read by the next scheduler, after it has come back."""
    await stack.start_scheduler()
    await stack.start_worker(stop_engines_on_exit=True)
    await stack.start_api()
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]

    await stack.stop("scheduler")
    await stack.stop("agent-0")
    assert stack.engines() == {}
    await stack.start_agent()
    await stack.start_scheduler()

    await client.until(
        f"/v2/model-instances/{instance['id']}", lambda i: i["state"] == "running" and i["attempt"] == 2, seconds=60
    )
    assert (await client.ask("tinychat"))[0] == 200
    starts = [entry.envelope.data["attempt"] for entry in of_type(await facts_of(stack), "InstanceStarting")]
    assert starts == [1, 2]
    (failed,) = of_type(await facts_of(stack), "InstanceFailed")
    assert [reason["code"] for reason in failed.envelope.data["reasons"]] == ["worker_shut_down"]
