"""`muster logs` and `muster timeline`: one instance, by its name or id, or by its model's while there is one."""

import sys
from typing import Annotated, Any, Final

import typer

from services.cli import render
from services.cli.client import Client
from services.cli.failed import USAGE, Failed
from services.cli.options import AsJson, Key, Url
from services.cli.render import plain
from services.cli.terminal import local_time, show, show_json

WORKER: Final = "worker/"
Instance = Annotated[str, typer.Argument(help="Name or id of an instance, or of a model that has one.")]


def logs(
    instance: Annotated[
        str,
        typer.Argument(
            help="Name or id of an instance, or of a model that has one; or worker/NAME for a worker's services."
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    tail: Annotated[int, typer.Option(help="So many lines from the end.", min=1, max=2000)] = 200,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt; else the newest.", min=1)] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the attempt before the newest.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """What the engine of an instance wrote last; or, of worker/NAME, what its agent and downloader logged."""
    wanted: dict[str, Any] = {"tail": tail} | ({"attempt": attempt} if attempt is not None else {})
    wanted |= {"previous": "true"} if previous else {}
    worker = instance.removeprefix(WORKER) if instance.startswith(WORKER) else None
    if worker is not None and (previous or attempt is not None):
        raise Failed("a worker's services have no attempts", exit_code=USAGE)
    if follow and as_json:
        raise Failed("a log that is followed is text: leave out --json", exit_code=USAGE)
    with Client.connect(url, key) as client:
        path = (
            ("v2", "workers", worker)
            if worker is not None
            else ("v2", "model-instances", _instance_of(client, instance))
        )
        if follow:
            for line in client.lines(*path, "logs", follow="true", **wanted):
                print(plain(line), flush=True)
            return
        answer = client.get(*path, "logs", **wanted)
    if as_json:
        show_json(answer)
        return
    for line in answer["lines"]:
        print(plain(line))
    sys.stdout.flush()
    if worker is None and attempt is None and sys.stderr.isatty():
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
