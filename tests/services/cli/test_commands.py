"""Each command as a process, against a whole Muster: what people see, what scripts get, how it fails."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import orjson

from tests.services.cli.conftest import MUSTER, Done, Fleet
from tests.support.stack import TINYCHAT

AGE = re.compile(r"\d+ (s|min)(?=\s|:|\.)")
CLOCK = re.compile(r"\d\d:\d\d:\d\d\.\d{3}")
MEASURED = re.compile(r"(?<=measured )[\d.]+ [GM]iB at most \(\d+ %\)")
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")


def steady(text: str) -> list[str]:
    """Lines without what differs from run to run: ages, times, ports, and the padding that goes with them."""
    for pattern, constant in ((CLOCK, "<time>"), (PORT, "<port>"), (AGE, "<age>"), (MEASURED, "<peak>")):
        text = pattern.sub(constant, text)
    return [re.sub(r"(?<=\S) {2,}", "  ", line) for line in text.splitlines()]


async def test_ps_shows_models_and_instances_where_they_run_or_why_they_dont(fleet: Fleet) -> None:
    done = await fleet.run("ps")
    assert (done.code, done.trouble) == (0, "")
    assert steady(done.said) == [
        "NAME  STATE  SINCE  READY  WHERE, OR WHY NOT",
        "broken  pending  <age>  0/1",
        "  broken-0  error  <age>  worker-0: the engine does not know the parameter --nonsense",
        "huge  pending  <age>  0/1",
        "  huge-0  pending  <age>  worker-0: needs 16.3 GiB of RAM, 7.7 GiB of 8.0 GiB are free",
        "tinychat  ready  <age>  1/1",
        "  tinychat-0  running  <age>  worker-0 at 127.0.0.1:<port>",
    ]


async def test_explain_tells_every_objection_with_its_numbers_and_what_would_help(fleet: Fleet) -> None:
    done = await fleet.run("explain", "huge")
    assert (done.code, done.trouble) == (0, "")
    assert steady(done.said) == [
        "huge is pending: 0 of 1 instance running.",
        "",
        "huge-0 is pending since <age>: no worker takes it.",
        "WORKER  OBJECTION  WHO ACTS  WHY",
        "worker-0  not_enough_ram  operator  needs 16.3 GiB of RAM, 7.7 GiB of 8.0 GiB are free",
        "What would help:",
        "  - with --ctx-size=4194304 it fits",
    ]


async def test_explain_tells_how_an_engine_ended(fleet: Fleet) -> None:
    done = await fleet.run("explain", "broken")
    assert (done.code, done.trouble) == (0, "")
    assert steady(done.said) == [
        "broken is pending: 0 of 1 instance running.",
        "",
        "broken-0 is in error since <age>: the engine does not know the parameter --nonsense.",
        "  ended  while starting, attempt 1 on worker-0",
        "  exit code  2",
        "  diagnosis  unknown_parameter: the engine does not know the parameter --nonsense (who acts: author)",
        "  crashes  1 in a row",
        "  last lines of its log (all of it: muster logs broken-0):",
        "    | usage: llama_cpp_server --model FILE [FLAG …]",
        "    | llama_cpp_server: error: unrecognized arguments: --nonsense",
    ]


async def test_explain_tells_where_an_instance_runs(fleet: Fleet) -> None:
    done = await fleet.run("explain", "tinychat")
    assert steady(done.said) == [
        "tinychat is ready: 1 of 1 instance running.",
        "",
        "tinychat-0 is running since <age>: worker-0 at 127.0.0.1:<port>, attempt 1, with 262 MiB of RAM promised.",
        "  It was the only worker that could take it.",
        "",
        "1 instance on the CPU: claims 262 MiB of RAM, measured <peak>.",
    ]


async def test_workers_shows_the_machines(fleet: Fleet) -> None:
    done = await fleet.run("workers")
    assert steady(done.said) == [
        "WORKER  STATE  SINCE  ADDRESS  RUNS  HAS",
        "worker-0  ready  <age>  127.0.0.1  llama.cpp 1.2.3  4 CPUs, 8.0 GiB",
    ]


async def test_json_is_what_the_rest_api_says(fleet: Fleet) -> None:
    models, instances, workers = [
        await fleet.client.get(f"/v2/{kind}") for kind in ("models", "model-instances", "workers")
    ]
    model = next(item for item in models["items"] if item["name"] == "tinychat")
    mine = await fleet.client.get("/v2/model-instances?model=tinychat")
    name = mine["items"][0]["id"]
    ps, explain, machines, timeline, logs, version = await asyncio.gather(
        fleet.run("ps", "--json"),
        fleet.run("explain", "tinychat", "--json"),
        fleet.run("workers", "--json"),
        fleet.run("timeline", "tinychat", "--json"),
        fleet.run("logs", "tinychat", "--json", "--tail", "3"),
        fleet.run("version", "--json"),
    )
    assert ps.json == {"models": models, "instances": instances}
    placement = await fleet.client.get("/v2/models/tinychat/placement")
    assert explain.json | {"placement": None} == {"model": model, "instances": mine, "placement": None}
    assert explain.json["placement"] | {"as_of": 0} == placement | {"as_of": 0}
    assert machines.json == workers
    assert timeline.json == await fleet.client.get(f"/v2/model-instances/{name}/timeline")
    assert logs.json == await fleet.client.get(f"/v2/model-instances/{name}/logs?tail=3")
    assert version.json == {"client": "0.1.0", "server": "0.1.0"}


async def test_logs_are_the_engines_last_lines(fleet: Fleet) -> None:
    done = await fleet.run("logs", "broken-0", "--attempt", "1", "--tail", "1")
    assert done == Done(0, "llama_cpp_server: error: unrecognized arguments: --nonsense\n", "")


async def test_an_attempt_that_left_no_log_is_told_so(fleet: Fleet) -> None:
    assert await fleet.run("logs", "tinychat", "--attempt", "99") == Done(
        1, "", "muster: no_logs: the worker has no log of tinychat-0, attempt 99\n"
    )


async def test_timeline_is_what_the_event_log_says_of_an_instance(fleet: Fleet) -> None:
    done = await fleet.run("timeline", "broken-0")
    assert steady(done.said) == [
        "AT  EVENT  WHAT",
        "<time>  InstanceCreated  of broken",
        "<time>  InstancePending  worker-0: the model's files are being looked at",
        "<time>  InstanceScheduled  attempt 1 on worker-0",
        "<time>  InstanceStarting  attempt 1 on worker-0",
        "<time>  InstanceFailed  attempt 1, while starting, exit code 2: worker-0: the engine does not know the parameter --nonsense",
    ]


async def test_events_are_all_facts_so_far_each_on_a_line(fleet: Fleet) -> None:
    facts = await fleet.client.events()
    told, raw, some = await asyncio.gather(
        fleet.run("events"),
        fleet.run("events", "--json", "--since", facts[2]["position"]),
        fleet.run("events", "--type", "WorkerRegistered", "--type", "InstanceRunning"),
    )
    assert [line.split()[0] for line in told.said.splitlines()] == [fact["position"] for fact in facts]
    assert [orjson.loads(line) for line in raw.said.splitlines()] == [_bare(fact) for fact in facts[3:]]
    assert [re.sub(r"^\S+ +", "", line) for line in steady(some.said)] == [
        "<time> WorkerRegistered  worker-0  4 CPUs, 8.0 GiB",
        "<time> InstanceRunning  tinychat-0  attempt 1 at 127.0.0.1:<port>",
    ]


async def test_after_a_position_of_another_log_the_events_go_on_where_the_server_says(fleet: Fleet) -> None:
    facts = await fleet.client.events()
    told = await fleet.run("events", "--since", f"9-{facts[2]['position'].partition('-')[2]}", "--json")
    assert (told.code, told.trouble) == (0, f"muster: the log was restored; going on after {facts[2]['position']}\n")
    assert [orjson.loads(line) for line in told.said.splitlines()] == [_bare(fact) for fact in facts[3:]]


async def test_a_followed_stream_outlives_the_server_and_tells_each_event_once(fleet: Fleet) -> None:
    stack = fleet.stack
    port = int(fleet.client.url.rpartition(":")[2])
    before = await fleet.client.events()
    process = await fleet.start("events", "--follow", "--since", "0", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    told = [orjson.loads(await process.stdout.readline()) for _ in before]

    await stack.stop("api")
    await stack.start_api(port=port)
    await fleet.client.deploy("later", replicas=0)
    while told[-1]["type"] != "ModelReady" or told[-1]["data"]["running"]:
        told.append(orjson.loads(await process.stdout.readline()))
    process.kill()
    await process.wait()
    assert told == [_bare(fact) for fact in await fleet.client.events()][: len(told)]
    assert b"nothing is skipped" in await process.stderr.readline()


async def test_deploy_waits_until_the_model_is_ready_and_delete_ends_it(fleet: Fleet) -> None:
    relative = "../" * len(fleet.stack.directory.parts) + str(TINYCHAT).lstrip("/")
    done = await fleet.run(
        *(
            "deploy",
            "mine",
            "--path",
            relative,
            "--replicas",
            "2",
            "--param",
            "--ctx-size=512",
            "--env",
            "A=b=c",
            "--cpu-offloading",
            "--wait",
        )
    )
    assert (done.code, done.said) == (0, "mine is ready: 2 of 2 run.\n")
    model = await fleet.client.get("/v2/models/mine")
    told = ("local_path", "replicas", "backend_parameters", "env", "cpu_offloading", "state")
    assert {key: model[key] for key in told} == {
        "local_path": str(TINYCHAT),
        "replicas": 2,
        "backend_parameters": ["--ctx-size=512"],
        "env": {"A": "b=c"},
        "cpu_offloading": True,
        "state": "ready",
    }
    which = await fleet.run("logs", "mine")
    assert which == Done(1, "", "muster: mine has 2 instances, say which: mine-0, mine-1\n")
    gone = await fleet.run("delete", "mine")
    assert gone == Done(0, "mine is deleted; its engines stop, its files stay.\n", "")
    assert "mine" not in [item["name"] for item in (await fleet.client.get("/v2/models"))["items"]]


async def test_deploy_says_what_it_waits_for_and_gives_up_with_the_reason(fleet: Fleet) -> None:
    done = await fleet.run("deploy", "nowhere", "--path", "/nowhere.gguf", "--wait", "--timeout", "1.5")
    why = "there is no file or directory /nowhere.gguf on this worker"
    assert (done.code, done.said) == (1, "")
    assert f"nowhere is pending: {why}\n" in done.trouble
    assert done.trouble.endswith(f"muster: nowhere is pending after 1.5 s: {why}\n")
    await fleet.run("delete", "nowhere")


async def test_errors_of_the_server_are_its_code_its_message_and_the_field(fleet: Fleet) -> None:
    unknown, taken, ours, pair = await asyncio.gather(
        fleet.run("explain", "nothing"),
        fleet.run("deploy", "tinychat", "--path", str(TINYCHAT)),
        fleet.run("deploy", "Bad Name", "--path", str(TINYCHAT)),
        fleet.run("deploy", "other", "--path", str(TINYCHAT), "--env", "A"),
    )
    assert unknown == Done(1, "", "muster: not_found: there is no model nothing\n")
    assert taken == Done(1, "", "muster: name_taken: there is a model called tinychat already (name)\n")
    assert (ours.code, ours.said) == (1, "")
    assert ours.trouble.startswith("muster: invalid_request: name: ")
    assert pair == Done(2, "", "muster: --env wants NAME=VALUE, not A\n")


async def test_a_wrong_key_or_none_says_where_the_key_is_looked_for(fleet: Fleet, tmp_path: Path) -> None:
    url = fleet.client.url
    (tmp_path / "admin.key").write_text("another\n")
    wrong, none, stale = await asyncio.gather(
        fleet.run("ps", "--key", "wrong"),
        fleet.run("ps", MUSTER_API_KEY=""),
        fleet.run("ps", MUSTER_API_KEY="", MUSTER_DATA_DIR=str(tmp_path)),
    )
    places = "--key, MUSTER_API_KEY, or the file"
    assert wrong == Done(
        1,
        "",
        f"muster: unauthorized: {url} does not take this key; it is from --key or MUSTER_API_KEY"
        f" (looked for in {places} .muster/admin.key)\n",
    )
    assert none == Done(
        1,
        "",
        f"muster: unauthorized: {url} wants a key, and there is none: it is looked for in {places} .muster/admin.key"
        " (which is not there)\n",
    )
    assert stale == Done(
        1,
        "",
        f"muster: unauthorized: {url} does not take this key; it is from {tmp_path}/admin.key"
        f" (looked for in {places} {tmp_path}/admin.key)\n",
    )


async def test_the_key_of_the_data_directory_and_the_port_of_the_environment_are_enough(fleet: Fleet) -> None:
    directory = fleet.stack.directory / ".muster"
    directory.mkdir()
    (directory / "admin.key").write_text("test-key\n")
    port = fleet.client.url.rpartition(":")[2]
    done = await fleet.run("workers", MUSTER_URL="", MUSTER_API_KEY="", MUSTER_PORT=port)
    assert (done.code, len(done.said.splitlines())) == (0, 2)


async def test_without_a_server_every_command_says_how_to_start_one(fleet: Fleet) -> None:
    nobody = "http://127.0.0.1:1"
    ps, follow, version = await asyncio.gather(
        fleet.run("ps", "--url", nobody),
        fleet.run("events", "-f", "--url", nobody),
        fleet.run("version", "--url", nobody),
    )
    sentence = (
        f"no Muster answers at {nobody} ([Errno 111] Connection refused): start one with `muster up`, or say where one"
        " runs with --url or MUSTER_URL\n"
    )
    assert ps == follow == Done(1, "", f"muster: {sentence}")
    assert version == Done(0, f"client  0.1.0\nserver  unknown: {sentence}", "")


async def test_a_reader_that_has_seen_enough_is_no_error(fleet: Fleet) -> None:
    process = await fleet.start("events", "--follow", "--since", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readline()
    process._transport.get_pipe_transport(1).close()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - as `head` does
    await fleet.client.deploy("unread", replicas=0)
    await fleet.run("delete", "unread")
    assert await process.wait() == 1
    assert await process.stderr.read() == b""


async def test_output_that_can_not_be_written_is_one_sentence_and_output_that_nobody_wants_none(fleet: Fleet) -> None:
    for arguments in ("ps", "events", "ps --json"):
        for to, code, trouble in (
            (">/dev/full", 1, b"muster: nothing more can be written: No space left on device\n"),
            (">&-", 0, b""),
        ):
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", f'exec "$0" {arguments} {to}', MUSTER),
                env={**os.environ, **fleet.environment},
                stderr=asyncio.subprocess.PIPE,
                cwd=fleet.stack.directory,
            )
            assert (await process.communicate())[1] == trouble, (arguments, to)
            assert process.returncode == code, (arguments, to)


async def test_what_can_not_be_sent_is_refused_before_it_is(fleet: Fleet) -> None:
    not_text, no_path, no_name, no_key = await asyncio.gather(
        fleet.run("explain", os.fsdecode(b"caf\xe9")),
        fleet.run("deploy", "other", "--path", ""),
        fleet.run("delete", ""),
        fleet.run("ps", MUSTER_API_KEY="schl\u00fcssel"),
    )
    assert not_text == Done(2, "", "muster: 'caf\\udce9' is no text in the encoding of this terminal\n")
    assert no_path == Done(2, "", "muster: --path is empty\n")
    assert no_name == Done(2, "", "muster: a name or an id is empty\n")
    assert no_key == Done(1, "", "muster: the key from --key or MUSTER_API_KEY is none: a key is printable ASCII\n")


def _bare(fact: dict[str, Any]) -> dict[str, Any]:
    """The envelope alone, as it came."""
    return {key: value for key, value in fact.items() if key != "position"}


async def test_backends_are_listed_exported_imported_and_forgotten(fleet: Fleet, tmp_path: Path) -> None:
    done = await fleet.run("backends")
    assert (done.code, done.trouble) == (0, "")
    assert steady(done.said)[0] == "BACKEND  ENGINE  VERSIONS  RUNS ON  IMAGES  MODELS"
    assert any(line.startswith("llama.cpp  llama.cpp  -  cuda, rocm, musa, cann, cpu") for line in steady(done.said))

    shown = await fleet.run("backends", "show", "SGLang")
    assert shown.code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(shown.said.replace("backend_name: SGLang", "backend_name: mine"), encoding="utf-8")
    done = await fleet.run("backends", "import", str(file))
    assert (done.code, done.said) == (0, "mine is defined; what runs goes on, later attempts follow it.\n")
    done = await fleet.run("backends", "import", str(file))
    assert (done.code, done.said) == (0, "mine is changed; what runs goes on, later attempts follow it.\n")
    assert "backend_name: mine" in (await fleet.run("backends", "show", "mine")).said
    assert (await fleet.run("backends", "delete", "mine")).code == 0
    assert (await fleet.run("backends", "show", "mine")).code == 1


async def test_the_images_of_a_backend_are_pulled_and_looked_at(fleet: Fleet) -> None:
    for action in ("pull", "pulls"):
        done = await fleet.run("backends", action, "vLLM")
        assert (done.code, done.said) == (0, "No worker runs vLLM in containers.\n")
        done = await fleet.run("backends", action, "vLLM", "--worker", "worker-0", "--json")
        assert done.code == 0
        assert '"runs_no_containers"' in done.said
        assert (await fleet.run("backends", action, "vLLM", "--version", "99.0")).code == 1
        assert (await fleet.run("backends", action, "vLLM", "--worker", "nobody")).code == 1
        assert (await fleet.run("backends", action)).code == 2
    assert (await fleet.run("backends", "show", "vLLM", "--version", "0.18.0")).code == 2


async def test_a_backend_that_can_not_be_read_says_where(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    for text, said in (
        ("backend_name: mine\nimages: [{image: a, tag: b}]", "images.0.tag"),
        ("[", "no YAML"),
        ("backend_name: x\nlocal: *a", "aliases"),
    ):
        file.write_text(text, encoding="utf-8")
        done = await fleet.run("backends", "import", str(file))
        assert done.code == 2
        assert said in done.trouble
    assert (await fleet.run("backends", "show")).code == 2
    assert (await fleet.run("backends", "import", str(tmp_path / "none.yaml"))).code == 2
