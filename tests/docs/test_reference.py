"""docs/reference says what the code says, and a test fails when it does not."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from docs import generate
from docs.making import reasons, states
from schemas.facts import FACTS
from schemas.facts.instance import InstanceFact
from schemas.reasons import REASONS, NotEnoughRam
from schemas.reports import REPORTS


@pytest.fixture
def reference(made: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that is fresh; making it again takes no time."""
    for name, text in made.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(generate, "PAGES", {name: lambda text=text: text for name, text in made.items()})
    return tmp_path


@pytest.mark.parametrize("name", generate.PAGES)
def test_the_page_is_what_the_code_says(name: str, made: Mapping[str, str]) -> None:
    there = (generate.REFERENCE / name).read_text(encoding="utf-8")
    assert there == made[name], f"docs/reference/{name} is stale: run `make docs`"


def test_a_fresh_reference_passes(reference: Path) -> None:
    assert generate.check(reference) == 0


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_page_that_was_altered_is_found(name: str, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reference / name
    path.write_text(
        path.read_text(encoding="utf-8").replace("Muster", "Mustard").replace("the", "teh"), encoding="utf-8"
    )
    assert generate.check(reference) == 1
    said = capsys.readouterr().out
    assert f"{path} is stale:" in said
    assert "Run `make docs`." in said


def test_a_page_that_is_missing_is_found_and_written(reference: Path) -> None:
    (reference / "states.md").unlink()
    assert generate.check(reference) == 1
    generate.write(reference)
    assert generate.check(reference) == 0


def test_code_that_was_altered_is_found(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PAGES", {"reasons.md": reasons.page})
    assert generate.check(reference) == 0
    monkeypatch.setattr(NotEnoughRam, "__doc__", "Something else.")
    assert generate.check(reference) == 1


def test_every_event_and_reason_is_in_its_page(made: Mapping[str, str]) -> None:
    for of in (*FACTS, *REPORTS):
        assert f"\n### {of.type}\n" in made["events.md"]
    for reason in REASONS:
        assert f"\n## {reasons.code_of(reason)}\n" in made["reasons.md"]


def test_every_life_of_an_instance_was_tried() -> None:
    changes, seen = states.tried_out()
    names = states.rest_names(changes)
    assert set(names.values()) == set(states.STATES)
    assert set(names) == set(seen)
    stated = {change.fact for change in changes}
    assert {fact for fact in FACTS if issubclass(fact, InstanceFact)} == stated


def test_the_bus_is_described_with_a_channel_for_every_event(made: Mapping[str, str]) -> None:
    document = json.loads(made["asyncapi.json"])
    types = {of.type for of in (*FACTS, *REPORTS)}
    assert set(document["channels"]) == types | {
        "Assigned", "Beat", "FilesProgress", "RequestsInFlight", "Projected", "inspect", "inspect.answer", "logs", "logs.answer",
        "images", "images.answer", "pull", "pull.answer", "share", "share.answer", "agent-log",
        "agent-log.answer", "downloader-log", "downloader-log.answer",
    }  # fmt: skip
    for name in types:
        event = document["components"]["messages"][name]["payload"]["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][event]["properties"]
        assert schema["type"]["const"] == name
        assert schema["data"]["$ref"] == f"#/components/schemas/{name}Data"


def test_every_reference_in_the_documents_resolves(made: Mapping[str, str]) -> None:
    for name in ("asyncapi.json", "openapi.json"):
        document = json.loads(made[name])
        for reference in references(document):
            here = document
            for part in reference.removeprefix("#/").split("/"):
                here = here[part]


def references(part: object) -> list[str]:
    match part:
        case {"$ref": str(reference)}:
            return [reference]
        case dict():
            return [found for value in part.values() for found in references(value)]
        case list():
            return [found for value in part for found in references(value)]
        case _:
            return []
