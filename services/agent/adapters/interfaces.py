"""This machine's network interfaces and their addresses."""

import socket

import psutil

from kernel.settings import BadSettings


def address_of(interface: str) -> str:
    """Its first IPv4 address, else its first IPv6 address that is no link-local one. Raises BadSettings."""
    known = psutil.net_if_addrs()
    if interface not in known:
        raise BadSettings(
            f"MUSTER_WORKER_IFNAME is wrong: there is no interface {interface}, but {', '.join(sorted(known))}"
        )
    for family in (socket.AF_INET, socket.AF_INET6):
        for each in known[interface]:
            if each.family == family and not each.address.startswith("fe80"):
                return each.address
    raise BadSettings(f"MUSTER_WORKER_IFNAME is wrong: the interface {interface} has no address")


def interface_of(address: str) -> str | None:
    """None: no interface has this address (a name, or one that a router translates)."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def detect_address() -> str:
    """The address that this machine is reached at: the one it would talk to others from; loopback without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): a datagram socket sends nothing by connecting
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
