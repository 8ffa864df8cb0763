from collections.abc import Mapping

import pytest

from docs import generate


@pytest.fixture(scope="session")
def made() -> Mapping[str, str]:
    """What the code says now, made once."""
    return {name: make() for name, make in generate.PAGES.items()}
