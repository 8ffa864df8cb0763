"""The REST API from outside: where it is, with which key, and what its errors say."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from services.cli.failed import USAGE, Failed

SECONDS: Final = 15.0
"""Longer than the api waits for its own stores before it answers."""
SILENCE_SECONDS: Final = 40.0
"""A stream of events says something every 15 s; one that is silent for longer is dead."""
RECONNECT_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)

Document = dict[str, Any]
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Event:
    position: str
    text: str
    """The CloudEvents envelope, as it came."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first thing that a stream says: which position it goes on after."""

    position: str


class NotFound(Failed):
    """There is no such thing."""


class Interrupted(Failed):
    """It may work later: nobody answers, or the server can't do its work now."""

    def __init__(self, sentence: str, problem: str | None = None) -> None:
        super().__init__(sentence)
        self.problem = problem or sentence
        """For somebody who knows already that there was a server."""


class OtherGeneration(Failed):
    """The position is of a log that was restored since."""

    def __init__(self, sentence: str, resume: str) -> None:
        super().__init__(sentence)
        self.resume = resume


class Client:
    def __init__(self, url: str, key: str | None, key_file: Path | None = None) -> None:
        """`key_file`: where the key was looked for when nobody gave one."""
        self.url = url.rstrip("/")
        self._key_file = key_file
        self._has_key = bool(key)
        if key and not (key.isascii() and key.isprintable()):
            raise Failed(f"the key {self._its_place()} is none: a key is printable ASCII")
        if not self.url.startswith(("http://", "https://")):
            raise Failed(f"{url} is no address: one begins with http:// or https://")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=SECONDS,
                trust_env=not _is_loopback(httpx.URL(self.url).host),  # no proxy stands between us and this machine
                verify=self.url.startswith("https:"),  # reading certificates takes 0.2 s, and redirects aren't followed
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Failed(f"{url} is no address: {error}") from error

    @classmethod
    def connect(cls, url: str | None, key: str | None) -> Self:
        """By options, else the environment, else what `muster up` leaves in its data directory."""
        environment = os.environ
        url = url or environment.get("MUSTER_URL") or f"http://127.0.0.1:{environment.get('MUSTER_PORT') or 8700}"
        key = key or environment.get("MUSTER_API_KEY")
        if key:
            return cls(url, key.strip())
        file = Path(environment.get("MUSTER_API_KEY_FILE") or data_dir() / "admin.key")
        try:
            return cls(url, file.read_text(encoding="utf-8").strip(), file)
        except OSError:
            return cls(url, None, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, *path: str, **parameters: Any) -> Document:
        return self._request("GET", path, parameters)

    def post(self, *path: str, body: Document, seconds: float = SECONDS) -> Document:
        return self._request("POST", path, {}, body, seconds)

    def patch(self, *path: str, body: Document) -> Document:
        return self._request("PATCH", path, {}, body)

    def put(self, *path: str, body: Document) -> Document:
        return self._request("PUT", path, {}, body)

    def delete(self, *path: str, **parameters: Any) -> Document:
        return self._request("DELETE", path, parameters)

    def find(self, *path: str, **parameters: Any) -> Document | None:
        """None when there is no such thing."""
        try:
            return self.get(*path, **parameters)
        except NotFound:
            return None

    def names(self) -> dict[str, str]:
        """What everything is called now, by its id."""
        kinds = ("models", "model-instances", "workers")
        return {item["id"]: item["name"] for kind in kinds for item in self.get("v2", kind)["items"]}

    def events(self, *, since: str | None, types: Sequence[str], follow: bool, notice: Notice) -> Iterator[Event]:
        """Each once and in order, over any number of connections. `notice` is told what interrupts a followed stream."""
        position, attempt, connected = since, 0, False
        while True:
            try:
                for said in self._stream(position, types, follow=follow):
                    attempt, position, connected = 0, said.position, True
                    if isinstance(said, Event):
                        yield said
                if not follow:
                    return
                problem = "the server ended it"
            except OtherGeneration as other:
                notice(f"the log was restored; going on after {other.resume}")
                position = other.resume
                continue
            except Interrupted as error:
                if not follow or not connected:
                    raise
                problem = error.problem
            if attempt == 0:
                notice(f"the stream of events was interrupted ({problem}); trying again, nothing is skipped")
            time.sleep(RECONNECT_SECONDS[min(attempt, len(RECONNECT_SECONDS) - 1)])
            attempt += 1

    def lines(self, *path: str, **parameters: Any) -> Iterator[str]:
        """Of a text that is told as it is written; it ends when the server ends it."""
        try:
            with self._http.stream(
                "GET", _address(path), params=parameters, timeout=httpx.Timeout(SECONDS, read=None)
            ) as answer:
                if answer.status_code != HTTPStatus.OK:
                    answer.read()
                    self._check(answer)
                yield from parse_lines(answer.iter_bytes())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _stream(self, position: str | None, types: Sequence[str], *, follow: bool) -> Iterator[Event | Start]:
        try:
            with self._http.stream(
                "GET",
                "/v2/events",
                params={"type": list(types), "follow": str(follow).lower()},
                headers={"last-event-id": position} if position is not None else {},
                timeout=httpx.Timeout(SECONDS, read=SILENCE_SECONDS),
            ) as answer:
                if answer.status_code != HTTPStatus.OK:
                    answer.read()
                    self._check(answer)
                yield from parse_events(answer.iter_bytes())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _request(
        self,
        method: str,
        path: Sequence[str],
        parameters: Document,
        body: Document | None = None,
        seconds: float = SECONDS,
    ) -> Document:
        try:
            answer = self._http.request(method, _address(path), params=parameters, json=body, timeout=seconds)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        self._check(answer)
        document: Document = answer.json()
        return document

    def _unreachable(self, error: Exception) -> Interrupted:
        problem = str(error) or type(error).__name__
        return Interrupted(
            f"no Muster answers at {self.url} ({problem}): start one with `muster up`, or say where one runs with --url or"
            " MUSTER_URL",
            problem,
        )

    def _check(self, answer: httpx.Response) -> None:
        """Raises Failed with what the server says: `code: message (field)`."""
        if answer.is_success:
            return
        try:
            problem: Any = answer.json()
            problem = problem.get("error", problem)
            code, message, field = problem["code"], problem["message"], problem.get("field")
        except (ValueError, KeyError, AttributeError):
            raise Failed(f"http_{answer.status_code}: {self.url} is no Muster, or one is behind it") from None
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise Failed(f"{code}: {self._about_the_key()}")
        sentence = f"{code}: {message}" + (f" ({field})" if field and not message.startswith(f"{field}:") else "")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise NotFound(sentence)
        if answer.status_code == HTTPStatus.GONE and (resume := problem.get("numbers", {}).get("resume")):
            raise OtherGeneration(sentence, resume)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            request_id = problem.get("request_id")
            raise Interrupted(sentence + (f" (request {request_id})" if request_id else ""))
        raise Failed(sentence)

    def _about_the_key(self) -> str:
        places = f"--key, MUSTER_API_KEY, or the file {self._key_file or data_dir() / 'admin.key'}"
        if not self._has_key:
            return f"{self.url} wants a key, and there is none: it is looked for in {places} (which is not there)"
        return f"{self.url} does not take this key; it is {self._its_place()} (looked for in {places})"

    def _its_place(self) -> str:
        return "from --key or MUSTER_API_KEY" if self._key_file is None else f"from {self._key_file}"


def data_dir() -> Path:
    return Path(os.environ.get("MUSTER_DATA_DIR") or ".muster")


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event | Start]:
    """Server-sent events as the api writes them: lines end with a line feed and nothing else (a text may hold U+2028)."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        while b"\n\n" in buffer:
            block, _, buffer = buffer.partition(b"\n\n")
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            if b"data" in fields:
                yield Event(fields[b"id"].decode(), fields[b"data"].decode())
            elif fields.get(b"", b"").startswith(b"from "):
                yield Start(fields[b""].removeprefix(b"from ").decode())


def parse_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """A line ends with a line feed and nothing else (a text may hold U+2028)."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def _address(path: Sequence[str]) -> str:
    if not all(path):
        raise Failed("a name or an id is empty", exit_code=USAGE)
    return "/" + "/".join(quote(part, safe="") for part in path)


def as_document(event: Event) -> Document:
    document: Document = json.loads(event.text)
    return document


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
