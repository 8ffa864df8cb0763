"""`muster events`: the fleet's history as it is written."""

import sys
from typing import Annotated

import typer

from services.cli import render
from services.cli.client import Client, as_document
from services.cli.options import AsJson, Key, Url
from services.cli.terminal import local_time, show_line


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="Only this type, e.g. ModelPending; may be repeated.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="After this position, e.g. 1-4711; 0: from the first event [0, or now with --follow]."),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """What happens in the fleet, one line an event.

    Position, time, type, whom it is about. With --follow it outlives restarts of the server and skips nothing.
    """
    if since is None and not follow:
        since = "0"
    with Client.connect(url, key) as client:
        names = {} if as_json else client.names()
        for event in client.events(since=since, types=type_ or (), follow=follow, notice=_notice):
            if as_json:
                print(event.text, flush=True)
                continue
            envelope = as_document(event)
            names |= render.named_by(envelope)
            show_line(render.event_line(event.position, envelope, names, local_time()))


def _notice(sentence: str) -> None:
    sys.stderr.write(f"muster: {sentence}\n")
