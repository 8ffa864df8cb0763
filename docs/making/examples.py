"""One believable example of each document, with every field filled: for pages, and for new golden files."""

import types
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from schemas.envelope import Envelope, dataschema
from schemas.facts.base import Fact
from schemas.reports import Report

M = TypeVar("M", bound=BaseModel)

AT: Final = "2026-11-23T22:14:05.123456Z"
GIB: Final = 2**30
PATH: Final = "/models/qwen3-8b-q4_k_m.gguf"
WORKER: Final = "w-7f3a2b9c1d4e"
NOT_ENOUGH: Final = {
    "code": "not_enough_vram",
    "worker_id": WORKER,
    "needed_bytes": 21_797_011_456,
    "largest_free_bytes": 16_213_082_931,
    "largest_total_bytes": 24 * GIB,
}
OUT_OF_MEMORY: Final = {"code": "out_of_memory", "worker_id": WORKER}
SILENT: Final = {"code": "worker_silent", "worker_id": WORKER, "silent_seconds": 10.2}
NOT_FOUND: Final = {"code": "model_not_found", "worker_id": WORKER, "path": PATH}

VALUES: Final[dict[str, Any]] = {
    # what is called the same everywhere
    "worker_id": WORKER,
    "closest": WORKER,
    "model_id": "m-01jdd3x0q8",
    "bearer": "m-01jdd3x0q8",
    "instance_id": "i-01jdd3x0q8-0",
    "file_id": "f-4227b133dc07aaa3126c",
    "file_ids": ["f-4227b133dc07aaa3126c"],
    "name": "qwen3-8b",
    "model_name": "qwen3-8b",
    "description": "for the support desk",
    "path": PATH,
    "paths": [PATH],
    "address": "10.0.0.7",
    "leader_address": "10.0.0.7",
    "port": 40000,
    "ports": [40000],
    "attempt": 2,
    "replicas": 2,
    "generation": 4711,
    "observed_at": AT,
    "at": AT,
    "boot_id": "01JDD3WZ5M9K3T7Q2R8V6B4N0C",
    "counter": 17,
    "agent_version": "0.1.0",
    "commit": "9f3c1e7",
    "bytes": 5 * GIB,
    "total": 5 * GIB,
    "weight_bytes": 5 * GIB,
    "needed_bytes": 20 * GIB,
    "free_bytes": 12 * GIB,
    "total_bytes": 32 * GIB,
    "largest_free_bytes": 16_213_082_931,
    "largest_total_bytes": 24 * GIB,
    "expected_bytes": 5 * GIB,
    "actual_bytes": 3 * GIB,
    "missing": ["qwen3-8b-00002-of-00002.gguf"],
    "problem": "bad magic",
    "backend": "llama.cpp",
    "backend_version": "b6800",
    "backends": {"llama.cpp": "b6800"},
    "available": ["llama.cpp"],
    "accelerator": "cuda",
    "gpu_ids": ["alpha:cuda:0"],
    "gpu_indexes": [0],
    "vram": {"0": 20 * GIB},
    "peak_vram": {"0": 19 * GIB},
    "peak_ram": 700 * 2**20,
    "ram": 256 * 2**20,
    "parameters": ["--ctx-size=8192"],
    "backend_parameters": ["--ctx-size=8192"],
    "parameter": "--ctx-sise",
    "env": {"OMP_NUM_THREADS": "1"},
    "labels": {"rack": "b4"},
    "worker_selector": {"rack": "b4"},
    "architecture": "qwen3",
    "os": "linux",
    "arch": "amd64",
    "vendor": "nvidia",
    "cpu_count": 32,
    "memory_total": 128 * GIB,
    "memory_reserved": 2 * GIB,
    "runtime": "process",
    "state": "unreachable",
    "program": "llama-server",
    "detail": "unknown model architecture: 'qwen9'",
    "log_tail": ["loading model", "ggml_aligned_malloc: insufficient memory"],
    "lines": ["loading model", "server is listening"],
    "exit_code": 1,
    "signal": 9,
    "restarts": 3,
    "revision": 4711,
    "to_revision": 4600,
    "worker_ids": [WORKER],
    "clears": 1,
    "drains": 1,
    "reasons": [NOT_ENOUGH],
    "wanted": 2,
    "running": 1,
    "instances": 1,
    "silent_seconds": 12.0,
    "after_seconds": 15.0,
    "drain_seconds": 60.0,
    "up_to_seconds": 60.0,
    "requests_left": 2,
    "gateway": "3f9c2a71d0b84e65",
    "RequestsInFlight.instances": {"i-01jdd3x0q8-0": 3},
    "deadline_seconds": 15.0,
    "delay_seconds": 4.0,
    "start_timeout_seconds": 900.0,
    "replica": "0",
    "change": {"backend_parameters": ["--ctx-size=4096"]},
    "text": "with --ctx-size=4096 it fits",
    "field": "backend_parameters",
    "version": "0.27.1",
    "platform": "linux/riscv64",
    "supported": ["cuda", "rocm"],
    "known": ["vLLM", "SGLang"],
    "accelerators": ["neuware"],
    "gpu_index": 0,
    "runtime_version": "12.2",
    "needed_version": "12.6",
    "compute_capability": "6.1",
    "needed": "7.0",
    "share": 0.9,
    "share_bytes": 77_309_411_328,
    "reserved_bytes": GIB,
    "gpus": 2,
    "gpus_needed": 2,
    "gpus_free": 1,
    "freest_share": 0.62,
    "used_bytes": 6 * GIB,
    "crashes": 5,
    "heads": 32,
    "tensor_parallel_size": 3,
    "pipeline_parallel_size": 40,
    "TooFewLayers.layers": 36,
    "vocabulary_size": 151936,
    "world_size": 4,
    "selected": 2,
    "types": ["cann", "cuda"],
    "value": "0",
    "expected": "a whole number from 1 to 4096",
    "largest_group": 8,
    "context_tokens": 131072,
    "fitting_tokens": 40960,
    "cache_bytes": 18 * GIB,
    "room_bytes": 6 * GIB,
    "unlisted": {"not_enough_vram": 968},
    "lora_name": "support",
    "lora_bytes": 200 * 2**20,
    "draft_bytes": GIB,
    "layer_bytes": 4 * GIB,
    "draft_tokens": 5,
    "image_name": "example.org/vllm:0.27.1",
    "run_command": "vllm serve {{model_path}}",
    "scores": {"fewest_gpus": 1, "spread": 0},
    "fitting": 3,
    "lost_by": "spread",
    # what is called the same and is something else here
    "Gpu.index": 0,
    "ClaimOverride.vram": 18 * GIB,
    "Gpu.runtime_version": "12.8",
    "Gpu.island": 0,
    "Gpu.unhealthy": "fallen off the bus",
    "GpuNetwork.address": "10.1.0.7",
    "GpuNetwork.up": True,
    "GpuSelector.gpus_per_replica": 1,
    "Inventory.vram_reserved": GIB,
    "Inventory.disk_free": 900 * GIB,
    "ModelWeights.config": {"num_attention_heads": 32},
    "NotEnoughGpus.needed": 4,
    "NotEnoughGpus.available": 2,
    "TooFewGpusSelected.needed": 4,
    "BackendVersionUnknown.known": ["0.8.0", "0.32"],
    "ParametersContradict.parameters": ["--pp-size", "--speculative-algorithm"],
    "ParametersContradict.problem": "a pipeline of several stages can't speculate",
    "PlatformNotSupported.supported": ["linux/amd64", "linux/arm64"],
    "WorkersDoNotAddUp.gpus_needed": 16,
    "WorkersDoNotAddUp.largest_if_empty": 16,
    "GpuUnhealthy.problem": "fallen off the bus",
    "ImageNotFound.image": "vllm/vllm-openai:v0.32.0-rc9",
    "ImageNotPulled.image": "registry.example.com/llm/vllm:0.32.0",
    "ImageNotPulled.problem": "unauthorized: authentication required",
    "ImageForAnotherPlatform.image": "vllm/vllm-openai:v0.32.0",
    "DevicesNotAvailable.problem": 'could not select device driver "nvidia" with capabilities: [[gpu]]',
    "ContainerNotStarted.problem": "error while creating mount source path: read-only file system",
    "WorkerCordoned.unhealthy_gpus": [],
    "InventoryIncomplete.field": "memory_total",
    "GpuShareTooSmall.share": 0.2,
    "GpuShareTooSmall.share_bytes": 5 * GIB,
    "GpuShareTooSmall.gpus": 1,
    "Gpu.type": "cuda",
    "Gpu.name": "NVIDIA GeForce RTX 4090",
    "Gpu.uuid": "GPU-2d1c0e6b",
    "Gpu.memory_total": 24 * GIB,
    "Gpu.memory_used_by_others": GIB,
    "Gpu.compute_capability": "8.9",
    "Gpu.driver_version": "580.65.06",
    "Parallelism.tensor": 1,
    "Parallelism.pipeline": 1,
    "Parallelism.data": 1,
    "ModelWeights.files": [PATH],
    "ModelWeights.format": "gguf",
    "ModelWeights.context_length": 40960,
    "ModelWeights.layers": 36,
    "ModelWeights.kv_heads": 8,
    "ModelWeights.head_size": 128,
    "ModelWeights.value_size": 128,
    "ModelWeights.attention_layers": 36,
    "ModelWeights.windowed_layers": 30,
    "ModelWeights.window": 4096,
    "ModelWeights.state_bytes": 64 * 2**20,
    "ModelWeights.hidden_size": 4096,
    "ModelWeights.attention_heads": 32,
    "ModelWeights.vocabulary_size": 151936,
    "ram_ratio": 1.2,
    "ram_size": 64.0,
    "chunk_size": 256,
    "gpu_addresses": ["10.1.0.7"],
    "ModelSpec.entrypoint": ["vllm", "serve"],
    "Launch.context_length": 8192,
    "Launch.image": "example.org/llama.cpp:b6800",
    "Launch.entrypoint": ["/app/llama-server"],
    "Launch.memory_fraction": 0.9,
    "Member.rank": 0,
    "EngineSeen.rank": 0,
    "EngineSeen.phase": "exited",
    "EngineSeen.progress": 0.5,
    "EngineSeen.reasons": [OUT_OF_MEMORY],
    "FileSeen.phase": "failed",
    "FileSeen.wanted": 1,
    "FileSeen.reasons": [NOT_FOUND],
    "AssignedFile.wanted": 1,
    "AssignedFile.priority": 0,
    "AssignedInstance.rank": 0,
    "AssignedInstance.world_size": 1,
    "AssignedInstance.files": ["f-4227b133dc07aaa3126c"],
    "AssignedInstance.engine_key_ref": "engine-key",
    "Assigned.election": 4700,
    "Assigned.seq": 4711,
    "WorkerObserved.name": "alpha",
    "WorkerObserved.assigned_election": 4700,
    "WorkerObserved.assigned_seq": 4711,
    "WorkerRegistered.name": "alpha",
    "WorkerRenamed.name": "alpha",
    "InstanceCreated.name": "qwen3-8b-0",
    "InstanceFailed.phase": "starting",
    "InstanceFailed.reasons": [OUT_OF_MEMORY],
    "InstanceUnreachable.reasons": [SILENT],
    "DeadlinePassed.reasons": [{"code": "not_accepted", "worker_id": WORKER, "after_seconds": 15.0}],
    "ModelInspected.reasons": [NOT_FOUND],
    "adapters": [{"type": "local_path", "path": "/models/support-lora"}],
    "ModelInspection.reasons": [NOT_FOUND],
    "ModelFileFailed.reasons": [NOT_FOUND],
    "WorkerUnreachable.reasons": [SILENT],
    "ModelPeakMeasured.gpu": "NVIDIA GeForce RTX 4090",
    "ModelPeakMeasured.gpus": 1,
    "ModelPeakMeasured.workers": 1,
    "ModelPeakMeasured.gpu_layers": 36,
    "ModelPeakMeasured.claimed_vram": 21 * GIB,
    "ModelPeakMeasured.claimed_ram": 256 * 2**20,
    "ModelPeakMeasured.peak_vram": 19 * GIB,
    "ModelPeakMeasured.peak_ram": 700 * 2**20,
    "ModelQuarantineCleared.name": "qwen3-8b",
    "ModelRolledBack.reasons": [OUT_OF_MEMORY],
    "RolledBack.problem": "the engine ran out of memory",
    "ModelRenamed.name": "qwen3-8b",
    "ModelRenamed.to": "qwen3-8b-chat",
    "ModelScaled.name": "qwen3-8b",
    "ModelDeleted.name": "qwen3-8b",
    "TailLog.lines": 200,
    "wanted_bytes": 20 * GIB,
    "library": "libcuda.so.1",
    "CollectiveTimeout.library": "NCCL",
    "QuantizationNotSupported.method": "awq",
    "QuantizationNotSupported.needed": "80",
    "QuantizationNotSupported.found": "75",
    "GpuDriverTooOld.found": "11040",
    "RemoteCodeNotTrusted.model": "/models/custom",
    "GatedRepository.repository": "meta-llama/Llama-3.2-1B-Instruct",
    "package": "flash_attn",
    "PackagesDoNotMatch.detail": "operator torchvision::nms does not exist",
    "ProgramNotExecutable.program": "/entrypoint.sh",
    "BackendNotAvailable.backend": "vllm",
    "DownloadStalled.after_seconds": 60.0,
    "StartTimeout.after_seconds": 900.0,
    "LabelsDoNotMatch.wanted": {"rack": "b4"},
    "GpuNotSelected.wanted": ["alpha:cuda:0"],
    "InspectionFailed.problem": "no answer within 15 s",
    "InspectModel.source": {"type": "local_path", "path": PATH},
}


def example(of: type[M]) -> M:
    return of.model_validate(_document(of))


def example_event(of: type[Fact] | type[Report]) -> Envelope:
    """As it travels: a CloudEvent."""
    says = example(of)
    if isinstance(says, Fact):
        source, actor = f"/muster/{says.owner}/0", "key/bootstrap" if says.owner == "api" else f"worker/{WORKER}"
    else:
        role = "downloader" if says.kind in ("file", "files") else "agent"
        source, actor = f"/muster/{role}/{WORKER}", f"worker/{WORKER}"
    return Envelope(
        id="01JDD3X0Q8V6B4N0C5M9K3T7Q2",
        source=source,
        type=says.type,
        subject=f"{says.kind}/{says.resource_id}",
        time=datetime.fromisoformat(AT),
        dataschema=dataschema(says.type, says.version),
        data=says.model_dump(mode="json"),
        correlationid="r-5f2c9a1b7e3d4806",
        causationid="01JDD3X0PZ2R8V6B4N0C5M9K3T",
        commandid="c3ab8ff13720e8ad9047dd39466b3c89.e3b0c44298fc1c14",
        actor=actor,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def _document(of: type[BaseModel]) -> dict[str, Any]:
    return {name: _value(of.__name__, name, field.annotation) for name, field in of.model_fields.items()}


def _value(owner: str, name: str, annotation: Any) -> Any:
    for known in (f"{owner}.{name}", name):
        if known in VALUES and not _is_model(annotation):
            return VALUES[known]
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            return _value(owner, name, arguments[0])
        case origin if origin is Union or origin is types.UnionType:
            return _value(owner, name, next(a for a in arguments if a is not types.NoneType))
        case origin if origin is Literal:
            return arguments[0]
        case origin if origin is tuple:
            return [_value(owner, name, arguments[0])]
        case _:
            pass
    if _is_model(annotation):
        return _document(annotation)
    if annotation is bool:
        return True
    raise LookupError(f"docs/making/examples.py has no example of {owner}.{name} ({annotation})")


def _is_model(annotation: Any) -> bool:
    """Lists of models too: an example of each member is made from its own fields."""
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return isinstance(inner, type) and issubclass(inner, BaseModel)
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
