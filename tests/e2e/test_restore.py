"""A log that lost its tail is brought back from its second copy at the same sequences."""

import contextlib
import shutil

import pytest

from kernel.errors import Corrupt
from kernel.log.jetstream import JetStreamLog
from kernel.log.restore import restore
from kernel.log.streams import provision
from kernel.projections.projector import Projector
from tests.support.stack import Stack


async def some_history(stack: Stack) -> list[dict[str, object]]:
    await stack.start_scheduler()
    await stack.start_api()
    client = stack.client()
    for n in range(5):
        await client.deploy(f"model-{n}", "/nowhere.gguf", replicas=1)
    await client.until("/v2/models", lambda body: all(m["state"] == "pending" for m in body["items"]))
    events = await client.events()
    await stack.stop("scheduler")
    await stack.stop("api")
    return events


async def test_a_log_that_lost_everything_is_put_back_and_watchers_are_told_where_to_resume(stack: Stack) -> None:
    before = await some_history(stack)
    await stack.nats.stop()
    shutil.rmtree(stack.directory / "store")
    await stack.nats.start()
    operator = await stack.bus("operator")
    await provision(operator)
    api = await stack.start_api_and_fail()
    assert "muster log restore" in str(api)

    connection = await stack.sql()
    restored = await restore(operator, connection)
    assert (restored.log_had, restored.log_has, restored.generation) == (0, len(before), 2)

    await stack.start_api()
    client = stack.client()
    after = await client.events("0")
    assert [e["id"] for e in after] == [e["id"] for e in before]
    assert after[-1]["position"] == f"2-{len(before)}"
    status, body, _ = await client.request("GET", f"/v2/events?since=1-{len(before)}")
    assert (status, body["code"], body["numbers"]["resume"]) == (410, "other_generation", f"2-{len(before)}")
    await client.deploy("one-more", "/nowhere.gguf")
    await connection.close()


async def test_the_api_says_what_to_do_also_when_its_watchers_feed_is_the_first_to_notice_a_lost_log(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Projector.run

    async def project_and_say_nothing(self: Projector) -> None:
        with contextlib.suppress(Corrupt):
            await project(self)

    await some_history(stack)
    await stack.nats.stop()
    shutil.rmtree(stack.directory / "store")
    await stack.nats.start()
    await provision(await stack.bus("operator"))

    monkeypatch.setattr(Projector, "run", project_and_say_nothing)
    assert "stop all writers and run `muster log restore`" in str(await stack.start_api_and_fail())


async def test_a_log_with_another_history_is_not_touched(stack: Stack) -> None:
    await some_history(stack)
    await stack.nats.stop()
    shutil.rmtree(stack.directory / "store")
    await stack.nats.start()
    operator = await stack.bus("operator")
    await provision(operator)
    await stack.start_scheduler("somebody-else")
    connection = await stack.sql()
    event_log = JetStreamLog(operator)
    while (await event_log.state()).last_sequence == 0:
        pass
    await stack.stop("somebody-else")

    with pytest.raises(Corrupt, match="different histories"):
        await restore(operator, connection)
    assert (await event_log.state()).last_sequence == 1
    await connection.close()
