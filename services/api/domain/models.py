"""What a user may ask of a model, and the facts that it comes to."""

from typing import Any

from schemas.facts import ModelScaled, ModelUpdated
from schemas.ids import ModelId
from schemas.models import ModelSpec
from schemas.source_fields import fields_of


def changed(model_id: ModelId, before: ModelSpec, after: ModelSpec) -> ModelUpdated | ModelScaled | None:
    """The fact that leads from one wish to another; None when they are the same."""
    if before == after:
        return None
    if before.model_copy(update={"replicas": after.replicas}) == after:
        return ModelScaled(model_id=model_id, name=after.name, replicas=after.replicas)
    return ModelUpdated(model_id=model_id, spec=after)


def written_as(spec: ModelSpec) -> dict[str, Any]:
    """A wish as it would be sent: the sources' fields beside the others, as the peer's API has them."""
    document = spec.model_dump(mode="json", exclude={"source", "lora_list", "speculative_config"})
    speculation = spec.speculative_config
    return (
        document
        | fields_of(spec.source)
        | {
            "lora_list": [{"lora_name": lora.lora_name} | fields_of(lora.source) for lora in spec.lora_list],
            "speculative_config": None
            if speculation is None
            else {"algorithm": speculation.algorithm, "draft_tokens": speculation.draft_tokens}
            | fields_of(speculation.draft_model),
        }
    )
