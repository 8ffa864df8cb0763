"""Names are aggregates: who has one is stated by the api, guarded by the name's own sequence."""

import hashlib
from typing import ClassVar

from schemas.facts.base import Fact, Owner


def name_hash(name: str) -> str:
    """A subject token for any name: names that differ in case only are one name."""
    return hashlib.sha256(name.casefold().encode()).hexdigest()[:32]


class NameFact(Fact):
    kind: ClassVar[str] = "name"
    owner: ClassVar[Owner] = "api"
    of: str
    """The kind of resource that bears the name: `model`."""
    name: str

    @property
    def resource_id(self) -> str:
        return f"{self.of}~{name_hash(self.name)}"


class NameTaken(NameFact):
    """A resource bears this name from now on."""

    type: ClassVar[str] = "NameTaken"
    bearer: str
    """The id of the resource."""


class NameFreed(NameFact):
    """The name may be taken again."""

    type: ClassVar[str] = "NameFreed"
