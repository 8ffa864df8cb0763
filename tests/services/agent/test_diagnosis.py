"""Each reason that an engine's end can have, with a log of it (diagnosis/README.md says whose)."""

import signal
from pathlib import Path

import pytest

from schemas.reasons import (
    ChatTemplateMissing,
    CollectiveTimeout,
    CpuNotSupported,
    DiskFull,
    EngineExited,
    EngineKilled,
    EngineNotInstalled,
    GatedRepository,
    GpuDriverMissing,
    GpuDriverTooOld,
    GpuMemoryTaken,
    GpuOutOfMemory,
    KvCacheTooSmall,
    LockedMemoryLimited,
    ModelFileInvalid,
    ModelFilesIncomplete,
    ModelNotFound,
    NoKernelForGpu,
    OutOfMemory,
    PackageMissing,
    PackagesDoNotMatch,
    ParameterInvalid,
    PeerUnreachable,
    PortInUse,
    ProgramNotExecutable,
    QuantizationNotSupported,
    Reason,
    RemoteCodeNotTrusted,
    SharedMemoryTooSmall,
    TooManyOpenFiles,
    UnknownParameter,
    UnsupportedModel,
)
from services.agent.domain.diagnosis import LINES_OF_EVIDENCE, diagnose, evidence

RECORDED = Path(__file__).parent / "diagnosis"
FOLDER = "/tmp/muster-recorded"
GIB = 2**30

CAUSES: dict[str, Reason] = {
    "missing_file": ModelNotFound(path=f"{FOLDER}/missing.gguf"),
    "missing_shard": ModelFilesIncomplete(
        path=f"{FOLDER}/tinychat-f16-00001-of-00002.gguf", missing=(f"{FOLDER}/tinychat-f16-00002-of-00002.gguf",)
    ),
    "second_shard": ModelFileInvalid(
        path="/srv/muster/examples/models/tinychat-f16-00002-of-00002.gguf",
        problem="illegal split file idx: 1 (file: /srv/muster/examples/models/tinychat-f16-00002-of-00002.gguf),"
        " model must be loaded with the first split",
    ),
    "truncated_file": ModelFileInvalid(
        path=f"{FOLDER}/truncated.gguf",
        problem="tensor 'blk.1.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
    ),
    "truncated_header": ModelFileInvalid(path=f"{FOLDER}/header-cut.gguf", problem="failed to read key-value pairs"),
    "not_a_gguf": ModelFileInvalid(
        path=f"{FOLDER}/not-a-gguf.gguf", problem="invalid magic characters: '????', expected 'GGUF'"
    ),
    "unknown_architecture": UnsupportedModel(detail="unknown model architecture: 'klama'"),
    "port_taken": PortInUse(port=18500),
    "foreign_address": EngineExited(exit_code=1),
    "unknown_flag": UnknownParameter(parameter="--frobnicate"),
    "wrong_value": UnknownParameter(parameter="--ctx-size=many"),
    "llama_server_unknown_flag": UnknownParameter(parameter="--no-mmap"),
    "llama_server_wrong_value": UnknownParameter(parameter="--device"),
    "no_wheel": EngineNotInstalled(program="xllamacpp"),
    "no_libgomp": EngineNotInstalled(program="libgomp.so.1"),
    "no_library": GpuDriverMissing(library="libcuda.so.1"),
    "too_large_a_context": OutOfMemory(),
    "cuda_llama_cpp": GpuOutOfMemory(),
    "cuda_torch": GpuOutOfMemory(wanted_bytes=40 * GIB),
    "memory_error": OutOfMemory(),
    "uncaught_bad_alloc": OutOfMemory(),
    "kv_cache_vllm": KvCacheTooSmall(context_tokens=262_144, fitting_tokens=34_720),
    "kv_cache_vllm_old": KvCacheTooSmall(context_tokens=4096, fitting_tokens=3664),
    "no_kv_cache_vllm": KvCacheTooSmall(),
    "no_kv_cache_sglang": KvCacheTooSmall(),
    "gpu_memory_taken_vllm": GpuMemoryTaken(free_bytes=63 * GIB // 2, wanted_bytes=173 * GIB // 4),
    "cuda_vllm": GpuOutOfMemory(wanted_bytes=350 * 2**20),
    "hip_vllm": GpuOutOfMemory(wanted_bytes=int(12.95 * GIB)),
    "npu_vllm_ascend": GpuOutOfMemory(wanted_bytes=5 * GIB // 2),
    "no_kernel_image": NoKernelForGpu(),
    "driver_too_old": GpuDriverTooOld(found="11040"),
    "no_driver": GpuDriverMissing(library="libcuda.so.1"),
    "quantization_awq": QuantizationNotSupported(method="awq", needed="75", found="70"),
    "quantization_scheme": QuantizationNotSupported(needed="80", found="75"),
    "nccl_timeout": CollectiveTimeout(library="NCCL"),
    "hccl_timeout": CollectiveTimeout(library="HCCL"),
    "hccl_socket": CollectiveTimeout(library="HCCL"),
    "remote_code": RemoteCodeNotTrusted(model="/models/custom-7b"),
    "remote_code_prompt": RemoteCodeNotTrusted(),
    "gated_repository": GatedRepository(repository="meta-llama/Llama-3.2-1B-Instruct"),
    "shared_memory_torch": SharedMemoryTooSmall(),
    "shared_memory_nccl": SharedMemoryTooSmall(),
    "memlock_nccl": LockedMemoryLimited(),
    "memlock_ucx": LockedMemoryLimited(),
    "architecture_vllm": UnsupportedModel(detail="Model architectures ['KlamaForCausalLM'] are not supported for now"),
    "architecture_transformers": UnsupportedModel(
        detail="model type `klama` but Transformers does not recognize this architecture"
    ),
    "torchvision_mismatch": PackagesDoNotMatch(detail="torchvision::nms"),
    "undefined_symbol": PackagesDoNotMatch(
        detail="/usr/local/lib/python3.10/dist-packages/flash_attn_2_cuda.cpython-310-x86_64-linux-gnu.so:"
        " undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE"
    ),
    "tokenizer_missing": ModelFilesIncomplete(path="/models/half-a-model", missing=("tokenizer.json",)),
    "config_missing": ModelFilesIncomplete(path="/models/half-a-model", missing=("config.json",)),
    "rendezvous_torch": PeerUnreachable(address="10.1.16.222:29400"),
    "rendezvous_members": PeerUnreachable(),
    "ray_gcs": PeerUnreachable(address="10.108.0.184:6379"),
    "chat_template": ChatTemplateMissing(),
    "illegal_instruction": CpuNotSupported(),
    "illegal_instruction_container": CpuNotSupported(),
    "disk_full": DiskFull(),
    "too_many_files": TooManyOpenFiles(),
    "no_package": PackageMissing(package="flash_attn"),
    "model_package": PackageMissing(package="einops"),
    "library_missing": EngineNotInstalled(program="libnvrtc.so.12"),
    "unknown_flag_vllm": UnknownParameter(parameter="--frobnicate"),
    "vllm_cpu_architecture": UnsupportedModel(
        detail="Model architectures ['FancyForCausalLM'] are not supported for now"
    ),
    "vllm_cpu_kv_cache": KvCacheTooSmall(context_tokens=4_000_000, fitting_tokens=1_048_448),
    "vllm_cpu_too_long_a_context": ParameterInvalid(
        parameter="--max-model-len", value="1000000", expected="4096 at most, the model's own context"
    ),
    "vllm_cpu_remote_code": RemoteCodeNotTrusted(model=f"{FOLDER}/remote"),
    "vllm_cpu_quantization": UnsupportedModel(detail="Unknown quantization method: nonsense"),
    "vllm_cpu_tokenizer_missing": ModelFilesIncomplete(path=f"{FOLDER}/tok", missing=("tokenizer.json",)),
    "vllm_cpu_config_missing": ModelFilesIncomplete(path=f"{FOLDER}/conf", missing=("config.json",)),
    "vllm_cpu_truncated_weights": ModelFileInvalid(
        path=f"{FOLDER}/trunc", problem="incomplete metadata, file not fully covered"
    ),
    "vllm_cpu_weights_missing": ModelFilesIncomplete(path=f"{FOLDER}/noweights", missing=("*.safetensors",)),
    "vllm_cpu_no_memory": OutOfMemory(),
    "vllm_cpu_port_taken": PortInUse(port=18500),
    "vllm_cpu_unknown_flag": UnknownParameter(parameter="--no-such-flag"),
    "vllm_cpu_wrong_value": UnknownParameter(parameter="--max-num-seqs=many"),
    "entrypoint_dash": ProgramNotExecutable(program=f"{FOLDER}/entrypoint.sh"),
    "entrypoint_bash": ProgramNotExecutable(program=f"{FOLDER}/entrypoint.sh"),
    "entrypoint_tini": ProgramNotExecutable(program=f"{FOLDER}/entrypoint.sh"),
}
ABORTED = ("nccl_timeout", "hccl_timeout", "cuda_llama_cpp", "memlock_nccl", "shared_memory_nccl")
"""That end with a signal of their own."""


def recorded(name: str) -> tuple[str, ...]:
    return tuple((RECORDED / f"{name}.log").read_text(encoding="utf-8").splitlines())


def why(exit_code: int | None, number: int | None, *log: str) -> tuple[Reason, ...]:
    return diagnose(exit_code, number, log, program="llama.cpp", port=18500)


@pytest.mark.parametrize("name", CAUSES)
def test_a_recorded_log_has_its_reason(name: str) -> None:
    assert why(1, None, *recorded(name)) == (CAUSES[name],)


@pytest.mark.parametrize("name", CAUSES)
def test_how_an_adopted_engine_ended_is_unknown_but_its_log_still_tells_why(name: str) -> None:
    expected = CAUSES[name] if name != "foreign_address" else EngineExited(exit_code=None)
    assert why(None, None, *recorded(name)) == (expected,)


def test_every_recorded_log_has_a_test() -> None:
    assert {path.stem for path in RECORDED.glob("*.log")} == CAUSES.keys()


def test_every_log_says_where_it_comes_from() -> None:
    said = (RECORDED / "README.md").read_text(encoding="utf-8")
    assert [name for name in CAUSES if f"`{name}`" not in said] == []


@pytest.mark.parametrize("name", CAUSES)
def test_the_line_that_tells_why_is_in_the_evidence(name: str) -> None:
    log = (
        tuple(f"loading {n}" for n in range(100)) + recorded(name) + tuple(f"Process {n} has ended" for n in range(80))
    )
    shown = evidence(log)
    assert len(shown) <= LINES_OF_EVIDENCE
    assert [reason.code for reason in why(1, None, *shown)] == [CAUSES[name].code]
    assert shown[-1] == "Process 79 has ended"


@pytest.mark.parametrize("name", ABORTED)
def test_who_gives_up_with_a_signal_has_said_why(name: str) -> None:
    assert why(None, signal.SIGABRT, *recorded(name)) == (CAUSES[name],)


def test_signals_that_say_it_by_themselves() -> None:
    assert why(None, signal.SIGILL, "loading") == (CpuNotSupported(),)
    assert why(None, signal.SIGBUS, "loading") == (SharedMemoryTooSmall(),)
    assert why(None, signal.SIGSEGV, "loading") == (EngineKilled(signal=11),)


def test_the_most_specific_reason_wins() -> None:
    full = "OSError: [Errno 28] No space left on device"
    assert why(1, None, full, *recorded("shared_memory_nccl")) == (SharedMemoryTooSmall(),)
    assert why(1, None, *recorded("no_kv_cache_vllm"), "RuntimeError: CUDA error: out of memory") == (
        KvCacheTooSmall(),
    )
    assert why(1, None, *recorded("remote_code"), "OSError: Can't load tokenizer for '/models/custom-7b'.") == (
        CAUSES["remote_code"],
    )


def test_python_says_of_a_taken_port_only_that_it_is_taken() -> None:
    log = "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 18500): address already in use"
    assert why(1, None, log) == (PortInUse(port=18500),)


def test_a_flag_that_lacks_its_value_is_named() -> None:
    log = "llama_cpp_server: error: argument -c/--ctx-size: expected one argument"
    assert why(2, None, log) == (UnknownParameter(parameter="--ctx-size"),)


def test_a_kill_alone_is_a_kill() -> None:
    assert why(None, signal.SIGKILL, "listening") == (EngineKilled(signal=9),)
    assert why(137, None, "listening") == (EngineKilled(signal=9),)


def test_a_kill_after_an_allocation_failed_is_a_lack_of_memory() -> None:
    assert why(None, signal.SIGABRT, *recorded("uncaught_bad_alloc")) == (OutOfMemory(),)
    assert why(134, None, *recorded("uncaught_bad_alloc")) == (OutOfMemory(),)


def test_what_an_engine_survived_is_not_why_it_was_killed() -> None:
    assert why(None, signal.SIGKILL, *recorded("port_taken")) == (EngineKilled(signal=9),)


@pytest.mark.parametrize("exit_code", [0, 1, 128, 255, None])
def test_a_log_that_shows_nothing_leaves_the_exit_code(exit_code: int | None) -> None:
    assert why(exit_code, None, "listening", "bye") == (EngineExited(exit_code=exit_code),)


def test_the_evidence_is_the_last_lines_that_a_report_has_room_for() -> None:
    assert evidence(()) == ()
    assert evidence(("a", "b")) == ("a", "b")
    assert evidence(tuple(str(n) for n in range(60))) == tuple(str(n) for n in range(10, 60))
    assert evidence(tuple("ä" * 2000 for _ in range(50))) == ("ä" * 2000,) * 4
