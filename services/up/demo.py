"""The bundled model: deployed on the first start with `--demo`, and asked a question by `muster demo`."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import orjson

from kernel.errors import Unavailable
from kernel.settings import BadSettings

if TYPE_CHECKING:
    from services.up.everything import Everything

MODEL: Final = "tinychat"
QUESTION: Final = "Who are you?"
READY_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.03
SAME_COMMAND: Final = "muster-up-demo"
"""Idempotency key of the deployment: the same directory is given the model once, also when it was deleted meanwhile."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    first_token_seconds: float
    instance: Document
    """The instance that ran when it was asked, as REST shows it."""
    timeline: list[Document]
    """What the event log says of that instance, oldest first."""

    @property
    def is_the_engines(self) -> bool:
        return bool(self.text.strip()) and any(event["type"] == "InstanceRunning" for event in self.timeline)


def bundled_model() -> Path:
    """Raises BadSettings."""
    path = Path(__file__).parents[2] / "examples" / "models" / "tinychat-f16.gguf"
    if not path.is_file():
        raise BadSettings(
            f"the demo's model {path} is not there: it comes with a clone of the repository, not with an installed package;"
            " start without --demo and deploy a model of your own"
        )
    return path


class Demo:
    """A client of the api that runs here."""

    def __init__(self, http: aiohttp.ClientSession, model: str = MODEL) -> None:
        self._http = http
        self._model = model

    @staticmethod
    @asynccontextmanager
    async def of(everything: "Everything") -> AsyncGenerator["Demo"]:
        headers = {"authorization": f"Bearer {everything.api_key}"}
        async with aiohttp.ClientSession(everything.url, headers=headers) as http:
            yield Demo(http)

    async def deploy(self, path: Path) -> None:
        """Once for each data directory, and not where there is a model of that name. Raises Unavailable."""
        body = {"name": self._model, "local_path": str(path), "description": "the bundled demo model"}
        async with self._http.post("/v2/models", json=body, headers={"idempotency-key": SAME_COMMAND}) as answer:
            document = await answer.json()
            if answer.status >= 400 and document["code"] not in ("name_taken", "idempotency_key_reused"):
                raise Unavailable(f"the demo model was not taken: {document['code']}: {document['message']}")

    async def until_ready(self, *, seconds: float = READY_SECONDS) -> str | None:
        """None when the model answers, or nobody wants it any more; else a sentence that says why it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                while (found := await self._find()) is not None and found["replicas"]:
                    if found["state"] == "ready" and await self._answers():
                        return None
                    await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            found = await self._find()
            reasons = "; ".join(reason["text"] for reason in found["reasons"]) if found else ""
            return f"{self._model} is not ready after {seconds:g} s: {reasons or 'it is still starting'}"
        return None

    async def served_model(self) -> str | None:
        """A model to try: one that is ready, if there is one; the demo's, if it is there."""
        async with self._http.get("/v2/models") as answer:
            models: list[Document] = (await answer.json())["items"]
        models.sort(key=lambda model: (model["state"] != "ready", model["name"] != self._model))
        return str(models[0]["name"]) if models else None

    async def ask(self, hear: Callable[[str], None]) -> Answer:
        """Streamed, as a chat client would; `hear` gets each piece. Raises Unavailable when no answer comes."""
        async with self._http.get("/v2/model-instances", params={"model": self._model}) as answer:
            running = [item for item in (await answer.json())["items"] if item["state"] == "running"]
        if not running:
            raise Unavailable(f"no instance of {self._model} runs")
        text, first_token_seconds = await self._stream(hear)
        async with self._http.get(f"/v2/model-instances/{running[0]['id']}/timeline") as answer:
            timeline = (await answer.json())["items"]
        return Answer(text, first_token_seconds, running[0], timeline)

    async def _stream(self, hear: Callable[[str], None]) -> tuple[str, float]:
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "stream": True}
        text, asked_at, first_token_seconds = "", time.monotonic(), 0.0
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._http.post("/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise Unavailable(f"no answer came: {(await answer.json())['error']['message']}")
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    for choice in orjson.loads(line.removeprefix(b"data: ")).get("choices", ()):
                        if piece := choice["delta"].get("content"):
                            first_token_seconds = first_token_seconds or time.monotonic() - asked_at
                            text += piece
                            hear(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"the answer broke off after {text!r}: {error}") from error
        return text, first_token_seconds

    async def _find(self) -> Document | None:
        async with self._http.get(f"/v2/models/{self._model}") as answer:
            return await answer.json() if answer.status == 200 else None

    async def _answers(self) -> bool:
        """What is stored may say `ready` of an engine that ended with the machine."""
        body = {"model": self._model, "prompt": "?", "max_tokens": 1}
        async with self._http.post("/v1/completions", json=body) as answer:
            return answer.status == 200
