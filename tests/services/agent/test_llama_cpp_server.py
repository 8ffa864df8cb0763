"""The real server on the real models."""

import asyncio
import json
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from schemas.reasons import (
    ModelFileInvalid,
    ModelFilesIncomplete,
    ModelNotFound,
    OutOfMemory,
    PortInUse,
    Reason,
    UnknownParameter,
    UnsupportedModel,
)
from services.agent.domain.diagnosis import diagnose
from tests.services.agent.engines import GUARD_SECONDS, REPOSITORY

STORY = {"messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 0}


async def a_server(*flags: str, limit: Callable[[], None] | None = None, env: dict[str, str] | None = None) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.agent.adapters.llama_cpp_server", *flags),
        cwd=REPOSITORY,
        env=env or {"OMP_NUM_THREADS": "1"},  # two threads that spin are fifty times slower on two busy cores
        stderr=PIPE,
        preexec_fn=limit,
    )


@asynccontextmanager
async def serving(port: int, *flags: str) -> AsyncGenerator[tuple[aiohttp.ClientSession, Process]]:
    server = await a_server("--port", str(port), *flags)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client, asyncio.timeout(GUARD_SECONDS):
            while not await healthy(client):
                assert server.returncode is None, (await server.communicate())[1].decode()
                await asyncio.sleep(0.01)
            yield client, server
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()


async def healthy(client: aiohttp.ClientSession) -> bool:
    try:
        async with client.get("/health") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def posted(client: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
    async with client.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def failure(*flags: str, limit: Callable[[], None] | None = None) -> tuple[int, tuple[str, ...]]:
    server = await a_server(*flags, limit=limit)
    async with asyncio.timeout(GUARD_SECONDS):
        _, errors = await server.communicate()
    assert server.returncode is not None
    return server.returncode, tuple(errors.decode(errors="replace").splitlines())


async def test_a_chat_is_answered_whole_and_as_a_stream(models: Path, free_port: int) -> None:
    async with serving(free_port, "--model", str(models / "tinychat-f16.gguf"), "--alias", "tiny") as (client, _):
        whole = await posted(client, "/v1/chat/completions", STORY)
        async with client.post("/v1/chat/completions", json=STORY | {"stream": True}) as response:
            lines = [line.decode().strip() async for line in response.content if line.strip()]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    streamed = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert streamed == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 50
    assert whole["model"] == "tiny"


async def test_four_requests_are_served_at_once_unless_told_otherwise(models: Path, free_port: int) -> None:
    model = str(models / "tinychat-q8_0.gguf")
    async with serving(free_port, "--model", model) as (client, _), client.get("/props") as response:
        assert (await response.json())["total_slots"] == 4
    async with serving(free_port, "--model", model, "-np", "2") as (client, _), client.get("/props") as response:
        assert (await response.json())["total_slots"] == 2


async def test_embeddings_come_from_a_model_in_shards(models: Path, free_port: int) -> None:
    first = str(models / "tinychat-f16-00001-of-00002.gguf")
    async with serving(free_port, "-m", first, "--embedding", "--pooling", "mean") as (client, _):
        answer = await posted(client, "/v1/embeddings", {"input": ["hello", "good bye"]})
    assert [len(item["embedding"]) for item in answer["data"]] == [128, 128]


async def test_metrics_are_served_when_asked_for(models: Path, free_port: int) -> None:
    model = str(models / "tinychat-q8_0.gguf")
    async with serving(free_port, "-m", model, "--metrics") as (client, _), client.get("/metrics") as response:
        assert "llamacpp:requests_processing" in await response.text()


async def test_flags_take_effect_in_every_form_and_further_fields_are_flags_too(models: Path, free_port: int) -> None:
    flags = ("--ctx_size=512", "-np", "1", "--temp", "0.25", "--no-slots", "-n", "7", "--n-keep", "3")
    async with serving(free_port, "-m", str(models / "tinychat-q8_0.gguf"), *flags) as (client, _):
        used = (await posted(client, "/completion", {"prompt": "one two"}))["generation_settings"]
        async with client.get("/props") as response:
            context = (await response.json())["default_generation_settings"]["n_ctx"]
        async with client.get("/slots") as slots:
            assert slots.status == 501
    assert (context, used["temperature"], used["n_predict"], used["n_keep"]) == (512, 0.25, 7, 3)


async def test_threads_follow_omp_num_threads_unless_given(models: Path, free_port: int) -> None:
    async def threads(*flags: str) -> str:
        server = await a_server(
            "--port", str(free_port), "-m", str(models / "tinychat-q8_0.gguf"), *flags, env={"OMP_NUM_THREADS": "3"}
        )
        assert server.stderr is not None
        try:
            async with asyncio.timeout(GUARD_SECONDS):
                async for line in server.stderr:
                    if b"n_threads = " in line:
                        return line.decode().rpartition("n_threads = ")[2].strip()
            raise AssertionError
        finally:
            server.kill()
            await server.communicate()

    assert await threads() == "3"
    assert await threads("--threads", "1") == "1"


async def test_a_request_to_stop_is_followed_although_a_client_does_not_read_its_stream(
    models: Path, free_port: int
) -> None:
    endless = STORY | {"stream": True, "ignore_eos": True, "n_predict": 1_000_000}
    async with (
        serving(free_port, "-m", str(models / "tinychat-f16.gguf")) as (client, server),
        client.post("/v1/chat/completions", json=endless) as response,
    ):
        await response.content.readline()
        server.send_signal(signal.SIGTERM)
        assert await server.wait() == 0


async def test_a_model_that_cannot_be_loaded_is_told_on_stderr(models: Path, tmp_path: Path) -> None:
    whole = (models / "tinychat-f16.gguf").read_bytes()
    written = {
        "cut.gguf": whole[:900_000],
        "strange.gguf": whole.replace(b"llama", b"klama"),
        "text.gguf": b"once upon a time" * 99,
        "half-00001-of-00002.gguf": (models / "tinychat-f16-00001-of-00002.gguf").read_bytes(),
    }
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)

    async def reason(name: str) -> Reason:
        exit_code, log = await failure("--port", "0", "--model", str(tmp_path / name))
        assert exit_code == 1
        (found,) = diagnose(exit_code, None, log, program="llama.cpp", port=0)
        return found

    assert await reason("missing.gguf") == ModelNotFound(path=str(tmp_path / "missing.gguf"))
    assert await reason("strange.gguf") == UnsupportedModel(detail="unknown model architecture: 'klama'")
    assert await reason("half-00001-of-00002.gguf") == ModelFilesIncomplete(
        path=str(tmp_path / "half-00001-of-00002.gguf"), missing=(str(tmp_path / "half-00002-of-00002.gguf"),)
    )
    assert await reason("cut.gguf") == ModelFileInvalid(
        path=str(tmp_path / "cut.gguf"),
        problem="tensor 'blk.1.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
    )
    assert await reason("text.gguf") == ModelFileInvalid(
        path=str(tmp_path / "text.gguf"), problem="invalid magic characters: 'once', expected 'GGUF'"
    )


async def test_a_port_that_is_taken_ends_the_server(models: Path, taken_port: int) -> None:
    exit_code, log = await failure("--model", str(models / "tinychat-f16.gguf"), "--port", str(taken_port))
    assert exit_code == 1
    assert f"error: can't listen on 127.0.0.1:{taken_port}: [Errno 98] Address already in use" in log
    assert diagnose(exit_code, None, log, program="llama.cpp", port=taken_port) == (PortInUse(port=taken_port),)


async def test_more_context_than_memory_ends_the_server(models: Path, free_port: int) -> None:
    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (700 * 2**20, 700 * 2**20))

    model = str(models / "tinychat-f16.gguf")
    exit_code, log = await failure("--port", str(free_port), "-m", model, "-c", "2000000", limit=little_memory)
    assert diagnose(exit_code, None, log, program="llama.cpp", port=free_port) == (OutOfMemory(),)


@pytest.mark.parametrize(
    ("flags", "parameter"),
    [
        (("--frobnicate",), "--frobnicate"),
        (("--frobnicate=1", "-c", "512"), "--frobnicate"),
        (("--ctx", "512"), "--ctx"),
        (("-c", "many"), "--ctx-size=many"),
        (("-c", "1099511627776"), "--ctx-size=1099511627776"),
        (("--pooling", "most"), "--pooling=most"),
        (("--port", "65536"), "--port=65536"),
        (("--seed", "-2147483649"), "--seed=-2147483649"),
        (("--cache-type-k",), "--cache-type-k"),
    ],
)
async def test_a_flag_that_is_not_understood_ends_the_server_and_is_named(
    flags: tuple[str, ...], parameter: str, models: Path
) -> None:
    exit_code, log = await failure("--model", str(models / "tinychat-f16.gguf"), *flags)
    assert exit_code == 2
    assert diagnose(exit_code, None, log, program="llama.cpp", port=0) == (UnknownParameter(parameter=parameter),)


async def test_a_model_must_be_named() -> None:
    exit_code, log = await failure("--port", "0")
    assert exit_code == 2
    assert log[-1] == "llama_cpp_server: error: the following arguments are required: --model"
