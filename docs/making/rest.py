"""docs/reference/openapi.json: what the api says of itself."""

import asyncio
from typing import Any, cast

import httpx
from pydantic import SecretStr

from kernel.bus import Bus
from kernel.engine_keys import SealedKeys
from kernel.projections.marks import HighWater
from services.api.adapters.feed import Feed
from services.api.adapters.files import ModelFiles
from services.api.adapters.gateway.proxy import Gateway
from services.api.adapters.http import backends, events, files, images, logs, resources
from services.api.adapters.http.app import make_app
from services.api.adapters.images import BackendImages
from services.api.adapters.logs import Logs
from services.api.adapters.reader import Reader
from services.api.adapters.writer import Writer
from services.api.domain.routing import Routes
from services.api.settings import ApiSettings

KEY = "docs"


async def _is_ready() -> str | None:
    return None


def document() -> dict[str, Any]:
    """Asked over HTTP, without a socket: the real application on stores that nobody uses."""
    return asyncio.run(_ask())


async def _ask() -> dict[str, Any]:
    reader, writer, feed, bus = cast("Reader", None), cast("Writer", None), cast("Feed", None), cast("Bus", None)
    high_water = HighWater()
    routers = [
        resources.make_router(reader, writer, high_water, bus),
        files.make_router(reader, ModelFiles(reader, writer, bus), high_water),
        backends.make_router(reader, writer, high_water),
        images.make_router(reader, BackendImages(reader, bus)),
        logs.make_router(reader, Logs(reader, bus)),
        events.make_router(feed, high_water),
    ]
    gateway = Gateway(Routes(), reader, SealedKeys([]))
    app: Any = make_app(ApiSettings(api_key=SecretStr(KEY)), routers, gateway, _is_ready)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://docs") as client:
        answer = await client.get("/v2/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    return cast("dict[str, Any]", answer.raise_for_status().json())
