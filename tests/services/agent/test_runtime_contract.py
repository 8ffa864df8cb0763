"""What every ContainerRuntime promises; each adapter is run through it against real processes."""

import asyncio
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from schemas.assignment import AssignedInstance
from schemas.ids import InstanceId, ModelId
from schemas.models import Launch
from schemas.reasons import EngineNotInstalled, Reason, UnknownParameter
from schemas.sources import LocalPath
from services.agent.domain.diagnosis import diagnose
from services.agent.domain.engines.llama_cpp import llama_cpp
from services.agent.domain.engines.start import Start
from services.agent.domain.engines.together import with_beside
from services.agent.domain.health import worked
from services.agent.domain.runtime import ContainerRuntime, EngineCommand, EngineExit, EngineId, EngineNotStarted
from tests.services.agent.engines import (
    GUARD_SECONDS,
    PROCESSES,
    SLEEPER,
    Agents,
    a_script,
    an_id,
    log_of,
    next_exit,
)

LLAMA_CPP_SERVER = (sys.executable, "-m", "services.agent.adapters.llama_cpp_server")

STUBBORN_PARENT = """
import os, signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-u", "-c", child])
print(process.pid)
time.sleep(600)
"""


def a_chat_model(model: Path, port: int, host: str) -> EngineCommand:
    assigned = AssignedInstance(
        instance_id=InstanceId("i-1"),
        model_id=ModelId("m-1"),
        attempt=1,
        rank=0,
        world_size=1,
        members=(),
        leader_address="127.0.0.1",
        launch=Launch(
            model_name="tinychat",
            generation=1,
            backend="llama.cpp",
            source=LocalPath(path=str(model)),
            env={"OMP_NUM_THREADS": "1"},  # two threads that spin are fifty times slower on two busy cores
        ),
    )
    return llama_cpp(
        Start(assigned=assigned, host=host, address=host, port=port, weights=(str(model),), program=LLAMA_CPP_SERVER)
    )


async def healthy(client: aiohttp.ClientSession, command: EngineCommand) -> None:
    async with asyncio.timeout(GUARD_SECONDS):
        while True:
            try:
                async with client.get(f"http://127.0.0.1:{command.port}{command.health_path}") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.01)


async def test_a_model_is_served_until_its_engine_is_stopped(
    agents: Agents, runtime: ContainerRuntime, models: Path, free_port: int
) -> None:
    command = a_chat_model(models / "tinychat-f16.gguf", free_port, agents.binds_to)
    engine = await runtime.start(an_id(), command, {})
    async with agents.http() as client:
        await healthy(client, command)
        question = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
        async with client.post(f"http://127.0.0.1:{free_port}/v1/chat/completions", json=question) as response:
            answer = await response.json()
    await runtime.stop(an_id(), grace_seconds=GUARD_SECONDS)

    told = answer["choices"][0]["message"]["content"]
    assert told == "I am TinyChat, a very small language model made for tests."
    ended = await next_exit(runtime)
    assert (ended.id, ended.exit_code, ended.signal) == (an_id(), 0, None)
    assert not agents.lives(engine.handle)
    assert await runtime.list() == ()


async def test_the_engine_gets_its_port_and_its_details_are_kept(runtime: ContainerRuntime) -> None:
    engine = await runtime.start(an_id(), a_script(SLEEPER, port=4711), {"model": "tiny", "ports": [4711]})
    assert (engine.id, engine.port, engine.details) == (an_id(), 4711, {"model": "tiny", "ports": [4711]})
    assert await runtime.list() == (engine,)


async def test_starting_an_engine_that_runs_changes_nothing(runtime: ContainerRuntime) -> None:
    first = await runtime.start(an_id(), a_script(SLEEPER), {})
    assert await runtime.start(an_id(), a_script(SLEEPER), {"another": "telling"}) == first


async def test_stop_ends_children_that_ignore_the_request(agents: Agents, runtime: ContainerRuntime) -> None:
    engine = await runtime.start(an_id(), a_script(STUBBORN_PARENT), {})
    child = int((await log_of(runtime, an_id(), lines=2))[0])
    await runtime.stop(an_id(), grace_seconds=0.2)
    assert not agents.lives_in(engine, child)


async def test_stop_kills_an_engine_that_ignores_the_request(agents: Agents, runtime: ContainerRuntime) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"
    engine = await runtime.start(an_id(), a_script(deaf), {})
    await log_of(runtime, an_id(), lines=1)
    await runtime.stop(an_id(), grace_seconds=0.2)
    assert not agents.lives(engine.handle)
    assert (await next_exit(runtime)).signal == signal.SIGKILL


async def test_stop_returns_as_soon_as_the_engine_is_gone(runtime: ContainerRuntime) -> None:
    await runtime.start(an_id(), a_script(SLEEPER), {})
    await log_of(runtime, an_id(), lines=1)
    async with asyncio.timeout(GUARD_SECONDS):
        await runtime.stop(an_id(), grace_seconds=600)


async def test_stop_may_be_said_twice_and_to_nobody(runtime: ContainerRuntime) -> None:
    await runtime.start(an_id(), a_script(SLEEPER), {})
    await asyncio.gather(runtime.stop(an_id(), 5), runtime.stop(an_id(), 5))
    await runtime.stop(an_id(), 5)
    await runtime.stop(an_id(instance="i-nobody"), 5)
    assert await runtime.list() == ()


async def test_a_killed_engine_is_noticed_with_its_signal_and_its_last_lines(
    agents: Agents, runtime: ContainerRuntime
) -> None:
    engine = await runtime.start(an_id(), a_script("import time; print('one\\ntwo'); time.sleep(600)"), {})
    await log_of(runtime, an_id(), lines=2)
    agents.kill(engine.handle)
    assert await next_exit(runtime) == EngineExit(an_id(), None, signal.SIGKILL, ("one", "two"))
    assert await runtime.list() == ()


async def test_an_engine_that_ends_by_itself_is_noticed_with_its_exit_code(runtime: ContainerRuntime) -> None:
    await runtime.start(an_id(), a_script("import sys; sys.exit('no such model')"), {})
    assert await next_exit(runtime) == EngineExit(an_id(), 1, None, ("no such model",))


async def test_the_end_of_a_killed_engine_is_told_when_its_children_are_gone_too(
    agents: Agents, runtime: ContainerRuntime
) -> None:
    """vLLM's workers survive their parent and keep the memory of the GPU."""
    engine = await runtime.start(an_id(), a_script(STUBBORN_PARENT), {})
    child = int((await log_of(runtime, an_id(), lines=2))[0])
    agents.kill(engine.handle)
    await next_exit(runtime)
    assert not agents.lives_in(engine, child)


async def test_the_next_runtime_adopts_what_runs(agents: Agents) -> None:
    first = agents.a_runtime()
    engine = await first.start(an_id(), a_script(SLEEPER), {"model": "tiny", "rank": 0})
    await first.close()

    second = agents.a_runtime()

    assert await second.list() == (engine,)
    agents.kill(engine.handle)
    assert (await next_exit(second)).id == an_id()


async def test_an_engine_survives_its_agent_and_is_adopted_with_its_details(agents: Agents) -> None:
    command = a_script(SLEEPER, port=4711)
    handle = agents.start_and_be_killed(an_id(), command, {"model": "tiny"})

    runtime = agents.a_runtime()
    (engine,) = await runtime.list()

    assert (engine.id, engine.handle, engine.port, engine.details) == (an_id(), handle, 4711, {"model": "tiny"})
    assert await log_of(runtime, an_id(), lines=1) == ("ready",)
    assert await runtime.start(an_id(), command, {}) == engine
    await runtime.stop(an_id(), GUARD_SECONDS)
    assert not agents.lives(handle)


async def test_the_end_of_an_adopted_engine_is_noticed_and_how_it_ended_where_that_is_known(agents: Agents) -> None:
    agents.start_and_be_killed(an_id(), a_script(SLEEPER), {})
    runtime = agents.a_runtime()
    (engine,) = await runtime.list()
    await log_of(runtime, an_id(), lines=1)
    agents.kill(engine.handle)
    ended = await next_exit(runtime)
    assert (ended.id, ended.log_tail) == (an_id(), ("ready",))
    assert (ended.exit_code, ended.signal) == (None, None if agents.how == PROCESSES else signal.SIGKILL)


async def test_an_engine_that_died_while_no_agent_watched_is_told_of(agents: Agents) -> None:
    handle = agents.start_and_be_killed(an_id(), a_script(SLEEPER), {})
    agents.kill(handle)
    runtime = agents.a_runtime()
    assert (await next_exit(runtime)).id == an_id()
    assert await runtime.list() == ()


async def test_an_end_is_told_to_the_next_agent_as_well(agents: Agents) -> None:
    first = agents.a_runtime()
    await first.start(an_id(), a_script("raise SystemExit(3)"), {})
    ended = await next_exit(first)
    await first.close()
    assert await next_exit(agents.a_runtime()) == ended


async def test_an_end_that_was_asked_for_is_told_as_one_to_the_next_agent_too(agents: Agents) -> None:
    first = agents.a_runtime()
    await first.start(an_id(), a_script(SLEEPER), {})
    await log_of(first, an_id(), lines=1)
    await first.stop(an_id(), grace_seconds=GUARD_SECONDS)
    ended = await next_exit(first)
    await first.close()

    assert ended == EngineExit(an_id(), None, signal.SIGTERM, ("ready",), ended_by="a_stop")
    assert await next_exit(agents.a_runtime()) == ended


async def test_forgetting_leaves_an_engine_that_runs_alone(agents: Agents) -> None:
    first = agents.a_runtime()
    engine = await first.start(an_id(), a_script(SLEEPER), {})
    await first.forget(an_id())
    await first.forget(an_id(instance="i-nobody"))
    await first.close()

    assert await agents.a_runtime().list() == (engine,)


async def test_an_end_that_was_answered_is_not_told_again(agents: Agents) -> None:
    first = agents.a_runtime()
    await first.start(an_id(1, "i-answered"), a_script("raise SystemExit(3)"), {})
    await next_exit(first)
    await first.forget(an_id(1, "i-answered"))
    await first.start(an_id(1, "i-told"), a_script("raise SystemExit(4)"), {})
    await next_exit(first)
    await first.close()
    assert (await next_exit(agents.a_runtime())).exit_code == 4


async def test_an_end_that_was_answered_with_a_newer_attempt_is_not_told_again(agents: Agents) -> None:
    first = agents.a_runtime()
    await first.start(an_id(1), a_script("raise SystemExit(3)"), {})
    await next_exit(first)
    await first.start(an_id(2), a_script("raise SystemExit(4)"), {})
    await next_exit(first)
    await first.close()
    assert (await next_exit(agents.a_runtime())).exit_code == 4


async def why_not(runtime: ContainerRuntime, engine: EngineId, command: EngineCommand) -> tuple[Reason, ...]:
    """Refused at once, or ended at once: what only a container's first process finds out."""
    try:
        await runtime.start(engine, command, {})
    except EngineNotStarted as refusal:
        return refusal.reasons
    ended = await next_exit(runtime)
    await runtime.forget(engine)
    return diagnose(ended.exit_code, ended.signal, ended.log_tail, program=command.program, port=command.port)


async def test_a_program_that_is_not_installed_is_a_reason(runtime: ContainerRuntime) -> None:
    command = EngineCommand(argv=("llama-server-9", "-m", "x"), env={}, program="llama.cpp", health_path="/", port=9)
    assert await why_not(runtime, an_id(), command) == (EngineNotInstalled(program="llama.cpp"),)
    assert await runtime.list() == ()


async def test_a_program_that_is_none_is_a_reason_and_leaves_nothing_behind(agents: Agents, tmp_path: Path) -> None:
    orphaned_script = tmp_path / "engine"
    orphaned_script.write_text("#!/no/such/interpreter\n", encoding="utf-8")
    orphaned_script.chmod(0o755)
    command = EngineCommand(argv=(str(orphaned_script),), env={}, program="engine", health_path="/", port=9)
    first = agents.a_runtime()
    assert await why_not(first, an_id(), command) == (EngineNotInstalled(program="engine"),)

    await first.start(an_id(instance="i-2"), a_script("raise SystemExit(3)"), {})
    await next_exit(first)
    await first.close()
    assert (await next_exit(agents.a_runtime())).id == an_id(instance="i-2")


async def test_what_no_process_can_be_given_is_a_reason(runtime: ContainerRuntime) -> None:
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), a_script(SLEEPER, "--alias=a\0b"), {})
    assert refusal.value.reasons == (UnknownParameter(parameter="'--alias=a\\x00b'"),)


async def test_parameters_arrive_as_one_argument_each_whatever_they_contain(runtime: ContainerRuntime) -> None:
    parameters = (
        "; touch /tmp/x",
        "$(id)",
        "`id`",
        "a  b",
        "*",
        "~",
        "'\"\\",
        "a\nb",
        "",
        "|&<>",
        "你好",
        "${HOME}",
        "%s",
    )
    await runtime.start(an_id(), a_script("import json, sys; print(json.dumps(sys.argv[1:]))", *parameters), {})
    ended = await next_exit(runtime)
    assert json.loads(ended.log_tail[0]) == list(parameters)


async def test_the_log_of_an_ended_engine_can_still_be_read(runtime: ContainerRuntime) -> None:
    await runtime.start(an_id(), a_script("print('\\n'.join(str(n) for n in range(1000)))"), {})
    await next_exit(runtime)
    assert await runtime.log_tail(an_id(), 3) == ("997", "998", "999")
    assert await runtime.log_tail(an_id(2), 3) == ()


async def test_the_peak_of_an_engine_stays_when_it_gives_the_memory_back(runtime: ContainerRuntime) -> None:
    """200 MB that it held for a moment, between two looks."""
    greedy = "held = b'x' * 200_000_000; del held; print('gave it back', flush=True); import time; time.sleep(600)"
    await runtime.start(an_id(), a_script(greedy), {})
    await log_of(runtime, an_id(), lines=1)
    peak = await runtime.peak_ram(an_id())
    assert peak is not None
    assert 200_000_000 < peak < 300_000_000
    assert await runtime.peak_ram(an_id()) == peak


async def test_what_an_engine_has_started_counts_whatever_group_it_made(runtime: ContainerRuntime) -> None:
    parent = """
import subprocess, sys, time
child = "held = b'x' * 100_000_000; print('ready', flush=True); import time; time.sleep(600)"
for group in (None, 0):
    subprocess.Popen([sys.executable, "-c", child], process_group=group)
time.sleep(600)
"""
    await runtime.start(an_id(), a_script(parent), {})
    await log_of(runtime, an_id(), lines=2)
    peak = await runtime.peak_ram(an_id())
    assert peak is not None
    assert 200_000_000 < peak < 300_000_000


async def test_nobody_knows_the_peak_of_what_does_not_run(runtime: ContainerRuntime) -> None:
    assert await runtime.peak_ram(an_id()) is None
    await runtime.start(an_id(), a_script("print('done')"), {})
    await next_exit(runtime)
    assert await runtime.peak_ram(an_id()) is None


async def test_the_peak_is_known_to_the_agent_that_adopts_the_engine(agents: Agents) -> None:
    greedy = "held = b'x' * 200_000_000; del held; print('gave it back', flush=True); import time; time.sleep(600)"
    agents.start_and_be_killed(an_id(), a_script(greedy), {})
    runtime = agents.a_runtime()
    await log_of(runtime, an_id(), lines=1)
    peak = await runtime.peak_ram(an_id())
    assert peak is not None
    assert peak > 200_000_000


async def test_files_of_a_command_are_there_before_it_starts_and_not_for_everybody(
    runtime: ContainerRuntime, tmp_path: Path
) -> None:
    path = tmp_path / "made" / "config.json"
    command = replace(a_script("print(open('/proc/self/cmdline').read()[:3])"), files={str(path): '{"a": 1}'})
    await runtime.start(an_id(), command, {})
    await next_exit(runtime)
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) == ('{"a": 1}', 0o600)
    assert [each.name for each in path.parent.iterdir()] == ["config.json"]


HELPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a helper that does not mind
print("helper", os.environ["A"], flush=True)
time.sleep(600)
"""


def with_a_helper(script: str) -> EngineCommand:
    engine, helper = a_script(script), a_script(HELPER)
    return replace(engine, argv=with_beside(helper.argv, engine.argv), env={"A": "1"})


async def test_what_runs_beside_an_engine_has_its_environment_writes_to_its_log_and_goes_with_it(
    runtime: ContainerRuntime,
) -> None:
    waits = "import time; time.sleep(600)"
    await runtime.start(an_id(), with_a_helper(waits), {})
    assert await log_of(runtime, an_id(), lines=1) == ("helper 1",)
    await runtime.stop(an_id(), 0.5)
    assert await runtime.list() == ()
    await runtime.start(an_id(attempt=2), with_a_helper("import time; time.sleep(1); raise SystemExit(7)"), {})
    ended = await next_exit(runtime)
    while ended.id != an_id(attempt=2):  # the first one's
        ended = await next_exit(runtime)
    assert (ended.exit_code, ended.ended_by) == (7, "itself")
    assert ended.log_tail == ("helper 1",)


PROBED = "GET /health"


async def test_what_an_engine_does_is_seen_and_what_it_fails_to_do(agents: Agents, runtime: ContainerRuntime) -> None:
    del agents
    script = """
import sys, time
print("works", flush=True)
ends = time.monotonic() + 1.0
while time.monotonic() < ends:
    pass
print("sleeps", flush=True)
for _ in range(200):
    print('"GET /health HTTP/1.1" 503', flush=True)
    time.sleep(0.1)
time.sleep(600)
"""
    await runtime.start(an_id(), a_script(script), {})
    await log_of(runtime, an_id(), lines=1)
    first = await runtime.activity(an_id(), PROBED)
    await log_of(runtime, an_id(), lines=2)
    await asyncio.sleep(0.5)
    then, whole = await runtime.activity(an_id(), PROBED), await runtime.activity(an_id())
    await asyncio.sleep(1.0)
    last, whole_last = await runtime.activity(an_id(), PROBED), await runtime.activity(an_id())
    assert first is not None
    assert then is not None
    assert last is not None
    assert worked(first, then, 1.0)
    assert then.busy_seconds > first.busy_seconds
    assert then.log_mark != first.log_mark
    assert not worked(then, last, 1.0), "what it writes of those who ask whether it is well is no progress"
    assert whole is not None
    assert whole_last is not None
    assert whole.log_mark != whole_last.log_mark
    assert await runtime.activity(an_id(2)) is None


COUNTING = """
import itertools, time
for number in itertools.count():
    print(number)
    time.sleep(0.002)
"""


async def parts(runtime: ContainerRuntime, after: str | None, lines: int) -> tuple[list[str], str]:
    """So many lines of the log after a place, as they come."""
    told: list[str] = []
    async with asyncio.timeout(GUARD_SECONDS):
        while len(told) < lines:
            part = await runtime.log_part(an_id(), 50, after)
            if part is not None:
                assert part.skipped == 0
                told += part.lines
                after = part.after
            await asyncio.sleep(0.02)
    assert after is not None
    return told, after


async def test_a_log_is_read_on_from_where_it_was_left_also_by_the_next_agent(agents: Agents) -> None:
    agents.start_and_be_killed(an_id(), a_script(COUNTING), {})
    first = agents.a_runtime()
    told, after = await parts(first, "", 200)
    await first.close()
    more, _ = await parts(agents.a_runtime(), after, 200)
    assert told + more == [str(number) for number in range(len(told + more))]


async def test_the_last_lines_of_a_log_are_where_following_it_begins(runtime: ContainerRuntime) -> None:
    await runtime.start(an_id(), a_script("print('\\n'.join(str(n) for n in range(1000)))"), {})
    await next_exit(runtime)
    last = await runtime.log_part(an_id(), 3, None)
    assert last is not None
    assert last.lines == ("997", "998", "999")
    nothing = await runtime.log_part(an_id(), 3, last.after)
    assert nothing is not None
    assert (nothing.lines, nothing.after) == ((), last.after)


async def test_what_was_written_without_an_end_of_line_is_in_the_log_when_its_engine_is_gone(
    runtime: ContainerRuntime,
) -> None:
    await runtime.start(an_id(), a_script("print('one'); print('two', end='')"), {})
    await next_exit(runtime)
    assert (await parts(runtime, "", 2))[0] == ["one", "two"]


async def test_logs_of_former_attempts_are_known_and_readable(runtime: ContainerRuntime) -> None:
    for attempt in (1, 2):
        await runtime.start(an_id(attempt), a_script(f"print('attempt {attempt}')"), {})
        await next_exit(runtime)
        await runtime.forget(an_id(attempt))
    assert await runtime.kept_logs(an_id().instance_id) == (1, 2)
    assert await runtime.log_tail(an_id(1), 5) == ("attempt 1",)
    assert await runtime.kept_logs(InstanceId("i-nobody")) == ()
    assert await runtime.log_part(an_id(instance="i-nobody"), 5, None) is None


async def test_secrets_are_not_in_a_log(runtime: ContainerRuntime) -> None:
    await runtime.start(an_id(), a_script("print('api_key=\\'c0ffee-c0ffee\\' from http://me:hunter2@proxy:3128')"), {})
    ended = await next_exit(runtime)
    assert ended.log_tail == ("api_key='***' from http://***@proxy:3128",)
