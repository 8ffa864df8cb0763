"""`/v1/*`: OpenAI requests to an engine that runs the model, streamed back byte for byte."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import orjson
from prometheus_client import Counter, Histogram
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kernel.engine_keys import Holder, SealedKeys
from services.api.adapters.gateway.relay import Relay
from services.api.adapters.gateway.ways import Answer, NotReached, Ways, WorkerBusy
from services.api.adapters.http.respond import json_response
from services.api.adapters.reader import Reader
from services.api.domain.routing import Endpoint, Routes

log = logging.getLogger(__name__)

UNAUTHORIZED: Final = 401
"""What an engine answers to somebody without its key. No client can do anything about it."""
PASSED_ON: Final = frozenset({"content-type", "accept", "user-agent", "traceparent", "x-request-id"})
PASSED_BACK: Final = frozenset({"content-type", "cache-control", "x-request-id"})
PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

REQUESTS = Counter("muster_gateway_requests_total", "Requests to engines", ["path", "status"])
SECONDS = Histogram("muster_gateway_first_byte_seconds", "From a request to its first byte")


class Gateway:
    def __init__(self, routes: Routes, reader: Reader, keys: SealedKeys) -> None:
        self._routes = routes
        self._keys = keys
        self._reader = reader
        self._ways: Ways | None = None

    def start(self, relay: Relay) -> None:
        self._ways = Ways(self._routes, relay)

    async def close(self) -> None:
        if self._ways is not None:
            await self._ways.close()

    def make_routes(self) -> list[Route]:
        proxied = [Route(path, self.forward, methods=["POST"]) for path in PATHS]
        return [*proxied, Route("/v1/models", self.list_models, methods=["GET"])]

    async def list_models(self, _request: Request) -> Response:
        models = await self._reader.served_models()
        data = [
            {"id": name, "object": "model", "created": int(created.timestamp()), "owned_by": "muster"}
            for name, created in models
        ]
        return json_response({"object": "list", "data": data})

    async def forward(self, request: Request) -> Response:
        body = await request.body()
        try:
            asked: Any = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return _error(request, 400, "invalid_request", f"the body is not JSON: {error}")
        name: object = asked.get("model") if isinstance(asked, dict) else None
        if not isinstance(name, str):
            return _error(request, 400, "invalid_request", "`model` is missing", param="model")
        if not self._routes.is_known(name):
            return _error(request, 404, "model_not_found", f"there is no model {name[:80]}", param="model")
        if not self._routes.candidates(name, time.monotonic()):
            return _error(
                request, 503, "no_running_instance", f"no instance of {name} runs; `muster explain {name}` tells why"
            )
        started = time.monotonic()
        tried: list[Endpoint] = []
        busy = False
        while (endpoint := self._next(name, tried)) is not None:
            tried.append(endpoint)
            payload = (
                body if endpoint.model_name in ("", name) else orjson.dumps(asked | {"model": endpoint.model_name})
            )
            answer = await self._send(request, endpoint, payload)
            if isinstance(answer, NotReached):
                busy = busy or isinstance(answer, WorkerBusy)
            else:
                SECONDS.observe(time.monotonic() - started)
                REQUESTS.labels(request.url.path, answer.status).inc()
                return self._stream(endpoint, answer)
        if busy:
            return _error(request, 503, "worker_busy", f"the agents of {name}'s workers relay as much as they may")
        return _error(request, 502, "engine_unreachable", f"no engine of {name} could be reached")

    def _next(self, name: str, tried: list[Endpoint]) -> Endpoint | None:
        """Asked anew each time: what was taken out while another one was tried gets no request any more."""
        candidates = self._routes.candidates(name, time.monotonic())
        return next((each for each in candidates if all(each is not other for other in tried)), None)

    async def _send(self, request: Request, endpoint: Endpoint, body: bytes) -> Answer | NotReached:
        """The head of the engine's answer, or why there is none, so that another one may be asked."""
        if self._ways is None:
            return NotReached("the gateway has not been started")
        headers = {name: value for name, value in request.headers.items() if name in PASSED_ON}
        self._routes.in_flight.begins(endpoint.instance_id)
        try:
            answer = await self._ways.post(endpoint, request.url.path, body, headers, self._key(endpoint))
        except NotReached as error:
            self._routes.in_flight.ends(endpoint.instance_id)
            endpoint.refused_at = time.monotonic()
            log.warning("engine %s at %s: %s", endpoint.instance_id, endpoint.url, error)
            return error
        except BaseException:
            self._routes.in_flight.ends(endpoint.instance_id)
            raise
        if answer.status != UNAUTHORIZED:
            return answer
        answer.close()
        self._routes.in_flight.ends(endpoint.instance_id)
        endpoint.refused_at = time.monotonic()
        log.warning(
            "engine %s at %s refuses the key of attempt %d", endpoint.instance_id, endpoint.url, endpoint.attempt
        )
        return NotReached("it refuses the key of this attempt")

    def _key(self, endpoint: Endpoint) -> dict[str, str]:
        """What the engine asks for. An attempt that was replaced has another key, and refuses what is not meant for it."""
        if endpoint.sealed_key is None or endpoint.worker_id is None:
            return {}
        if endpoint.key is None:
            holder = Holder(endpoint.worker_id, endpoint.instance_id, endpoint.attempt)
            endpoint.key = self._keys.opened(endpoint.sealed_key, holder)
        if endpoint.key is None:
            log.error("the key of engine %s at %s was sealed for another seed", endpoint.instance_id, endpoint.url)
            return {}
        return {"authorization": f"Bearer {endpoint.key}"}

    def _stream(self, endpoint: Endpoint, answer: Answer) -> StreamingResponse:
        def over() -> None:
            self._routes.in_flight.ends(endpoint.instance_id)
            answer.close()

        headers = {name: value for name, value in answer.headers.items() if name.lower() in PASSED_BACK}
        headers["x-muster-instance"] = endpoint.instance_id
        return Passed(answer.parts(), over, status_code=answer.status, headers=headers)


class Passed(StreamingResponse):
    """An engine's answer on its way to the client; `over` is called once, however it ends, also before the first byte."""

    def __init__(
        self, content: AsyncIterator[bytes], over: Callable[[], None], *, status_code: int, headers: dict[str, str]
    ) -> None:
        super().__init__(content, status_code=status_code, headers=headers)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


def _error(request: Request, status: int, code: str, message: str, *, param: str | None = None) -> Response:
    REQUESTS.labels(request.url.path, status).inc()
    body = {"message": message, "type": code, "code": code, "param": param, "request_id": request.state.request_id}
    headers = {"retry-after": "1"} if status == 503 else None
    return json_response({"error": body}, status, headers)
