"""What the api sends, as the client understands it."""

from collections.abc import Iterator

import httpx
import pytest

from services.cli.client import Client, Event, Start, parse_events
from services.cli.failed import Failed

STREAM = (
    ": from 1-41\n\n"
    'id: 1-42\nevent: ModelPending\ndata: {"text":"one\u2028line: with a colon"}\n\n'
    ": still here\n\n"
    'id: 1-44\nevent: ModelReady\ndata: {"a":1}\n\n'
    "id: 1-45\nevent: ModelRe"
).encode()
UNDERSTOOD = [Start("1-41"), Event("1-42", '{"text":"one\u2028line: with a colon"}'), Event("1-44", '{"a":1}')]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_is_understood_however_it_is_cut_and_its_unfinished_end_is_left(size: int) -> None:
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(parse_events(chunks)) == UNDERSTOOD


class Broken(httpx.SyncByteStream):
    """A body that breaks off."""

    def __iter__(self) -> Iterator[bytes]:
        yield STREAM
        raise httpx.ReadError("connection reset")


def client_of(answers: list[httpx.Response], asked: list[str | None]) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        return answers.pop(0)

    client = Client("http://muster.test", "a-key")
    client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(answer))  # pyright: ignore[reportPrivateUsage]
    return client


def test_a_followed_stream_goes_on_exactly_after_what_it_told_through_interruptions_and_a_restored_log() -> None:
    gone = {"code": "other_generation", "message": "the log was restored", "numbers": {"resume": "2-40"}}
    asked: list[str | None] = []
    notices: list[str] = []
    answers = [
        httpx.Response(200, stream=Broken()),
        httpx.Response(503, json={"code": "unavailable", "message": "PostgreSQL is away"}),
        httpx.Response(410, json=gone),
        httpx.Response(200, content=b': from 2-40\n\nid: 2-41\nevent: X\ndata: {"b":2}\n\n'),
        httpx.Response(401, json={"code": "unauthorized", "message": "send your key"}),
    ]
    told: list[Event] = []
    with pytest.raises(Failed, match="unauthorized"):
        told.extend(client_of(answers, asked).events(since=None, types=(), follow=True, notice=notices.append))
    assert asked == [None, "1-44", "1-44", "2-40", "2-41"]
    again = "the stream of events was interrupted ({}); trying again, nothing is skipped"
    assert notices == [
        again.format("connection reset"),
        "the log was restored; going on after 2-40",
        again.format("the server ended it"),
    ]


def test_a_stream_that_is_not_followed_ends_or_fails() -> None:
    asked: list[str | None] = []
    whole = client_of([httpx.Response(200, content=STREAM)], asked)
    ended = list(whole.events(since="0", types=("ModelReady",), follow=False, notice=print))
    assert ended == [event for event in UNDERSTOOD if isinstance(event, Event)]
    with pytest.raises(Failed, match="connection reset"):
        list(
            client_of([httpx.Response(200, stream=Broken())], asked).events(
                since="0", types=(), follow=False, notice=print
            )
        )
    assert asked == ["0", "0"]


def test_what_is_no_muster_is_told_so() -> None:
    client = client_of([httpx.Response(502, text="<html>bad gateway</html>")], [])
    with pytest.raises(Failed) as failed:
        client.get("v2", "models")
    assert str(failed.value) == "http_502: http://muster.test is no Muster, or one is behind it"


def test_an_error_of_the_server_tells_the_request_that_its_log_knows() -> None:
    problem = {"code": "internal_error", "message": "an error of ours", "field": None, "request_id": "r-1"}
    with pytest.raises(Failed) as failed:
        client_of([httpx.Response(500, json=problem)], []).get("v2", "models")
    assert str(failed.value) == "internal_error: an error of ours (request r-1)"


def test_names_reach_the_server_whole() -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    client = client_of([], [])
    client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(answer))  # pyright: ignore[reportPrivateUsage]
    client.get("v2", "models", "a/b?c=ü", min_seq="1-2")
    assert paths == ["/v2/models/a%2Fb%3Fc%3D%C3%BC?min_seq=1-2"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:many", "127.0.0.1:8700", "localhost"])
def test_what_is_no_address_is_told_so(url: str) -> None:
    with pytest.raises(Failed, match=f"^{url} is no address: "):
        Client(url, "key")
