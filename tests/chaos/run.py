"""`make chaos`: random kills of every part under writers, then what must hold.

    python -m tests.chaos.run [--seconds 60] [--seed N]

The seed is printed; the order of kills follows from it, the moments do not.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from services.up.embedded_postgres import EmbeddedPostgres
from tests.chaos.deployment import Deployment
from tests.chaos.what_must_hold import (
    every_answer_was_true,
    facts_of,
    no_memory_was_promised_twice,
    the_stores_agree,
    whoever_was_elected_decided,
)
from tests.chaos.writers import until_acknowledged, writing
from tests.support.stack import Stack

WRITERS = 4


async def run(seconds: float, seed: int) -> None:
    dice = random.Random(seed)
    kills = 0
    with tempfile.TemporaryDirectory(prefix="muster-chaos-") as name:
        directory = Path(name)
        async with EmbeddedPostgres(directory / "pg") as postgres, Stack(directory / "stack", postgres.url) as stack:
            deployment = Deployment(stack, postgres)
            await deployment.start()
            client = deployment.client()
            await client.deploy("tinychat")
            await client.until_state("/v2/models/tinychat", "ready", seconds=60)
            engines = stack.engines()
            writers = deployment.writers(WRITERS, dice)
            ends = time.monotonic() + seconds
            async with writing(writers):
                await until_acknowledged(writers, 5)
                while time.monotonic() < ends:
                    parts = dice.sample(deployment.parts, dice.choice((1, 1, 1, 2)))
                    for part in parts:
                        await deployment.kill(part)
                        kills += 1
                    await asyncio.sleep(dice.uniform(0.0, 0.8))
                    await deployment.bring_all_back()
                    await until_acknowledged(writers, 2)
            events = await the_stores_agree(stack)
            writes = [write for writer in writers for write in writer.writes]
            await every_answer_was_true(stack, writes)
            facts = await facts_of(stack)
            no_memory_was_promised_twice(facts)
            elections = len(whoever_was_elected_decided(facts))
            assert stack.engines() == engines, "an engine was stopped or started although nothing was wrong with it"
            await client.until_state("/v2/models/tinychat", "ready", seconds=60)
            assert (await client.ask("tinychat"))[0] == 200
    acknowledged = sum(writer.acknowledged for writer in writers)
    print(
        f"seed {seed}: {kills} kills, {acknowledged} acknowledged writes, {events} events, {elections} elections:"
        " nothing lost, nothing doubled, no engine touched\n1 passed, 0 failed"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    print(f"chaos for {asked.seconds:.0f} s, seed {asked.seed}", flush=True)
    asyncio.run(run(asked.seconds, asked.seed))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
