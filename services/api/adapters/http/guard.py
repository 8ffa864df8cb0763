"""Before any handler: the request's id, the size of its body, who asks. Deny by default.

A plain ASGI layer: what decides about access must not depend on how a framework reads a path or a header.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException

from services.api.settings import ApiSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/"})
LONGEST_CREDENTIAL: Final = 512


class Guard:
    def __init__(self, app: App, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings
        key = settings.api_key.get_secret_value() if settings.api_key else secrets.token_urlsafe(32)
        self._digest = hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        path: str = scope["path"]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        if path not in OPEN_PATHS and not self._is_known(headers):
            await _refuse(
                send_with_id, path, 401, "unauthorized", "send your key as `Authorization: Bearer …`", request_id
            )
            return
        scope["state"]["actor"] = "key/bootstrap"
        most = self._settings.most_inference_body_bytes if path.startswith("/v1/") else self._settings.most_body_bytes
        if (length := _header(headers, b"content-length")) and length.isdigit() and int(length) > most:
            await _refuse(
                send_with_id, path, 413, "body_too_large", f"a body has at most {most} bytes here", request_id
            )
            return
        await self._app(scope, _bounded(receive, most), send_with_id)

    def _is_known(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name in (b"authorization", b"x-api-key")]
        if len(given) != 1 or len(given[0]) > LONGEST_CREDENTIAL:
            return False
        name, value = next((n, v) for n, v in headers if n in (b"authorization", b"x-api-key"))
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            if scheme.lower() != b"bearer":
                return False
        return hmac.compare_digest(hashlib.sha256(value.strip()).digest(), self._digest)


class BodyTooLarge(HTTPException):
    """A body without a length turned out too large. An HTTPException, as frameworks turn any other one of a body into a 400."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"a body has at most {most} bytes here")


def _bounded(receive: Receive, most: int) -> Receive:
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > most:
                raise BodyTooLarge(most)
        return message

    return bounded


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The caller's own, when it is a plain token; else a new one."""
    given = _header(headers, b"x-request-id") or ""
    plain = given.isascii() and given.replace("-", "").replace("_", "").isalnum() and len(given) <= 64
    return given if plain else f"r-{secrets.token_hex(8)}"


async def _refuse(send: Send, path: str, status: int, code: str, message: str, request_id: str) -> None:
    if path.startswith("/v1/"):
        body: dict[str, Any] = {
            "error": {"message": message, "type": code, "code": code, "param": None, "request_id": request_id}
        }
    else:
        body = {"code": code, "message": message, "field": None, "status": status, "request_id": request_id}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/problem+json"), (b"www-authenticate", b"Bearer")],
        }
    )
    await send({"type": "http.response.body", "body": orjson.dumps(body)})
