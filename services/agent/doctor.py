"""`python -m services.agent doctor [--json]`, and `muster agent doctor`: looks, judges, prints."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from kernel.accounts import inbox_prefix, public_key, worker_id_of
from kernel.bus import Bus
from kernel.errors import Unavailable
from kernel.settings import BadSettings
from services.agent.adapters.examination import examine, within
from services.agent.domain.checkup import Finding, Wanted, exit_code, findings
from services.agent.settings import AgentSettings

NATS_SECONDS: Final = 5.0
_SIGNS: Final = {"good": "ok", "note": "note", "lacking": "LACKING", "broken": "BROKEN"}


def diagnose(environment: Mapping[str, str] = os.environ) -> tuple[Finding, ...]:
    """Takes seconds, half a minute where a driver hangs."""
    try:
        settings, problem = AgentSettings.from_environment(environment), None
    except BadSettings as error:
        settings, problem = AgentSettings(), str(error)
    address = settings.engine_bind or settings.worker_ip or "0.0.0.0"  # noqa: S104 - tried, and let go
    seen = examine(settings.data_dir, settings.engine_ports, address, settings.docker_host)
    seen = replace(seen, settings_problem=problem)
    if "MUSTER_NATS_SERVERS" in environment:
        silent = f"no answer in {NATS_SECONDS:g} s"
        seen = replace(
            seen,
            nats=settings.nats_servers,
            nats_problem=within(NATS_SECONDS + 2, lambda: asyncio.run(_nats_problem(settings)), silent),
        )
    return findings(seen, Wanted(settings.runtime, settings.gpu_handover))


async def _nats_problem(settings: AgentSettings) -> str | None:
    seed = settings.agent_nkey_seed or settings.nats_nkey_seed
    if seed is None:
        return "MUSTER_AGENT_NKEY_SEED (or MUSTER_AGENT_NKEY_SEED_FILE) is missing: it is the worker's identity"
    try:
        prefix = inbox_prefix("agent", worker_id_of(public_key(seed.get_secret_value())))
    except Exception as error:  # noqa: BLE001 - whatever the library says of a text that is no seed
        return f"MUSTER_AGENT_NKEY_SEED is no seed of an NKey: {error}"
    bus_settings = settings.model_copy(update={"nats_nkey_seed": seed}).bus(inbox_prefix=prefix)
    try:
        bus = await Bus.connect("agent doctor", bus_settings, timeout_seconds=NATS_SECONDS)
    except Unavailable as error:
        return str(error)
    await bus.close()
    return None


def as_text(found: Sequence[Finding]) -> str:
    lines: list[str] = []
    for each in found:
        lines.append(f"{_SIGNS[each.severity]:8} {each.subject}: {each.said}")
        if each.remedy:
            lines.append(f"{'':8} → {each.remedy}")
    return "\n".join(lines)


def as_json(found: Sequence[Finding]) -> str:
    return json.dumps({"exit_code": exit_code(found), "findings": [asdict(each) for each in found]}, ensure_ascii=False)


def main(arguments: Sequence[str]) -> int:
    if unknown := [argument for argument in arguments if argument != "--json"]:
        sys.stderr.write(f"muster agent doctor: {unknown[0]} is no option; there is --json\n")
        return 2
    found = diagnose()
    sys.stdout.write((as_json(found) if arguments else as_text(found)) + "\n")
    return exit_code(found)
