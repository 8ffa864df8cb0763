"""Backends over REST: defined, used, changed, exported, forgotten; and everything that is refused."""

from typing import Any

import pytest

from schemas.backends import built_in, read_yaml
from tests.chaos.what_must_hold import facts_of, of_type
from tests.e2e.machines import QUICK
from tests.support.stack import Stack

PATH = "/v2/inference-backends"
MINE = {"backend_name": "mine", "engine": "llama.cpp", "default_backend_param": ["--ctx-size=512"]}
YAML = """
backend_name: mine
engine: llama.cpp
default_backend_param: [--ctx-size=512]
version_configs:
  1.10: {image_name: "registry.example.com/mine:1.10"}
"""


async def test_a_model_runs_on_a_backend_of_ones_own_and_a_change_leaves_it_alone(stack: Stack) -> None:
    await stack.start_all(**QUICK)
    client = stack.client()
    status, made, _ = await client.request("POST", PATH, MINE)
    assert status == 201, made
    await client.deploy("chat", backend="mine")
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    assert (await client.ask("chat"))[0] == 200
    (scheduled,) = of_type(await facts_of(stack), "InstanceScheduled")
    launch = scheduled.envelope.data["launch"]
    assert (launch["backend"], launch["engine"], launch["parameters"][-1]) == ("mine", "llama.cpp", "--ctx-size=512")

    status, _, _ = await client.request("PUT", f"{PATH}/mine", MINE | {"default_backend_param": ["--ctx-size=256"]})
    assert status == 200
    status, body, _ = await client.request("DELETE", f"{PATH}/mine")
    assert (status, body["code"], body["numbers"]) == (409, "backend_in_use", {"models": ["chat"]})
    assert (await client.ask("chat"))[0] == 200
    assert len(of_type(await facts_of(stack), "InstanceScheduled")) == 1

    await client.request("DELETE", "/v2/models/chat")
    status, _, _ = await client.request("DELETE", f"{PATH}/{made['id']}")
    assert status == 200
    status, body, _ = await client.request("POST", "/v2/models", {"name": "b", "local_path": "/m", "backend": "mine"})
    assert (status, body["code"], body["field"]) == (422, "backend_unknown", "backend")
    assert [e.envelope.type for e in await facts_of(stack) if e.envelope.type.startswith("Backend")] == [
        "BackendCreated", "BackendUpdated", "BackendDeleted",
    ]  # fmt: skip


async def test_definitions_are_read_and_written_as_yaml(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    listed = (await client.get(PATH))["items"]
    assert {each["backend_name"] for each in listed} == set(built_in())
    assert all(each["built_in"] and each["generation"] is None for each in listed)

    async def send(method: str, path: str, text: str) -> tuple[int, dict[str, Any]]:
        headers = {"content-type": "application/yaml"}
        status, body, _ = await client.request(method, path, text.encode(), headers)
        return status, body

    assert (await send("POST", f"{PATH}/from-yaml", YAML))[0] == 201
    async with client.session.get(f"{client.url}{PATH}/mine", headers={"accept": "application/yaml"}) as answer:
        assert answer.content_type == "application/yaml"
        text = await answer.text()
    assert read_yaml(text) == read_yaml(YAML)
    async with client.session.get(f"{client.url}{PATH}/vLLM?format=yaml") as answer:
        assert read_yaml(await answer.text()) == built_in()["vLLM"]

    status, body = await send("POST", f"{PATH}/from-yaml", YAML)
    assert (status, body["code"]) == (409, "name_taken")
    status, body = await send("POST", f"{PATH}/from-yaml", "a: [")
    assert (status, body["code"]) == (400, "invalid_yaml")
    status, body = await send("POST", f"{PATH}/from-yaml", "backend_name: other\nimages: [{image: a, tag: b}]")
    assert (status, body["code"], body["field"]) == (422, "unknown_field", "images.0.tag")


async def test_a_built_in_backend_is_replaced_switched_off_and_back_again(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    status, body, _ = await client.request("DELETE", f"{PATH}/vLLM")
    assert (status, body["code"]) == (409, "backend_is_built_in")
    document = built_in()["vLLM"].model_dump(mode="json") | {"enabled": False}
    assert (await client.request("POST", PATH, document))[0] == 201
    found = await client.get(f"{PATH}/vLLM")
    assert (found["built_in"], found["replaces_built_in"], found["enabled"]) == (False, True, False)
    status, body, _ = await client.request("POST", "/v2/models", {"name": "b", "local_path": "/m", "backend": "vLLM"})
    assert (status, body["code"]) == (422, "backend_disabled")
    assert (await client.request("DELETE", f"{PATH}/vLLM"))[0] == 200
    assert (await client.get(f"{PATH}/vLLM"))["built_in"]
    assert (await client.request("POST", "/v2/models", {"name": "b", "local_path": "/m", "backend": "vLLM"}))[0] == 201


async def test_who_writes_over_a_generation_writes_over_no_other(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    await client.request("POST", PATH, MINE)
    _, _, headers = await client.request("GET", f"{PATH}/mine")
    tag = {"if-match": headers["etag"]}
    assert (await client.request("PUT", f"{PATH}/mine", MINE | {"description": "a"}, tag))[0] == 200
    for method, body in (("PUT", MINE | {"description": "b"}), ("DELETE", None)):
        status, answer, _ = await client.request(method, f"{PATH}/mine", body, tag)
        assert (status, answer["code"], answer["field"]) == (412, "precondition_failed", "If-Match")
    assert (await client.get(f"{PATH}/mine"))["description"] == "a"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (MINE | {"backend_name": "a b"}, 422, "invalid_request"),
        (MINE | {"colour": "red"}, 422, "unknown_field"),
        (MINE | {"backend_name": "VLLM"}, 409, "name_taken"),
        (MINE | {"default_env": {"LD_PRELOAD": "x"}}, 422, "variable_not_allowed"),
        (MINE | {"version_configs": {"1": {"env": {"DOCKER_HOST": "x"}}}}, 422, "variable_not_allowed"),
        (MINE | {"default_backend_param": ["--port=1"]}, 422, "flag_is_ours"),
        ([], 422, "invalid_request"),
        ({"engine": "vLLM"}, 422, "invalid_request"),
    ],
)
async def test_what_is_no_definition_is_refused_and_leaves_nothing(
    stack: Stack, body: object, status: int, code: str
) -> None:
    await stack.start_api()
    client = stack.client()
    answer = await client.request("POST", PATH, body)
    assert (answer[0], answer[1]["code"]) == (status, code), answer[1]
    assert await facts_of(stack) == []


async def test_a_backend_keeps_its_name_and_must_be_there(stack: Stack) -> None:
    await stack.start_api()
    client = stack.client()
    assert (await client.request("GET", f"{PATH}/nothing"))[0] == 404
    assert (await client.request("DELETE", f"{PATH}/nothing"))[0] == 404
    await client.request("POST", PATH, MINE)
    status, body, _ = await client.request("PUT", f"{PATH}/mine", MINE | {"backend_name": "other"})
    assert (status, body["field"]) == (422, "backend_name")


async def test_a_pull_that_nobody_can_do_is_refused_with_its_reason_and_begins_nothing(stack: Stack) -> None:
    await stack.start_scheduler()
    worker_id = await stack.start_worker(**QUICK)
    await stack.start_api()
    client = stack.client()
    await client.until_state("/v2/workers/worker-0", "ready")
    facts = len(await facts_of(stack))

    async def refused(path: str, body: dict[str, Any]) -> tuple[int, str, str | None]:
        status, answer, _ = await client.request("POST", f"{PATH}/{path}/pull", body)
        return status, answer["code"], answer.get("field")

    assert await refused("nobody", {}) == (404, "not_found", None)
    assert await refused("vLLM", {"version": "99.0"}) == (422, "backend_version_unknown", "version")
    assert await refused("vLLM", {"workers": ["worker-7"]}) == (404, "not_found", "workers")
    assert await refused("vLLM", {"workers": ["worker-0", "worker-7"]}) == (404, "not_found", "workers")
    assert (await refused("vLLM", {"worker": "worker-0"}))[:2] == (422, "unknown_field")
    assert (await refused("vLLM", {"workers": ["worker-0"], "worker_selector": {}}))[:2] == (422, "invalid_request")
    assert (await refused("vLLM", {"version": ""}))[:2] == (422, "invalid_request")

    for body in ({}, {"worker_selector": {"zone": "b"}}):
        status, answer, _ = await client.request("POST", f"{PATH}/vLLM/pull", body)
        assert (status, answer) == (202, {"backend": "vLLM", "version": None, "workers": []})
    status, answer, _ = await client.request("POST", f"{PATH}/vLLM/pull", {"workers": [worker_id]})
    (told,) = answer["workers"]
    assert (status, told["worker"], told["image"], told["state"]) == (202, "worker-0", None, "refused")
    assert told["reasons"][0]["code"] == "runs_no_containers"
    assert (await client.get(f"{PATH}/vLLM/pull?worker=worker-0"))["workers"] == [told]
    assert len(await facts_of(stack)) == facts

    status, _, _ = await client.request("POST", PATH, MINE | {"enabled": False})
    assert status == 201
    assert await refused("mine", {}) == (422, "backend_disabled", "backend")
