"""A model hub that speaks as Hugging Face and as ModelScope do, and fails as it is told to.

It runs in a thread of its own, so tests may block their event loop. As a program, for a person or another process:

    python -m tests.support.hub DIRECTORY --port 8930 --gated org/name

serves `DIRECTORY/org/name/…`; `POST /_fault` takes a fault as JSON, `DELETE /_faults` ends them all, `GET /_log` and
`DELETE /_log` are the log. In `DIRECTORY/org/name` a file is served as it lies there at that moment.
"""

import argparse
import asyncio
import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, suppress
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import quote, unquote

from pydantic import ValidationError

from tests.support import hub_huggingface, hub_modelscope
from tests.support.hub_faults import Fault, Faults, Where, planned
from tests.support.hub_huggingface import HuggingFace
from tests.support.hub_modelscope import ModelScope
from tests.support.hub_repository import Content, Listed, Repositories, files_below, listed, tree_of
from tests.support.hub_wire import Answer, Link, Plan, Request, Seen, serve

HUB_HOST: Final = "127.0.0.1"
CDN_HOST: Final = "localhost"
"""Another host name: a client that sends its token across a redirect sends it to a stranger."""
LINK_SECONDS: Final = 3600
SETTLE_STEPS: Final = 10


class Hub(AbstractAsyncContextManager["Hub"], AbstractContextManager["Hub"]):
    def __init__(self, port: int = 0, cdn_port: int = 0) -> None:
        self.repositories = Repositories()
        self.hugging_face = HuggingFace(self.repositories, self._link_to)
        self.model_scope = ModelScope(self.repositories, self._link_to)
        self._ports: dict[Where, int] = {"hub": port, "cdn": cdn_port}
        self._links: dict[str, Link] = {}
        self._numbers = count(1)
        self._faults = Faults()
        self._log: list[Seen] = []
        self._loop = asyncio.SelectorEventLoop()
        self._ended = asyncio.Event()
        self._listens: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{HUB_HOST}:{self._ports['hub']}"

    @property
    def cdn_url(self) -> str:
        return f"http://{CDN_HOST}:{self._ports['cdn']}"

    def put(self, name: str, files: Mapping[str, bytes | Path], revision: str = "main") -> str:
        """Moves the branch to a commit of exactly these files; its identifier follows from them."""
        return self.repositories.of(name).put(tree_of(files), revision).id

    def list_raw(self, name: str, entries: Iterable[Listed | str], revision: str = "main") -> str:
        """Lists what no hub should; a file listed by its name alone is empty."""
        told = [listed(entry) if isinstance(entry, str) else entry for entry in entries]
        return self.repositories.of(name).put(told, revision).id

    def tag(self, name: str, tag: str, commit: str) -> None:
        self.repositories.of(name).tags[tag] = commit

    def gate(self, name: str, kind: str = "manual") -> None:
        self.repositories.of(name).gated = kind

    def hide(self, name: str) -> None:
        self.repositories.of(name).private = True

    def allow(self, token: str, *names: str) -> None:
        """The token is a valid one, and may read these gated and private repositories."""
        self.repositories.tokens.setdefault(token, set()).update(names)

    def fault(self, match: str = "", **kinds: object) -> None:
        """The fields of `Fault`; raises ValidationError for others."""
        self._faults.add(Fault.model_validate({"match": match, **kinds}))

    def clear_faults(self) -> None:
        self._faults.clear()

    def requests(self, match: str = "") -> list[Seen]:
        """In the order in which they came; `match` is looked for in `METHOD http://host/path?query`, unquoted."""
        self._settle()
        return [seen for seen in self._log if re.search(match, f"{seen.method} http://{seen.host}{unquote(seen.path)}")]

    def bytes_sent(self, match: str = "") -> int:
        return sum(seen.sent for seen in self.requests(match))

    def clear_log(self) -> None:
        self._settle()
        self._log.clear()

    def _settle(self) -> None:
        """What a client has received is in the log."""

        async def steps() -> None:
            for _ in range(SETTLE_STEPS):
                await asyncio.sleep(0)

        if threading.current_thread() is not self._thread and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(steps(), self._loop).result()

    def _link_to(self, link: Link, name: str) -> str:
        signature = f"{next(self._numbers):016x}"
        self._links[signature] = link
        ends = int(time.time()) + LINK_SECONDS
        return f"{self.cdn_url}/{name}/{quote(link.file, safe='')}?Expires={ends}&Signature={signature}"

    def _handle(self, where: Where, request: Request) -> tuple[Plan, Seen | None]:
        if where == "hub" and (told := self._control(request)) is not None:
            return planned(request, told, Fault()), None
        seen = Seen(
            method=request.method,
            host=request.host,
            path=request.target,
            range=request.headers.get("range"),
            has_authorization="authorization" in request.headers,
            has_cookie="cookie" in request.headers,
            user_agent=request.headers.get("user-agent", ""),
        )
        self._log.append(seen)
        answer = self._serve_link(request) if where == "cdn" else self._answer(request)
        fault = self._faults.take(request, where, answer)
        if fault.expire and answer.link is not None:
            answer.link.uses_left = 1
        if fault.replaces_the_answer:
            answer = _replaced(request, where, fault)
        plan = planned(request, answer, fault)
        seen.status = plan.status
        return plan, seen

    def _answer(self, request: Request) -> Answer:
        answer = self.hugging_face.answer(request) or self.model_scope.answer(request)
        return answer or _failure(request, "hub", 404, "Sorry, we can't find the page you are looking for.")

    def _serve_link(self, request: Request) -> Answer:
        link = self._links.get(request.query.get("Signature", ""))
        if link is None or link.uses_left == 0 or request.method not in ("GET", "HEAD"):
            return _failure(request, "cdn", 403, "Access denied")
        if link.uses_left is not None:
            link.uses_left -= 1
        headers = {"ETag": link.etag, "Content-Type": "application/octet-stream", **link.headers}
        return Answer(200, headers, link.content, link.file, serves_ranges=True)

    def _control(self, request: Request) -> Answer | None:
        match request.method, request.path:
            case "POST", "/_fault":
                try:
                    self._faults.add(Fault.model_validate_json(request.body))
                except ValidationError as wrong:
                    return hub_huggingface.failure(400, str(wrong).replace("\n", " "))
            case "DELETE", "/_faults" | "/_fault":
                self._faults.clear()
            case "GET", "/_log":
                return hub_huggingface.as_json([asdict(seen) for seen in self._log])
            case "DELETE", "/_log":
                self._log.clear()
            case _:
                return None
        return hub_huggingface.as_json({})

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        finally:
            self._loop.close()

    async def _listen(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        async def connected(where: Where, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            this = cast("asyncio.Task[None]", asyncio.current_task())
            connections.add(this)
            try:
                await serve(partial(self._handle, where), reader, writer)
            finally:
                connections.discard(this)

        try:
            async with AsyncExitStack() as servers:
                for where, port in self._ports.items():
                    server = await asyncio.start_server(partial(connected, where), HUB_HOST, port)
                    await servers.enter_async_context(server)
                    self._ports[where] = server.sockets[0].getsockname()[1]
                self._listens.set_result(None)
                await self._ended.wait()
                for task in connections:
                    task.cancel()
                await asyncio.gather(*connections, return_exceptions=True)
        except OSError as busy:
            self._listens.set_exception(busy)
        await asyncio.sleep(0)  # what was closed is let go of in the next turn

    def __enter__(self) -> Self:
        self._thread.start()
        self._listens.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)


def _replaced(request: Request, where: Where, fault: Fault) -> Answer:
    if fault.redirect_to is not None:
        return Answer(fault.status or 302, {"Location": fault.redirect_to})
    if fault.html:
        said = fault.body or "<!DOCTYPE html><html><body>Please sign in to use this network.</body></html>"
        return Answer(fault.status or 200, {"Content-Type": "text/html; charset=utf-8"}, Content.of(said.encode()))
    status = fault.status or 500
    answer = _failure(request, where, status, HTTPStatus(status).phrase)
    content = answer.content if fault.body is None else Content.of(fault.body.encode())
    waits = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return Answer(status, {**answer.headers, **waits}, content)


def _failure(request: Request, where: Where, status: int, message: str) -> Answer:
    """In the words of whom the client believes to speak with."""
    if where == "cdn":
        said = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{status}</Code><Message>{message}</Message></Error>'
        return Answer(status, {"Content-Type": "application/xml"}, Content.of(said.encode()))
    if request.path.startswith(("/api/v1/", "/openapi/v1/")):
        return hub_modelscope.failure(status, message)
    return hub_huggingface.failure(status, message)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.hub", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cdn-port", type=int, default=0)
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/NAME")
    parser.add_argument("--private", action="append", default=[], metavar="ORG/NAME")
    parser.add_argument("--token", action="append", default=[], metavar="TOKEN[=ORG/NAME,…]")
    asked = parser.parse_args()
    hub = Hub(asked.port, asked.cdn_port)
    for root in sorted(path for path in cast("Path", asked.directory).resolve().glob("*/*") if path.is_dir()):
        hub.put(f"{root.parent.name}/{root.name}", files_below(root))
    for name in asked.gated:
        hub.gate(name)
    for name in asked.private:
        hub.hide(name)
    for token in asked.token:
        word, _, names = str(token).partition("=")
        hub.allow(word, *filter(None, names.split(",")))
    with hub, suppress(KeyboardInterrupt):
        heads = {name: repository.branches for name, repository in hub.repositories.by_name.items()}
        print(json.dumps({"url": hub.url, "cdn_url": hub.cdn_url, "repositories": heads}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
