"""What lies at which path on which simulated worker."""

import hashlib
from fnmatch import fnmatchcase

from schemas.asks import ModelInspection
from schemas.models import ModelWeights, Pinned
from schemas.reasons import ModelNotFound
from schemas.sources import LocalPath, Source
from services.simulator.domain.fleet import Fleet


def inspect(fleet: Fleet, worker_name: str, source: Source) -> ModelInspection:
    found = fleet.models.get(source.label, fleet.other_models)
    if found is None or any(fnmatchcase(worker_name, pattern) for pattern in found.missing_on):
        return ModelInspection(reasons=(ModelNotFound(path=source.label),))
    fields = {name: getattr(found, name) for name in ModelWeights.model_fields}
    more: dict[str, object] = {"files": found.files or (source.label,)}
    if not isinstance(source, LocalPath):
        commit = hashlib.sha1(source.label.encode(), usedforsecurity=False).hexdigest()
        more["pinned"] = (Pinned(source=source, commit=commit, bytes=found.weight_bytes),)
    return ModelInspection(weights=ModelWeights.model_validate(fields | more))
