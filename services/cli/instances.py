"""`muster logs` and `muster timeline`: one instance, by its name or id, or by its model's while there is one."""

import sys
from typing import Annotated

import typer

from services.cli import render
from services.cli.client import Client
from services.cli.failed import Failed
from services.cli.options import AsJson, Key, Url
from services.cli.render import plain
from services.cli.terminal import local_time, show, show_json

Instance = Annotated[str, typer.Argument(help="Name or id of an instance, or of a model that has one.")]


def logs(
    instance: Instance,
    tail: Annotated[int, typer.Option(help="So many lines from the end.", min=1, max=2000)] = 200,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt; else the newest.", min=1)] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """What the engine of an instance wrote last."""
    wanted = {"tail": tail} | ({"attempt": attempt} if attempt is not None else {})
    with Client.connect(url, key) as client:
        answer = client.get("v2", "model-instances", _instance_of(client, instance), "logs", **wanted)
    if as_json:
        show_json(answer)
        return
    for line in answer["lines"]:
        print(plain(line))
    sys.stdout.flush()
    if attempt is None and sys.stderr.isatty():
        sys.stderr.write(f"(attempt {answer['attempt']})\n")


def timeline(instance: Instance, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Everything that happened to an instance.

    From the event log; by its id also when it is gone.
    """
    with Client.connect(url, key) as client:
        answer = client.get("v2", "model-instances", _instance_of(client, instance), "timeline")
        names = {} if as_json else client.names()
    if as_json:
        show_json(answer)
    else:
        show(render.timeline(answer["items"], names, local_time()))


def _instance_of(client: Client, name: str) -> str:
    """The instance that is meant. What is neither instance nor model is left to the server, which says so."""
    if client.find("v2", "model-instances", name) is not None or client.find("v2", "models", name) is None:
        return name
    found = [item["name"] for item in client.get("v2", "model-instances", model=name)["items"]]
    if len(found) == 1:
        return str(found[0])
    raise Failed(f"{name} has {len(found)} instances" + (f", say which: {', '.join(found)}" if found else ""))
