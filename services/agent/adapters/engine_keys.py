"""The keys of this worker's engines: `<directory>/<instance>/<attempt>.key`, which only the agent's user can read.

A key is kept as long as its attempt is, so that the next agent can go on asking the engine for its health.
"""

import contextlib
import os
import shutil
from pathlib import Path

from kernel.engine_keys import Holder, draw, is_public_key, seal
from schemas.assignment import AssignedInstance
from schemas.ids import WorkerId
from services.agent.domain.disk import not_written
from services.agent.domain.runtime import EngineId, EngineNotStarted


class EngineKeys:
    def __init__(self, directory: Path, worker_id: WorkerId) -> None:
        self._directory = directory.absolute()
        self._worker_id = worker_id

    def of_attempt(self, instance: AssignedInstance) -> str | None:
        """Drawn the first time. None where gateways have no key to seal it for. Raises EngineNotStarted."""
        if instance.engine_key_ref is None or not is_public_key(instance.engine_key_ref):
            return None
        engine = EngineId(instance.instance_id, instance.attempt)
        if (known := self.kept(engine)) is not None:
            return known
        path, key = self._path(engine), draw()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(key)
            part.replace(path)
        except OSError as error:
            reason = not_written(path, error)
            raise EngineNotStarted((reason,), reason.sentence()) from error
        return key

    def sealed(self, instance: AssignedInstance, key: str) -> str | None:
        if instance.engine_key_ref is None:
            return None
        return seal(key, Holder(self._worker_id, instance.instance_id, instance.attempt), instance.engine_key_ref)

    def kept(self, engine: EngineId) -> str | None:
        try:
            return self._path(engine).read_text(encoding="ascii") or None
        except (OSError, UnicodeDecodeError):
            return None

    def forget(self, engine: EngineId) -> None:
        """With whatever else was written for this attempt."""
        with contextlib.suppress(OSError):
            self._path(engine).unlink(missing_ok=True)
        shutil.rmtree(attempt_directory(self._directory, engine), ignore_errors=True)

    def _path(self, engine: EngineId) -> Path:
        return self._directory / engine.instance_id / f"{engine.attempt}.key"


def attempt_directory(engines: Path, engine: EngineId) -> Path:
    """For the files that an attempt is started with."""
    return engines / f"{engine.instance_id}.{engine.attempt}"
