"""What the pages name is there."""

from pathlib import Path

import pytest

from tests.docs.pages import GENERATED, ROOT, WRITTEN, anchors, files, links

HOW_TO = [page for page in WRITTEN if page.parent.name == "how-to"]


@pytest.mark.parametrize("page", [*WRITTEN, *GENERATED], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", [*WRITTEN, *GENERATED], ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    assert [name for name in files(page) if not (ROOT / name).exists()] == []


def test_every_rule_has_a_file_and_every_tick_list_names_some() -> None:
    assert len(files(ROOT / "services" / "README.md")) > 40
    assert {page.name for page in HOW_TO if not files(page)} == set()
    assert {page.stem for page in HOW_TO} == {
        "add-a-hub",
        "add-a-reason",
        "add-an-accelerator",
        "add-an-engine",
        "add-an-event",
        "simulate-a-fleet",
        "write-a-projection",
    }


def test_no_page_knows_the_machine_that_it_was_made_on() -> None:
    for page in [*WRITTEN, *(ROOT / "docs" / "reference").iterdir(), *(ROOT / "tests" / "golden").rglob("*.json")]:
        text = page.read_text(encoding="utf-8")
        assert str(ROOT) not in text, page
        assert str(Path.home()) not in text, page


def test_decisions_are_numbered_without_a_gap_and_have_the_same_parts() -> None:
    decisions = [page for page in WRITTEN if page.parent.name == "decisions"]
    for number, page in enumerate(decisions, start=1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Context",
            "## Decision",
            "## Consequences",
            "## What would change our mind",
        ]
