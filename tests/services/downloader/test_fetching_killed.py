"""A program that fetches is killed at any moment, and started again: it loses next to nothing, and leaves nothing."""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from services.downloader.adapters.parts import HEADER_BYTES
from services.downloader.domain.blocks import LARGE_FILE, MIB, SMALL_BLOCK
from tests.support.hub import Hub
from tests.support.hub_repository import BLOCK_BYTES

ROOT: Final = Path(__file__).parents[3]
SIZES: Final = (20 * MIB, LARGE_FILE - 1)
CONNECTIONS: Final = 4
RATE: Final = 8 * MIB
"""Of each connection, where it is limited: bytes a second."""
LOST_OF_A_CONNECTION: Final = 3 * SMALL_BLOCK + BLOCK_BYTES
"""A block that was not full, the two for which it had not woken yet, and what the hub had sent last."""
BUFFERS: Final = sum(
    int(Path(f"/proc/sys/net/ipv4/tcp_{each}").read_text(encoding="ascii").split()[2]) for each in ("rmem", "wmem")
)
"""… and what the kernel holds of a connection at most, when a hub on this machine sends as fast as it can."""
REPEATED: Final = 0.05
DELAY_SECONDS: Final = 0.03
"""At most: else a kill always comes when the hub has just sent something."""
SECONDS: Final = 60


@dataclass(frozen=True)
class Fetched:
    size: int
    sent: int
    kills: int
    rate: int | None

    @property
    def repeated(self) -> int:
        return self.sent - self.size


def fetched_with_kills(
    hub: Hub, directory: Path, content: bytes, at: Sequence[int], rate: int | None, chance: random.Random
) -> Fetched:
    """`at`: it is killed when so many bytes have been sent since the hub was asked for the first of them."""
    name = f"model-{len(content)}.safetensors"
    commit = hub.put("org/model", {name: content})
    hub.clear_log()
    hub.clear_faults()
    if rate is not None:
        hub.fault(where="cdn", rate=rate)
    sha256 = hashlib.sha256(content).hexdigest()
    what = [f"{hub.url}/org/model/resolve/{commit}/{name}", str(directory), name, str(len(content)), sha256, commit]
    command = [sys.executable, "-m", "tests.support.fetch_one", *what, "--connections", str(CONNECTIONS)]
    kills, asked, there = 0, 0, b""
    for offset in at:
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as running:
            give_up_at = time.monotonic() + SECONDS
            while hub.bytes_sent("localhost") < offset and running.poll() is None and time.monotonic() < give_up_at:
                time.sleep(0.002)
            time.sleep(chance.random() * DELAY_SECONDS)
            running.send_signal(signal.SIGKILL)
            kills += running.wait() == -signal.SIGKILL
        asked, there = nothing_is_asked_for_twice(hub, asked, there), blocks_in(directory / f"{name}.journal")
    subprocess.run(command, cwd=ROOT, check=True, timeout=SECONDS)
    nothing_is_asked_for_twice(hub, asked, there)
    assert os.listdir(directory) == [name]  # noqa: PTH208 - names are compared
    assert (directory / name).read_bytes() == content
    fetched = Fetched(len(content), hub.bytes_sent("localhost"), kills, rate)
    lost = LOST_OF_A_CONNECTION + (BUFFERS if rate is None else 0)
    most = REPEATED * fetched.size + kills * CONNECTIONS * lost
    assert fetched.repeated <= most
    return fetched


def blocks_in(journal: Path) -> bytes:
    return journal.read_bytes()[HEADER_BYTES:] if journal.exists() else b""


def nothing_is_asked_for_twice(hub: Hub, since: int, there: bytes) -> int:
    """Of what the journal knew when it was killed. Gives how many requests there have been."""
    requests = hub.requests("localhost")
    for seen in requests[since:]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.range or "")
        assert found is not None
        assert not any(there[int(found[1]) // SMALL_BLOCK : int(found[2]) // SMALL_BLOCK + 1])
    return len(requests)


def fetch_with_kills(tmp_path: Path, kills: int, seed: int, kills_of_a_file: int, rates: Sequence[int | None]) -> None:
    chance = random.Random(seed)
    fetched: list[Fetched] = []
    with Hub() as hub:
        while sum(each.kills for each in fetched) < kills:
            content = chance.randbytes(chance.randint(*SIZES))
            most = min(kills_of_a_file, kills - sum(each.kills for each in fetched))
            at = sorted(chance.randint(1, len(content) * 9 // 10) for _ in range(most))
            (directory := tmp_path / str(len(fetched))).mkdir()
            rate = rates[len(fetched) % len(rates)]
            fetched.append(fetched_with_kills(hub, directory, content, at, rate, chance))
            (directory / f"model-{len(content)}.safetensors").unlink()
    limited = [each for each in fetched if each.rate is not None]
    size, repeated = sum(each.size for each in limited), sum(each.repeated for each in limited)
    print(f"{sum(each.kills for each in limited)} kills, {size} bytes, {repeated} repeated ({repeated / size:.2%})")
    for each in fetched:
        print(f"{each.kills} kills at {each.rate} bytes/s: {each.size} bytes, {each.repeated} repeated")
    assert repeated <= REPEATED * size


def test_a_dozen_kills_cost_next_to_nothing(tmp_path: Path) -> None:
    fetch_with_kills(tmp_path, kills=12, seed=1, kills_of_a_file=4, rates=[RATE])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_cost_next_to_nothing(tmp_path: Path) -> None:
    """Half of the files as fast as they can be sent."""
    fetch_with_kills(tmp_path, kills=100, seed=2, kills_of_a_file=4, rates=[RATE, None])
