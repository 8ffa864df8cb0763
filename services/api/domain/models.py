"""What a user may ask of a model, and the facts that it comes to."""

from schemas.facts import ModelScaled, ModelUpdated
from schemas.ids import ModelId
from schemas.models import ModelSpec

BACKENDS = ("llama.cpp",)
"""Backends that agents of this version can run."""


def changed(model_id: ModelId, before: ModelSpec, after: ModelSpec) -> ModelUpdated | ModelScaled | None:
    """The fact that leads from one wish to another; None when they are the same."""
    if before == after:
        return None
    if before.model_copy(update={"replicas": after.replicas}) == after:
        return ModelScaled(model_id=model_id, name=after.name, replicas=after.replicas)
    return ModelUpdated(model_id=model_id, spec=after)
