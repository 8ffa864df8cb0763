"""What the pages tell people to type is what the programs take."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
import yaml
from typer.core import TyperGroup

from docs.making.settings import SERVICES
from kernel.projections.tables import metadata as kept
from services.api.adapters.gateway.proxy import PATHS
from services.api.adapters.http.files import RequestFiles
from services.api.adapters.http.guard import OPEN_PATHS
from services.api.adapters.http.requests import ChangeModel, CreateModel
from services.api.projections.tables import TABLES
from services.cli.main import make_app
from tests.docs.pages import ROOT, WRITTEN, Command, blocks, commands

API: Final = "localhost:8700"
SYSTEM: Final = frozenset({"export", "rm", "tar", "pg_dump", "nats-server", "git", "cd"})
"""Programs of others: nothing to check but that we mean to name them."""
BODIES: Final = {
    ("POST", "models"): CreateModel,
    ("PATCH", "models"): ChangeModel,
    ("POST", "model-files"): RequestFiles,
}
"""What is sent where."""
COMMANDS: Final = [command for page in WRITTEN for command in commands(page)]


def muster(words: tuple[str, ...]) -> dict[str, Any]:
    """Parse a command line of ours without running it; its parameters."""
    group = typer.main.get_command(make_app(()))
    assert isinstance(group, TyperGroup)
    name, *rest = words
    assert name in group.commands, f"there is no command {name}"
    if ">" in rest:
        rest = rest[: rest.index(">")]
    return group.commands[name].make_context(name, rest).params


def compose(words: tuple[str, ...]) -> None:
    """A command line of docker compose, and what it starts in a container of ours."""
    assert words[:3] == ("compose", "-f", "deploy/compose.yaml")
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(words[3:]) & {"up", "exec", "run", "kill", "build", "down", "logs"}
    assert set(words[3:]) & services.keys() or words[-1] in ("--detach", "build"), f"no service in {words}"
    if "muster" in words:
        muster(words[words.index("muster") + 1 :])


def target_of(words: tuple[str, ...]) -> tuple[str, str, dict[str, list[str]], str | None]:
    """Method, path, query and body of a curl line."""
    url = next(word for word in words if API in word)
    parts = urlsplit(url if "//" in url else f"http://{url}")
    body = words[words.index("-d") + 1] if "-d" in words else None
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if body is not None else "GET"
    return method, parts.path, parse_qs(parts.query), body


def operation(openapi: Mapping[str, Any], method: str, path: str) -> Mapping[str, Any] | None:
    """None when the path is outside of the REST API, and known. Fails when it is unknown."""
    if (method == "POST" and path in PATHS) or (method == "GET" and path in {*OPEN_PATHS, "/v1/models"}):
        return None
    for pattern, operations in openapi["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path):
            assert method.lower() in operations, f"{path} does not take {method}"
            return operations[method.lower()]
    raise AssertionError(f"there is no {path}")


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_line_is_one_that_the_program_takes(command: Command, made: Mapping[str, str]) -> None:
    program, *rest = command.words
    match program:
        case "muster":
            muster(tuple(rest))
        case "docker":
            compose(tuple(rest))
        case "make":
            assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case "python":
            assert rest[0] == "-m"
            assert (ROOT / rest[1].replace(".", "/") / "__main__.py").is_file()
        case "curl":
            method, path, query, body = target_of(command.words)
            found = operation(json.loads(made["openapi.json"]), method, path)
            if found is None:
                return
            known = {parameter["name"] for parameter in found.get("parameters", ())}
            assert set(query) <= known
            if body is not None:
                BODIES[method, path.split("/")[2]].model_validate_json(body)
        case "psql":
            tables = (
                {f"muster.{table.name}" for table in TABLES} | {str(name) for name in kept.tables} | {"muster.history"}
            )
            assert set(re.findall(r"\bmuster\.\w+", rest[-1])) <= tables
        case _:
            assert program in SYSTEM


def test_the_pages_show_every_command() -> None:
    group = typer.main.get_command(make_app(()))
    assert isinstance(group, TyperGroup)
    shown = {command.words[command.words.index("muster") + 1] for command in COMMANDS if "muster" in command.words[:-1]}
    assert set(group.commands) - shown <= {"demo", "version"}


@pytest.mark.parametrize("words", [("ps", "--nope"), ("nope",), ("logs",), ("logs", "x", "--tail", "many")])
def test_a_wrong_command_line_is_found(words: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|no command|missing|valid integer"):
        muster(words)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2/nope"), ("PUT", "/v2/models/x"), ("POST", "/v1/nope"), ("GET", "/v2")]
)
def test_a_wrong_path_is_found(method: str, path: str, made: Mapping[str, str]) -> None:
    with pytest.raises(AssertionError, match=r"there is no|does not take"):
        operation(json.loads(made["openapi.json"]), method, path)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_every_variable_is_a_setting(page: Path) -> None:
    settings = {f"MUSTER_{name.upper()}" for _, service in SERVICES for name in service.model_fields}
    cli = {
        name
        for file in (ROOT / "services" / "cli").glob("*.py")
        for name in re.findall(r'"(MUSTER_\w+)"', file.read_text())
    }
    of_compose = set(re.findall(r"\bMUSTER_\w+", (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")))
    named = set(re.findall(r"\bMUSTER_\w+", page.read_text(encoding="utf-8")))
    assert {name.removesuffix("_FILE") for name in named} <= settings | cli | of_compose


def test_the_keys_and_the_configuration_are_made_as_the_answer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = [each for each in COMMANDS if each.page == "faq.md" and each.words[:2] == ("muster", "init")]
    monkeypatch.chdir(tmp_path)

    make_app(command.words[1:2])(command.words[1:], standalone_mode=False)

    config = (tmp_path / "apart" / "nats" / "nats.conf").read_text()
    assert config.count("nkey:") == 8
    assert (tmp_path / "apart" / "core" / "operator.seed").stat().st_mode & 0o777 == 0o600
    named = set(re.findall(r"apart/[\w./-]+", (ROOT / "docs" / "faq.md").read_text())) - {"apart/store"}
    assert len(named) >= 10
    assert {name for name in named if not (tmp_path / name.rstrip("./")).exists()} == set()


def test_every_example_in_python_is_python() -> None:
    for page in WRITTEN:
        for block in blocks(page, "python"):
            compile(block, page.name, "exec")
