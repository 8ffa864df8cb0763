"""Settings come from the environment, and what is wrong with them is one sentence."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from kernel.settings import BadSettings, BusSettings, ServiceSettings, Settings


class Demo(Settings):
    port: int = 8700
    name: str = "muster"
    verbose: bool = False
    api_key: SecretStr | None = None


class Demanding(Settings):
    worker_id: str


def test_without_an_environment_the_defaults_hold() -> None:
    assert Demo.from_environment({}) == Demo(port=8700, name="muster", verbose=False, api_key=None)


def test_each_field_is_read_from_the_variable_with_its_name() -> None:
    environment = {"MUSTER_PORT": "1234", "MUSTER_NAME": "x", "MUSTER_VERBOSE": "true", "MUSTER_API_KEY": "secret"}

    assert Demo.from_environment(environment) == Demo(port=1234, name="x", verbose=True, api_key=SecretStr("secret"))


def test_what_is_not_ours_is_not_read() -> None:
    assert Demo.from_environment({"PORT": "1", "muster_port": "2", "MUSTER_OTHER": "3", "XMUSTER_PORT": "4"}) == Demo()


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_PORT", "4321")

    assert Demo.from_environment().port == 4321


def test_a_secret_is_read_from_a_file_without_the_line_break_that_editors_leave(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("geheim-ß\n", encoding="utf-8")

    settings = Demo.from_environment({"MUSTER_API_KEY_FILE": str(file)})

    assert settings.api_key == SecretStr("geheim-ß")


def test_a_value_counts_more_than_a_file_and_an_override_more_than_both(tmp_path: Path) -> None:
    file = tmp_path / "port"
    file.write_text("1")
    both = {"MUSTER_PORT_FILE": str(file), "MUSTER_PORT": "2"}

    assert Demo.from_environment(both).port == 2
    assert Demo.from_environment(both, port=3).port == 3
    assert Demo.from_environment(both, port=None).port == 2


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"MUSTER_PORT": "many"},
            "MUSTER_PORT is wrong: Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            {"MUSTER_PORT": ""},
            "MUSTER_PORT is wrong: Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            {"MUSTER_VERBOSE": "perhaps"},
            "MUSTER_VERBOSE is wrong: Input should be a valid boolean, unable to interpret input",
        ),
        (
            {"MUSTER_API_KEY_FILE": "/nowhere/key"},
            "MUSTER_API_KEY_FILE=/nowhere/key can't be read: No such file or directory",
        ),
        ({"MUSTER_API_KEY_FILE": "/"}, "MUSTER_API_KEY_FILE=/ can't be read: Is a directory"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_variable(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadSettings) as bad:
        Demo.from_environment(environment)

    assert str(bad.value) == sentence


def test_a_file_that_is_no_text_is_one_sentence_too(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(BadSettings) as bad:
        Demo.from_environment({"MUSTER_API_KEY_FILE": str(file)})

    assert str(bad.value) == f"MUSTER_API_KEY_FILE={file} can't be read: it is not UTF-8"


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(BadSettings, match=r"^MUSTER_WORKER_ID is wrong: Field required$"):
        Demanding.from_environment({})


def test_an_override_that_is_no_setting_is_refused() -> None:
    with pytest.raises(BadSettings, match=r"^MUSTER_PROT is wrong: Extra inputs are not permitted$"):
        Demo.from_environment({}, prot=1)


def test_a_secret_is_shown_nowhere() -> None:
    class Strict(Settings):
        api_key: SecretStr
        port: int = 1

    environment = {"MUSTER_API_KEY": "hunter2", "MUSTER_PORT": "hunter2"}

    with pytest.raises(BadSettings) as bad:
        Strict.from_environment(environment)

    assert "hunter2" not in str(bad.value)
    assert "hunter2" not in repr(Demo.from_environment({"MUSTER_API_KEY": "hunter2"}))


def test_settings_never_change() -> None:
    settings = Demo()

    with pytest.raises(ValidationError):
        settings.port = 1  # pyright: ignore[reportAttributeAccessIssue] - that is the test


def test_a_service_knows_its_servers_and_its_key() -> None:
    seed = SecretStr("SU…")
    settings = ServiceSettings.from_environment(
        {"MUSTER_NATS_SERVERS": " nats://a:4222, nats://b:4222 ,", "MUSTER_NATS_NKEY_SEED": "SU…"}
    )

    assert settings.bus(inbox_prefix="_INBOX_api") == BusSettings(
        servers=("nats://a:4222", "nats://b:4222"), nkey_seed=seed, inbox_prefix="_INBOX_api"
    )
