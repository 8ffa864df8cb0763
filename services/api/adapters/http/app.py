"""The api as an ASGI application: REST, events, gateway, health."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.routing import Route

from services.api.adapters.gateway.proxy import Gateway
from services.api.adapters.http import errors
from services.api.adapters.http.guard import Guard
from services.api.settings import ApiSettings


def make_app(
    settings: ApiSettings, routers: list[APIRouter], gateway: Gateway, not_ready: Callable[[], Awaitable[str | None]]
) -> Guard:
    app = FastAPI(
        title="Muster",
        version=version("muster"),
        summary="Gathers the GPUs of many machines into one fleet and serves LLMs behind one endpoint.",
        docs_url="/v2/docs",
        openapi_url="/v2/openapi.json",
        redoc_url=None,
    )
    for router in routers:
        app.include_router(router)
    app.router.routes.extend(gateway.make_routes())

    @app.get("/", include_in_schema=False)
    async def root() -> PlainTextResponse:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse(
            "Muster\n\n/v1       OpenAI-compatible endpoint\n/v2       REST API\n/v2/docs  what it offers\n"
            "/v2/events  what happens, as it happens\n/healthz /readyz /metrics\n"
        )

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        why = await not_ready()
        return JSONResponse({"ready": why is None, "reason": why}, status_code=200 if why is None else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    served = (*app.routes, *(route for router in routers for route in router.routes))
    errors.install(app, [route for route in served if isinstance(route, Route)])
    return Guard(app, settings)
