"""docs/reference/settings.md: every setting of every service."""

import sys
from collections.abc import Iterator
from typing import Final

from docs.making.words import GENERATED, attribute_docs, default_of, table, type_name
from kernel.settings import ServiceSettings, Settings
from services.agent.settings import AgentSettings
from services.api.settings import ApiSettings
from services.downloader.settings import DownloaderSettings
from services.scheduler.settings import SchedulerSettings
from services.simulator.settings import SimulatorSettings
from services.up.settings import UpSettings

SERVICES: Final[tuple[tuple[str, type[Settings]], ...]] = (
    ("`muster up`", UpSettings),
    ("Every service that runs alone", ServiceSettings),
    ("api", ApiSettings),
    ("scheduler", SchedulerSettings),
    ("agent", AgentSettings),
    ("downloader", DownloaderSettings),
    ("simulator", SimulatorSettings),
)


def page() -> str:
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield GENERATED
    yield from (
        "# Settings",
        "",
        "Read once, at start, from the environment. `MUSTER_X_FILE` names a file that holds the value of `MUSTER_X`: for secrets.",
        "A wrong value ends the program with one sentence and exit code 2.",
        "",
        "`muster up` passes its own settings on to the services in it; the others have their defaults there.",
        "",
    )
    for title, settings in SERVICES:
        yield from (f"## {title}", "")
        shared = () if settings is ServiceSettings else ServiceSettings.model_fields
        docs = attribute_docs(settings)
        rows = (
            (f"`MUSTER_{name.upper()}`", type_name(field.annotation), _default(default_of(field)), docs.get(name, ""))
            for name, field in settings.model_fields.items()
            if settings is UpSettings or name not in shared
        )
        yield from table(("Variable", "Type", "Default", ""), rows)


def _default(text: str) -> str:
    """Without what differs from machine to machine."""
    return text.replace(sys.executable, "python").replace("`gethostname()`", "the host name")
