"""The streams: made in one place, verified everywhere else.

`provision` is run by `muster up` and `muster migrate` alone. Services call `verify` and stop on drift: a server that
drops a setting it does not know (an old one does, without an error) must never be trusted.
"""

from collections.abc import Mapping
from typing import Any, Final

from kernel.bus import Bus, JetStreamError
from kernel.errors import Unavailable
from schemas.subjects import ALL_ASSIGNED, ALL_FACTS, ALL_REPORTS, ASSIGNED, FACTS, REPORTS

_NANO: Final = 10**9
NOT_FOUND: Final = 10059
GENERATION: Final = "muster.generation"

STREAMS: Final[dict[str, dict[str, Any]]] = {
    FACTS: {
        "subjects": [ALL_FACTS],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": 512 * 1024,
        "duplicate_window": 300 * _NANO,
        "compression": "s2",
        "deny_delete": True,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
    },
    ASSIGNED: {
        "subjects": [ALL_ASSIGNED],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_msg_size": 1024 * 1024,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
    },
    REPORTS: {
        "subjects": [ALL_REPORTS],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": 7 * 86400 * _NANO,
        "max_bytes": 1024**3,
        "max_msg_size": 1024 * 1024,
        "allow_direct": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
    },
}


class Drift(Exception):
    """A stream is not as it should be: nothing is written to it."""

    def __init__(self, stream: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        super().__init__(stream, differences)
        self.stream = stream
        self.differences = differences

    def __str__(self) -> str:
        found = ", ".join(
            f"{k} is {have!r} and should be {want!r}" for k, (have, want) in sorted(self.differences.items())
        )
        return (
            f"stream {self.stream} is not as provisioned: {found}; run `muster migrate` with a server of 2.12 or newer"
        )


def generation_of(config: Mapping[str, Any]) -> int:
    return int((config.get("metadata") or {}).get(GENERATION, "1"))


async def provision(bus: Bus, *, replicas: int = 1) -> None:
    """Make or bring up to date all streams. Raises ServerTooOld, Drift when the server did not do what it was told."""
    bus.check_version()
    for name, settings in STREAMS.items():
        wanted = {"name": name, "num_replicas": replicas, **settings}
        try:
            info = await bus.js_api(f"STREAM.INFO.{name}")
        except JetStreamError as error:
            if error.err_code != NOT_FOUND:
                raise
            info = await bus.js_api(f"STREAM.CREATE.{name}", wanted | {"metadata": {GENERATION: "1"}})
        else:
            if differences := _differences(info["config"], settings):
                metadata = {GENERATION: str(generation_of(info["config"]))}
                try:
                    info = await bus.js_api(
                        f"STREAM.UPDATE.{name}", {**info["config"], **settings, "metadata": metadata}
                    )
                except JetStreamError as error:
                    raise Drift(name, differences) from error
        if differences := _differences(info["config"], settings):
            raise Drift(name, differences)


async def verify(bus: Bus) -> None:
    """What every service does at start. Raises ServerTooOld, Drift or Unavailable."""
    bus.check_version()
    for name, settings in STREAMS.items():
        try:
            info = await bus.js_api(f"STREAM.INFO.{name}")
        except JetStreamError as error:
            raise Unavailable(f"stream {name} is not there ({error}); run `muster migrate`") from error
        if differences := _differences(info["config"], settings):
            raise Drift(name, differences)


async def raise_generation(bus: Bus) -> int:
    """After a restore: positions of the former generation are told where to resume."""
    info = await bus.js_api(f"STREAM.INFO.{FACTS}")
    generation = generation_of(info["config"]) + 1
    await bus.js_api(f"STREAM.UPDATE.{FACTS}", {**info["config"], "metadata": {GENERATION: str(generation)}})
    return generation


def _differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not as wanted. An absent flag or number is the server's way to say false or none."""
    differences: dict[str, tuple[Any, Any]] = {}
    for key, wanted in want.items():
        found = have.get(key)
        if found != wanted and not (found is None and wanted in (False, 0)):
            differences[key] = (found, wanted)
    return differences
