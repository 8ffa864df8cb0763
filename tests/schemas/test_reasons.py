"""The closed set of reasons: each has a code, a docstring, somebody who must act, and a sentence without gaps."""

import inspect
import re
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from docs.making.examples import example
from docs.making.reasons import code_of
from schemas import reasons as module
from schemas.ids import WorkerId
from schemas.reasons import REASONS, EngineExited, PortInUse, Reason, ReasonBase, Who, gib

ANY: TypeAdapter[Reason] = TypeAdapter(Reason)


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_a_reason_is_called_like_its_class_and_says_what_it_means(reason: type[ReasonBase]) -> None:
    assert code_of(reason) == snake_case(reason.__name__)
    assert vars(reason).get("__doc__"), "its docstring is its entry in docs/reference/reasons.md"
    assert reason.who in get_args(Who)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_its_sentence_has_no_gaps(reason: type[ReasonBase]) -> None:
    made = example(reason)
    unsaid = {name: field.get_default() for name, field in reason.model_fields.items() if not field.is_required()}
    for spoken in (made, made.model_copy(update=unsaid)):
        sentence = spoken.sentence()
        assert sentence == sentence.strip()
        assert not re.search(r"None|\{|\}|  ", sentence), sentence
        assert not sentence.endswith("."), "it stands inside other sentences"


def test_codes_are_unique_and_every_reason_is_in_the_set() -> None:
    codes = [code_of(reason) for reason in REASONS]
    assert len(set(codes)) == len(codes)
    defined = {
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, ReasonBase) and each is not ReasonBase
    }
    assert defined == set(REASONS)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_a_reason_is_found_again_by_its_code(reason: type[ReasonBase]) -> None:
    made = example(reason)
    assert ANY.validate_json(made.model_dump_json()) == made


def test_a_code_that_is_not_in_the_set_is_refused() -> None:
    with pytest.raises(ValidationError):
        ANY.validate_python({"code": "bad_weather"})


def test_what_is_not_known_is_said_in_words() -> None:
    assert EngineExited(exit_code=None).sentence() == "the engine exited with an unknown code"
    assert PortInUse(worker_id=WorkerId("w-1")).sentence() == "every port of the range is in use"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (2**20, "1 MiB"), (2**30 - 1, "1024 MiB"), (2**30, "1.0 GiB"), (21_797_011_456, "20.3 GiB")],
)
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert gib(size) == text
