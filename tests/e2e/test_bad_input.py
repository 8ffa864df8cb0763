"""Whatever is sent: a clear answer, no trace in the log, and everything goes on."""

import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from services.api.adapters.gateway.proxy import PATHS as GATEWAY_PATHS
from tests.chaos.what_must_hold import last_sequence
from tests.support.stack import KEY, Bench, Client, Stack

NOWHERE = "/nowhere/model.gguf"
VALID = {"name": "one", "local_path": NOWHERE}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def quiet(bench: Bench) -> AsyncIterator[Stack]:
    """An api with one model and nobody who decides: the log grows only when a write is taken."""
    async with Stack(bench.directory / "quiet", await bench.new_database()) as stack:
        await stack.start_api(most_body_bytes=100_000, most_inference_body_bytes=200_000)
        await stack.client().deploy("there", NOWHERE)
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def client(quiet: Stack) -> AsyncIterator[Client]:
    """Whatever a test does with it leaves no trace in the log."""
    before = await last_sequence(quiet)
    yield quiet.client()
    assert await last_sequence(quiet) == before


async def refused(
    client: Client, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, str, str | None]:
    """Status, code and field of an answer that must be complete: code, message, field, request id in both places."""
    status, answer, told = await client.request(method, path, body, headers)
    return status, *_complete(path, status, answer, told)


def _complete(path: str, status: int, answer: dict[str, Any], told: Any) -> tuple[str, str | None]:
    error = answer.get("error", answer) if path.startswith("/v1/") else answer
    assert error["code"], (path, answer)
    assert error["message"], (path, answer)
    assert error["request_id"] == told["x-request-id"], (path, answer)
    assert "\n" not in error["message"], "one sentence"
    if "error" not in answer:
        assert answer["status"] == status
        return error["code"], error["field"]
    return error["code"], error["param"]


# -- bodies -----------------------------------------------------------------------------------------------------------

BAD_FIELDS: list[tuple[str, object]] = [
    *(("replicas", value) for value in (-1, 1.5, 1.0, "1", 10**9, None, True, [], {})),
    *(("name", value) for value in ("", "a b", "-a", "a-", "a" * 64, "a/b", "a\n", "ä", "a\0", 5, None, [])),
    *(("local_path", value) for value in ("relative.gguf", "./a", "/a/../b", "/a/./b", "/a//b", "/..", "", None, 5)),
    *(("local_path", value) for value in ("/a\0b", "/" + "a" * 4096)),
    *(("source", value) for value in ("ftp", None, {"type": "local_path"})),
    *(
        (field, value)
        for field in ("huggingface_repo_id", "model_scope_model_id")
        for value in (
            *(
                "",
                "a/b/c",
                "/a",
                "../a",
                "a/..",
                "a//b",
                "a b",
                "a\\b",
                "a\0b",
                "a\n",
                "ä/b",
                "-a/b",
                "a--b",
                "a.git",
                5,
            ),
            *("x" * 10_000, "https://huggingface.co/a/b", "https://user:hf_secret@huggingface.co/a/b", ["a/b"]),
        )
    ),
    *(("backend", value) for value in ("vllm", "", None, 1)),
    *(("backend_version", value) for value in ("a" * 65, "a\0b", 1)),
    *(("backend_parameters", value) for value in ("--port=1", [5], [None], ["a\0"], ["a" * 4097], ["a"] * 257, {})),
    *(("env", value) for value in ([], {"A": 5}, {"A": "\0"}, {"": "x"}, {"A B": "x"}, {"A=B": "x"}, {"1A": "x"})),
    *(("categories", value) for value in (["poem"], "llm", ["llm"] * 9)),
    *(("placement_strategy", value) for value in ("random", 1)),
    *(
        ("worker_selector", value)
        for value in ([], {"a": 5}, {"a": "x\n"}, {"a\0": "x"}, {str(n): "" for n in range(65)})
    ),
    *(("gpu_selector", value) for value in ([], {"gpu_ids": "all"}, {"gpu_idz": []}, {"gpu_ids": ["a\0"]})),
    *(("entrypoint", value) for value in ("vllm serve", [5], ["a\0"], ["a"] * 65)),
    *(("run_command", value) for value in ("", " ", "a 'b", 5, ["a"])),
    *(
        ("extended_kv_cache", value)
        for value in ([], {"ram_size": 0}, {"ram_ratio": ""}, {"chunk_size": 1.5}, {"gib": 1})
    ),
    *(("restart_on_error", value) for value in ("perhaps", 2, [])),
    *(("start_timeout_seconds", value) for value in (0, -1, 86401, "soon", [])),
    *(("description", value) for value in (5, "a" * 4097, "a\0b", ["x"])),
]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_field_of_a_wrong_type_or_value_is_named(client: Client, method: str) -> None:
    for field, value in BAD_FIELDS:
        if (method, value) == ("PATCH", None) or (method, field) == ("PATCH", "backend"):
            continue
        body = VALID | {field: value} if method == "POST" else {field: value}
        path = "/v2/models" if method == "POST" else "/v2/models/there"
        status, code, where = await refused(client, method, path, body)
        assert (status, (where or "").partition(".")[0]) == (422, field), (field, value, code, where)


HUB: dict[str, Any] = {"name": "one", "huggingface_repo_id": "Qwen/Qwen3-8B"}
BAD_FILES: list[tuple[str, object]] = [
    *(
        ("huggingface_filename", value)
        for value in (
            *("", "/a.gguf", "../a.gguf", "a/../b", "./a", "a//b", "a/", "a\\b.gguf", "a\0b", "a\n", "a\x1b[31m", 5),
            *("x" * 256, "x" * 10_000, ["a"]),
        )
    ),
    *(
        ("revision", value)
        for value in (
            *(
                "",
                "refs/pr/1",
                "refs/heads/main",
                "../main",
                "a/../b",
                "/main",
                "main/",
                "a//b",
                "-a",
                "a b",
                "a\0b",
                "a\n",
            ),
            *("x" * 129, "x" * 10_000, "https://hf.co/a", 5),
        )
    ),
    ("huggingface_repo_id", "https://user:hf_secret@huggingface.co/a/b"),
    *(("local_path", value) for value in ("/a",)),
    *(("model_scope_model_id", value) for value in ("a/b",)),
    *(("model_scope_file_path", value) for value in ("a.gguf",)),
    *(("source", value) for value in ("ftp", None, 5)),
]


async def test_a_file_or_revision_that_can_be_none_of_a_repository_is_named_and_never_repeated(client: Client) -> None:
    lora = {"lora_name": "l", "huggingface_repo_id": "a/b"}
    for field, value in BAD_FILES:
        for body, where in (
            (HUB | {field: value}, field),
            (HUB | {"backend": "vLLM", "lora_list": [lora, lora | {field: value}]}, f"lora_list.1.{field}"),
        ):
            status, answer, told = await client.request("POST", "/v2/models", body)
            code, named = _complete("/v2/models", status, answer, told)
            assert (status, code, named) == (422, "invalid_request", where), (field, value)
            assert not isinstance(value, str) or len(value) < 20 or value not in orjson.dumps(answer).decode()
    files = HUB | {"worker_ids": ["nobody"]}
    del files["name"]
    for field, value in BAD_FILES:
        told = await refused(client, "POST", "/v2/model-files", files | {field: value})
        assert told == (422, "invalid_request", field), (field, value)


async def test_a_source_without_its_repository_or_path_is_refused_where_that_is_missing(client: Client) -> None:
    nothing = {"name": "one"}
    for body, field in (
        (nothing, "source"),
        (nothing | {"revision": "main"}, "source"),
        (nothing | {"source": "huggingface"}, "huggingface_repo_id"),
        (nothing | {"source": "model_scope", "huggingface_repo_id": "a/b"}, "model_scope_model_id"),
        (nothing | {"source": "local_path", "local_path": None}, "local_path"),
        (nothing | {"huggingface_filename": "*.gguf"}, "huggingface_repo_id"),
        (VALID | {"revision": "main"}, "revision"),
        (
            VALID | {"speculative_config": {"algorithm": "draft_model", "source": "huggingface"}},
            "speculative_config.huggingface_repo_id",
        ),
        (VALID | {"lora_list": [{"lora_name": "l"}]}, "lora_list.0.source"),
    ):
        assert await refused(client, "POST", "/v2/models", body) == (422, "invalid_request", field), body
    for change, field in (
        ({"source": "huggingface"}, "huggingface_repo_id"),
        ({"revision": "main"}, "revision"),
        ({"local_path": None}, "local_path"),
        ({"huggingface_repo_id": "a/b", "local_path": "/a"}, "local_path"),
        ({"huggingface_filename": "*.gguf"}, "huggingface_repo_id"),
    ):
        assert await refused(client, "PATCH", "/v2/models/there", change) == (422, "invalid_request", field), change


async def test_an_unknown_field_is_refused_by_its_name(client: Client) -> None:
    for body in (
        VALID | {"replica": 2},
        VALID | {"id": "m-mine"},
        VALID | {"generation": 1},
        VALID | {"__proto__": {}},
    ):
        unknown = next(iter(body.keys() - VALID.keys()))
        assert await refused(client, "POST", "/v2/models", body) == (422, "unknown_field", unknown)
    for unknown in ("backend", "state", "nmae"):
        assert await refused(client, "PATCH", "/v2/models/there", {unknown: "x"}) == (422, "unknown_field", unknown)


async def test_flags_and_variables_that_would_break_isolation_are_refused(client: Client) -> None:
    for flags in (
        [" --host=0.0.0.0"],
        ["--hos", "0.0.0.0"],
        ["--served_model_name=x", "--api_key=mine"],
        ["-m/etc/passwd"],
        ["--api-key-file", "/etc/passwd"],
        ["--ssl-key-file=/etc/key"],
        ["--host=0.0.0.0"],
        ["--host", "0.0.0.0"],
        ["--host 0.0.0.0"],
        ["--port=1"],
        ["--port 1"],
        ["--model=/etc/passwd"],
        ["-m", "/etc/passwd"],
        ["-m /etc/passwd"],
        ["--alias=gpt"],
        ["-a", "gpt"],
    ):
        told = await refused(client, "POST", "/v2/models", VALID | {"backend_parameters": flags})
        assert told == (422, "flag_is_ours", "backend_parameters"), flags
        told = await refused(client, "PATCH", "/v2/models/there", {"backend_parameters": flags})
        assert told == (422, "flag_is_ours", "backend_parameters"), flags
    for name in (
        *("LD_PRELOAD", "ld_library_path", "LD_AUDIT", "GCONV_PATH", "BASH_ENV", "PATH", "PYTHONPATH", "PYTHONSTARTUP"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
        *("DOCKER_HOST", "MUSTER_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY"),
    ):
        for method, path, body in (("POST", "/v2/models", VALID), ("PATCH", "/v2/models/there", {})):
            told = await refused(client, method, path, body | {"env": {"NCCL_DEBUG": "INFO", name: "x"}})
            assert told == (422, "variable_not_allowed", "env"), name


async def test_the_key_of_an_engine_is_put_into_no_command_line(client: Client) -> None:
    for field, value in (
        ("backend_parameters", ["--token={{engine_key}}"]),
        ("run_command", "serve --token {{ engine_key }}"),
        ("entrypoint", ["serve", "{{engine_key}}"]),
    ):
        told = await refused(client, "POST", "/v2/models", VALID | {field: value})
        assert told == (422, "parameter_invalid", field)


async def test_a_body_that_is_no_json_object_is_refused(client: Client) -> None:
    bodies = (
        *(b"", b"{", b'{"name": }', b"nonsense", b"null", b"[]", b'"text"', b"5", b"\xff\xfe"),
        *(b"[" * 50_000, b'{"name": "a", "local_path": "\\ud800"}', b'{"name": "a\\ud800", "local_path": "/a"}'),
        *(
            b'{"name": "one", "local_path": "/a", "start_timeout_seconds": %b}' % number
            for number in (b"NaN", b"1e999")
        ),
        b'{"name": "one", "local_path": "/a", "replicas": %b}' % (b"9" * 5000),
    )
    for body in bodies:
        for method, path in (("POST", "/v2/models"), ("PATCH", "/v2/models/there")):
            status, _, field = await refused(client, method, path, body)
            assert status in (400, 422), (method, body[:60], status)
            assert field is None or not field.isdigit(), (method, body[:60], field)


async def test_a_body_that_does_not_say_that_it_is_json_is_refused_with_what_to_say(client: Client) -> None:
    for method, path in (("POST", "/v2/models"), ("PATCH", "/v2/models/there")):
        for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "garbage", ""):
            status, answer, _ = await client.request(method, path, VALID, {"content-type": media_type})
            assert (status, answer["code"], answer["field"]) == (415, "unsupported_media_type", None), media_type
            assert answer["message"].startswith("send the body as application/json, "), answer
        for body, message in (
            (b"", "a body is missing: send a JSON object"),
            (b"[]", "the body must be a JSON object"),
            (b'"text"', "the body must be a JSON object"),
        ):
            status, answer, _ = await client.request(method, path, body)
            assert (status, answer["code"], answer["message"]) == (422, "invalid_request", message), body


async def test_a_body_that_is_too_large_is_refused_with_and_without_a_length(client: Client) -> None:
    for method, path, size in (
        ("POST", "/v2/models", 100_001),
        ("PATCH", "/v2/models/there", 100_001),
        ("POST", "/v1/chat/completions", 200_001),
    ):
        assert await refused(client, method, path, b" " * size) == (413, "body_too_large", None), (method, path)

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, size, 10_000):
                yield b" " * min(10_000, size - start)

        headers = {"content-type": "application/json"}
        async with client.session.request(method, client.url + path, data=pieces(), headers=headers) as answer:
            body = orjson.loads(await answer.read())
            assert (answer.status, _complete(path, answer.status, body, answer.headers)) == (
                413,
                ("body_too_large", None),
            ), (method, path)


async def test_a_model_that_would_not_fit_into_the_messages_about_it_is_refused(client: Client) -> None:
    for much in (
        {"backend_parameters": ["a" * 4000] * 20},
        {"env": {f"A{n}": "a" * 4000 for n in range(20)}},
        {"worker_selector": {str(n): "\u00e4" * 128 for n in range(64)}, "backend_parameters": ["a" * 4000] * 13},
    ):
        for method, path, body in (("POST", "/v2/models", VALID | much), ("PATCH", "/v2/models/there", much)):
            assert await refused(client, method, path, body) == (422, "model_too_large", None), (method, much.keys())


# -- paths, parameters, headers ---------------------------------------------------------------------------------------


async def routes(client: Client) -> list[tuple[str, str, dict[str, Any]]]:
    """Every route of /v2, from the document that the api publishes: method, path, operation."""
    paths: dict[str, dict[str, Any]] = (await client.get("/v2/openapi.json"))["paths"]
    found = [(method.upper(), path, operation) for path, of in paths.items() for method, operation in of.items()]
    assert len(found) > 15
    return found


def filled(path: str, value: str) -> str:
    return "/".join(value if part.startswith("{") else part for part in path.split("/"))


async def test_an_unknown_id_is_not_found_on_every_route(client: Client) -> None:
    asked = 0
    for method, path, _ in await routes(client):
        if "{" not in path:
            continue
        for nobody in ("nobody", "m-01", "%00", "a%00b", "%ff", "'; DROP TABLE models; --", "x" * 5000, "*", "a.b.>"):
            body = {"PUT": {"backend_name": "another"}}.get(method, {}) if method in ("POST", "PATCH", "PUT") else None
            assert await refused(client, method, filled(path, nobody), body) == (404, "not_found", None), (method, path)
            asked += 1
    assert asked > 50
    for path in ("/v2/nothing", "/v1/nothing", "/v2/models/there/nothing", "/v3/models"):
        status, answer, _ = await client.request("GET", path)
        error = answer.get("error", answer)
        assert (status, error["code"], error["message"]) == (404, "not_found", f"there is nothing at {path}")
    assert (await client.get("/v2/model-instances?model=%00"))["items"] == []


async def test_a_method_that_a_path_does_not_have_is_refused(client: Client) -> None:
    known: dict[str, set[str]] = {path: {"POST"} for path in GATEWAY_PATHS} | {"/v1/models": {"GET"}}
    for method, path, _ in await routes(client):
        known.setdefault(path, set()).add(method)
    for path in known:  # one that a pattern fits too takes what that takes
        for pattern in (
            each for each in known if "{" in each and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), path)
        ):
            known[path] |= known[pattern]
    for path, method in itertools.product(known, METHODS):
        if method not in known[path]:
            at = filled(path, "there")
            status, answer, headers = await client.request(method, at, {} if method != "GET" else None)
            assert (status, *_complete(path, status, answer, headers)) == (405, "method_not_allowed", None), (
                method,
                at,
            )
            assert {*headers["allow"].split(", ")} - {"HEAD"} == known[path], (method, at)
            assert answer.get("error", answer)["message"] == f"{at} takes {headers['allow']} only"


@pytest.mark.parametrize(
    "position", ["x", "", "1", "1-", "-1", "1-x", "1-1-1", "+1-1", "1- 1", "\u0663-1", "1-" + "9" * 60, "9-1"]
)
async def test_a_position_that_is_none_is_refused_wherever_one_is_asked_for(client: Client, position: str) -> None:
    for method, path, operation in await routes(client):
        names = [parameter["name"] for parameter in operation.get("parameters", ())]
        if "min_seq" in names:
            async with client.session.request(
                method, client.url + filled(path, "there"), params={"min_seq": position}
            ) as answer:
                body = orjson.loads(await answer.read())
                found = (answer.status, *_complete(path, answer.status, body, answer.headers))
                assert found == (422, "invalid_position", "min_seq"), path
    if position == "9-1":
        return  # of another generation: test_writes.py
    async with client.session.get(f"{client.url}/v2/events", params={"since": position}) as answer:
        body = orjson.loads(await answer.read())
        assert (answer.status, body["code"], body["field"]) == (422, "invalid_position", "since")
    if position.isascii():
        answered = await refused(client, "GET", "/v2/events", headers={"last-event-id": position})
        assert answered == (422, "invalid_position", "Last-Event-ID")


async def test_nobody_waits_for_what_comes_after_a_position_that_the_log_has_not_reached(client: Client) -> None:
    end = int((await client.get("/v2/models"))["seq"].partition("-")[2])
    for sequence in (end + 1, 10**9, 2**63, 10**30):
        for path, headers, field in (
            (f"/v2/events?since=1-{sequence}", {}, "since"),
            ("/v2/events", {"last-event-id": f"1-{sequence}"}, "Last-Event-ID"),
        ):
            assert await refused(client, "GET", path, headers=headers) == (422, "invalid_position", field), sequence
    async with client.session.get(f"{client.url}/v2/events?since=1-{end}&follow=false") as answer:
        assert (answer.status, await answer.text()) == (200, f": from 1-{end}\n\n")


async def test_a_parameter_that_can_not_be_is_named(client: Client) -> None:
    for path, field in (
        ("/v2/events?type=ModelExploded", "type"),
        ("/v2/events?follow=perhaps", "follow"),
        ("/v2/events?model=a.b", "model"),
        ("/v2/events?instance=*", "instance"),
        ("/v2/events?worker=>", "worker"),
        ("/v2/model-instances/nobody/logs?tail=0", "tail"),
        ("/v2/model-instances/nobody/logs?tail=many", "tail"),
        ("/v2/model-instances/nobody/logs?attempt=0", "attempt"),
    ):
        status, code, where = await refused(client, "GET", path)
        assert (status, bool(code), where) == (422, True, field), path
    for headers in ({"idempotency-key": ""}, {"idempotency-key": "k" * 256}):
        status, _, where = await refused(client, "POST", "/v2/models", VALID, headers)
        assert (status, where) == (422, "idempotency-key")


async def test_a_stale_or_foreign_etag_is_refused(client: Client) -> None:
    _, _, headers = await client.request("GET", "/v2/models/there")
    for etag in ('"1-0"', '"1-999999"', "nonsense", "W/" + headers["etag"], headers["etag"].strip('"'), '"0-0", "7-7"'):
        for method, body in (("PATCH", {"description": "x"}), ("DELETE", None)):
            assert await refused(client, method, "/v2/models/there", body, {"if-match": etag}) == (
                412,
                "precondition_failed",
                "If-Match",
            ), (method, etag)


async def test_a_name_that_is_taken_is_refused_in_any_case(client: Client) -> None:
    for name in ("there", "There", "THERE"):
        assert await refused(client, "POST", "/v2/models", VALID | {"name": name}) == (409, "name_taken", "name")


async def test_without_exactly_one_good_credential_no_path_is_served(client: Client) -> None:
    good, other = ("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)
    credentials: list[list[tuple[str, str]]] = [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", f"Basic {KEY}")],
        [("authorization", KEY)],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer " + "x" * 100_00)],
        [("x-api-key", "wrong")],
        [good, other],
        [good, good],
        [other, other],
        [good, ("x-api-key", "")],
    ]
    known = {(method, filled(path, "there")) for method, path, _ in await routes(client)}
    known |= {("POST", path) for path in GATEWAY_PATHS} | {("GET", "/v1/models")}
    known |= {
        ("GET", path) for path in ("/v2/docs", "/v2/openapi.json", "/v2/nothing", "/v2//models", "//v2/models", "/v1/")
    }
    async with aiohttp.ClientSession() as session:
        everywhere = itertools.product(sorted(known), credentials[:2])
        for (method, path), headers in itertools.chain(everywhere, (((("GET", "/v2/models"), c)) for c in credentials)):
            body = b"{}" if method in ("POST", "PATCH") else None
            async with session.request(method, client.url + path, data=body, headers=headers) as answer:
                document = orjson.loads(await answer.read())
                found = (answer.status, *_complete(path, answer.status, document, answer.headers))
                assert found == (401, "unauthorized", None), (method, path, headers)
        for headers in ([good], [other]):
            async with session.get(client.url + "/v2/models", headers=headers) as answer:
                assert answer.status == 200


async def test_a_request_id_is_the_callers_when_it_is_a_plain_token_and_else_ours(client: Client) -> None:
    for given, kept in (
        ("my-id_7", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("a b", False),
        ("ä", False),
        ('"', False),
    ):
        _, answer, headers = await client.request("GET", "/v2/models/nobody", headers={"x-request-id": given})
        assert answer["request_id"] == headers["x-request-id"]
        assert (headers["x-request-id"] == given) == kept, given


# -- the gateway ------------------------------------------------------------------------------------------------------


async def test_the_gateway_says_what_is_wrong_with_a_request(client: Client) -> None:
    for path in GATEWAY_PATHS:
        for body in (b"", b"{", b"[]", b"5", b"null", b"{}", b'{"model": 5}', b'{"model": null}', b"[" * 50_000):
            status, code, _ = await refused(client, "POST", path, body)
            assert (status, code) == (400, "invalid_request"), (path, body[:20])
        assert await refused(client, "POST", path, {"model": "nobody"}) == (404, "model_not_found", "model")
        status, answer, headers = await client.request("POST", path, {"model": "there"})
        assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "no_running_instance", "1")
    assert [model["id"] for model in (await client.get("/v1/models"))["data"]] == ["there"]


async def test_a_model_is_known_to_the_gateway_as_soon_as_its_creation_was_acknowledged(quiet: Stack) -> None:
    client = quiet.client()
    for number in range(20):
        made = await client.deploy(f"fresh-{number}", NOWHERE)
        assert (await client.ask(f"fresh-{number}"))[0] == 503, "it is known, and does not run"
        await client.request("DELETE", f"/v2/models/{made['id']}")
