"""Files that an engine reads when it starts."""

from pathlib import Path

from schemas.reasons import ContainerNotStarted
from services.agent.domain.runtime import EngineCommand, EngineNotStarted

MODE = 0o640


def prepare(command: EngineCommand) -> None:
    """Its files are there, whole. Raises EngineNotStarted."""
    for name, text in command.files.items():
        path = Path(name)
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.chmod(MODE)
            part.replace(path)
        except OSError as error:
            reason = ContainerNotStarted(problem=f"{path} can't be written: {error.strerror}")
            raise EngineNotStarted((reason,), reason.sentence()) from error
