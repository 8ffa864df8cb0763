"""`muster backends`: what engines there are, as data."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.cli import render
from services.cli.client import Client, Document
from services.cli.failed import USAGE, Failed
from services.cli.options import AsJson, Key, Url
from services.cli.terminal import show, show_json

PATH = ("v2", "inference-backends")


class Action(StrEnum):
    LIST = "list"
    SHOW = "show"
    IMPORT = "import"
    DELETE = "delete"
    PULL = "pull"
    PULLS = "pulls"


def backends(
    action: Annotated[
        Action,
        typer.Argument(
            help="list: all. show NAME: one, as YAML. import FILE: define or change one by its YAML (`-`: from standard"
            " input). delete NAME: forget a definition; a built-in one of its name is in force again. pull NAME: have its images"
            " pulled by workers, ahead of any model. pulls NAME: how far they are."
        ),
    ] = Action.LIST,
    which: Annotated[str | None, typer.Argument(metavar="[NAME|FILE]", help="Of a backend, or of its YAML.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Pull, pulls: images of this version; else those that a model gets.")
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option("--worker", help="Pull, pulls: on this worker, more than once; else on all that can run it."),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Engines that models can run on: their images, versions, parameters."""
    if (which is None) != (action == Action.LIST):
        raise Failed("list takes no name; the others take one", exit_code=USAGE)
    if (version is not None or worker) and action not in (Action.PULL, Action.PULLS):
        raise Failed("--version and --worker are of pull and pulls", exit_code=USAGE)
    with Client.connect(url, key) as client:
        match action, which:
            case Action.SHOW, str():
                _show(client.get(*PATH, which), as_json=as_json)
            case Action.IMPORT, str():
                _import(client, which, as_json=as_json)
            case ((Action.PULL | Action.PULLS), str()):
                about: Document = ({"version": version} if version is not None else {}) | (
                    {} if not worker else {"workers" if action == Action.PULL else "worker": worker}
                )
                pulls = (*PATH, which, "pull")
                answer = client.post(*pulls, body=about) if action == Action.PULL else client.get(*pulls, **about)
                show_json(answer) if as_json else show(render.backend_images(answer))
            case Action.DELETE, str():
                answer = client.delete(*PATH, which)
                show_json(answer) if as_json else print(f"{which} is forgotten.")
            case _:
                answer = client.get(*PATH)
                show_json(answer) if as_json else show(render.backends(answer["items"]))


def _show(found: Document, *, as_json: bool) -> None:
    from schemas.backends import InferenceBackend, write_yaml  # noqa: PLC0415 - not for `muster --help`

    if as_json:
        show_json(found)
    else:
        sys.stdout.write(write_yaml(InferenceBackend.model_validate(found)))


def _import(client: Client, file: str, *, as_json: bool) -> None:
    """Raises Failed."""
    from pydantic import ValidationError  # noqa: PLC0415 - not for `muster --help`

    from schemas.backends import NotABackend, read_yaml  # noqa: PLC0415 - not for `muster --help`

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        backend = read_yaml(text)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}", exit_code=USAGE) from error
    except (NotABackend, UnicodeDecodeError) as error:
        raise Failed(f"{file}: {error}", exit_code=USAGE) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Failed(
            f"{file}: {where}: {first['msg']}" if where else f"{file}: {first['msg']}", exit_code=USAGE
        ) from error
    name = backend.backend_name
    body = backend.model_dump(mode="json", exclude_defaults=True)
    known = client.find(*PATH, name)
    is_new = known is None or known["built_in"]
    answer = client.post(*PATH, body=body) if is_new else client.put(*PATH, name, body=body)
    if as_json:
        show_json(answer)
    else:
        print(f"{name} is {'defined' if is_new else 'changed'}; what runs goes on, later attempts follow it.")
