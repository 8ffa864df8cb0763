"""What `muster up` refuses before it starts anything, where only this machine or this installation could show it."""

from pathlib import Path

import pytest

from services.cli import here, up
from services.cli.failed import Failed
from services.up import demo
from services.up.machine import NotSupported


def refusal(directory: Path, *, demo: bool = False) -> tuple[str, int]:
    with pytest.raises(Failed) as failed:
        here.look_before({"data_dir": directory}, demo=demo)
    assert not directory.exists()
    return str(failed.value), failed.value.exit_code


def test_a_machine_that_is_not_supported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(**_: object) -> None:
        raise NotSupported("not here, but there")

    monkeypatch.setattr(here, "look_at_machine", look)
    assert refusal(tmp_path / "data") == ("not here, but there", 2)


def test_the_demo_without_its_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "services" / "up" / "demo.py"))
    sentence = (
        f"the demo's model {tmp_path}/examples/models/tinychat-f16.gguf is not there: it comes with a clone of the repository,"
        " not with an installed package; start without --demo and deploy a model of your own"
    )
    assert refusal(tmp_path / "data", demo=True) == (sentence, 2)


def test_a_key_that_was_given_is_not_shown() -> None:
    assert up.ready_lines("http://127.0.0.1:8700", "secret", None, None) == (
        "Address: http://127.0.0.1:8700 (OpenAI's API under /v1, Muster's under /v2)\n"
        "Key:     the one that you gave in MUSTER_API_KEY\n"
        'Try:     curl http://127.0.0.1:8700/v2/workers -H "Authorization: Bearer $MUSTER_API_KEY"\n'
    )
