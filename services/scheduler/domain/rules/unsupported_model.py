"""The backend must be able to read the files: llama.cpp reads GGUF and nothing else."""

from schemas.models import ModelSpec
from schemas.reasons import UnsupportedModel
from services.scheduler.domain.snapshot import Candidate


def unsupported_model(candidate: Candidate, spec: ModelSpec) -> UnsupportedModel | None:
    weights = candidate.inspection.weights if candidate.inspection else None
    if weights is None or spec.backend != "llama.cpp" or weights.format == "gguf":
        return None
    return UnsupportedModel(detail=f"llama.cpp reads GGUF files, and these are {weights.format}")
