"""What a real engine counts is shown by the agent, under Muster's names, as long as the engine is there."""

import asyncio
from collections.abc import Callable

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.stack import Stack

GUARD_SECONDS = 60.0


def counted(name: str) -> dict[str, float]:
    """Model → value."""
    return {
        sample.labels["model"]: sample.value
        for family in text_string_to_metric_families(generate_latest().decode())
        for sample in family.samples
        if sample.name == name
    }


async def until(it_is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_SECONDS):
        while not it_is_so():  # noqa: ASYNC110 - metrics set no event
            await asyncio.sleep(0.2)


async def test_tokens_of_a_real_engine_are_counted_until_it_is_gone(stack: Stack) -> None:
    await stack.start_all()
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")
    assert (await client.ask("tinychat", "Who are you?"))[0] == 200

    await until(lambda: counted("muster_engine_generation_tokens_total").get("tinychat", 0) > 0)
    assert counted("muster_engine_prompt_tokens_total")["tinychat"] > 0
    assert counted("muster_engine_requests_running") == {"tinychat": 0}

    await client.request("PATCH", "/v2/models/tinychat", {"replicas": 0})
    await until(lambda: not counted("muster_engine_requests_running"))
