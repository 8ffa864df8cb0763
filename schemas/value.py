"""What all documents on the bus have in common."""

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class Value(BaseModel):
    """A frozen document. A reader ignores fields that it does not know: they come from a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null", allow_inf_nan=False)


Instant = AwareDatetime
"""An instant with its zone, called `at`; UTC on the wire."""

MOST_BYTES: Final = 2**60
Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES)]
"""A size in bytes. Numbers above an exbibyte are mistakes or lies, and refused."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A count that JSON readers of every language can hold."""
