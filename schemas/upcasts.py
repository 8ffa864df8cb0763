"""How facts of former versions are read as the newest one: pure steps, version N to N+1, chained.

Nothing in the log is ever rewritten. A golden file for each type and version is kept in tests/golden for ever.
"""

from collections.abc import Callable
from typing import Any, Final

Step = Callable[[dict[str, Any]], dict[str, Any]]

STEPS: Final[dict[tuple[str, int], Step]] = {}
"""(type, N) → the step from version N to N+1. Empty: every type is still at its first version."""


def upcast(
    type_name: str, version: int, newest: int, data: dict[str, Any], steps: dict[tuple[str, int], Step] = STEPS
) -> dict[str, Any]:
    """Bring data of an older version to the newest. Raises KeyError when a step is missing, which a test rules out."""
    for n in range(version, newest):
        data = steps[type_name, n](data)
    return data
