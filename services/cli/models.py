"""`muster deploy`, `muster explain`, `muster delete`."""

import os.path
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from services.cli import render
from services.cli.client import Client
from services.cli.failed import USAGE, Failed
from services.cli.options import AsJson, Key, Url
from services.cli.terminal import local_time, show, show_json

Model = Annotated[str, typer.Argument(help="Name or id of a model.")]
PAUSE_SECONDS: Final = 0.1


def deploy(
    name: Annotated[str, typer.Argument(help="What clients will ask for.")],
    path: Annotated[str, typer.Option(help="A .gguf file on the workers; a relative path is completed from here.")],
    replicas: Annotated[int, typer.Option(help="So many instances.", min=0)] = 1,
    param: Annotated[
        list[str] | None, typer.Option(help="A flag for the engine, e.g. --param --ctx-size=4096; may be repeated.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the engine; may be repeated.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is ready.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that --wait waits.", min=0)] = 600,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Run a model."""
    if not path:
        raise Failed("--path is empty", exit_code=USAGE)
    body: dict[str, Any] = {"name": name, "local_path": os.path.abspath(path), "replicas": replicas}  # noqa: PTH100 - also tidies `..`
    if param:
        body["backend_parameters"] = param
    if env:
        body["env"] = _pairs(env)
    with Client.connect(url, key) as client:
        answer = client.post("v2", "models", body=body)
        if wait:
            answer = _wait_until_ready(client, answer, timeout)
    if as_json:
        show_json(answer)
    elif wait:
        print(f"{name} is ready: {answer['ready_replicas']} of {answer['replicas']} run.")
    else:
        print(f"{name} is wanted; `muster ps` shows how it goes, `muster explain {name}` why.")


def explain(model: Model, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Why a model is as it is, and what would help.

    Where it runs; or every worker's objections, with their numbers; or how its engine ended.
    """
    with Client.connect(url, key) as client:
        found = client.get("v2", "models", model)
        instances = client.get("v2", "model-instances", model=found["id"])
    if as_json:
        show_json({"model": found, "instances": instances})
    else:
        show(render.explain(found, instances["items"], local_time()))


def delete(model: Model, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Stop a model and forget it; its files stay."""
    with Client.connect(url, key) as client:
        answer = client.delete("v2", "models", model)
    if as_json:
        show_json(answer)
    else:
        print(f"{model} is deleted; its engines stop, its files stay.")


def _wait_until_ready(client: Client, created: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    """The model as it is then. Says what it waits for whenever that changes; raises Failed when time is over."""
    deadline, said = time.monotonic() + timeout_seconds, ""
    while True:
        model = client.get("v2", "models", created["id"], min_seq=created["seq"])
        if model["state"] == "ready" and model["observed_generation"] == model["generation"]:
            return model
        why = "; ".join(reason["text"] for reason in model["reasons"])
        if time.monotonic() > deadline:
            raise Failed(
                f"{model['name']} is {model['state']} after {timeout_seconds:g} s: {why or 'no reason is known'}"
            )
        if why and why != said:
            said = why
            sys.stderr.write(f"{model['name']} is {model['state']}: {why}\n")
        time.sleep(PAUSE_SECONDS)


def _pairs(env: Sequence[str]) -> dict[str, str]:
    for each in env:
        if "=" not in each:
            raise Failed(f"--env wants NAME=VALUE, not {each}", exit_code=USAGE)
    return dict(each.split("=", 1) for each in env)
