"""By which interface others reach this machine."""

import pytest

from kernel.settings import BadSettings
from services.agent.adapters.interfaces import address_of, interface_of


def test_an_interface_tells_its_address_and_an_address_its_interface() -> None:
    assert address_of("lo") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadSettings, match=r"MUSTER_WORKER_IFNAME is wrong: there is no interface ib9, but .*\blo\b"):
        address_of("ib9")
