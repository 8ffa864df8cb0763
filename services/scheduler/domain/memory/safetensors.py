"""What an LLM from safetensors takes: weights × 1.2 + 2 GiB (the published rule of the field, facts of 2026-08)."""

from schemas.models import ModelWeights


def needed_bytes(weights: ModelWeights) -> int:
    return int(weights.weight_bytes * 1.2) + 2 * 2**30
