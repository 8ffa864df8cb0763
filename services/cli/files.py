"""`muster files`: what of models lies on workers, or is on its way there."""

import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from services.cli import render
from services.cli.client import Client
from services.cli.failed import INTERRUPTED, USAGE, Failed
from services.cli.options import AsJson, Key, Url
from services.cli.progress import POLL_SECONDS, shown_progress, still_wanted
from services.cli.sources import HELP, source_fields
from services.cli.terminal import local_time, show, show_json

PATH: Final = ("v2", "model-files")
ASKING_SECONDS: Final = 60.0
"""Workers look at the hub before anything is written."""
ASKED_ONE_BY_ONE: Final = 8


class Action(StrEnum):
    LIST = "list"
    SHOW = "show"
    PULL = "pull"
    RETRY = "retry"
    DELETE = "delete"


def files(
    action: Annotated[
        Action,
        typer.Argument(
            help="list: all. show ID: one. pull SOURCE --worker W: have them fetched, ahead of any model. retry ID: once more"
            " after it failed. delete ID: off the worker's disk; what is being fetched is fetched no more."
        ),
    ] = Action.LIST,
    which: Annotated[str | None, typer.Argument(metavar="[ID|SOURCE]", help=f"SOURCE: {HELP}.")] = None,
    worker: Annotated[
        list[str] | None, typer.Option("--worker", help="Pull: to this worker, more than once. List: on this one.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="List: that this model's instances use.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Pull: ask for them, and go.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Pull: seconds to wait; else until they are there.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete: without asking.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Model files on workers: see them, fetch them ahead, try again, remove."""
    if (which is None) != (action == Action.LIST):
        raise Failed("list takes no name; the others take one", exit_code=USAGE)
    _check_options(action, worker or (), {"--model": model is not None, "--no-wait": no_wait, "--yes": yes})
    with Client.connect(url, key) as client:
        match action, which:
            case Action.SHOW, str():
                found = client.get(*PATH, which)
                show_json(found) if as_json else show(render.file(found, local_time()))
            case Action.PULL, str():
                _pull(client, source_fields(which), worker or (), no_wait=no_wait, timeout=timeout, as_json=as_json)
            case Action.RETRY, str():
                answer = client.post(*PATH, which, "retry", body={})
                show_json(answer) if as_json else print(f"{which} is tried again.")
            case Action.DELETE, str():
                _delete(client, which, yes=yes, as_json=as_json)
            case _:
                about = {"worker": worker[0]} if worker else {}
                answer = client.get(*PATH, **about, **({"model": model} if model is not None else {}))
                show_json(answer) if as_json else show(render.files(answer["items"], local_time()))


def _check_options(action: Action, workers: Sequence[str], given: Mapping[str, bool]) -> None:
    """Raises Failed for what is another action's."""
    of = {"--model": Action.LIST, "--no-wait": Action.PULL, "--yes": Action.DELETE}
    for name, is_given in given.items():
        if is_given and action != of[name]:
            raise Failed(f"{name} is of {of[name]}", exit_code=USAGE)
    if action == Action.PULL and not workers:
        raise Failed("say where to: --worker NAME, more than once", exit_code=USAGE)
    if workers and action not in (Action.PULL, Action.LIST):
        raise Failed("--worker is of pull and list", exit_code=USAGE)
    if action == Action.LIST and len(workers) > 1:
        raise Failed("list takes one --worker", exit_code=USAGE)


def _pull(
    client: Client,
    source: Mapping[str, str],
    workers: Sequence[str],
    *,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    answer = client.post(*PATH, body={**source, "worker_ids": list(workers)}, seconds=ASKING_SECONDS)
    ids: list[str] = [item["file_id"] for item in answer["items"]]
    if no_wait:
        if as_json:
            show_json(answer)
        else:
            for file_id in ids:
                print(f"{file_id} is wanted; `muster files` shows how far it is.")
        return
    try:
        found = _wait(client, ids, timeout, as_json=as_json)
    except KeyboardInterrupt:
        raise Failed(
            "not waited for any more; they are fetched nevertheless (`muster files` shows how far they are)",
            exit_code=INTERRUPTED,
        ) from None
    if as_json:
        show_json({"items": found})
    failed = [file for file in found if file["state"] != "ready"]
    for file in found:
        if file["state"] == "ready" and not as_json:
            print(render.plain(f"{file['id']} is ready: {render.file_name(file)}, {render.far(file)}."))
    if failed:
        why = "; ".join(f"{file['id']} on {file['worker_name']}: {render.far(file)}" for file in failed)
        raise Failed(render.plain(why))


def _wait(client: Client, ids: Sequence[str], timeout: float | None, *, as_json: bool) -> list[dict[str, Any]]:
    """All of them, each ready or failed. Raises Failed when time is over, or somebody removed one."""
    deadline = None if timeout is None else time.monotonic() + timeout
    seen: set[str] = set()
    with shown_progress(quiet=as_json) as shown:
        while True:
            found = _those(client, ids)
            if gone := sorted(seen - {file["id"] for file in found}):
                raise Failed(f"somebody removed {', '.join(gone)} meanwhile")
            seen.update(file["id"] for file in found)
            left = still_wanted(found)
            if len(found) == len(ids) and not left:
                return found
            shown.update(found)
            if deadline is not None and time.monotonic() > deadline:
                so_far = "; ".join(render.far(file) for file in left) or "nobody has begun"
                raise Failed(f"not there after {timeout:g} s: {so_far}")
            time.sleep(POLL_SECONDS)


def _those(client: Client, ids: Sequence[str]) -> list[dict[str, Any]]:
    """As far as they are known by now."""
    if len(ids) <= ASKED_ONE_BY_ONE:
        return [file for file_id in ids if (file := client.find(*PATH, file_id)) is not None]
    known = {file["id"]: file for file in client.get(*PATH)["items"]}
    return [known[file_id] for file_id in ids if file_id in known]


def _delete(client: Client, file_id: str, *, yes: bool, as_json: bool) -> None:
    found = client.get(*PATH, file_id)
    if not yes:
        if not sys.stdin.isatty() or as_json:
            raise Failed("nobody is there to be asked: say --yes", exit_code=USAGE)
        sys.stderr.write(render.plain(f"Remove {render.file_name(found)} ({render.far(found)})? [y/N] "))
        sys.stderr.flush()
        if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
            raise Failed("nothing was removed")
    answer = client.delete(*PATH, file_id)
    show_json(answer) if as_json else print(render.plain(f"{file_id} is removed from {found['worker_name']}."))
