"""Where engines keep what they compile: a directory for each model, so that one model's engine can't prepare what another's runs.

It outlives engines (a second start compiles nothing), and is removed when no engine of its model was started for a month.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Final

from schemas.ids import ModelId
from services.agent.domain.disk import not_written
from services.agent.domain.runtime import EngineNotStarted

KEPT_SECONDS: Final = 30 * 86400


class EngineCaches:
    def __init__(self, directory: Path, *, for_others: bool) -> None:
        """`for_others`: engines run as other users than the agent (containers); nobody else gets past the parent directory."""
        self._directory = directory.absolute()
        self._mode = 0o777 if for_others else 0o700

    def of(self, model_id: ModelId) -> str:
        """Raises EngineNotStarted."""
        path = self._directory / model_id
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            path.chmod(self._mode)
            os.utime(path)
        except OSError as error:
            reason = not_written(path, error)
            raise EngineNotStarted((reason,), reason.sentence()) from error
        self._remove_old()
        return str(path)

    def _remove_old(self) -> None:
        for each in self._directory.iterdir():
            if time.time() - each.stat().st_mtime >= KEPT_SECONDS:
                shutil.rmtree(each, ignore_errors=True)
