"""Names of things. A token may stand in a NATS subject: no dot, no space, no wildcard."""

from typing import Annotated, Any, Final

from pydantic import GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, core_schema

TOKEN_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_~-]{0,63}$"  # noqa: S105 - a token of a subject
Token = Annotated[str, StringConstraints(pattern=TOKEN_PATTERN)]


class Identifier(str):
    """A string of its own type; pydantic checks that it is a token."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.str_schema(pattern=TOKEN_PATTERN)


class WorkerId(Identifier):
    """`w-…`: derived from the worker's public key, so a renamed worker or a new address is still the same worker."""

    __slots__ = ()


class ModelId(Identifier):
    """`m-…`: drawn by the api."""

    __slots__ = ()


class InstanceId(Identifier):
    """`i-…`: given by the scheduler; kept over all attempts."""

    __slots__ = ()


class BackendId(Identifier):
    """`b-…`: digest of the name, in whatever case."""

    __slots__ = ()


class FileId(Identifier):
    """`f-…`: digest of source, commit and worker; one file resource for each."""

    __slots__ = ()


NOBODY: Final = "-"
"""Stands in a subject that concerns neither a worker nor a name."""

NAME_PATTERN: Final = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""What people call a model or a worker: 1 to 63 of letters, digits, `.`, `_`, `-`; first and last a letter or digit."""
