"""`make chaos`: everything is killed at random, again and again, while people write; then what must hold is looked at.

`python -m tests.chaos.run --seconds 120 --seed 7` does the same kills in the same order as another run with this seed.
"""

import argparse
import asyncio
import logging
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

from services.up.embedded_postgres import EmbeddedPostgres
from tests.chaos.deployment import Deployment, Part
from tests.chaos.what_must_hold import (
    attempts_of,
    every_answer_was_true,
    facts_of,
    no_memory_was_promised_twice,
    the_stores_agree,
    whoever_was_elected_decided,
)
from tests.chaos.writers import until_acknowledged, writing
from tests.support.stack import Stack

WRITERS = 6
HEALED_SECONDS = 60.0
"""After the last fault, everything that has a place runs within this time (DESIGN: what must hold, 7)."""


async def chaos(directory: Path, *, seconds: float, seed: int) -> None:
    dice = random.Random(seed)
    async with EmbeddedPostgres(directory / "pg") as postgres, Stack(directory / "stack", postgres.url) as stack:
        deployment = Deployment(stack, postgres)
        await deployment.start()
        client = deployment.client()
        await client.deploy("tinychat")
        await client.until_state("/v2/models/tinychat", "ready", seconds=HEALED_SECONDS)
        (instance,) = (await client.get("/v2/model-instances"))["items"]
        engines = stack.engines()

        writers = deployment.writers(WRITERS, dice)
        ends = time.monotonic() + seconds
        kills = 0
        async with writing(writers):
            while time.monotonic() < ends:
                victims: list[Part] = dice.sample(deployment.parts, dice.choice((1, 1, 1, 2, 3)))
                dead_seconds, calm_seconds = dice.choice((0.0, 0.1, 0.5, 2.0)), dice.choice((0.0, 0.2, 1.0))
                say(f"kill -9 {' and '.join(victims)} for {dead_seconds} s")
                for victim in victims:
                    await deployment.kill(victim)
                    kills += 1
                await asyncio.sleep(dead_seconds)
                await deployment.bring_all_back()
                await asyncio.sleep(calm_seconds)
                if dice.random() < 0.5:  # else the next kill comes while everything still starts
                    await until_acknowledged(writers, 1, seconds=HEALED_SECONDS)
            await until_acknowledged(writers, 2, seconds=HEALED_SECONDS)

        await client.until_state("/v2/models/tinychat", "ready", seconds=HEALED_SECONDS)
        status, _ = await client.ask("tinychat")
        assert status == 200, "the model does not answer"
        assert stack.engines() == engines, "an engine was restarted needlessly"
        count = await the_stores_agree(stack)
        writes = [write for writer in writers for write in writer.writes]
        await every_answer_was_true(stack, writes)
        events = await facts_of(stack)
        assert attempts_of(events, instance["id"]) == [1]
        no_memory_was_promised_twice(events)
        elections = len(whoever_was_elected_decided(events))
    taken = sum(write.acknowledged is not None for write in writes)
    again = sum(write.sent > 1 for write in writes)
    say(
        f"{kills} kills, {elections} elections, {count} events, {taken} writes acknowledged, {again} of all sent again:"
    )
    say("nothing lost, nothing doubled, nothing left by a refused write, rows equal to a rebuild, engine untouched")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    arguments = parser.parse_args()
    logging.getLogger("kernel").setLevel(logging.ERROR)  # that connections are lost is what this is about
    say(f"chaos for {arguments.seconds:g} s; again with --seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="muster-chaos-") as name:
        try:
            asyncio.run(chaos(Path(name), seconds=arguments.seconds, seed=arguments.seed))
        except (AssertionError, ExceptionGroup, TimeoutError) as error:
            for log in sorted((Path(name) / "stack").glob("*.log")):
                say(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
            say(f"seed {arguments.seed}: {_first(error)}")
            return 1
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
