"""JSON answers, straight from orjson."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def json_response(
    document: Any,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    return Response(orjson.dumps(document), status_code=status_code, headers=headers, media_type=media_type)
