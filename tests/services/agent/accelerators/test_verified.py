"""What was verified on hardware is a record; the page for people is made from it."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from docs import generate
from docs.making import accelerators
from services.agent.domain.accelerators.vendors import VENDORS
from tests.services.agent.accelerators.recordings import RECORDED, cases

VERIFIED = RECORDED.parent / "verified.json"


def test_the_record_is_complete_and_well_formed() -> None:
    record: dict[str, list[dict[str, Any]]] = json.loads(VERIFIED.read_text(encoding="utf-8"))
    assert list(record) == [vendor.name for vendor in VENDORS]
    for vendor, entries in record.items():
        for entry in entries:
            assert entry.keys() == {"gpu", "driver", "date", "cases"}, vendor
            assert date.fromisoformat(entry["date"]).year >= 2026
            assert set(entry["cases"].split(", ")) <= set(cases(vendor))


def test_what_was_verified_since_is_on_the_page_and_a_page_without_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RECORDED.parent, tmp_path / "accelerators")
    monkeypatch.setattr(accelerators, "TESTS", tmp_path / "accelerators")
    monkeypatch.setattr(generate, "PAGES", {"accelerators.md": accelerators.page})
    generate.write(tmp_path)
    assert generate.check(tmp_path) == 0
    assert (tmp_path / "accelerators.md").read_text(encoding="utf-8").count("| not yet |") == len(VENDORS)

    record = json.loads(VERIFIED.read_text(encoding="utf-8"))
    record["nvidia"] = [{"gpu": "H100", "driver": "570.172.08", "date": "2027-01-02", "cases": "one, in_use"}]
    (tmp_path / "accelerators" / "verified.json").write_text(json.dumps(record), encoding="utf-8")
    assert generate.check(tmp_path) == 1
    assert "| NVIDIA | H100, driver 570.172.08, 2027-01-02: one, in_use |" in capsys.readouterr().out


def test_the_page_says_what_each_vendors_tool_tells() -> None:
    page = accelerators.page()
    assert "| Moore Threads | yes | yes | yes | yes | yes | – | yes | – | – | yes | – |" in page
    assert "| Cambricon | yes | yes | yes | yes | yes | yes | yes | – | – | – | yes |" in page
    assert "`mx-smi`, `mx-smi -L`, `mx-smi topo -m`" in page
