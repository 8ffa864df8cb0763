"""`muster ps`, `muster workers`, `muster version`."""

from importlib.metadata import version as version_of
from typing import Any

from services.cli import render
from services.cli.client import Client
from services.cli.failed import Failed
from services.cli.options import AsJson, Key, Url
from services.cli.terminal import local_time, show, show_json


def ps(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Models and instances: where they run, or why not."""
    with Client.connect(url, key) as client:
        models, instances = client.get("v2", "models"), client.get("v2", "model-instances")
    if as_json:
        show_json({"models": models, "instances": instances})
    else:
        show(render.ps(models["items"], instances["items"], local_time()))


def workers(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """The machines of the fleet."""
    with Client.connect(url, key) as client:
        answer = client.get("v2", "workers")
    if as_json:
        show_json(answer)
    else:
        show(render.workers(answer["items"], local_time()))


def version(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Of this command, and of the server."""
    server: dict[str, Any] | None = None
    why = ""
    with Client.connect(url, key) as client:
        try:
            server = client.get("v2", "openapi.json")["info"]
        except Failed as failed:
            why = str(failed)
    if as_json:
        show_json({"client": version_of("muster"), "server": server and server["version"]})
        return
    print(f"client  {version_of('muster')}")
    print(f"server  {server['version']} at {client.url}" if server else f"server  unknown: {why}")
