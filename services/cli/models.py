"""`muster deploy`, `muster explain`, `muster delete`."""

import os.path
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from services.cli import render
from services.cli.client import Client
from services.cli.failed import USAGE, Failed
from services.cli.options import AsJson, Key, Url
from services.cli.progress import POLL_SECONDS, Shown, shown_progress
from services.cli.sources import HELP, source_fields
from services.cli.terminal import local_time, show, show_json

if TYPE_CHECKING:
    from schemas.placements import PlacementQuestion

Model = Annotated[str, typer.Argument(help="Name or id of a model.")]
PAUSE_SECONDS: Final = 0.1
CODES: Final = {"json_invalid": "invalid_json", "extra_forbidden": "unknown_field", "duplicate_name": "duplicate_name"}
"""As the api calls them."""


def deploy(  # noqa: PLR0917 - options of a command
    name: Annotated[str, typer.Argument(help="What clients will ask for.")],
    source: Annotated[str | None, typer.Argument(help=f"Where its files are: {HELP}.")] = None,
    path: Annotated[
        str | None,
        typer.Option(
            help="A .gguf file or a model's directory on the workers; a relative path is completed from here."
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(help="So many instances.", min=0)] = 1,
    param: Annotated[
        list[str] | None, typer.Option(help="A flag for the engine, e.g. --param --ctx-size=4096; may be repeated.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the engine; may be repeated.")] = None,
    backend: Annotated[str | None, typer.Option(help="`muster backends` lists them; llama.cpp when not given.")] = None,
    backend_version: Annotated[str | None, typer.Option(help="Of the backend; its usual one when not given.")] = None,
    image: Annotated[str | None, typer.Option(help="The container image, in place of the backend's.")] = None,
    cpu_offloading: Annotated[
        bool, typer.Option("--cpu-offloading", help="What fits on no GPU may run on processors, which is slower.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is ready.")] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds that --wait waits; those in which files arrive don't count.", min=0)
    ] = 600,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Run a model."""
    body: dict[str, Any] = {"name": name, **_files_of(source, path), "replicas": replicas}
    if param:
        body["backend_parameters"] = param
    if env:
        body["env"] = _pairs(env)
    chosen = {
        "backend": backend,
        "backend_version": backend_version,
        "image_name": image,
        "cpu_offloading": cpu_offloading or None,
    }
    body |= {name: value for name, value in chosen.items() if value is not None}
    with Client.connect(url, key) as client:
        answer = client.post("v2", "models", body=body)
        if wait:
            with shown_progress(quiet=as_json) as shown:
                answer = _wait_until_ready(client, answer, timeout, shown)
    if as_json:
        show_json(answer)
    elif wait:
        print(f"{name} is ready: {answer['ready_replicas']} of {answer['replicas']} run.")
    else:
        print(f"{name} is wanted; `muster ps` shows how it goes, `muster explain {name}` why.")


def explain(model: Model, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Why a model is as it is, and what would help.

    Where it runs, and why there; or every worker's objections, with their numbers; or how its engine ended.
    """
    with Client.connect(url, key) as client:
        found = client.get("v2", "models", model)
        instances = client.get("v2", "model-instances", model=found["id"])
        placement = client.get("v2", "models", found["id"], "placement")
    if as_json:
        show_json({"model": found, "instances": instances, "placement": placement})
    else:
        show(render.explain(found, instances["items"], local_time(), placement))


def plan(
    file: Annotated[
        str | None,
        typer.Option("--file", help="The question as JSON, `-` for standard input; see docs/guides/plan.md."),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Would a model run, where, and what would it take? Deploys nothing.

    A question that describes a fleet is answered here, with no server running; any other by the server, for its fleet.
    """
    if file is None:
        raise Failed("say what to plan: --file question.json", exit_code=USAGE)
    question = _question(file)
    if question.fleet is not None:
        from services.scheduler.domain.plan import plan_offline  # noqa: PLC0415 - others need no scheduler

        answer: dict[str, Any] = plan_offline(question).model_dump(mode="json")
    else:
        with Client.connect(url, key) as client:
            answer = client.post("v2", "placements", body=question.model_dump(mode="json", exclude_unset=True))
    if as_json:
        show_json(answer)
    else:
        show(render.plan(question.model.name, answer))


def _question(file: str) -> "PlacementQuestion":
    """Raises Failed with the code, the field and what is wrong with it."""
    from pydantic import ValidationError  # noqa: PLC0415 - see above

    from schemas.placements import PlacementQuestion  # noqa: PLC0415

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{file} can't be read: {error}", exit_code=USAGE) from error
    try:
        return PlacementQuestion.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        code = CODES.get(first["type"], "invalid_request")
        raise Failed(f"{code}: {field + ': ' if field else ''}{first['msg']}", exit_code=USAGE) from error


def retry(
    model: Model,
    worker: Annotated[str | None, typer.Option(help="On this worker only.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Try a model again on workers where it is quarantined, since its engine crashed there."""
    with Client.connect(url, key) as client:
        answer = client.delete("v2", "models", model, "quarantine", **({"worker": worker} if worker else {}))
    if as_json:
        show_json(answer)
    else:
        print(f"{model} is tried again.")


def delete(model: Model, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Stop a model and forget it; its files stay."""
    with Client.connect(url, key) as client:
        answer = client.delete("v2", "models", model)
    if as_json:
        show_json(answer)
    else:
        print(f"{model} is deleted; its engines stop, its files stay.")


def _wait_until_ready(client: Client, created: dict[str, Any], timeout_seconds: float, shown: Shown) -> dict[str, Any]:
    """The model as it is then. Says what it waits for whenever that changes; raises Failed when time is over."""
    deadline, said, looked_at, so_far = time.monotonic() + timeout_seconds, "", 0.0, 0
    while True:
        model = client.get("v2", "models", created["id"], min_seq=created["seq"])
        if model["state"] == "ready" and model["observed_generation"] == model["generation"]:
            return model
        now = time.monotonic()
        if now - looked_at >= POLL_SECONDS:
            looked_at = now
            download = model.get("download")
            if download is not None and download["bytes"] != so_far:
                so_far, deadline = download["bytes"], now + timeout_seconds
            shown.update(client.get("v2", "model-files", model=created["id"])["items"] if download is not None else ())
        why = "; ".join(dict.fromkeys(reason["text"] for reason in model["reasons"]))
        if now > deadline:
            raise Failed(
                f"{model['name']} is {model['state']} after {timeout_seconds:g} s: {why or 'no reason is known'}"
            )
        if why and why != said:
            said = why
            shown.say(f"{model['name']} is {model['state']}: {why}")
        time.sleep(PAUSE_SECONDS)


def _files_of(source: str | None, path: str | None) -> dict[str, str]:
    """Raises Failed."""
    if path is not None:
        if source is not None:
            raise Failed("a source or --path, not both", exit_code=USAGE)
        if not path:
            raise Failed("--path is empty", exit_code=USAGE)
        return {"local_path": os.path.abspath(path)}  # noqa: PTH100 - also tidies `..`
    if source is None:
        raise Failed(f"say where its files are: {HELP}", exit_code=USAGE)
    return source_fields(source)


def _pairs(env: Sequence[str]) -> dict[str, str]:
    for each in env:
        if "=" not in each:
            raise Failed(f"--env wants NAME=VALUE, not {each}", exit_code=USAGE)
    return dict(each.split("=", 1) for each in env)
