"""What an operator looks at: health, readiness, metrics, and one trace through all services."""

import aiohttp
import pytest

from services.up.embedded_postgres import EmbeddedPostgres
from tests.chaos.what_must_hold import facts_of
from tests.e2e.machines import QUICK
from tests.support.stack import Client, Stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
WISH = {"name": "chat", "local_path": "/nowhere/model.gguf"}


async def test_health_readiness_and_metrics_are_for_everybody_who_can_reach_them(
    stack: Stack, postgres: EmbeddedPostgres
) -> None:
    await stack.start_api()
    client = stack.client()
    async with aiohttp.ClientSession() as nobody:
        anonymous = Client(client.url, nobody)
        assert (await anonymous.request("GET", "/healthz"))[:2] == (200, {"status": "ok"})
        assert (await anonymous.request("GET", "/readyz"))[:2] == (200, {"ready": True, "reason": None})
        async with nobody.get(client.url + "/metrics") as answer:
            assert answer.status == 200
            assert "muster_gateway_first_byte_seconds_count" in await answer.text()

        await postgres.stop()
        status, body, _ = await anonymous.request("GET", "/readyz")
        assert (status, body["ready"]) == (503, False)
        assert "PostgreSQL" in body["reason"]
        assert (await anonymous.request("GET", "/healthz"))[:2] == (200, {"status": "ok"})

        await postgres.start()
        await client.until("/readyz", lambda body: body["ready"])


async def test_one_trace_and_one_correlation_go_from_a_request_through_all_that_follows_from_it(stack: Stack) -> None:
    await stack.start_all(**QUICK)
    client = stack.client()
    await client.until("/v2/workers", lambda workers: [w["state"] for w in workers["items"]] == ["ready"])
    headers = {"traceparent": TRACEPARENT, "x-request-id": "r-mine"}
    made = await client.deploy("before")
    await client.until_state("/v2/models/before", "ready")
    body = {"name": "chat", "local_path": made["local_path"]}
    assert (await client.request("POST", "/v2/models", body, headers))[0] == 201
    await client.until_state("/v2/models/chat", "ready")

    facts = [event.envelope for event in await facts_of(stack)]
    start = next(n for n, fact in enumerate(facts) if fact.correlationid == "r-mine")
    followed = {fact.type: (fact.correlationid, (fact.traceparent or "").split("-")[1:2]) for fact in facts[start:]}
    assert followed.pop("ModelPeakMeasured", ("r-mine", [TRACE])) == ("r-mine", [TRACE])  # it may come later
    assert followed == dict.fromkeys(
        (
            *("ModelCreated", "InstanceCreated", "InstancePending", "ModelPending", "ModelInspected"),
            *("InstanceScheduled", "ModelDegraded", "InstanceStarting", "InstanceRunning", "ModelReady"),
        ),
        ("r-mine", [TRACE]),
    )


@pytest.mark.parametrize(
    "given", ["rubbish", "", TRACEPARENT.upper(), f"ff-{TRACE}-b7ad6b7169203331-01", f"{TRACEPARENT}-more", "x" * 5000]
)
async def test_a_trace_that_is_none_gets_into_no_event(stack: Stack, given: str) -> None:
    await stack.start_api()
    status, _, _ = await stack.client().request("POST", "/v2/models", WISH, {"traceparent": given})
    assert status == 201
    assert [event.envelope.traceparent for event in await facts_of(stack)] == [None]
