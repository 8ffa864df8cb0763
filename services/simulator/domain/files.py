"""What lies at which path on which simulated worker, and what simulated hubs have."""

import hashlib
from fnmatch import fnmatchcase
from typing import Final

from schemas.asks import InspectModel, ModelInspection
from schemas.models import ModelWeights, Pinned
from schemas.reasons import HubUnreachable, ModelNotFound, Reason, RepositoryNotFound
from schemas.sources import HubSource, LocalPath, Source
from services.simulator.domain.fleet import Fleet, Weights

HOST: Final = "hub.invalid"


def inspect(fleet: Fleet, worker_name: str, question: InspectModel, *, has_neighbour: bool = False) -> ModelInspection:
    """`has_neighbour`: another worker has it already, and no hub is asked."""
    source = question.source
    found = _found(fleet, worker_name, source, has_neighbour=has_neighbour)
    if not isinstance(found, Weights):
        return ModelInspection(reasons=(found,))
    pinned: list[Pinned] = []
    for each in (source, *question.adapters, *(() if question.draft is None else (question.draft,))):
        if isinstance(each, LocalPath):
            continue
        fetched = _found(fleet, worker_name, each, has_neighbour=has_neighbour)
        if not isinstance(fetched, Weights):
            return ModelInspection(reasons=(fetched,))
        pinned.append(Pinned(source=each, commit=commit_of(each), bytes=fetched.weight_bytes))
    fields = {name: getattr(found, name) for name in ModelWeights.model_fields}
    more = {"files": found.files or (source.label,), "pinned": tuple(pinned)}
    return ModelInspection(weights=ModelWeights.model_validate(fields | more))


def commit_of(source: HubSource) -> str:
    """Simulated repositories never change."""
    return hashlib.sha1(source.label.encode(), usedforsecurity=False).hexdigest()


def _found(fleet: Fleet, worker_name: str, source: Source, *, has_neighbour: bool) -> Weights | Reason:
    found = fleet.models.get(source.label, fleet.other_models)
    is_missing = found is not None and any(fnmatchcase(worker_name, pattern) for pattern in found.missing_on)
    if isinstance(source, LocalPath):
        return ModelNotFound(path=source.label) if found is None or is_missing else found
    if found is None:
        return RepositoryNotFound(repository=source.repo_id)
    return HubUnreachable(host=HOST, problem="no route to host") if is_missing and not has_neighbour else found
