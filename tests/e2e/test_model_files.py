"""Files of a hub: asked for over REST, fetched by downloaders that the tests play, seen on their way, removed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest_asyncio

from schemas.asks import ModelInspection
from schemas.reasons import GatedRepository, HubRateLimited, HubUnreachable, RepositoryNotFound, RevisionNotFound
from schemas.reports import FileProgress, PartInFlight
from schemas.sources import HuggingFace, LocalPath, ModelScope, file_id_of
from tests.chaos.what_must_hold import facts_of, last_sequence, of_type, the_stores_agree
from tests.e2e.machines import GIB, QUICK, a_machine
from tests.support.played_downloader import COMMIT, PlayedDownloader, a_played_downloader, weighs
from tests.support.stack import Client, Stack

QWEN = HuggingFace(repo_id="Qwen/Qwen3-8B")
SIZE = 5 * GIB
ASKED = {"huggingface_repo_id": "Qwen/Qwen3-8B"}


@dataclass(frozen=True, slots=True)
class Hall:
    """Two workers with agents of their own, and downloaders that do what the test says."""

    stack: Stack
    client: Client
    downloaders: tuple[PlayedDownloader, PlayedDownloader]

    async def post(self, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
        status, answer, _ = await self.client.request("POST", "/v2/model-files", body, headers)
        return status, answer

    async def refused(self, body: dict[str, Any]) -> tuple[int, str, str | None]:
        """Status, code and field; it leaves no trace."""
        before = await last_sequence(self.stack)
        status, answer = await self.post(body)
        assert await last_sequence(self.stack) == before
        return status, answer["code"], answer["field"]


@pytest_asyncio.fixture(loop_scope="session")
async def hall(stack: Stack) -> AsyncIterator[Hall]:
    await stack.start_scheduler()
    await stack.start_api()
    async with AsyncExitStack() as played:
        downloaders: list[PlayedDownloader] = []
        for number in range(2):
            downloaders.append(await played.enter_async_context(a_played_downloader(stack, number)))
            machine = a_machine(stack.directory, f"machine-{number}", ram=64 * GIB)
            await stack.start_agent(number, inventory=machine, **QUICK)
        client = stack.client()
        await client.until("/v2/workers", lambda found: [w["state"] for w in found["items"]] == ["ready", "ready"])
        yield Hall(stack, client, (downloaders[0], downloaders[1]))


async def test_files_that_are_asked_for_are_fetched_and_seen_on_their_way(hall: Hall) -> None:
    first, _ = hall.downloaders
    first.says[QWEN.label] = weighs(QWEN, SIZE)

    status, answer = await hall.post(ASKED | {"worker_ids": ["worker-0", hall.stack.workers[1].id]})

    ids = [file_id_of(QWEN, COMMIT, keys.id) for keys in hall.stack.workers]
    assert (status, answer["projected"]) == (201, True)
    assert answer["items"] == [
        {"file_id": file_id, "worker_id": keys.id} for file_id, keys in zip(ids, hall.stack.workers, strict=True)
    ]
    path = f"/v2/model-files/{ids[0]}"
    file = await hall.client.until_state(path, "wanted")
    told = (
        "source",
        "huggingface_repo_id",
        "revision",
        "local_path",
        "commit",
        "worker_name",
        "requested",
        "instances",
    )
    assert {name: file[name] for name in told} == {
        "source": "huggingface",
        "huggingface_repo_id": "Qwen/Qwen3-8B",
        "revision": "main",
        "local_path": None,
        "commit": COMMIT,
        "worker_name": "worker-0",
        "requested": True,
        "instances": [],
    }
    assert (file["bytes"], file["total"], file["phase"], file["parts"]) == (None, SIZE, None, [])
    assert (await first.until_assigned(ids[0])).commit == COMMIT

    part = PartInFlight(name="model-00001-of-00002.safetensors", bytes=GIB, total=3 * GIB)
    far: dict[str, Any] = {"bytes": 2 * GIB, "total": SIZE, "bytes_per_second": 100, "remaining_seconds": 32.5}
    await first.tell(
        FileProgress(file_id=ids[0], phase="downloading", origin="hf.co", parts=(part,), files_ready=1, files=2, **far)
    )
    seen = await hall.client.until(path, lambda found: found["bytes"] is not None)
    assert {name: seen[name] for name in far} == far
    assert (seen["phase"], seen["origin"], seen["files_ready"], seen["files"]) == ("downloading", "hf.co", 1, 2)
    assert seen["parts"] == [{"name": "model-00001-of-00002.safetensors", "bytes": GIB, "total": 3 * GIB}]

    await first.report(ids[0], "ready", bytes=SIZE, total=SIZE, paths=("/m/a",), model_path="/m", digest="sha256:ab")
    ready = await hall.client.until_state(path, "ready")
    names = ("bytes", "total", "phase", "bytes_per_second", "parts", "model_path", "digest", "paths")
    assert [ready[name] for name in names] == [SIZE, SIZE, None, None, [], "/m", "sha256:ab", ["/m/a"]]
    timeline = (await hall.client.get(f"{path}/timeline"))["items"]
    assert [event["type"] for event in timeline] == ["ModelFileRequested", "ModelFileWanted", "ModelFileReady"]
    await the_stores_agree(hall.stack)


async def test_one_worker_that_reaches_the_hub_is_enough_and_says_the_commit_for_all(hall: Hall) -> None:
    first, second = hall.downloaders
    first.says[QWEN.label] = ModelInspection(reasons=(HubUnreachable(host="hf.co", problem="no route"),))
    second.says[QWEN.label] = weighs(QWEN, SIZE)

    status, _ = await hall.post(ASKED | {"worker_selector": {}})

    assert status == 201
    requested = of_type(await facts_of(hall.stack), "ModelFileRequested")
    assert {(event.envelope.data["commit"], event.envelope.data["bytes"]) for event in requested} == {(COMMIT, SIZE)}
    assert len(requested) == 2
    assert (first.asked, second.asked) == ([QWEN.label], [QWEN.label])


async def test_what_can_not_be_had_is_refused_with_its_reason_before_anything_is_written(hall: Hall) -> None:
    first, second = hall.downloaders
    everywhere = ASKED | {"worker_ids": ["worker-0", "worker-1"]}
    for reason, expected in (
        (RepositoryNotFound(repository="Qwen/Qwen3-8B"), (404, "repository_not_found", "huggingface_repo_id")),
        (RevisionNotFound(repository="Qwen/Qwen3-8B", revision="main"), (404, "revision_not_found", "revision")),
        (GatedRepository(repository="Qwen/Qwen3-8B"), (422, "gated_repository", "huggingface_repo_id")),
    ):
        first.says[QWEN.label] = ModelInspection(reasons=(reason,))
        second.asked.clear()
        assert await hall.refused(everywhere) == expected
        assert second.asked == []  # it is so for every worker
    first.says[QWEN.label] = ModelInspection(reasons=(HubUnreachable(host="hf.co", problem="no route"),))
    second.says[QWEN.label] = ModelInspection(reasons=(HubRateLimited(host="hf.co"),))
    assert await hall.refused(everywhere) == (503, "hub_rate_limited", "huggingface_repo_id")
    assert await hall.refused(ASKED | {"worker_ids": ["nobody"]}) == (404, "not_found", "worker_ids")
    assert await hall.refused(ASKED | {"worker_selector": {"a": "b"}}) == (404, "not_found", "worker_selector")
    assert await hall.refused(ASKED) == (422, "invalid_request", "worker_ids")
    assert await hall.refused(everywhere | {"worker_selector": {}}) == (422, "invalid_request", "worker_selector")
    assert await hall.refused({"worker_ids": ["worker-0"]}) == (422, "invalid_request", "source")
    mixed = everywhere | {"model_scope_model_id": "a/b"}
    assert await hall.refused(mixed) == (422, "invalid_request", "model_scope_model_id")


async def test_a_worker_that_is_away_is_sent_nothing_by_name_and_left_out_by_its_labels(hall: Hall) -> None:
    hall.downloaders[1].says[QWEN.label] = weighs(QWEN, SIZE)
    await hall.stack.stop("agent-0")
    await hall.client.until_state("/v2/workers/worker-0", "unreachable")

    assert await hall.refused(ASKED | {"worker_ids": ["worker-0"]}) == (409, "worker_not_ready", "worker_ids")
    status, answer = await hall.post(ASKED | {"worker_selector": {}})
    assert (status, [item["worker_id"] for item in answer["items"]]) == (201, [hall.stack.workers[1].id])


async def test_a_path_must_lie_on_every_worker(hall: Hall) -> None:
    path = LocalPath(path="/models/a.gguf")
    there = ModelInspection(weights=weighs(ModelScope(repo_id="a/b"), GIB).weights)
    hall.downloaders[0].says[path.label] = there
    body = {"local_path": path.path, "worker_ids": ["worker-0", "worker-1"]}
    hall.downloaders[1].says[path.label] = ModelInspection(reasons=(RepositoryNotFound(repository="x"),))
    assert await hall.refused(body) == (404, "repository_not_found", "local_path")

    hall.downloaders[1].says[path.label] = there
    status, answer = await hall.post(body)
    assert (status, len(answer["items"])) == (201, 2)
    assert [event.envelope.data["bytes"] for event in of_type(await facts_of(hall.stack), "ModelFileRequested")] == [
        None,
        None,
    ]


async def test_a_request_that_is_sent_again_with_its_key_is_one_request(hall: Hall) -> None:
    first, _ = hall.downloaders
    first.says[QWEN.label] = weighs(QWEN, SIZE)
    body = ASKED | {"worker_ids": ["worker-0", "worker-1"]}
    key = {"idempotency-key": "k"}

    made = await hall.post(body, **key)
    first.says.clear()
    again = await hall.post(body, **key)

    assert made[0] == 201
    assert again == made
    assert len(of_type(await facts_of(hall.stack), "ModelFileRequested")) == 2
    status, answer = await hall.post(body | {"worker_ids": ["worker-0"]}, **key)
    assert (status, answer["code"]) == (422, "idempotency_key_reused")


async def test_files_that_failed_are_tried_again_and_others_are_not(hall: Hall) -> None:
    first, _ = hall.downloaders
    first.says[QWEN.label] = weighs(QWEN, SIZE)
    _, answer = await hall.post(ASKED | {"worker_ids": ["worker-0"]})
    file_id = answer["items"][0]["file_id"]
    path = f"/v2/model-files/{file_id}"
    await first.until_assigned(file_id)
    status, refusal, _ = await hall.client.request("POST", f"{path}/retry", {})
    assert (status, refusal["code"]) == (409, "file_is_wanted")

    await first.report(file_id, "failed", HubUnreachable(host="hf.co", problem="no route"))
    failed = await hall.client.until_state(path, "error")
    assert [(reason["code"], reason["worker"]) for reason in failed["reasons"]] == [("hub_unreachable", "worker-0")]
    status, _, _ = await hall.client.request("POST", f"{path}/retry", {})
    assert status == 200
    wanted = await hall.client.until_state(path, "wanted")
    assert (wanted["reasons"], wanted["total"]) == ([], SIZE)

    while first.assigned.get(file_id) is None or first.assigned[file_id].wanted < 2:  # noqa: ASYNC110 - a document comes
        await asyncio.sleep(0.05)
    await first.report(file_id, "ready", bytes=SIZE)
    await hall.client.until_state(path, "ready")
    status, refusal, _ = await hall.client.request("POST", f"{path}/retry", {})
    assert (status, refusal["code"]) == (409, "file_is_ready")


async def test_files_that_are_being_fetched_are_fetched_no_more_when_they_are_deleted(hall: Hall) -> None:
    first, _ = hall.downloaders
    first.says[QWEN.label] = weighs(QWEN, SIZE)
    _, answer = await hall.post(ASKED | {"worker_ids": ["worker-0"]})
    file_id = answer["items"][0]["file_id"]
    path = f"/v2/model-files/{file_id}"
    await first.until_assigned(file_id)

    assert (await hall.client.request("DELETE", path))[0] == 200
    await first.until_assigned(file_id, "deleted")
    await hall.client.until_state(path, "deleting")
    await first.report(file_id, "deleted")

    await hall.client.until("/v2/model-files", lambda found: found["items"] == [])
    status, gone, _ = await hall.client.request("DELETE", path)
    assert (status, gone["code"]) == (404, "not_found")
    timeline = (await hall.client.get(f"{path}/timeline"))["items"]
    assert [event["type"] for event in timeline][-3:] == [
        "ModelFileDeletionRequested",
        "ModelFileDeleting",
        "ModelFileDeleted",
    ]


async def test_a_model_shows_how_far_its_files_are_and_keeps_them(hall: Hall) -> None:
    source = HuggingFace(repo_id="unsloth/Qwen3-8B-GGUF", filename="*Q4_K_M*.gguf")
    for downloader in hall.downloaders:
        downloader.says[source.label] = weighs(source, SIZE, layers=36, kv_heads=8, head_size=128)
    body = {
        "name": "qwen",
        "huggingface_repo_id": source.repo_id,
        "huggingface_filename": source.filename,
        "replicas": 2,
    }
    status, made, _ = await hall.client.request("POST", "/v2/models", body)
    assert (status, made["source"], made["revision"], made["local_path"]) == (201, "huggingface", "main", None)
    found = await hall.client.until(
        "/v2/model-instances", lambda found: [i["state"] for i in found["items"]] == ["downloading"] * 2
    )
    ids = {instance["worker_id"]: file_id_of(source, COMMIT, instance["worker_id"]) for instance in found["items"]}
    assert len(ids) == 2
    for number, downloader in enumerate(hall.downloaders):
        rate = (number + 1) * GIB
        await downloader.tell(
            FileProgress(
                file_id=ids[downloader.worker_id], phase="downloading", bytes=GIB, total=SIZE, bytes_per_second=rate
            )
        )

    def is_told(model: dict[str, Any]) -> bool:
        return model["download"] is not None and model["download"]["bytes_per_second"] == 3 * GIB

    model = await hall.client.until("/v2/models/qwen", is_told)

    assert model["download"] == {
        "bytes": 2 * GIB,
        "total": 2 * SIZE,
        "bytes_per_second": 3 * GIB,
        "remaining_seconds": 8 / 3,
    }
    one = await hall.client.get(f"/v2/model-instances/{found['items'][0]['id']}")
    assert (one["download"]["bytes"], one["download"]["total"]) == (GIB, SIZE)
    listed = (await hall.client.get("/v2/model-files?model=qwen&worker=worker-1&state=wanted"))["items"]
    assert [file["id"] for file in listed] == [ids[hall.stack.workers[1].id]]
    (user,) = listed[0]["instances"]
    assert (await hall.client.get("/v2/model-files?model=another"))["items"] == []

    before = await last_sequence(hall.stack)
    status, answer, _ = await hall.client.request("DELETE", f"/v2/model-files/{listed[0]['id']}")
    assert (status, answer["code"], answer["numbers"]) == (409, "file_in_use", {"instances": [user["name"]]})
    assert await last_sequence(hall.stack) == before
    await hall.client.request("DELETE", "/v2/models/qwen")


async def test_who_tells_the_progress_of_another_worker_is_not_believed(hall: Hall) -> None:
    first, second = hall.downloaders
    first.says[QWEN.label] = weighs(QWEN, SIZE)
    _, answer = await hall.post(ASKED | {"worker_ids": ["worker-0"]})
    file_id = answer["items"][0]["file_id"]
    path = f"/v2/model-files/{file_id}"
    await hall.client.until_state(path, "wanted")

    lie = FileProgress(file_id=file_id, phase="downloading", bytes=GIB)
    await second.tell(lie, worker_id=first.worker_id)
    await second.tell(lie)
    await second.bus.publish(f"muster.progress.{second.worker_id}", b"nonsense")
    await second.bus.publish(f"muster.progress.{first.worker_id}", b"{}")
    await second.bus.flush()
    await asyncio.sleep(0.2)
    assert (await hall.client.get(path))["bytes"] is None

    await first.tell(lie.model_copy(update={"bytes": 7}))
    assert (await hall.client.until(path, lambda file: file["bytes"] is not None))["bytes"] == 7


async def test_would_it_run_is_asked_of_one_worker_that_reaches_the_hub(hall: Hall) -> None:
    first, second = hall.downloaders
    question = {"model": {"name": "m", "backend": "llama.cpp", "huggingface_repo_id": "Qwen/Qwen3-8B"}}
    for downloader in hall.downloaders:
        downloader.says[QWEN.label] = weighs(QWEN, SIZE, layers=36, kv_heads=8, head_size=128)

    status, answer, _ = await hall.client.request("POST", "/v2/placements", question)

    assert (status, answer["placed"], answer["needs"]["weight_bytes"]) == (200, True, SIZE)
    assert len(first.asked) + len(second.asked) == 1
    for downloader in hall.downloaders:
        downloader.says[QWEN.label] = ModelInspection(reasons=(HubUnreachable(host="hf.co", problem="no route"),))
    status, answer, _ = await hall.client.request("POST", "/v2/placements", question)
    assert (status, answer["placed"]) == (200, False)
    assert [each["code"] for each in answer["objections"]].count("hub_unreachable") >= 2
    for downloader in hall.downloaders:
        downloader.says[QWEN.label] = ModelInspection(reasons=(RepositoryNotFound(repository="Qwen/Qwen3-8B"),))
        downloader.asked.clear()
    await hall.client.request("POST", "/v2/placements", question)
    assert len(first.asked) + len(second.asked) == 1
