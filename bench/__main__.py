"""`python -m bench [NAME …] [--quick] [--json FILE] [--markdown]`: measure, then print one table.

Exit status 1 when something could not be measured; a missed target is a line in the table.
"""

import argparse
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson
import uvloop

from bench import tables
from bench.figures import Figure, Result
from bench.machine import look_at_machine

NAMES: Final = (
    "decisions",
    "events",
    "writes",
    "placing",
    "fleet",
    "projection",
    "start",
    "memory",
    "takeover",
    "gateway",
    "relay",
    "agent",
    "downloads",
)


def main() -> int:
    asked = _arguments()
    machine = look_at_machine()
    results: list[Result] = []
    with suppress(KeyboardInterrupt):  # what was measured until then is shown
        results.extend(_measure(name, quick=asked.quick) for name in NAMES if not asked.names or name in asked.names)
    print((tables.markdown if asked.markdown else tables.plain)(machine, results))
    if asked.json is not None:
        asked.json.write_bytes(orjson.dumps(tables.as_json(machine, results), option=orjson.OPT_INDENT_2))
    return 1 if any(result.error is not None for result in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Muster on real servers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {' '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="few samples: does it still run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--markdown", action="store_true", help="the table as docs/benchmarks.md has it")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"there is no benchmark {min(unknown)}; there are {', '.join(NAMES)}")
    return asked


def _measure(name: str, *, quick: bool) -> Result:
    run: Callable[..., Awaitable[list[Figure]]] = importlib.import_module(f"bench.{name}").run

    async def measure() -> tuple[Figure, ...]:
        return tuple(await run(quick=quick))

    gc.collect()
    print(f"{name} …", end="", file=sys.stderr, flush=True)
    load, started, figures, error = os.getloadavg()[0], time.monotonic(), (), None
    try:
        figures = uvloop.run(measure())
    except Exception as failure:  # noqa: BLE001 - the other benchmarks are measured all the same
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    seconds = time.monotonic() - started
    print(f" {seconds:.0f} s", file=sys.stderr, flush=True)
    return Result(name, figures, load, os.getloadavg()[0], seconds, error)


if __name__ == "__main__":
    sys.exit(main())
