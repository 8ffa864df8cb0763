"""A key for each attempt of an engine: drawn on its worker, sealed for the gateways, opened by them alone.

A sealed box (libsodium's `crypto_box_seal`: X25519 with a throw-away sender, XSalsa20-Poly1305) for the Curve25519 form of an
NKey pair. The seed is the gateways'; its public half is all that anybody else needs. What may be read by everybody, in
a report or a fact, is the box.
"""

import base64
import binascii
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import nacl.exceptions
import nkeys
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.signing import SigningKey, VerifyKey

from kernel.settings import BadSettings
from schemas.ids import InstanceId, WorkerId
from schemas.masking import ENGINE_KEY

_PUBLIC_BYTES: Final = 35
"""One of prefix, 32 of key, two of checksum."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key it is. A box that says another one is none of his: nobody passes off a stranger's key as his own."""

    worker_id: WorkerId
    instance_id: InstanceId
    attempt: int

    def begins(self) -> bytes:
        return f"{self.worker_id} {self.instance_id} {self.attempt} ".encode()


def draw() -> str:
    """256 bits. It begins so that it can be left out of whatever is shown (`schemas/masking.py`)."""
    return ENGINE_KEY + secrets.token_urlsafe(32)


def seal(key: str, holder: Holder, public_key: str) -> str:
    """For whoever has the seed of this public NKey (`U…`). Raises ValueError when it is none."""
    box = SealedBox(_curve_key(public_key)).encrypt(holder.begins() + key.encode())
    return base64.b64encode(box).decode()


class SealedKeys:
    """What the seeds open: the current one's first, then former ones', as long as engines run that were started for them."""

    def __init__(self, seeds: Sequence[str]) -> None:
        """Raises BadSettings for what is no seed."""
        try:
            self._boxes = [SealedBox(_private_key(seed)) for seed in seeds]
        except (nkeys.NkeysError, ValueError) as error:
            raise BadSettings("MUSTER_ENGINE_KEY_SEED is no seed of an NKey (`SU…`)") from error

    def opened(self, sealed: str, holder: Holder) -> str | None:
        """None when no seed opens it, or when it is somebody else's."""
        try:
            content = base64.b64decode(sealed, validate=True)
        except binascii.Error:
            return None
        for box in self._boxes:
            try:
                opened = box.decrypt(content)
            except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError, nacl.exceptions.TypeError):
                continue
            if opened.startswith(holder.begins()):
                return opened.removeprefix(holder.begins()).decode(errors="replace")
        return None


def is_public_key(text: str) -> bool:
    try:
        _curve_key(text)
    except ValueError:
        return False
    return True


def _private_key(seed: str) -> PrivateKey:
    _, raw = nkeys.decode_seed(seed.strip().encode())
    return SigningKey(bytes(raw)).to_curve25519_private_key()


def _curve_key(public_key: str) -> PublicKey:
    """Raises ValueError."""
    try:
        raw = base64.b32decode(public_key + "=" * (-len(public_key) % 8))
    except binascii.Error as error:
        raise ValueError("not the public half of an NKey") from error
    if len(raw) != _PUBLIC_BYTES or nkeys.crc16(bytearray(raw[:-2])) != int.from_bytes(raw[-2:], "little"):
        raise ValueError("not the public half of an NKey")
    try:
        return VerifyKey(raw[1:-2]).to_curve25519_public_key()
    except (nacl.exceptions.CryptoError, RuntimeError) as error:  # 32 bytes that are no point of the curve
        raise ValueError("not the public half of an NKey") from error
