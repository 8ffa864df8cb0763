"""The backend must be able to read the files: llama.cpp reads GGUF and nothing else."""

from schemas.reasons import UnsupportedModel
from services.scheduler.domain.candidate import Candidate


def unsupported_model(candidate: Candidate) -> UnsupportedModel | None:
    estimate = candidate.estimate
    if estimate is None or candidate.request.spec.backend != "llama.cpp" or estimate.weights.format == "gguf":
        return None
    return UnsupportedModel(
        worker_id=candidate.machine.id, detail=f"llama.cpp reads GGUF files, and these are {estimate.weights.format}"
    )
