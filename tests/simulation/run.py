"""`make sim SEEDS=…`: tells the histories of these seeds, and the first failing one in full.

A seed is a number, a range is `0-1999`, several are separated by commas. The same seed is the same history on every machine.
"""

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tests.simulation.history import Told, tell
from tests.simulation.planted import PLANTED, find

TOLD_AT_ONCE: Final = 20
SHOWN: Final = 10
WITHIN: Final = 300
"""Histories in which a planted bug must be found."""


def seeds(text: str) -> list[int]:
    """`7`, `0-1999`, `3,5,10-12`. Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found.extend(range(int(first), int(last if dash else first) + 1))
    return found


def tell_some(numbers: Sequence[int]) -> list[Told]:
    logging.disable(logging.CRITICAL)
    gc.disable()  # a history leaves little behind, and looking for it takes a tenth of the time
    try:
        return [tell(number) for number in numbers]
    finally:
        gc.enable()
        gc.collect()


def tell_all(numbers: Sequence[int], jobs: int) -> Iterator[Told]:
    """In the order of the seeds."""
    portions = [numbers[start : start + TOLD_AT_ONCE] for start in range(0, len(numbers), TOLD_AT_ONCE)]
    if jobs == 1 or len(portions) == 1:
        for portion in portions:
            yield from tell_some(portion)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for told in pool.imap(tell_some, portions):
            yield from told


def report(histories: Iterable[Told], started: float) -> int:
    """What to tell people; the exit status."""
    count, events, failed = 0, 0, list[Told]()
    for told in histories:
        count, events = count + 1, events + told.events
        if told.invariant is not None:
            failed.append(told)
            if len(failed) == 1:
                print(told, flush=True)
    seconds = time.monotonic() - started
    print(f"{count} histories, {events} events, {seconds:.1f} s ({count / max(seconds, 0.001):.0f} histories a second)")
    if not failed:
        return 0
    by = Counter(told.invariant.name for told in failed if told.invariant is not None)
    print(f"{len(failed)} FAILED: {', '.join(f'{name} {number}' for name, number in by.most_common())}")
    for told in failed[:SHOWN]:
        print(f"  {told.problem[:200]}\n    make sim SEEDS={told.seed}")
    return 1


def plant_all() -> int:
    logging.disable(logging.CRITICAL)
    missed = 0
    for bug in PLANTED:
        count, told = find(bug, WITHIN)
        found = told.invariant.name if told.invariant is not None else "NOT FOUND"
        missed += told.invariant not in bug.found_by
        print(f"{bug.name:42} {found:10} after {count:3}  {' '.join(bug.what.split())}", flush=True)
    return min(missed, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Histories of a simulated control plane.")
    parser.add_argument("--seeds", type=seeds, default="0-1999", help="1234, 0-1999, or several separated by commas")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--planted", action="store_true", help="plant each bug, and say what finds it after how many")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of a set of names must not differ from run to run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.run", *sys.argv[1:]])
    if arguments.planted:
        return plant_all()
    started = time.monotonic()
    return report(tell_all(arguments.seeds, arguments.jobs), started)


if __name__ == "__main__":
    sys.exit(main())
