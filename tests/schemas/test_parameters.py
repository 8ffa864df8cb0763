from typing import Literal

import pytest

from schemas.parameters import find, formatted, names_in, split

CONTEXT = ("--ctx-size", "-c")


@pytest.mark.parametrize(
    "parameters",
    [
        ("--ctx-size=4096",),
        ("--ctx-size", "4096"),
        ("--ctx-size 4096",),
        ("--ctx_size=4096",),
        ("--ctx_size", "4096"),
        ("-c", "4096"),
        ("-c 4096",),
        ("-c=4096",),
        ("--metrics", "--ctx-size", "4096", "--jinja"),
        ("-c", "1", "--ctx-size=4096"),
    ],
)
def test_a_flag_is_found_in_every_form_that_people_write(parameters: tuple[str, ...]) -> None:
    assert find(parameters, CONTEXT) == "4096"


@pytest.mark.parametrize(
    "parameters",
    [(), ("--ctx",), ("--ctx-size-draft=1",), ("4096",), ("--alias", "c"), ("-", "--"), ("--alias=-c 1",)],
)
def test_a_flag_that_is_not_given_is_not_found(parameters: tuple[str, ...]) -> None:
    assert find(parameters, CONTEXT) is None


@pytest.mark.parametrize(
    "parameters", [("--metrics",), ("--metrics", "--jinja"), ("--metrics", "-c", "1"), ("--metrics=",)]
)
def test_a_flag_without_a_value_is_told_from_none(parameters: tuple[str, ...]) -> None:
    assert find(parameters, ("--metrics",)) == ""


def test_a_negative_number_is_a_value() -> None:
    assert find(("--n-gpu-layers", "-1"), ("--n-gpu-layers",)) == "-1"


def test_a_flag_and_its_value_in_one_string_become_two_arguments_and_nothing_else_changes() -> None:
    parameters = (
        "--chat-template {{ a }} ; b",
        "-c  4096",
        "--a=b c",
        "a b",
        "- item",
        "--x",
        "$(id) `id`",
        "-1 2",
        "",
    )
    assert split(parameters) == (
        *("--chat-template", "{{ a }} ; b"),
        *("-c", "4096"),
        *("--a=b c", "a b", "- item", "--x", "$(id) `id`", "-1 2", ""),
    )


@pytest.mark.parametrize(
    ("parameter", "names"),
    [
        ("--a-b=1", {"--a-b"}),
        ("--a_b 1", {"--a-b"}),
        ("-c", {"-c"}),
        ("--no-a_b", {"--no-a-b", "--a-b"}),
        ("--a-b.c=1", {"--a-b.c", "--a-b"}),
        ("-1", set[str]()),
        ("--a b --c", {"--a"}),
    ],
)
def test_the_names_of_flags_are_known_in_every_form(parameter: str, names: set[str]) -> None:
    assert names_in([parameter]) == names


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (None, ("--a=b", "--c", "d e", "--flag", "--n", "-1", "word", "-x")),
        ("space", ("--a", "b", "--c", "d e", "--flag", "--n", "-1", "word", "-x")),
        ("equal", ("--a=b", "--c=d e", "--flag", "--n=-1", "word", "-x")),
    ],
)
def test_flags_are_given_in_the_form_that_an_engine_reads(
    style: Literal["space", "equal"] | None, expected: tuple[str, ...]
) -> None:
    parameters = ("--a=b", "--c d e", "--flag", "--n", "-1", "word", "-x")
    assert formatted(parameters, style) == expected
