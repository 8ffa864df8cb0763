"""What a service keeps of its own log, and tells over the real bus."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, SecretStr

from kernel.inbox import make_broker
from kernel.settings import BusSettings
from kernel.trail import LINES_KEPT, Trail, Trailing
from schemas.asks import ServiceLines, TailService
from schemas.subjects import ask
from tests.support.stack import Stack

log = logging.getLogger("services.agent.somewhere")


class Settings(BaseModel):
    seed: SecretStr = SecretStr("opensesame")
    other: str = "not a secret"


@pytest.fixture
def trail() -> Iterator[Trail]:
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    with Trailing("agent", Settings()) as made:
        yield made
    logging.getLogger().setLevel(before)


def texts(part: ServiceLines) -> list[str]:
    return [line.text for line in part.lines]


def test_the_last_lines_are_told_and_then_those_after_them(trail: Trail) -> None:
    for number in range(5):
        log.info("line %d", number)
    first = trail.part(2, None)
    assert texts(first) == ["INFO services.agent.somewhere: line 3", "INFO services.agent.somewhere: line 4"]
    log.warning("line 5")
    second = trail.part(10, first.after)
    assert texts(second) == ["WARNING services.agent.somewhere: line 5"]
    assert texts(trail.part(10, second.after)) == []


def test_what_is_kept_is_bounded_and_a_late_reader_is_told_what_it_missed(trail: Trail) -> None:
    log.info("first")
    first = trail.part(1, None)
    for number in range(LINES_KEPT + 120):
        log.info("line %d", number)
    late = trail.part(1, first.after)
    assert (late.skipped, texts(late)) == (120, ["INFO services.agent.somewhere: line 120"])


def test_secrets_are_not_in_a_trail(trail: Trail) -> None:
    log.info("seed %s, proxy http://me:hunter2@proxy", "opensesame")
    assert texts(trail.part(1, None)) == ["INFO services.agent.somewhere: seed ***, proxy http://***@proxy"]


def test_a_traceback_is_kept_line_by_line(trail: Trail) -> None:
    log.error("failed", exc_info=ValueError("opensesame"))
    told = texts(trail.part(100, None))
    assert (told[0], told[-1]) == ("ERROR services.agent.somewhere: failed", "ValueError: ***")


def test_a_place_in_the_trail_of_a_former_process_is_the_beginning_of_this_one(trail: Trail) -> None:
    log.info("hello")
    assert texts(trail.part(5, "0123.7")) == ["INFO services.agent.somewhere: hello"]


async def test_services_that_share_a_process_keep_their_own_lines() -> None:
    async def serve(service: str) -> list[str]:
        with Trailing(service, Settings()) as trail:
            await asyncio.gather(*(asyncio.to_thread(log.error, "%s says %d", service, n) for n in range(3)))
            await asyncio.sleep(0)
            return texts(trail.part(10, None))

    agent, downloader = await asyncio.gather(
        asyncio.create_task(serve("agent")), asyncio.create_task(serve("downloader"))
    )
    assert sorted(agent) == [f"ERROR services.agent.somewhere: agent says {n}" for n in range(3)]
    assert sorted(downloader) == [f"ERROR services.agent.somewhere: downloader says {n}" for n in range(3)]


async def test_a_question_waits_for_the_next_line_and_is_answered_across_the_accounts(
    shared: Stack, trail: Trail
) -> None:
    keys = shared.workers[0]
    broker = make_broker(
        "agent asks",
        BusSettings(
            servers=(shared.nats.url,), nkey_seed=SecretStr(keys.agent_seed), inbox_prefix=f"_INBOX_{keys.id}_agent"
        ),
    )
    trail.answer(broker, keys.id)
    api = await shared.bus("api")
    await broker.start()
    try:
        place = trail.part(1, None).after
        question = TailService(after=place, wait_seconds=20).model_dump_json().encode()
        asked = asyncio.create_task(api.request(ask(keys.id, "agent-log"), question, timeout_seconds=20))
        await asyncio.sleep(0.3)
        log.info("at last")
        told = ServiceLines.model_validate_json((await asked).data)
    finally:
        await broker.stop()
    assert "INFO services.agent.somewhere: at last" in texts(told)
