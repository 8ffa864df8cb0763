"""What the agent asks an engine over HTTP: whether it is well, for one token, and for its metrics."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Final

import aiohttp

from services.agent.domain.health import PROBE_TIMEOUT_SECONDS, Answer

METRICS_SECONDS: Final = 2.0
ASKED: Final = "How are you today?"
MOST_METRICS_BYTES: Final = 4 * 2**20
"""An engine with every metric that it has sends a tenth of that."""
_HELD_UP: Final = 2.0
"""So many times the time-out: we were not running ourselves."""


class EngineDoor:
    def __init__(
        self, http: aiohttp.ClientSession, origin: str, health_path: str | None, *, key: str | None = None
    ) -> None:
        """`origin`: `http://10.0.0.1:40000`. `health_path`: None where nobody answers (a follower of several machines)."""
        self._http, self._origin, self._health_path = http, origin, health_path
        self._prefix = (health_path or "").removesuffix("/health") if (health_path or "").endswith("/health") else ""
        self._headers = {"authorization": f"Bearer {key}"} if key is not None else {}

    @property
    def traces(self) -> str | None:
        """What an engine's access log has of a probe: `"GET /health HTTP/1.1" 503`."""
        return None if self._health_path is None else f"GET {self._health_path}"

    async def probe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> Answer:
        if self._health_path is None:
            return "well"
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_seconds), self._get(self._health_path) as response:
                return "well" if response.status == 200 else "not_well"
        except TimeoutError:
            return "late" if time.monotonic() - began < timeout_seconds * _HELD_UP else "not_asked"
        except (aiohttp.ClientError, OSError):
            return "refused"

    async def one_token(self, model: str, *, embeds: bool, timeout_seconds: float) -> Answer:
        """A request that is refused (4xx) is an answer too: the engine has read it. What it asks is longer than one token: vLLM
        0.32 on processors dies of a single one.
        """
        path = f"{self._prefix}/v1/{'embeddings' if embeds else 'completions'}"
        body = {"model": model, "input": ASKED} if embeds else {"model": model, "prompt": ASKED, "max_tokens": 1}
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._http.post(f"{self._origin}{path}", json=body, headers=self._headers) as response,
            ):
                await response.content.readany()
                return "well" if response.status < 500 else "not_well"
        except TimeoutError:
            return "late"
        except (aiohttp.ClientError, OSError):
            return "refused"

    async def metrics(self) -> str | None:
        """In Prometheus's text format; None: it has none, is late, or sends too much."""
        if self._health_path is None:
            return None
        text = bytearray()
        try:
            async with asyncio.timeout(METRICS_SECONDS), self._get(f"{self._prefix}/metrics") as response:
                if response.status != 200:
                    return None
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > MOST_METRICS_BYTES:
                        return None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        return text.decode(errors="replace")

    def _get(self, path: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._http.get(f"{self._origin}{path}", headers=self._headers)
