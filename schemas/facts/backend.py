"""Backends that operators defined. The api says what is wanted; a definition in force is the newest one."""

from typing import ClassVar

from schemas.backends import InferenceBackend, backend_id_of
from schemas.facts.base import Fact, Owner
from schemas.ids import BackendId


class BackendFact(Fact):
    kind: ClassVar[str] = "backend"
    owner: ClassVar[Owner] = "api"

    @property
    def name(self) -> str:
        raise NotImplementedError  # pragma: no cover - each fact has its own

    @property
    def backend_id(self) -> BackendId:
        """Made from the name, so that two of one name can't come to be."""
        return backend_id_of(self.name)

    @property
    def resource_id(self) -> str:
        return self.backend_id


class BackendCreated(BackendFact):
    """An operator defined a backend, or took the place of a built-in one."""

    type: ClassVar[str] = "BackendCreated"
    backend: InferenceBackend

    @property
    def name(self) -> str:
        return self.backend.backend_name


class BackendUpdated(BackendFact):
    """An operator changed a backend; the whole new definition. Engines that run are left alone, later attempts follow it."""

    type: ClassVar[str] = "BackendUpdated"
    backend: InferenceBackend

    @property
    def name(self) -> str:
        return self.backend.backend_name


class BackendDeleted(BackendFact):
    """An operator wants the definition no more; a built-in one of the same name is in force again."""

    type: ClassVar[str] = "BackendDeleted"
    backend_name: str

    @property
    def name(self) -> str:
        return self.backend_name
