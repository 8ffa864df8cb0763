import os
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.downloader.domain.names import MOST_FILES, TooManyFiles, UnsafeName, check_names
from tests.services.downloader.repositories import REPOSITORIES


def problem_of(*names: str) -> tuple[str, str] | None:
    try:
        check_names(names)
    except UnsafeName as unsafe:
        return unsafe.name, unsafe.problem
    return None


@pytest.mark.parametrize("names", REPOSITORIES.values(), ids=REPOSITORIES)
def test_what_real_repositories_hold_may_be_written(names: tuple[str, ...]) -> None:
    check_names(names)


@pytest.mark.parametrize(
    "name",
    [
        "...",
        "..a",
        "a..b/c..",
        "a b/c d.json",
        "C/model.gguf",
        "ab:c",
        "muster",
        "a/.muster",
        ".muster2",
        ".gitattributes",
        "模型/权重.safetensors",
        "modèle.gguf",
        "❤\ufe0f.txt",
        "-rf",
        "~",
        "$HOME",
        "x" * 255,
        "/".join(["x" * 127] * 8) + "y",
    ],
)
def test_an_unusual_name_is_written_when_it_is_one_on_every_file_system(name: str) -> None:
    assert problem_of(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it has the part ''"),
        (".", "it has the part '.'"),
        ("..", "it has the part '..'"),
        ("../../evil", "it has the part '..'"),
        ("a/../../evil", "it has the part '..'"),
        ("a/./b", "it has the part '.'"),
        ("a//b", "it has the part ''"),
        ("a/", "it has the part ''"),
        ("/etc/passwd", "it is absolute"),
        ("//host/share", "it is absolute"),
        ("a\\..\\b", "it has a backslash"),
        ("C:evil", "it names a drive"),
        ("C:/evil", "it names a drive"),
        ("a/d:/evil", "it names a drive"),
        (".muster", ".muster is ours"),
        (".muster/state.json", ".muster is ours"),
        (".MuSter/state.json", ".muster is ours"),
        (".mu\ufe0fster/state.json", ".muster is ours"),
        (".muſter/state.json", ".muster is ours"),
        ("x" * 256, "a part of it is longer than 255 bytes"),
        ("a/" + "ü" * 128, "a part of it is longer than 255 bytes"),
        ("/".join(["x" * 127] * 8) + "yy", "it is longer than 1024 bytes"),
        ("/".join(["ü" * 100] * 6), "it is longer than 1024 bytes"),
    ],
)
def test_a_name_that_a_repository_must_not_make_us_write_is_refused(name: str, problem: str) -> None:
    found = problem_of("config.json", name)
    assert found is not None
    assert found[1] == problem


def test_a_part_that_some_file_system_reads_as_the_parent_is_refused() -> None:
    assert problem_of("a/.\ufe0f./b") == ("a/.\ufe0f./b", "it has the part '.\ufe0f.'")
    assert problem_of("a/\u2025/b") == ("a/\u2025/b", "it has the part '\u2025'")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\0b", r"a\x00b"),
        ("a\nb", r"a\nb"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x7fb", r"a\x7fb"),
        ("a\x85b", r"a\x85b"),
        ("a\u202egpj.py", r"a\u202egpj.py"),
        ("a\u200bb", r"a\u200bb"),
        ("a\u2028b", r"a\u2028b"),
        ("a\ud800b", r"a\ud800b"),
    ],
)
def test_a_name_with_something_that_is_not_shown_is_refused_and_told_in_a_form_that_is(name: str, shown: str) -> None:
    assert problem_of(name) == (shown, "it has a character that is not shown")


def test_what_is_told_of_a_name_is_short() -> None:
    with pytest.raises(UnsafeName) as raised:
        check_names(["x" * 10**6])
    assert str(raised.value) == f"{'x' * 80}…: it is longer than 1024 bytes"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("README.md", "readme.md"),
        ("a/Config.json", "A/config.json"),
        ("stra\u00dfe", "STRASSE"),
        ("mod\u00e8le", "mode\u0300le"),
        ("MOD\u00c8LE", "mode\u0300le"),
        ("\ufb01le", "file"),
        ("heart\ufe0f", "heart"),
        ("model\u2460", "model1"),
        ("\u2121", "tel"),
        ("same", "same"),
    ],
)
def test_two_names_that_would_overwrite_each_other_somewhere_are_refused(one: str, other: str) -> None:
    assert problem_of(one, "config.json", other) == (other, f"some file systems don't tell it from {one}")


@pytest.mark.parametrize(
    ("file", "below"), [("a", "a/b"), ("a", "A/b"), ("a/b", "a/b/c/d"), ("mod\u00e8le", "mode\u0300le/x")]
)
def test_a_name_that_is_also_a_directory_is_refused_in_either_order(file: str, below: str) -> None:
    refused = (below, f"{file} is a file, not a directory")
    assert problem_of(file, below) == refused
    assert problem_of(below, file) == refused


def test_names_that_only_begin_alike_are_none_of_that() -> None:
    check_names(["a", "a.b/c", "ab/c", "b/a"])


def test_more_files_than_any_model_has_are_refused() -> None:
    check_names([f"{number}.json" for number in range(MOST_FILES)])
    with pytest.raises(TooManyFiles) as raised:
        check_names([f"{number}.json" for number in range(MOST_FILES + 1)])
    assert raised.value.count == 2001
    assert raised.value.problem == "2001 files are more than 2000"


_PARTS = st.sampled_from(["a", "b", ".", "..", "", "c.json", ".muster", "…"])


@given(st.one_of(st.text(max_size=20), st.lists(_PARTS, max_size=6).map("/".join)))
@example("a/../b")
@example("/a")
@example("a/")
def test_a_name_that_passes_stays_where_it_is_put(name: str) -> None:
    if problem_of(name) is None:
        root = "/files/of/a/model"
        assert os.path.normpath(name) == name
        path = os.path.normpath(os.path.join(root, name))  # noqa: PTH118 - pathlib would tidy the name up
        assert path == f"{root}/{name}"
        assert path.encode().decode() == path
        assert not any(unicodedata.category(character).startswith("Cc") for character in name)


@given(st.lists(st.lists(st.sampled_from("aAbéÉ"), min_size=1, max_size=3).map("/".join), max_size=6))
def test_names_that_pass_together_pass_in_any_order_and_never_meet(names: list[str]) -> None:
    passes = problem_of(*names) is None
    assert passes == (problem_of(*reversed(names)) is None)
    if passes:
        lower = [name.lower() for name in names]
        assert len(set(lower)) == len(names)
        assert not any(other.startswith(f"{name}/") for name in lower for other in lower)
