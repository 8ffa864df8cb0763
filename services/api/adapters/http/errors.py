"""Every error as a problem document (RFC 9457) with our code: what was wrong, where, and the request's id."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from kernel.bus import JetStreamError
from kernel.errors import Conflict, Refused, Unavailable
from services.api.adapters.http.respond import json_response

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = "1"
CODES: Final = {
    400: "invalid_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
OWN_CODES: Final = {"extra_forbidden": "unknown_field", "duplicate_name": "duplicate_name"}
"""What is wrong with a field, where that has a code of its own."""
PLACES: Final = frozenset({"body", "query", "header", "path"})
"""Where FastAPI says that a field was; the field's name is enough."""


def problem(
    request: Request,
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    request_id = getattr(request.state, "request_id", None)
    if request.url.path.startswith("/v1/"):
        body: dict[str, Any] = {
            "error": {"message": message, "type": code, "code": code, "param": field, "request_id": request_id}
        }
    else:
        body = {
            "type": f"urn:muster:error:{code}",
            "title": code.replace("_", " "),
            "status": status,
            "code": code,
            "message": message,
            "field": field,
            "request_id": request_id,
        } | more
    later = {"retry-after": RETRY_AFTER_SECONDS} if status in (429, 503) else {}
    return json_response(
        body, status_code=status, headers=later | dict(headers or {}), media_type="application/problem+json"
    )


def install(app: FastAPI, routes: Sequence[Route]) -> None:
    """`routes`: what is served, to say what is possible where something else was tried."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        if not isinstance(error, Refused):
            raise error
        more: dict[str, Any] = {"numbers": error.numbers} if error.numbers else {}
        return problem(request, error.status, error.code, error.message, field=error.field, **more)

    @app.exception_handler(Conflict)
    async def conflict(request: Request, _error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        return problem(request, 409, "conflict", "somebody else changed this meanwhile; read it again")

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        return problem(request, 503, "unavailable", str(error))

    @app.exception_handler(JetStreamError)
    async def log_refused(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        return problem(request, 503, "unavailable", f"the log is not available: {error}")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        if not isinstance(error, RequestValidationError):
            raise error
        if (broken := error.errors()[0])["type"] == "json_invalid":
            return problem(request, 400, "invalid_json", f"the body is not JSON: {broken['ctx']['error']}")
        if tuple(broken["loc"]) == ("body",):
            return _no_object(request, is_missing=broken["type"] == "missing")
        errors = [
            {
                "field": ".".join(str(part) for part in each["loc"][each["loc"][0] in PLACES :]),
                "message": each["msg"],
                "type": each["type"],
            }
            for each in error.errors()
        ]
        first = errors[0]
        code = OWN_CODES.get(first["type"], "invalid_request")
        message = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
        return problem(request, 422, code, message, field=first["field"] or None, errors=errors)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        if not isinstance(error, HTTPException):
            raise error
        status, path, message, headers = error.status_code, request.url.path, str(error.detail), error.headers
        if status == 404:
            message = f"there is nothing at {path[:200]}"
        if status == 405:
            possible = sorted(
                {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
            )
            message, headers = f"{path[:200]} takes {', '.join(possible)} only", {"allow": ", ".join(possible)}
        return problem(request, status, CODES.get(status, "http_error"), message, headers=headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        log.error("unforeseen error in %s %s", request.method, request.url.path, exc_info=error)
        return problem(request, 500, "internal_error", "an error of ours; the log tells more under this request id")


def _no_object(request: Request, *, is_missing: bool) -> Response:
    """The body is not there, is some other JSON, or was never read as JSON since it does not say that it is."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if is_missing:
        return problem(request, 422, "invalid_request", "a body is missing: send a JSON object")
    if media_type.partition("/")[2].rpartition("+")[2] != "json":
        said = f"not as {media_type[:80]}" if media_type else "which the Content-Type must say"
        return problem(request, 415, CODES[415], f"send the body as application/json, {said}")
    return problem(request, 422, "invalid_request", "the body must be a JSON object")
