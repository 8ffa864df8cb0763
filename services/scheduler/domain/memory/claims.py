"""The published rule of the field for what a model takes (facts of 2026-08): a factor on its weights, and a constant.

Language models: (weights + adapters) × 1.2 + 2 GiB. Others: weights × 1.2 + 512 MiB; text to speech × 3; diffusion: the
weights. A draft model is a second model beside the first: its weights × 1.2.
"""

from typing import Final

from schemas.models import Category, ModelWeights

LLM_EXTRA_BYTES: Final = 2 * 2**30
OTHER_EXTRA_BYTES: Final = 512 * 2**20


def claimed_bytes(weights: ModelWeights, category: Category) -> int:
    """Of one copy of the model, over all GPUs that share it."""
    draft = int(weights.draft_bytes * 1.2)
    match category:
        case "image":
            return weights.weight_bytes + weights.lora_bytes + draft
        case "text_to_speech":
            return int(weights.weight_bytes * 3) + OTHER_EXTRA_BYTES + draft
        case "embedding" | "reranker" | "speech_to_text":
            return int(weights.weight_bytes * 1.2) + OTHER_EXTRA_BYTES + draft
        case "llm" | "unknown":
            return int((weights.weight_bytes + weights.lora_bytes) * 1.2) + LLM_EXTRA_BYTES + draft
