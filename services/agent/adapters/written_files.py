"""Files that an engine reads when it starts."""

import os
from pathlib import Path

from services.agent.domain.disk import not_written
from services.agent.domain.runtime import EngineCommand, EngineNotStarted

MODE = 0o600


def prepare(command: EngineCommand) -> None:
    """Its files are there, whole. Raises EngineNotStarted."""
    owner = _owner(command)
    for name, text in command.files.items():
        path = Path(name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.unlink(missing_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="utf-8") as file:
                file.write(text)
            if owner is not None:
                os.chown(part, *owner)
                os.chown(path.parent, *owner)
            part.replace(path)
        except OSError as error:
            reason = not_written(path, error)
            raise EngineNotStarted((reason,), reason.sentence()) from error


def _owner(command: EngineCommand) -> tuple[int, int] | None:
    """Whom its files are to belong to: the user that it runs as in its container, where that is not the agent's own."""
    user = command.container.needs.user if command.container is not None else None
    if user is None or os.geteuid() != 0:
        return None
    uid, _, gid = user.partition(":")
    return int(uid), int(gid or uid)
