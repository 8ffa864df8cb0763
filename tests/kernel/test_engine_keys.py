"""Only the gateways' seed opens what is sealed for it, and only for the attempt that it was sealed for."""

import base64
from dataclasses import replace

import pytest

from kernel.accounts import new_seed, public_key
from kernel.engine_keys import Holder, SealedKeys, draw, is_public_key, seal
from kernel.settings import BadSettings
from schemas.ids import InstanceId, WorkerId

HOLDER = Holder(WorkerId("w-1"), InstanceId("i-1"), 1)


def test_what_is_sealed_is_opened_by_whoever_has_the_seed() -> None:
    seed, key = new_seed(), draw()
    sealed = seal(key, HOLDER, public_key(seed))
    assert SealedKeys([seed]).opened(sealed, HOLDER) == key
    assert SealedKeys([new_seed(), seed]).opened(sealed, HOLDER) == key
    assert SealedKeys([new_seed()]).opened(sealed, HOLDER) is None
    assert SealedKeys([]).opened(sealed, HOLDER) is None


def test_nobody_passes_off_a_strangers_key_as_his_own() -> None:
    seed = new_seed()
    sealed = seal(draw(), HOLDER, public_key(seed))
    for other in (
        replace(HOLDER, worker_id=WorkerId("w-2")),
        replace(HOLDER, instance_id=InstanceId("i-2")),
        replace(HOLDER, attempt=11),
        replace(HOLDER, attempt=2),
    ):
        assert SealedKeys([seed]).opened(sealed, other) is None


def test_the_number_of_an_attempt_is_read_to_its_end() -> None:
    seed = new_seed()
    sealed = seal(draw(), replace(HOLDER, attempt=11), public_key(seed))
    assert SealedKeys([seed]).opened(sealed, HOLDER) is None


def test_what_is_no_box_is_opened_by_nobody() -> None:
    keys = SealedKeys([new_seed()])
    sealed = seal(draw(), HOLDER, public_key(new_seed()))
    for text in ("", "A", "AAAA", "!", sealed[:-4], base64.b64encode(b"\0" * 100).decode()):
        assert keys.opened(text, HOLDER) is None


def test_keys_and_boxes_are_never_the_same_twice() -> None:
    public = public_key(new_seed())
    assert len({draw() for _ in range(100)}) == 100
    assert len({seal("mek_x", HOLDER, public) for _ in range(10)}) == 10


def test_only_the_public_half_of_a_key_is_one() -> None:
    seed = new_seed()
    public = public_key(seed)
    assert is_public_key(public)
    for text in ("", "U", seed, public[:-1], public.lower(), "é" * 56, public[:10] + "A" * 46):
        assert not is_public_key(text), text


def test_what_is_no_seed_is_said_when_the_api_starts() -> None:
    for text in ("", "SUA", public_key(new_seed())):
        with pytest.raises(BadSettings, match="MUSTER_ENGINE_KEY_SEED"):
            SealedKeys([text])
