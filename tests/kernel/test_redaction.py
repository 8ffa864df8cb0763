"""What is masked where a program printed a secret, and what is no secret."""

import pytest

from kernel.accounts import new_seed
from kernel.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://me:s3cr3t@proxy:3128/", "proxy http://***@proxy:3128/"),
        ("nats://token@host:4222", "nats://***@host:4222"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqrstuv is used", "hf_*** is used"),
        (
            "non-default args: {'api_key': ['c0ffeec0ffee'], 'port': 8000}",
            "non-default args: {'api_key': ['***'], 'port': 8000}",
        ),
        ("--api-key c0ffee123 --port 9", "--api-key *** --port 9"),
        ("HF_TOKEN=hunter2hunter2", "HF_TOKEN=***"),
        ('{"password": "correct horse"}', '{"password": "*** horse"}'),
        ("EOG token        = 151643 '<|endoftext|>'", "EOG token        = 151643 '<|endoftext|>'"),
        ("max_tokens=4096 total tokens: 123456", "max_tokens=4096 total tokens: 123456"),
        ("the api key is missing", "the api key is missing"),
        ("api_key=None", "api_key=None"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_the_seed_of_a_key_is_masked() -> None:
    assert redacted(f"seed {new_seed()}.") == "seed SU***."


def test_secrets_that_are_known_are_masked_wherever_they_stand() -> None:
    assert redacted("x=opensesame;y=opensesame", ("opensesame", "x")) == "x=***;y=***"
