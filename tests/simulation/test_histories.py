"""Whatever happens, what must hold holds. More histories: `make sim SEEDS=0-20000`; one of them: `make sim SEEDS=1234`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.simulation.run import seeds

ROOT: Final = Path(__file__).parents[2]
COUNT: Final = int(os.environ.get("SIMULATED", "100"))
DIGESTS: Final = "from tests.simulation.history import tell; print([tell(seed).digest for seed in range(6)])"


def run(*arguments: str, hash_seed: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_whatever_happens_what_must_hold_holds() -> None:
    told = run("-m", "tests.simulation.run", "--seeds", f"0-{COUNT - 1}", "--jobs", "2", hash_seed="0")

    assert told.returncode == 0, told.stdout + told.stderr


def test_the_same_seed_is_the_same_history_in_every_process() -> None:
    first, second = (run("-c", DIGESTS, hash_seed=hash_seed) for hash_seed in ("1", "2"))

    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout


@pytest.mark.parametrize(("text", "expected"), [("7", [7]), ("0-3", [0, 1, 2, 3]), ("3,5,10-12", [3, 5, 10, 11, 12])])
def test_seeds_are_written_as_people_write_them(text: str, expected: list[int]) -> None:
    assert seeds(text) == expected
