"""What simulated engines answer: OpenAI's API, by one HTTP server with a listening socket for each engine.

An engine that has ended refuses connections, as a real one does.
"""

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

log = logging.getLogger(__name__)

WORDS: Final = tuple("I am simulated: I have no weights, and I say this to whoever asks.".split(" "))  # noqa: SIM905 - a sentence
BACKLOG: Final = 128


@dataclass(frozen=True, slots=True)
class Served:
    model: str
    first_token_seconds: float
    token_seconds: float


class Answers:
    """`start`, then `open` and `close` for each engine, then `stop`."""

    def __init__(self) -> None:
        application = web.Application(client_max_size=16 * 2**20)
        application.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._complete),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        self._sockets: dict[Hashable, tuple[asyncio.Server, tuple[str, int]]] = {}
        self._served: dict[tuple[str, int], Served] = {}

    async def start(self) -> None:
        """Each engine takes a file descriptor: as many as the system allows."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        await self._runner.setup()

    async def open(self, key: Hashable, address: str, served: Served) -> int:
        """The port on which it answers from now on. Raises OSError."""
        if self._runner.server is None:
            raise RuntimeError("not started")
        server = await asyncio.get_running_loop().create_server(self._runner.server, address, 0, backlog=BACKLOG)
        port: int = server.sockets[0].getsockname()[1]
        self._sockets[key] = (server, (address, port))
        self._served[address, port] = served
        return port

    def close(self, key: Hashable) -> None:
        """Closing what is not open is fine."""
        server, where = self._sockets.pop(key, (None, None))
        if server is not None and where is not None:
            server.close()
            del self._served[where]

    async def stop(self) -> None:
        for key in list(self._sockets):
            self.close(key)
        await self._runner.cleanup()

    def _engine(self, request: web.Request) -> Served:
        """The one that listens where this connection came in; one that has ended hangs up."""
        transport = request.transport
        name = transport.get_extra_info("sockname") if transport is not None else None
        served = self._served.get(tuple(name[:2])) if name else None
        if served is None:
            if transport is not None:
                transport.abort()
            raise web.HTTPServiceUnavailable
        return served

    async def _health(self, request: web.Request) -> web.Response:
        self._engine(request)
        return _json({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self._engine(request).model, "object": "model", "created": 0, "owned_by": "simulated"}
        return _json({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "chat.completion")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "text_completion")

    async def _answer(self, request: web.Request, kind: str) -> web.StreamResponse:
        served = self._engine(request)
        try:
            asked = orjson.loads(await request.read())
            most: object = asked.get("max_tokens")
            streams = asked.get("stream") is True
        except (orjson.JSONDecodeError, AttributeError):
            return _json({"error": {"message": "the body is not a JSON object", "code": "invalid_request"}}, 400)
        words = WORDS[:most] if isinstance(most, int) and most >= 0 else WORDS
        frame = {"id": f"simulated-{time.time_ns()}", "created": int(time.time()), "model": served.model}
        if streams:
            return await self._stream(request, served, kind, frame, words)
        await asyncio.sleep(served.first_token_seconds + served.token_seconds * len(words))
        self._engine(request)
        text = " ".join(words)
        said = {"message": {"role": "assistant", "content": text}} if kind == "chat.completion" else {"text": text}
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        choice = {"index": 0, "finish_reason": "stop", **said}
        return _json({**frame, "object": kind, "choices": [choice], "usage": usage})

    async def _stream(
        self, request: web.Request, served: Served, kind: str, frame: dict[str, Any], words: Sequence[str]
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await asyncio.sleep(served.first_token_seconds)
        await answer.prepare(request)
        async for word in _spoken(words, served.token_seconds):
            self._engine(request)
            said = {"delta": {"content": word}} if kind == "chat.completion" else {"text": word}
            await _event(answer, kind, frame, {"index": 0, "finish_reason": None, **said})
        last = {"delta": {}} if kind == "chat.completion" else {"text": ""}
        await _event(answer, kind, frame, {"index": 0, "finish_reason": "stop", **last})
        await answer.write(b"data: [DONE]\n\n")
        return answer


async def _spoken(words: Sequence[str], token_seconds: float) -> AsyncIterator[str]:
    for number, word in enumerate(words):
        await asyncio.sleep(token_seconds)
        yield word if number == 0 else f" {word}"


async def _event(answer: web.StreamResponse, kind: str, frame: dict[str, Any], choice: dict[str, Any]) -> None:
    name = f"{kind}.chunk" if kind == "chat.completion" else kind
    await answer.write(b"data: " + orjson.dumps({**frame, "object": name, "choices": [choice]}) + b"\n\n")


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
