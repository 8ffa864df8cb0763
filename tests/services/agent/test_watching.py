"""Watching real processes: what loads slowly, hangs, is slow, and makes no tokens."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from schemas.reasons import StartTimeout
from services.agent.adapters.engine_door import EngineDoor
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.domain.about import About
from services.agent.domain.health import Health, ill_report
from services.agent.watching import Watch
from tests.services.agent.engines import GUARD_SECONDS, a_script, an_id

LOADS_SLOWLY = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
for step in range(15):
    print("loading shard", step)
    time.sleep(0.2)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
HANGS_AT_START = "import time; print('waiting for a peer that never comes'); time.sleep(600)"
ONE_THREAD = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def do_POST(self):
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            pass
        self.do_GET()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
MAKES_NO_TOKENS = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def do_POST(self):
        time.sleep(600)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[LocalProcessRuntime]:
    runtime = LocalProcessRuntime(tmp_path / "engines")
    yield runtime
    for running in await runtime.list():
        await runtime.stop(running.id, 0)
    await runtime.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def a_watch(
    runtime: LocalProcessRuntime, http: aiohttp.ClientSession, script: str, port: int, **about: float
) -> tuple[Watch, int]:
    """… and the engine's process."""
    running = await runtime.start(an_id(), a_script(script, str(port), port=port), {})
    inference = about.pop("inference_seconds", 0.0)
    told = About(model="tiny", **about)  # pyright: ignore[reportArgumentType] - seconds
    watch = Watch(an_id(), told, EngineDoor(http, f"http://127.0.0.1:{port}", "/health"), runtime, inference)
    assert isinstance(running.handle, int)
    return watch, running.handle


async def until(healths: AsyncIterator[Health], phase: str) -> tuple[Health, list[str]]:
    """The first that says so, and what was said on the way."""
    before: list[str] = []
    async with asyncio.timeout(GUARD_SECONDS):
        async for health in healths:
            if health.phase == phase:
                return health, before
            before.append(health.phase)
    raise AssertionError("it is watched for ever")


async def test_an_engine_that_loads_longer_than_its_start_timeout_lives_as_long_as_it_makes_progress(
    runtime: LocalProcessRuntime, http: aiohttp.ClientSession, free_port: int
) -> None:
    watch, _ = await a_watch(runtime, http, LOADS_SLOWLY, free_port, start_timeout_seconds=1.5)
    async with aclosing(watch.healths()) as healths:
        health, _ = await until(healths, "healthy")
    assert not health.gave_up


async def test_one_that_hangs_while_it_starts_is_given_up_and_its_last_lines_are_the_evidence(
    runtime: LocalProcessRuntime, http: aiohttp.ClientSession, free_port: int
) -> None:
    watch, _ = await a_watch(runtime, http, HANGS_AT_START, free_port, start_timeout_seconds=1.0)
    async with aclosing(watch.healths()) as healths, asyncio.timeout(GUARD_SECONDS):
        health = await anext(healths)
        while not health.gave_up:
            health = await anext(healths)
    told = ill_report(health, await runtime.log_tail(an_id(), 50))
    assert told.reasons == (StartTimeout(after_seconds=1.0),)
    assert told.log_tail == ("waiting for a peer that never comes",)


async def test_one_that_stops_in_its_tracks_is_noticed_and_so_is_its_return(
    runtime: LocalProcessRuntime, http: aiohttp.ClientSession, free_port: int
) -> None:
    watch, pid = await a_watch(runtime, http, ONE_THREAD, free_port)
    async with aclosing(watch.healths()) as healths:
        await until(healths, "healthy")
        os.killpg(pid, signal.SIGSTOP)
        await until(healths, "unhealthy")
        os.killpg(pid, signal.SIGCONT)
        await until(healths, "healthy")


async def test_one_that_computes_too_hard_to_answer_is_slow_and_never_unhealthy(
    runtime: LocalProcessRuntime, http: aiohttp.ClientSession, free_port: int
) -> None:
    watch, _ = await a_watch(runtime, http, ONE_THREAD, free_port)
    async with aclosing(watch.healths()) as healths:
        await until(healths, "healthy")
        computing = asyncio.create_task(http.post(f"http://127.0.0.1:{free_port}/v1/completions"))
        seen = [health async for health in _until_done(healths, computing)]
        (await computing).release()
    assert {health.phase for health in seen} == {"healthy"}
    assert any(health.is_slow for health in seen)


async def _until_done(
    healths: AsyncIterator[Health], task: "asyncio.Task[aiohttp.ClientResponse]"
) -> AsyncIterator[Health]:
    async for health in healths:
        yield health
        if task.done():
            return


async def test_one_that_is_well_by_its_own_account_and_makes_no_tokens_is_found_out(
    runtime: LocalProcessRuntime, http: aiohttp.ClientSession, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.agent.watching.INFERENCE_TIMEOUT_SECONDS", 1.0)
    watch, _ = await a_watch(runtime, http, MAKES_NO_TOKENS, free_port, inference_seconds=0.1)
    async with aclosing(watch.healths()) as healths:
        await until(healths, "healthy")
        await until(healths, "unhealthy")
