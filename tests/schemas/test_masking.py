"""Passwords and keys are left out of whatever is shown."""

import json

import pytest

from kernel.engine_keys import draw
from schemas.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:p%40ss@proxy:3128", "http://***@proxy:3128"),
        ("using https://token@hub.example.com/a?b=c.", "using https://***@hub.example.com/a?b=c."),
        ("http://user:p@ss@proxy:3128/x and socks5h://u:p@h", "http://***@proxy:3128/x and socks5h://***@h"),
        ("postgresql+asyncpg://muster:secret@db/muster", "postgresql+asyncpg://***@db/muster"),
        ("HTTPS_PROXY=http://:only@proxy", "HTTPS_PROXY=http://***@proxy"),
    ],
)
def test_a_password_in_an_address_is_left_out(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_key_of_an_engine_is_left_out() -> None:
    assert masked(f"ServerArgs(api_key='{draw()}', port=1)") == "ServerArgs(api_key='***', port=1)"


@pytest.mark.parametrize(
    "text",
    [
        "me@example.com",
        "http://proxy:3128/a@b",
        "docker.io/vllm@sha256:0a1b",
        "mek_short",
        "http://a/ b@c",
        "a@b http://c",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert masked(text) == text


def test_a_document_stays_one() -> None:
    document = {"a": 'http://u:p"q@h', "b": "http://u:p@h", "c": ["x@y", draw()]}
    assert json.loads(masked(json.dumps(document))) == {"a": 'http://u:p"q@h', "b": "http://***@h", "c": ["x@y", "***"]}
