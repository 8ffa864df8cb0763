"""By which proxies and from which hub an engine loads: as its machine does, unless its author says otherwise.

Programs read these names in capitals or not, and some read both: whoever gives one of the two has given both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from services.agent.domain.engines.start import Start
from services.agent.domain.runtime import EngineCommand

HANDED_ON: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT")
EXCEPTED: Final = "NO_PROXY"
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def by_proxies(
    start: Start, command: EngineCommand, machine: Mapping[str, str], bus: str, near: Iterable[str] = ()
) -> EngineCommand:
    """The same engine with its machine's proxies (`machine`: the agent's environment), and with none to the fleet itself.

    `bus`: the addresses of the NATS servers. `near`: what the assignment calls so.
    """
    members = (start.assigned.leader_address, *(member.address for member in start.members))
    fleet = (start.address, *members, *hosts(bus), *near)
    return replace(command, env={**command.env, **proxies(command.env, machine, fleet)})


def proxies(authors: Mapping[str, str], machine: Mapping[str, str], fleet: Iterable[str] = ()) -> dict[str, str]:
    """What is added to the author's variables: values go on as they are, and `NO_PROXY` always has the fleet and loopback."""
    handed_on = {
        spelling: machine[spelling]
        for name in HANDED_ON
        if not _given(name, authors)
        for spelling in (name, name.lower())
        if spelling in machine
    }
    excepted = _given(EXCEPTED, authors) or _given(EXCEPTED, machine)
    listed = [host.strip() for text in excepted for host in text.split(",")]
    no_proxy = ",".join(dict.fromkeys(host for host in (*listed, *LOOPBACK, *fleet) if host))
    return handed_on | {EXCEPTED: no_proxy, EXCEPTED.lower(): no_proxy}


def hosts(addresses: str) -> tuple[str, ...]:
    """`nats://user:x@10.0.0.1:4222,nats://bus` → `10.0.0.1`, `bus`. What is no address is left out."""
    found: list[str] = []
    for address in addresses.split(","):
        try:
            host = urlsplit(address.strip() if "//" in address else f"//{address.strip()}").hostname
        except ValueError:
            continue
        found += [host] if host else []
    return tuple(found)


def _given(name: str, env: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(env[spelling] for spelling in (name, name.lower()) if spelling in env)
