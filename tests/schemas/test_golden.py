"""What a version of a document looked like when it was new is read for ever."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel, TypeAdapter

from docs.making.golden import add_missing, documents
from schemas.assignment import Assigned
from schemas.envelope import Envelope, dataschema
from schemas.facts import BY_TYPE as FACT_TYPES
from schemas.facts import FACTS, UnknownType, read
from schemas.facts.base import Fact
from schemas.reports import BY_TYPE as REPORT_TYPES
from schemas.reports import REPORTS, Report
from schemas.upcasts import STEPS

GOLDEN: Final = Path(__file__).parents[1] / "golden"
FILES: Final = sorted(GOLDEN.glob("*.json"))
NAME: Final = re.compile(r"([A-Za-z]+)\.v([1-9][0-9]*)\.json")


def envelope_in(path: Path) -> Envelope:
    return Envelope.model_validate_json(path.read_bytes())


def parse(path: Path) -> BaseModel:
    """The document in its newest form."""
    if path.name.startswith("Assigned."):
        return Assigned.model_validate_json(path.read_bytes())
    envelope = envelope_in(path)
    if envelope.type in FACT_TYPES:
        return read(envelope)
    return REPORT_TYPES[envelope.type].model_validate(envelope.data)


def with_strangers(value: Any) -> Any:
    """As a newer writer would send it: a field that nobody knows in every object of ours, maps left alone."""
    match value:
        case BaseModel():
            known = {name: with_strangers(getattr(value, name)) for name in type(value).model_fields}
            return known | {"x_of_a_newer_writer": {"deep": [1]}}
        case tuple() | list():
            return [with_strangers(item) for item in value]
        case dict():
            return {key: with_strangers(item) for key, item in value.items()}
        case _:
            return TypeAdapter(Any).dump_python(value, mode="json")


@pytest.mark.parametrize("of", [*FACTS, *REPORTS], ids=lambda of: of.type)
def test_every_version_of_every_type_has_a_golden_file(of: type[Fact] | type[Report]) -> None:
    expected = {f"{of.type}.v{version}.json" for version in range(1, of.version + 1)}
    assert {path.name for path in GOLDEN.glob(f"{of.type}.v*.json")} == expected
    assert [step for step in range(1, of.version) if (of.type, step) not in STEPS] == []


def test_there_is_one_for_the_assignment_and_none_for_what_is_unknown() -> None:
    types = {match[1] for path in FILES if (match := NAME.fullmatch(path.name))}
    assert len(FILES) == len([path for path in FILES if NAME.fullmatch(path.name)])
    assert types == {*FACT_TYPES, *REPORT_TYPES, "Assigned"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_is_read_as_the_newest_version_and_written_the_same(path: Path) -> None:
    document = parse(path)
    assert type(document).model_validate_json(document.model_dump_json()) == document
    stored = json.loads(path.read_bytes())
    body = stored if isinstance(document, Assigned) else stored["data"]
    if path.name in dict(documents()):
        assert json.loads(document.model_dump_json()) == with_defaults(document, body)


def with_defaults(document: Any, body: Any) -> Any:
    """Optional fields may have been added since the file was made, at any depth."""
    match document, body:
        case BaseModel(), dict():
            told: dict[str, Any] = {}
            for name, field in type(document).model_fields.items():
                if name in body:
                    told[name] = with_defaults(getattr(document, name), body[name])
                else:
                    fresh = field.get_default(call_default_factory=True)
                    told[name] = TypeAdapter(Any).dump_python(fresh, mode="json")
            return told | {name: value for name, value in body.items() if name not in told}
        case tuple() | list(), list():
            return [with_defaults(each, stored) for each, stored in zip(document, body, strict=True)]
        case _:
            return body


@pytest.mark.parametrize(
    "path", [path for path in FILES if not path.name.startswith("Assigned.")], ids=lambda path: path.stem
)
def test_its_envelope_is_a_cloudevent_that_says_which_version_it_is(path: Path) -> None:
    envelope = envelope_in(path)
    assert json.loads(envelope.to_json()) == json.loads(path.read_bytes())
    assert path.stem == f"{envelope.type}.v{envelope.version}"
    document = parse(path)
    assert isinstance(document, Fact | Report)
    assert envelope.subject == f"{document.kind}/{document.resource_id}"
    assert all(value is not None for value in envelope.model_dump().values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fields_of_a_newer_writer_are_ignored(path: Path) -> None:
    document = parse(path)
    assert type(document).model_validate(with_strangers(document)) == document


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_tells_of_every_field_that_its_version_has(path: Path) -> None:
    """Filled, so that a field that changes its type is found."""
    document = parse(path)
    body = json.loads(path.read_bytes())
    given = body if isinstance(document, Assigned) else body["data"]
    assert [name for name, value in given.items() if value in (None, [], {})] == []


def test_an_unknown_type_and_a_newer_version_are_told_apart_from_malformed_ones() -> None:
    known = envelope_in(GOLDEN / "ModelCreated.v1.json")
    unknown = known.model_copy(update={"type": "ModelPainted", "dataschema": dataschema("ModelPainted", 1)})
    with pytest.raises(UnknownType) as raised:
        read(unknown)
    assert (raised.value.type_name, raised.value.version) == ("ModelPainted", 1)
    newer = known.model_copy(update={"dataschema": dataschema("ModelCreated", 2)})
    with pytest.raises(UnknownType) as raised:
        read(newer)
    assert (raised.value.type_name, raised.value.version) == ("ModelCreated", 2)


def test_missing_files_are_added_and_others_never_touched(tmp_path: Path) -> None:
    assert [path.name for path in add_missing(tmp_path)] == [name for name, _ in documents()]
    (tmp_path / "ModelCreated.v1.json").write_text("as it was")
    (tmp_path / "ModelScaled.v1.json").unlink()
    assert [path.name for path in add_missing(tmp_path)] == ["ModelScaled.v1.json"]
    assert (tmp_path / "ModelCreated.v1.json").read_text() == "as it was"
