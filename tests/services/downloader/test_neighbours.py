"""Workers that give each other files: over HTTP where they reach each other, else over the bus; the hub is asked once."""

import asyncio
import hashlib
import http.client
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import orjson
import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from schemas.asks import AskShare, ReadShared, Shared
from schemas.assignment import AssignedFile
from schemas.ids import FileId
from schemas.sources import HuggingFace
from schemas.subjects import ask
from services.downloader import downloads
from services.downloader.adapters import neighbour
from services.downloader.adapters.neighbour import Counter
from tests.services.downloader.desk import (
    MIB,
    REPOSITORY,
    WEIGHTS,
    Desk,
    a_model,
    digest_of,
    point_to,
    random_weights,
    tiny,
    warm,
)
from tests.support.hub import Hub

NOWHERE = "192.0.2.1"
"""Of TEST-NET-1 (RFC 5737): nobody answers there."""
TEN = 10


@pytest_asyncio.fixture(loop_scope="session", scope="module", autouse=True)
async def _warm() -> AsyncIterator[None]:
    async with warm():
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        point_to(running, monkeypatch)
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Desk.opened(tmp_path, workers=3) as opened:
        yield opened


def weights_sent(hub: Hub) -> int:
    return hub.bytes_sent(f"localhost.*{WEIGHTS}")


async def first_has_it(hub: Hub, desk: Desk, files: dict[str, bytes], **settings: object) -> AssignedFile:
    """Worker 0 is ready, and the hub's log is empty."""
    file = desk.file(tiny(), hub.put(REPOSITORY, files))
    await desk.start(0, **settings)
    await desk.assign(0, file)
    await desk.until_ready(file)
    hub.clear_log()
    return file


def of_worker(desk: Desk, file: AssignedFile, number: int, *neighbours: int, ready: bool = True) -> AssignedFile:
    assert isinstance(file.source, HuggingFace)
    near = tuple(desk.neighbour(file, each, ready=ready) for each in neighbours)
    return desk.file(file.source, file.commit, number, neighbours=near)


async def all_of_ten(hub: Hub, directory: Path, weight_bytes: int, seconds: float, address: str) -> None:
    """They want the same model at once; as the scheduler does, each is told who is to have it first."""
    async with Desk.opened(directory, workers=TEN) as desk:
        commit = hub.put(REPOSITORY, files := a_model(weight_bytes))
        first = desk.file(tiny(), commit)
        near = (desk.neighbour(first, 0, address, ready=False),)
        wanted = [desk.file(tiny(), commit, number, neighbours=near[:1] if number else ()) for number in range(TEN)]
        for number in range(TEN):
            await desk.start(number, share_address=address, connections=2)
        for number, file in enumerate(wanted):
            await desk.assign(number, file)
        for number, file in enumerate(wanted):
            assert (await desk.until_ready(file, seconds)).digest == digest_of(files)
            weights = desk.home(file, number) / WEIGHTS
            assert weights.read_bytes() == files[WEIGHTS]
        assert weights_sent(hub) == len(files[WEIGHTS])
        assert len(hub.requests(r"http://[\d.:]+/org/.*config.json")) == 1
        assert desk.phases(wanted[-1]) == ["queued", "copying", "verifying", "ready"]


async def test_of_ten_workers_that_want_a_model_one_asks_the_hub(hub: Hub, tmp_path: Path) -> None:
    await all_of_ten(hub, tmp_path, 16 * MIB, 60, "127.0.0.1")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_of_ten_workers_that_want_a_large_model_one_asks_the_hub(hub: Hub, tmp_path: Path) -> None:
    await all_of_ten(hub, tmp_path, 1024 * MIB, 500, "127.0.0.1")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_workers_that_reach_each_other_over_the_bus_alone_ask_the_hub_once(hub: Hub, tmp_path: Path) -> None:
    await all_of_ten(hub, tmp_path, 64 * MIB, 250, NOWHERE)


async def test_workers_that_do_not_reach_each_other_use_the_bus(hub: Hub, desk: Desk) -> None:
    file = await first_has_it(hub, desk, files := a_model(3 * MIB), share_address=NOWHERE)
    await desk.start(1)
    near = desk.neighbour(file, 0, NOWHERE, ready=True)
    other = desk.file(tiny(), file.commit, 1, neighbours=(near,))
    await desk.assign(1, other)
    await desk.until_ready(other)
    assert desk.content(other, 1) == files
    assert hub.requests() == []


async def test_workers_reach_each_other_without_a_proxy(hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await first_has_it(hub, desk, files := a_model(3 * MIB))
    await desk.start(1)
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}:9")

    def not_over_the_bus(*_: object) -> NoReturn:
        raise AssertionError("it went over the bus")

    monkeypatch.setattr(downloads, "BusLine", not_over_the_bus)
    await desk.assign(1, other := of_worker(desk, file, 1, 0, ready=True))
    await desk.until_ready(other)
    assert desk.content(other, 1) == files
    assert hub.requests() == []


async def test_a_worker_whose_port_is_taken_by_somebody_else_shares_over_the_bus(hub: Hub, desk: Desk) -> None:
    with socket.create_server(("0.0.0.0", 0)) as somebody:
        file = await first_has_it(hub, desk, files := a_model(), share_port=somebody.getsockname()[1])
        await desk.start(1)
        await desk.assign(1, other := of_worker(desk, file, 1, 0))
        await desk.until_ready(other)
    assert desk.content(other, 1) == files
    assert hub.requests() == []


async def test_a_worker_whose_turn_has_not_come_is_waited_for(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone asks the hub, also where it is busy with something else for longer than one answer takes."""
    monkeypatch.setattr(downloads, "NEWS_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "NEIGHBOUR_SECONDS", 1.0)
    commit = hub.put(REPOSITORY, files := a_model())
    busy = desk.file(tiny(name="org/busy"), hub.put("org/busy", a_model(MIB, seed=3)))
    hub.fault("busy.*safetensors", where="cdn", rate=300_000)
    file = desk.file(tiny(), commit)
    await desk.start(0, downloads_at_once=1)
    await desk.start(1)
    await desk.assign(0, busy)
    await desk.until_phase(busy, "downloading")
    await desk.assign(0, busy, file)
    await desk.until_phase(file, "queued")
    other = of_worker(desk, file, 1, 0, ready=False)
    await desk.assign(1, other)
    await desk.until_ready(other, seconds=60)
    assert desk.content(other, 1) == files
    await desk.until_ready(file)
    assert hub.bytes_sent(f"localhost.*tiny.*{WEIGHTS}") == len(files[WEIGHTS])


@pytest.mark.parametrize("partly", [False, True])
async def test_workers_that_would_wait_for_each_other_do_not(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch, *, partly: bool
) -> None:
    monkeypatch.setattr(downloads, "NEIGHBOUR_SECONDS", 1.0)
    commit = hub.put(REPOSITORY, files := a_model())
    file = desk.file(tiny(), commit)
    mine, yours = of_worker(desk, file, 0, 1, ready=False), of_worker(desk, file, 1, 0, ready=False)
    if partly:
        hub.fault(WEIGHTS, where="cdn", rate=1000)
        for number, each in enumerate((mine, yours)):
            await desk.start(number, from_neighbours=False)
            await desk.assign(number, each)
            await desk.until(lambda number=number: len(hub.requests(f"localhost.*{WEIGHTS}")) > number)
            await desk.stop(number)
        hub.clear_faults()
        desk.seen.clear()
    for number, each in enumerate((mine, yours)):
        await desk.start(number)
        await desk.assign(number, each)
    await desk.until_ready(mine, seconds=60)
    await desk.until_ready(yours, seconds=60)
    assert desk.content(mine, 0) == desk.content(yours, 1) == files


async def test_when_the_worker_that_fetches_is_killed_one_of_the_others_asks_the_hub(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "NEIGHBOUR_SECONDS", 1.0)
    commit = hub.put(REPOSITORY, files := a_model(16 * MIB))
    hub.fault(WEIGHTS, where="cdn", rate=2 * MIB)
    file = desk.file(tiny(), commit)
    wanted = [file, of_worker(desk, file, 1, 0, ready=False), of_worker(desk, file, 2, 0, ready=False)]
    process = await desk.spawn(0)
    await desk.start(1)
    await desk.start(2)
    await desk.assign(0, wanted[0])
    await desk.until(lambda: weights_sent(hub) > MIB, "the first bytes")
    for number in (1, 2):
        await desk.assign(number, wanted[number])
        await desk.until(lambda number=number: has_asked(desk, number), "a question")
    process.kill()
    await process.wait()
    before = weights_sent(hub)
    hub.clear_faults()
    await asyncio.sleep(3)  # the scheduler hears nothing of it, and names another one
    await desk.assign(1, wanted[1].model_copy(update={"neighbours": ()}))
    await desk.assign(2, of_worker(desk, file, 2, 1, ready=False))
    for number in (1, 2):
        await desk.until_ready(wanted[number], seconds=60)
        assert desk.content(wanted[number], number) == files
    assert len(files[WEIGHTS]) <= weights_sent(hub) - before <= 1.1 * len(files[WEIGHTS])


async def test_a_worker_that_was_to_have_files_first_and_comes_back_is_asked_again(hub: Hub, desk: Desk) -> None:
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model()))
    other = of_worker(desk, file, 1, 0, ready=False)
    await desk.start(1)
    await desk.assign(1, other)
    await desk.assign(0, file)
    await desk.until_phase(other, "queued")
    await asyncio.sleep(1)
    assert hub.requests() == []
    await desk.start(0)
    await desk.until_ready(other)
    assert desk.content(other, 1) == files
    assert weights_sent(hub) == len(files[WEIGHTS])


async def test_when_nobody_answers_or_is_named_in_time_the_hub_is_asked(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "NEWS_SECONDS", 0.5)
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model()))
    await desk.start(1)
    await desk.assign(1, other := of_worker(desk, file, 1, 0, ready=False))
    await desk.until_ready(other)
    assert desk.content(other, 1) == files


def has_asked(desk: Desk, number: int) -> bool:
    """It waits for somebody: it says whom."""
    told = desk.progress.get(desk.stack.workers[number].id, ())
    return any(file.origin is not None for each in told for file in each.files)


@pytest.mark.slow
async def test_when_the_worker_that_gives_is_killed_the_next_one_gives_the_rest(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "NEIGHBOUR_STALL_SECONDS", 1.0)
    file = desk.file(tiny(), hub.put(REPOSITORY, files := a_model(16 * MIB)))
    giver = await desk.spawn(0)
    await desk.assign(0, file)
    await desk.until_ready(file)
    await desk.start(1)
    await desk.assign(1, second := of_worker(desk, file, 1, 0))
    await desk.until_ready(second)
    hub.clear_log()
    await desk.start(2, bytes_per_second=4 * MIB)
    await desk.assign(2, third := of_worker(desk, file, 2, 0, 1))
    worker = desk.stack.workers[2].id

    def has_begun() -> bool:
        return any(part.bytes > MIB for told in desk.progress.get(worker, ()) for f in told.files for part in f.parts)

    await desk.until(has_begun, "the first bytes")
    giver.kill()
    await giver.wait()
    await desk.until_ready(third, seconds=60)
    assert desk.content(third, 2) == files
    assert hub.requests() == []


async def test_a_ticket_that_ends_while_files_are_copied_is_replaced(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour, "TICKET_SECONDS", 0.4)

    def nothing(*_: object) -> bytes:
        return b""

    monkeypatch.setattr(downloads.Downloads, "_read_shared", nothing)  # so that all comes over HTTP
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    files = {"config.json": b"{}", **{name: random_weights(2 * MIB, seed) for seed, name in enumerate(names)}}
    file = await first_has_it(hub, desk, files)
    await desk.start(1, bytes_per_second=4 * MIB)
    await desk.assign(1, other := of_worker(desk, file, 1, 0))
    await desk.until_ready(other)
    assert desk.content(other, 1) == files
    assert hub.requests() == []


async def test_a_damaged_file_of_a_neighbour_is_not_taken(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "WAIT_SECONDS", (0.05, 0.05))
    file = await first_has_it(hub, desk, files := a_model(2 * MIB))
    await desk.start(1)
    await desk.assign(1, second := of_worker(desk, file, 1))
    await desk.until_ready(second)
    hub.clear_log()
    with (desk.home(file) / WEIGHTS).open("r+b") as damaged:
        damaged.seek(MIB)
        damaged.write(bytes(100))
    await desk.start(2)
    await desk.assign(2, third := of_worker(desk, file, 2, 0, 1))
    await desk.until_ready(third)
    assert desk.content(third, 2) == files
    assert hub.requests() == []


async def test_when_the_only_neighbour_has_a_damaged_file_the_hub_is_asked(
    hub: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "WAIT_SECONDS", (0.05, 0.05))
    file = await first_has_it(hub, desk, files := a_model())
    for name in (WEIGHTS, "config.json"):
        path = desk.home(file) / name
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    await desk.start(1)
    await desk.assign(1, other := of_worker(desk, file, 1, 0))
    await desk.until_ready(other)
    assert desk.content(other, 1) == files
    assert weights_sent(hub) == len(files[WEIGHTS])


async def test_a_neighbour_that_has_not_what_the_fleet_knows_is_not_asked_for_it(hub: Hub, desk: Desk) -> None:
    file = await first_has_it(hub, desk, a_model())
    await desk.start(1)
    other = of_worker(desk, file, 1, 0).model_copy(update={"digest": "sha256:" + "0" * 64})
    await desk.assign(1, other)
    await desk.until_ready(other)
    assert desk.phases(other) == ["queued", "listing", "downloading", "verifying", "ready"]


async def test_a_worker_that_takes_nothing_from_neighbours_asks_the_hub(hub: Hub, desk: Desk) -> None:
    file = await first_has_it(hub, desk, files := a_model())
    await desk.start(1, from_neighbours=False)
    await desk.assign(1, other := of_worker(desk, file, 1, 0))
    await desk.until_ready(other)
    assert weights_sent(hub) == len(files[WEIGHTS])


async def ask_worker(desk: Desk, number: int, verb: str, question: AskShare | ReadShared) -> bytes:
    """As the downloader of worker 2 may."""
    bus = await desk.stack.bus("downloader", 2)
    subject = ask(desk.stack.workers[number].id, verb)
    answer = await bus.request(subject, question.model_dump_json().encode(), timeout_seconds=10)
    return answer.data


async def test_a_worker_that_does_not_share_gives_nothing(hub: Hub, desk: Desk) -> None:
    file = await first_has_it(hub, desk, a_model(), share=False)
    shared = await ask_worker(desk, 0, "share", AskShare(file_id=file.file_id))
    assert Shared.model_validate_json(shared) == Shared()
    question = ReadShared(file_id=file.file_id, name=WEIGHTS, offset=0, length=100)
    assert await ask_worker(desk, 0, "share-bytes", question) == b""


async def test_over_the_bus_only_what_is_shared_can_be_read_and_only_exactly(hub: Hub, desk: Desk) -> None:
    file = await first_has_it(hub, desk, files := a_model())

    async def read(name: str, offset: int, length: int, file_id: str = file.file_id) -> bytes:
        question = ReadShared(file_id=FileId(file_id), name=name, offset=offset, length=length)
        return await ask_worker(desk, 0, "share-bytes", question)

    size = len(files[WEIGHTS])
    assert await read(WEIGHTS, 100, 1000) == files[WEIGHTS][100:1100]
    assert await read(WEIGHTS, size - 10, 11) == b""
    assert await read("../" + WEIGHTS, 0, 10) == b""
    (desk.home(file) / "secret").write_bytes(b"put there by hand")
    assert await read("secret", 0, 3) == b""
    (noted,) = (desk.home(file) / ".muster").glob("*.json")
    assert await read(f".muster/{noted.name}", 0, 1) == b""
    assert await read("/etc/passwd", 0, 10) == b""
    assert await read(WEIGHTS, 0, 10, "f-00000000000000000000") == b""


async def test_many_neighbours_that_wait_for_an_answer_do_not_wait_for_each_other(hub: Hub, desk: Desk) -> None:
    hub.fault(WEIGHTS, where="cdn", rate=1000)
    file = desk.file(tiny(), hub.put(REPOSITORY, a_model()))
    await desk.start(0)
    await desk.assign(0, file)
    await desk.until_phase(file, "downloading")
    waits = AskShare(file_id=file.file_id, known=100, wait_seconds=3)
    async with asyncio.timeout(8):
        answers = await asyncio.gather(*(ask_worker(desk, 0, "share", waits) for _ in range(10)))
    assert {Shared.model_validate_json(answer).state for answer in answers} == {"coming"}


async def test_a_neighbour_that_names_paths_outside_is_not_believed(hub: Hub, desk: Desk) -> None:
    commit = hub.put(REPOSITORY, files := a_model())
    file = desk.file(tiny(), commit)
    liar = await desk.stack.bus("downloader", 0)
    true = {"name": WEIGHTS, "size": 0, "sha256": hashlib.sha256().hexdigest(), "is_there": True}
    lies = [
        {"model": "/etc/passwd"},
        {"directory": "/etc"},
        {"directory": "../../.."},
        {"weights": ["../../outside.safetensors"]},
        {"files": [{**true, "name": "../outside"}]},
        {"files": [{**true, "name": "/etc/passwd"}]},
    ]
    told: list[int] = []

    async def lie(message: Msg) -> None:
        answer = {"state": "whole", "files": [true], "weights": [WEIGHTS]} | lies[len(told) % len(lies)]
        told.append(1)
        await liar.publish(message.reply, orjson.dumps(answer))

    await liar.subscribe(ask(desk.stack.workers[0].id, "share"), lie)
    await liar.flush()
    await desk.start(1)
    for wanted in range(1, len(lies) + 1):
        other = of_worker(desk, file, 1, 0).model_copy(update={"wanted": wanted})
        await desk.assign(1, other)
        ready = await desk.until_ready(other)
        assert ready.model_path == str(desk.home(other, 1))
        assert desk.content(other, 1) == files
        gone = other.model_copy(update={"want": "deleted", "wanted": 100 + wanted})
        await desk.assign(1, gone)
        await desk.until_phase(gone, "deleted")
    assert len(told) == len(lies)


# -- the counter alone


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    (tmp_path / "there").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_bytes(b"secret")

    def open_file(file_id: FileId, name: str) -> int | None:
        return _opened(tmp_path, file_id, name)

    opened = Counter(open_file)
    yield opened
    opened.close()


def _opened(directory: Path, file_id: str, name: str) -> int | None:
    return os.open(directory / name, os.O_RDONLY) if (file_id, name) == ("f-1", "there") else None


Get = Callable[..., tuple[int, bytes, dict[str, str]]]


@pytest.fixture
def get(counter: Counter) -> Get:
    def get(path: str, ticket: str | None = None, asked: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", counter.port, timeout=5)
        try:
            headers = {} if ticket is None else {"Authorization": f"Bearer {ticket}"}
            connection.request("GET", path, headers=headers | ({} if asked is None else {"Range": asked}))
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    return get


def test_without_a_ticket_nothing_is_given(counter: Counter, get: Get) -> None:
    of_another = counter.ticket_for(FileId("f-2"))
    for ticket in (None, "", "guessed", "gu\xe9ssed", of_another):
        assert get("/f-1/there", ticket)[:2] == (401, b"")
    assert get("/f-1/there", counter.ticket_for(FileId("f-1")))[:2] == (200, bytes(range(100)))


@pytest.mark.parametrize(
    "path",
    ["/f-1/../secret", "/f-1/%2e%2e/secret", "/f-1/..%2fsecret", "/f-1//etc/passwd", "/f-1/", "/f-1", "/", "//",
     "/f-1/there%00", "/f-1/secret", "/../f-1/there", "/f-2/there"],
)  # fmt: skip
def test_a_path_leads_to_nothing_but_the_files_of_its_ticket(counter: Counter, get: Get, path: str) -> None:
    status, content, _ = get(path, counter.ticket_for(FileId("f-1")))
    assert status in (401, 404)
    assert content == b""


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        (None, 200, 0, 99),
        ("bytes=0-99", 200, 0, 99),
        ("bytes=0-", 200, 0, 99),
        ("bytes=10-19", 206, 10, 19),
        ("bytes=99-", 206, 99, 99),
        ("bytes=90-1000", 206, 90, 99),
        ("bytes=-10", 206, 90, 99),
        ("bytes=-1000", 200, 0, 99),
        ("bytes=0-0,5-6", 200, 0, 99),
        ("bytes=20-10", 200, 0, 99),
        ("bytes=-", 200, 0, 99),
        ("bytes=a-b", 200, 0, 99),
        ("lines=1-2", 200, 0, 99),
    ],
)
def test_a_part_is_given_as_http_says(
    counter: Counter, get: Get, asked: str | None, status: int, first: int, last: int
) -> None:
    ticket = counter.ticket_for(FileId("f-1"))
    answer, content, headers = get("/f-1/there", ticket, asked)
    assert (answer, content) == (status, bytes(range(first, last + 1)))
    assert headers.get("content-range") == (None if status == 200 else f"bytes {first}-{last}/100")


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=1000-2000", "bytes=-0"])
def test_a_part_that_is_not_there_can_not_be_had(counter: Counter, get: Get, asked: str) -> None:
    status, content, headers = get("/f-1/there", counter.ticket_for(FileId("f-1")), asked)
    assert (status, content, headers["content-range"]) == (416, b"", "bytes */100")


def test_those_who_ask_often_get_the_same_ticket(counter: Counter) -> None:
    assert len({counter.ticket_for(FileId("f-1")) for _ in range(100)}) == 1
