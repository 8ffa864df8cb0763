"""A launch as one worker runs it: a hub's files are where its downloader put them."""

from collections.abc import Iterable

from schemas.assignment import AssignedFile
from schemas.models import Launch
from schemas.reasons import ModelNotFound
from schemas.sources import LocalPath, Source
from services.agent.domain.runtime import EngineNotStarted


def local(launch: Launch, files: Iterable[AssignedFile]) -> Launch:
    """`files`: of the instance, on this worker. Raises EngineNotStarted."""
    found = {file.source: file.model_path for file in files}

    def here(source: Source) -> LocalPath:
        if isinstance(source, LocalPath):
            return source
        path = found.get(source)
        if path is None:
            raise _missing(source)
        return LocalPath(path=path)

    speculation = launch.speculative_config
    if speculation is not None and speculation.draft_model is not None:
        speculation = speculation.model_copy(update={"draft_model": here(speculation.draft_model)})
    return launch.model_copy(
        update={
            "source": here(launch.source),
            "lora_list": tuple(lora.model_copy(update={"source": here(lora.source)}) for lora in launch.lora_list),
            "speculative_config": speculation,
        }
    )


def path_of(source: Source) -> str:
    """Of a launch that was made local."""
    if not isinstance(source, LocalPath):
        raise _missing(source)
    return source.path


def _missing(source: Source) -> EngineNotStarted:
    """As far as the assignment says."""
    return EngineNotStarted((ModelNotFound(path=source.label),), f"{source.label} is not on this worker")
