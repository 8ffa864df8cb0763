"""Acknowledged means both stores; one key is one write; every watcher sees every event once."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kernel.log.streams import raise_generation
from services.up.embedded_postgres import EmbeddedPostgres
from tests.chaos.what_must_hold import facts_of, last_sequence, of_type, the_stores_agree
from tests.support.stack import KEY, Client, Stack, parse_sse

NOWHERE = "/nowhere/model.gguf"
CREATE = {"name": "one", "local_path": NOWHERE}


@asynccontextmanager
async def nothing_is_projected(stack: Stack) -> AsyncGenerator[None]:
    """The projector waits for its checkpoint's row, which somebody else holds."""
    connection = await stack.sql()
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT 1 FROM muster.checkpoint FOR UPDATE")
        yield
        await transaction.rollback()
    finally:
        await connection.close()


async def created(stack: Stack) -> list[dict[str, Any]]:
    return [event.envelope.data for event in of_type(await facts_of(stack), "ModelCreated")]


# -- two stores -------------------------------------------------------------------------------------------------------


async def test_with_postgres_away_writes_are_refused_before_anything_is_appended(
    stack: Stack, postgres: EmbeddedPostgres
) -> None:
    await stack.start_api()
    client = stack.client()
    await client.deploy("one", NOWHERE)
    before = await last_sequence(stack)
    writes: list[tuple[str, str, object]] = [
        ("POST", "/v2/models", {"name": "two", "local_path": NOWHERE}),
        ("PATCH", "/v2/models/one", {"description": "changed"}),
        ("DELETE", "/v2/models/one", None),
    ]

    await postgres.stop()
    for (method, path, body), headers in itertools.product(writes, ({}, {"idempotency-key": "a"})):
        status, answer, told = await client.request(method, path, body, headers)
        assert (status, answer["code"], told["retry-after"]) == (503, "unavailable", "1"), (method, headers, answer)
    assert (await client.request("GET", "/v2/models"))[0] == 503
    assert await last_sequence(stack) == before

    await postgres.start()
    for method, path, body in writes:
        await client.until_written(method, path, body)
    assert await the_stores_agree(stack) == before + len(writes)


async def test_what_is_durable_and_not_yet_projected_is_answered_with_202_and_comes_true(stack: Stack) -> None:
    await stack.start_api(projection_wait_seconds=0.2, behind_seconds=1.0)
    client = stack.client()
    await client.deploy("before", NOWHERE)
    create = ("POST", "/v2/models", CREATE, {"idempotency-key": "create"})
    change = ("PATCH", "/v2/models/before", {"description": "changed"}, {"idempotency-key": "change"})

    async with nothing_is_projected(stack):
        first = await client.request(*create)
        assert (first[0], first[1]["projected"]) == (202, False)
        at_once = await client.request(*create)
        status, changed, _ = await client.request(*change)
        assert (status, changed["projected"]) == (202, False)
        durable = await last_sequence(stack)

        answer: dict[str, Any] = {}
        for number in range(100):  # until the projection is so far behind that new writes are refused
            status, answer, _ = await client.request(
                "POST", "/v2/models", {"name": f"late-{number}", "local_path": NOWHERE}
            )
            if status == 503:
                break
            durable = await last_sequence(stack)
            await asyncio.sleep(0.1)
        assert "nothing was written" in answer["message"]
        late = await client.request(*create)
        late_change = await client.request(*change)
        assert await last_sequence(stack) == durable

    await client.until("/v2/models/one", lambda model: model["name"] == "one")
    done = await client.request(*create)
    done_change = await client.request(*change)
    assert [(status, body["id"], body["seq"]) for status, body, _ in (first, at_once, late, done)] == [
        (202, first[1]["id"], first[1]["seq"]),
        (202, first[1]["id"], first[1]["seq"]),
        (202, first[1]["id"], first[1]["seq"]),
        (201, first[1]["id"], first[1]["seq"]),
    ]
    assert [(status, body["id"], body["seq"]) for status, body, _ in (late_change, done_change)] == [
        (202, changed["id"], changed["seq"]),
        (200, changed["id"], changed["seq"]),
    ]
    assert (await client.get("/v2/models/before"))["description"] == "changed"
    assert await last_sequence(stack) == durable
    await the_stores_agree(stack)


# -- one key, one write -----------------------------------------------------------------------------------------------


async def test_a_write_that_is_sent_again_with_its_key_is_one_write_with_one_answer(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    key = {"idempotency-key": "k"}
    create = ("POST", "/v2/models", CREATE, key)
    status, made, headers = await client.request(*create)
    assert status == 201
    path = f"/v2/models/{made['id']}"
    change = ("PATCH", path, {"description": "x"}, key | {"if-match": headers["etag"]})
    scale = ("PATCH", path, {"replicas": 3}, {"idempotency-key": "scale"})
    delete = ("DELETE", path, None, key)
    answers = [(status, made)]
    for write in (change, scale, delete):
        status, answer, _ = await client.request(*write)
        answers.append((status, answer))
    assert [status for status, _ in answers] == [201, 200, 200, 200]

    # Since then the name was freed, the ETag is another one, and the model is no more: all because of these writes.
    again = [await client.request(*write) for write in (create, change, scale, delete)]

    assert [(status, answer) for status, answer, _ in again] == answers
    assert [event.subject.rpartition(".")[2] for event in await facts_of(stack)] == [
        "ModelCreated",
        "ModelUpdated",
        "ModelScaled",
        "ModelDeleted",
    ]


async def test_a_key_that_was_used_for_another_request_is_refused(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    sent = {"idempotency-key": "k"}
    assert (await client.request("POST", "/v2/models", CREATE, sent))[0] == 201
    assert (await client.request("PATCH", "/v2/models/one", {"description": "a"}, sent))[0] == 200
    before = await last_sequence(stack)
    for method, path, body in (
        ("POST", "/v2/models", CREATE | {"name": "two"}),
        ("PATCH", "/v2/models/one", {"description": "b"}),
    ):
        status, answer, _ = await client.request(method, path, body, sent)
        assert (status, answer["code"], answer["field"]) == (422, "idempotency_key_reused", "Idempotency-Key")
    assert await last_sequence(stack) == before


# -- who was first ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_of_a_thousand_creates_of_one_name_through_two_replicas_one_wins(stack: Stack) -> None:
    ports = [(await stack.start_api("api")).port, (await stack.start_api("other")).port]
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    answers: Counter[tuple[int, str | None]] = Counter()
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def create(number: int) -> None:
            url = f"http://127.0.0.1:{ports[number % 2]}/v2/models"
            async with session.post(url, json=CREATE | {"description": str(number)}) as answer:
                answers[answer.status, (await answer.json(content_type=None)).get("code")] += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(1000):
                tasks.create_task(create(number))

    assert answers == {(201, None): 1, (409, "name_taken"): 999}
    assert len(await created(stack)) == 1
    assert await last_sequence(stack) == 1


async def test_a_rename_frees_the_old_name_and_takes_the_new_one_or_changes_nothing(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    one, two = [await client.deploy(name, NOWHERE) for name in ("one", "two")]

    async def rename(model: str, name: str) -> tuple[int, str]:
        status, answer, _ = await client.request("PATCH", f"/v2/models/{model}", {"name": name})
        return status, answer.get("code") or answer["name"]

    before = await last_sequence(stack)
    assert await rename(one["id"], "two") == (409, "name_taken")
    assert await rename("two", "ONE") == (409, "name_taken")
    assert await last_sequence(stack) == before
    assert await rename("one", "One") == (200, "One")
    assert await rename("One", "three") == (200, "three")
    assert (await client.request("POST", "/v2/models", CREATE))[0] == 201
    assert await rename(one["id"], "one") == (409, "name_taken")
    assert (await client.request("DELETE", "/v2/models/one"))[0] == 200
    assert await rename("three", "one") == (200, "one")

    facts = [event.envelope for event in await facts_of(stack)][before:]
    assert [(fact.type, fact.subject) for fact in facts if fact.subject == f"model/{one['id']}"] == [
        ("ModelUpdated", f"model/{one['id']}"),  # the same name, written otherwise
        *[(type_, f"model/{one['id']}") for type_ in ("ModelRenamed", "ModelUpdated") * 2],
    ]
    names = {model["id"]: model["name"] for model in (await client.get("/v2/models"))["items"]}
    assert names == {one["id"]: "one", two["id"]: "two"}


async def test_of_two_writers_who_saw_the_same_generation_one_wins(stack: Stack) -> None:
    first, second = await two_replicas(stack)
    model = await first.deploy("one", NOWHERE)
    path = f"/v2/models/{model['id']}"
    for number in range(15):
        _, seen, headers = await first.request("GET", path)
        sent = {"if-match": headers["etag"]}
        answers = await asyncio.gather(
            first.request("PATCH", path, {"description": f"first {number}"}, sent),
            second.request("PATCH", f"{path}?min_seq={seen['generation']}", {"description": f"second {number}"}, sent),
        )
        assert sorted(status for status, _, _ in answers) == [200, 412]
        ((winner, loser),) = [sorted((body for _, body, _ in answers), key=lambda body: "code" in body)]
        assert loser["code"] == "precondition_failed"
        assert (await first.get(f"{path}?min_seq={winner['seq']}"))["description"] == winner["description"]
    assert len(of_type(await facts_of(stack), "ModelUpdated")) == 15


async def test_whoever_reads_with_the_position_of_a_write_sees_the_write_on_every_replica(stack: Stack) -> None:
    first, second = await two_replicas(stack)
    for number in range(30):
        writer, reader = (first, second) if number % 2 else (second, first)
        made = await writer.deploy(f"model-{number}", NOWHERE)
        models = await reader.get(f"/v2/models?min_seq={made['seq']}")
        assert made["id"] in [model["id"] for model in models["items"]]
        assert (await reader.get(f"/v2/models/{made['id']}?min_seq={made['seq']}"))["generation"] == made["generation"]


async def two_replicas(stack: Stack) -> tuple[Client, Client]:
    await stack.start_api("api")
    other = await stack.start_api("other")
    return stack.client(), stack.client(other.port)


# -- watchers ---------------------------------------------------------------------------------------------------------


async def test_a_watcher_that_is_cut_off_again_and_again_gets_every_event_once_and_in_order(stack: Stack) -> None:
    process, port = await stack.spawn_api()
    client = stack.client(port)
    done = asyncio.Event()
    got: list[str] = []

    async def watch() -> None:
        """Ten events at most, then the connection breaks; and whenever the api does."""
        while not done.is_set():
            headers = {"last-event-id": got[-1] if got else "0"}
            try:
                async with client.session.get(f"{client.url}/v2/events", headers=headers) as answer:
                    assert answer.status == 200
                    text = ""
                    async for chunk in answer.content.iter_any():
                        text += chunk.decode()
                        block, separator, rest = text.rpartition("\n\n")
                        if separator:
                            got.extend(event["position"] for event in parse_sse(block + separator))
                            text = rest
                        if len(got) % 10 == 9 or done.is_set():
                            break
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    made: list[dict[str, Any]] = []
    for number in range(40):
        if number == 20:
            process.kill()
            await process.wait()
            await stack.spawn_api(port=port)
        made.append(await client.until_written("POST", "/v2/models", {"name": f"m{number}", "local_path": NOWHERE}))
    last = made[-1]["seq"]
    for _ in range(600):
        if got and got[-1] == last:
            break
        await asyncio.sleep(0.05)
    done.set()
    watching.cancel()
    assert got == [f"1-{event.sequence}" for event in await facts_of(stack)]
    assert len(got) == 40


async def test_a_position_of_a_log_that_was_restored_since_is_told_where_to_resume(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    made = await client.deploy("one", NOWHERE)
    await stack.stop("api")
    assert await raise_generation(stack.operator) == 2
    await stack.start_api()
    client = stack.client()

    status, answer, _ = await client.request("GET", "/v2/events", headers={"last-event-id": made["seq"]})

    assert (made["seq"], status, answer["code"]) == ("1-1", 410, "other_generation")
    resume = answer["numbers"]["resume"]
    assert resume == "2-1"
    after = await client.deploy("two", NOWHERE)
    assert after["seq"] == "2-2"
    assert [event["type"] for event in await client.events(since=resume)] == ["ModelCreated"]
    former = {"if-match": '"1-1"'}
    assert (await client.request("PATCH", "/v2/models/one", {"description": "x"}, former))[0] == 412
