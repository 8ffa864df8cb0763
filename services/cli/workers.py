"""`muster label`, `muster cordon`, `muster uncordon`, `muster drain`: what operators want of a worker."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from services.cli.client import Client
from services.cli.failed import USAGE, Failed
from services.cli.options import AsJson, Key, Url
from services.cli.terminal import show_json

Worker = Annotated[str, typer.Argument(help="Name or id of a worker.")]


def label(
    worker: Worker,
    labels: Annotated[list[str], typer.Argument(help="KEY=VALUE sets a label, KEY- removes it.")],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Set labels of a worker, for models with a worker selector. Others stay."""
    with Client.connect(url, key) as client:
        before: dict[str, str] = client.get("v2", "workers", worker)["labels"]
        answer = client.patch("v2", "workers", worker, body={"labels": _labelled(before, labels)})
    _said(answer, as_json, f"{worker} is labelled.")


def cordon(worker: Worker, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """No new instances on a worker; those that are there stay."""
    with Client.connect(url, key) as client:
        answer = client.patch("v2", "workers", worker, body={"cordoned": True})
    _said(answer, as_json, f"{worker} takes no new instances.")


def uncordon(worker: Worker, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """New instances on a worker again."""
    with Client.connect(url, key) as client:
        answer = client.patch("v2", "workers", worker, body={"cordoned": False})
    _said(answer, as_json, f"{worker} takes new instances again.")


def drain(worker: Worker, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Empty a worker: its instances are replaced elsewhere, each stopped when another one runs."""
    with Client.connect(url, key) as client:
        answer = client.post("v2", "workers", worker, "drain", body={})
    _said(answer, as_json, f"{worker} is being drained; `muster uncordon {worker}` takes that back.")


def _said(answer: dict[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        show_json(answer)
    else:
        print(sentence)


def _labelled(before: dict[str, str], changes: Sequence[str]) -> dict[str, str]:
    after = dict(before)
    for change in changes:
        key, equals, value = change.partition("=")
        if equals and key:
            after[key] = value
        elif change.endswith("-") and len(change) > 1:
            after.pop(change[:-1], None)
        else:
            raise Failed(f"a label is KEY=VALUE, or KEY- to remove it; not {change}", exit_code=USAGE)
    return after
