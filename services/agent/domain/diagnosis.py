"""What an engine's end and its last lines mean: a table, the most specific rows first.

Every row has a log in tests/services/agent/diagnosis/, whose README says which an engine of this machine printed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

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

LINES_OF_EVIDENCE: Final = 50
BYTES_OF_EVIDENCE: Final = 16 * 1024
"""A worker's complete picture has the evidence of every engine that ended, and is one message of at most 1 MiB."""
LINES_BEFORE: Final = 3
"""That are shown above the line that tells why, where it stands before the last lines."""
ILLEGAL_INSTRUCTION: Final = 4
"""SIGILL"""
BUS_ERROR: Final = 7
"""SIGBUS: of memory that is mapped and is not there, as when /dev/shm is full."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a reason needs besides the line that was found."""

    exit_code: int | None
    port: int
    program: str
    model: str
    """The file that the engine says it failed to load."""


@dataclass(frozen=True, slots=True)
class Symptom:
    pattern: re.Pattern[str]
    reason: Callable[[re.Match[str], Context], Reason]


def evidence(log_tail: tuple[str, ...]) -> tuple[str, ...]:
    """The last lines, as many as a report has room for, and before them the line that tells why: vLLM writes two pages after it."""
    decisive = _decisive_line(log_tail)
    room = BYTES_OF_EVIDENCE
    kept = 0
    above: tuple[str, ...] = ()
    if decisive is not None and decisive < len(log_tail) - LINES_OF_EVIDENCE:
        above = (*log_tail[max(0, decisive - LINES_BEFORE) : decisive + 1], "…")
        room -= sum(len(line.encode()) for line in above)
    for line in reversed(log_tail[-LINES_OF_EVIDENCE + len(above) :]):
        room -= len(line.encode())
        if room < 0:
            break
        kept += 1
    return above + log_tail[len(log_tail) - kept :]


def diagnose(
    exit_code: int | None, signal: int | None, log_tail: tuple[str, ...], *, program: str, port: int
) -> tuple[Reason, ...]:
    """An engine that a signal ended can have run out of memory, or have given up; what else is in its log did not end it."""
    if signal is None and exit_code is not None and 128 < exit_code <= 128 + 64:
        signal = exit_code - 128  # as shells and containers tell it
    log = "\n".join(log_tail)
    model = next((found[-1] for named in _LOADED if (found := named.findall(log))), "the model's file")
    context = Context(exit_code, port, program, model)
    for symptom in _SYMPTOMS if signal is None else _ABORTS:
        if match := symptom.pattern.search(log):
            return (symptom.reason(match, context),)
    match signal:
        case None:
            return (EngineExited(exit_code=exit_code),)
        case _ if signal == ILLEGAL_INSTRUCTION:
            return (CpuNotSupported(),)
        case _ if signal == BUS_ERROR:
            return (SharedMemoryTooSmall(),)
        case _:
            return (EngineKilled(signal=signal),)


def _decisive_line(log_tail: tuple[str, ...]) -> int | None:
    log = "\n".join(log_tail)
    for symptom in _SYMPTOMS:
        if match := symptom.pattern.search(log):
            return log.count("\n", 0, match.start())
    return None


def _refused(names: str, value: str | None) -> UnknownParameter:
    """`-c/--ctx-size` and `many` → `--ctx-size=many`."""
    name = names.rpartition("/")[2]
    return UnknownParameter(parameter=name if value is None else f"{name}={value}")


_UNITS: Final = {
    "B": 1,
    "bytes": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 2**10,
    "MB": 2**20,
    "GB": 2**30,
}


def _bytes(number: str, unit: str) -> int:
    """As torch and vLLM write `40.00 GiB`; units of thousands are meant as those of 1024."""
    return int(float(number) * _UNITS[unit])


def _gpu_memory(match: re.Match[str], _: Context) -> Reason:
    wanted = match.groupdict().get("wanted")
    return GpuOutOfMemory(wanted_bytes=_bytes(wanted, match["unit"]) if wanted else None)


def _package(name: str) -> Reason:
    """The engine's own package: then the engine is not there. Of `a.b` the package is `a`."""
    package = name.partition(".")[0]
    own = package in _ENGINE_PACKAGES
    return EngineNotInstalled(program=package) if own else PackageMissing(package=_DISTRIBUTIONS.get(package, package))


def _library(name: str) -> Reason:
    return GpuDriverMissing(library=name) if _DRIVER.match(name) else EngineNotInstalled(program=name)


def _rows(*patterns: str, reason: Callable[[re.Match[str], Context], Reason]) -> Iterator[Symptom]:
    return (Symptom(re.compile(pattern, re.MULTILINE), reason) for pattern in patterns)


_LOADED: Final = (
    re.compile(r"load_model: failed to load model, '(.+)'"),  # llama.cpp
    re.compile(r"non-default args: \{[^\n]*?'model': '([^']+)'"),  # vLLM
)
_ENGINE_PACKAGES: Final = frozenset({"xllamacpp", "vllm", "sglang", "mindie", "mindie_llm"})
_DISTRIBUTIONS: Final = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
"""Where a package is installed under another name than it is imported by."""
_DRIVER: Final = re.compile(r"lib(cuda|nvidia-ml|ascend_hal|ascendcl|hsa-runtime64|musa|mxc|ixml|cndrv|cndev)\.so")
"""What comes with the driver, and no image brings."""

_SIZE: Final = r"(?P<wanted>[\d.]+) (?P<unit>[KMGT]?i?B|bytes)"

_ABORTS: Final = (
    *_rows(
        r"To serve at least one request with the models?'s max seq len \((?P<context>\d+)\)"  # vLLM: v1/core/kv_cache_utils.py
        r"(?:[^\n]*estimated maximum model length is (?P<fits>\d+))?",
        r"The model's max seq len \((?P<context>\d+)\) is larger than the maximum number of tokens that can be stored in"
        r" KV cache \((?P<fits>\d+)\)",  # vLLM before 0.8
        reason=lambda match, _: KvCacheTooSmall(
            context_tokens=int(match["context"]), fitting_tokens=int(match["fits"]) if match["fits"] else None
        ),
    ),
    *_rows(
        r"No available memory for the cache blocks",  # vLLM
        r"Not enough memory(?: to allocate KV cache)?\.\s[^\n]*--mem-fraction-static",  # SGLang
        reason=lambda _match, _context: KvCacheTooSmall(),
    ),
    *_rows(
        r"Free memory on device(?: \S+)? \((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than desired GPU memory utilization"
        r" \([\d.]+, (?P<wanted>[\d.]+) GiB\)",  # vLLM: v1/worker/gpu_worker.py
        reason=lambda match, _: GpuMemoryTaken(
            free_bytes=_bytes(match["free"], "GiB"), wanted_bytes=_bytes(match["wanted"], "GiB")
        ),
    ),
    *_rows(
        rf"(?:CUDA|HIP|NPU|MUSA|MLU) out of memory\. Tried to allocate {_SIZE}",  # torch and its relatives
        r"OutOfMemoryError: (?:CUDA|HIP|NPU|MUSA|MLU) out of memory",
        r"(?:cudaMalloc failed|CUDA error): out of memory",  # llama.cpp: ggml/src/ggml-cuda
        r"ggml_backend_(?:cuda|cann)_buffer_type_alloc_buffer: allocating (?P<wanted>[\d.]+) (?P<unit>MiB) on device \d+:",
        r"\bEL0004\b|aclrtMalloc\S* failed[^\n]*207001",  # CANN: failed to allocate memory
        reason=_gpu_memory,
    ),
    *_rows(
        r"ibv_(?:create_cq|reg_mr\w*|create_qp)\S* failed[^\n]*Cannot allocate memory",  # NCCL, UCX
        r"set max locked memory \(ulimit -l\)",
        reason=lambda _match, _context: LockedMemoryLimited(),
    ),
    *_rows(
        r"Error while creating shared memory segment /dev/shm/",  # NCCL: misc/shmutils.cc
        r"(?:out of|insufficient) shared memory",  # torch: DataLoader
        r"No space left on device[^\n]*/dev/shm|/dev/shm[^\n]*No space left on device",
        reason=lambda _match, _context: SharedMemoryTooSmall(),
    ),
    *_rows(
        r"(?:caught collective operation timeout: Work|Some )(?P<library>[NHRM]CCL)",  # torch's watchdog, torch_npu's too
        r"(?P<library>HCCL)[^\n]*(?:time ?out|times? out)",
        reason=lambda match, _: CollectiveTimeout(library=match["library"]),
    ),
    *_rows(
        r"EI0006\)?:[^\n]*socket times out|Communication_Error_Get_Socket",  # CANN: of a peer that did not come
        reason=lambda _match, _context: CollectiveTimeout(library="HCCL"),
    ),
    *_rows(
        r"ggml_aligned_malloc: insufficient memory",  # llama.cpp: ggml/src/ggml.c
        r"unable to allocate \S+ buffer",  # llama.cpp: src/llama-model.cpp
        r"failed to allocate (\S+ )?buffer (of size|for kv cache)",  # llama.cpp: ggml-backend.cpp, llama-kv-cache.cpp
        r"std::bad_alloc",
        r"^MemoryError\b",
        r"Available memory on node \d+ \([^)]*\) on kv cache allocation is less than requested",  # vLLM on processors
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)",  # torch
        reason=lambda _match, _context: OutOfMemory(),
    ),
)
"""Of what an engine writes: those that can be followed by a signal, its own (`abort`) or the kernel's."""

_START: Final = (
    *_rows(  # before all that is said of what comes after it
        r"no kernel image is available for execution on the device",  # CUDA
        r"device kernel image is invalid|hipErrorNoBinaryForGpu",
        reason=lambda _match, _context: NoKernelForGpu(),
    ),
    *_rows(
        r"NVIDIA driver on your system is too old \(found version (?P<found>\d+)\)",  # torch
        r"CUDA driver version is insufficient for CUDA runtime version(?P<found>)",
        r"unsatisfied condition: cuda>=(?P<found>)",  # NVIDIA's container toolkit
        reason=lambda match, _: GpuDriverTooOld(found=match["found"] or None),
    ),
    *_rows(
        r"[Qq]uantization (?:method (?P<method>\S+)|scheme) is not supported for [^\n]*?the current GPU\."
        r"[^\n]*?Min(?:imum)? capability: (?P<needed>\d+)\.[^\n]*?Current capability: (?P<found>\d+)",  # vLLM
        reason=lambda match, _: QuantizationNotSupported(
            method=match["method"], needed=match["needed"], found=match["found"]
        ),
    ),
    *_rows(
        r"The repository (?:for )?[`']?(?P<model>[^`'\s]+)[`']? contains custom code which must be executed",  # transformers
        r"set the option `?trust_remote_code=True`? to (?:permit|remove)(?P<model>)",
        r"Please pass the argument `trust_remote_code=True`(?P<model>)",
        reason=lambda match, _: RemoteCodeNotTrusted(model=match["model"] or None),
    ),
    *_rows(
        r"Access to model (?P<repository>\S+) is restricted",  # huggingface_hub
        r"gated repo\.[^\n]*\n[^\n]*https://[^/\s]+/(?P<repository>[^/\s]+/[^/\s]+?)\.?$",  # transformers
        r"Cannot access gated repo for url https://[^/\s]+/(?:api/models/)?(?P<repository>[^/\s]+/[^/\s]+)/",
        reason=lambda match, _: GatedRepository(repository=match["repository"]),
    ),
    *_rows(
        r"operator (?P<detail>torchvision::\S+) does not exist",
        r"(?P<detail>\S+\.so\S*: undefined symbol: \S+)",
        r"(?P<detail>cannot import name '\S+' from '(?:transformers|torch|torchvision|huggingface_hub|numpy|flash_attn)\S*')",
        r"(?P<detail>Detected that PyTorch and (?:torchvision|torchaudio) were compiled with different CUDA[^\n.]*)",
        reason=lambda match, _: PackagesDoNotMatch(detail=match["detail"]),
    ),
    *_rows(  # tini, the first process of a container; a shell
        r"\[FATAL tini \(\d+\)\] exec (?P<program>\S+) failed: Permission denied",
        r"exec:? \"?(?P<program>/[^\s\":]+)\"?: (?:cannot execute: )?[Pp]ermission denied",
        r"^\S*sh: (?:\d+|line \d+): (?P<program>/[^\s:]+): Permission denied",
        reason=lambda match, _: ProgramNotExecutable(program=match["program"]),
    ),
    *_rows(
        r"\[FATAL tini \(\d+\)\] exec \S+ failed: (?:No such file|Not a directory)",
        reason=lambda _, context: EngineNotInstalled(program=context.program),
    ),
    *_rows(r"No module named '([^']+)'", reason=lambda match, _: _package(match[1])),
    *_rows(
        r"requires the following packages that were not found in your environment: ([\w.-]+)",  # transformers, of a model's own code
        r"[Pp]lease install (?:it|them)? ?(?:with|via|using) `?pip install ([\w.-]+)",
        reason=lambda match, _: PackageMissing(package=match[1].rstrip(".")),
    ),
    *_rows(  # of the dynamic loader, for a program and for a module of Python
        r"(\S+\.so\S*): cannot open shared object file", reason=lambda match, _: _library(match[1])
    ),
    *_rows(
        r"Found no NVIDIA driver on your system()",  # torch
        r"Failed to infer device type()",  # vLLM: no platform plugin finds its device
        reason=lambda _match, _context: GpuDriverMissing(library="libcuda.so.1"),
    ),
    *_rows(  # argparse, so vLLM's and SGLang's too
        r"error: unrecognized arguments: (-[^\s=]*|\S+)",
        reason=lambda match, _: UnknownParameter(parameter=match[1]),
    ),
    *_rows(
        r"error: argument (?P<names>[^:\s]+): (?:invalid .*?value: '?(?P<value>.*?)'?$)?",
        reason=lambda match, _: _refused(match["names"], match["value"]),
    ),
    *_rows(  # llama-server itself: common/arg.cpp
        r"error: (?:invalid argument: |while handling argument \")([^\s\"]+)",
        reason=lambda match, _: UnknownParameter(parameter=match[1]),
    ),
    *_rows(  # before the rows about ports: llama.cpp says of both that it "couldn't bind"
        r"Cannot assign requested address",
        reason=lambda _, context: EngineExited(exit_code=context.exit_code),
    ),
    *_rows(
        r"couldn't bind HTTP server socket, hostname: \S+, port: (\d+)",
        reason=lambda match, _: PortInUse(port=int(match[1])),
    ),
    *_rows(
        r"\[Errno 98\]|[Aa]ddress already in use|EADDRINUSE", reason=lambda _, context: PortInUse(port=context.port)
    ),
    *_rows(
        r"unknown (?:model architecture|pre-tokenizer type): '.*?'",  # llama.cpp
        r"Model architectures \[[^\]]*\] (?:are not supported for now|failed to be inspected)",  # vLLM
        r"(?:has )?model type `[^`]+` but Transformers does not recognize this architecture",
        r"Unsupported architectures?: [^\n]+",  # SGLang
        r"Unknown quantization method: [^\s.]+",  # vLLM
        reason=lambda match, _: UnsupportedModel(detail=match[0].removeprefix("has ")),
    ),
    *_rows(  # before the row about the model's own file: the loader says of both that it failed to open them
        r"failed to load GGUF split from (.+)$",
        reason=lambda match, context: ModelFilesIncomplete(path=context.model, missing=(match[1],)),
    ),
    *_rows(
        r"failed to open GGUF file '(.+)' \(No such file or directory\)",
        reason=lambda match, _: ModelNotFound(path=match[1]),
    ),
    *_rows(  # the header can't be read: the line before says what is wrong with it
        r"gguf_init_from_(?:file|reader): (.+)$",
        reason=lambda match, context: ModelFileInvalid(path=context.model, problem=match[1]),
    ),
    *_rows(
        r"SafetensorError: (?:Error while deserializing header: )?(.+)$",
        reason=lambda match, context: ModelFileInvalid(path=context.model, problem=match[1]),
    ),
    *_rows(  # vLLM: config/model.py
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len"
        r" \(max_position_embeddings=(?P<own>\d+)",
        reason=lambda match, _: ParameterInvalid(
            parameter="--max-model-len",
            value=match["asked"],
            expected=f"{match['own']} at most, the model's own context",
        ),
    ),
    *_rows(  # the header is fine, what it announces isn't there
        r"error loading model: (.+)$",
        reason=lambda match, context: ModelFileInvalid(path=context.model, problem=match[1]),
    ),
    *_rows(
        r"Can't load tokenizer for '(?P<path>[^']+)'(?P<file>)",  # transformers
        r"No tokenizer file found in directory:? '?(?P<path>[^\s']+)(?P<file>)",  # mistral_common, vLLM
        r"(?P<path>\S+) does not appear to have a file named (?P<file>[^\s,]+?)\.?(?: |$)",
        r"No (?P<file>config\.json|params\.json) (?:file )?found in (?P<path>\S+)",
        r"Couldn't instantiate the backend tokenizer(?P<path>)(?P<file>)",
        reason=lambda match, context: ModelFilesIncomplete(
            path=match["path"] or context.model, missing=(match["file"] or "tokenizer.json",)
        ),
    ),
    *_rows(  # vLLM
        r"Invalid repository ID or local directory specified: '([^']+)'",
        reason=lambda match, _: ModelFilesIncomplete(path=match[1], missing=("config.json",)),
    ),
    *_rows(  # vLLM
        r"Cannot find any model weights with `([^`]+)`",
        reason=lambda match, _: ModelFilesIncomplete(path=match[1], missing=("*.safetensors",)),
    ),
    *_rows(
        r"default chat template is no longer allowed",  # transformers
        r"chat template is (?:not set|missing)|no chat template",
        reason=lambda _match, _context: ChatTemplateMissing(),
    ),
    *_rows(
        r"client socket has timed out after \S+ while trying to connect to \((?P<host>[^,\s]+), (?P<port>\d+)\)",  # torch
        r"[Ff]ailed to connect to GCS at address (?P<host>[^:\s]+):(?P<port>\d+)",  # Ray
        r"(?:DistStoreError|DistNetworkError)[^\n]*(?P<host>)(?P<port>)",
        r"Timed out after \d+ seconds waiting for clients(?P<host>)(?P<port>)",
        r"Timed out initializing process group(?P<host>)(?P<port>)",
        r"[Ff]ailed to connect to GCS(?P<host>)(?P<port>)",
        reason=lambda match, _: PeerUnreachable(address=f"{match['host']}:{match['port']}" if match["host"] else None),
    ),
    *_rows(
        r"No space left on device(?:: '(?P<path>[^']+)')?",
        reason=lambda match, _: DiskFull(path=match["path"]),
    ),
    *_rows(
        r"(?<!errors like `OSError: \[Errno 24\] )Too many open files",
        reason=lambda _match, _context: TooManyOpenFiles(),
    ),
    *_rows(r"[Ii]llegal instruction", reason=lambda _match, _context: CpuNotSupported()),
)

_SYMPTOMS: Final = (*_ABORTS, *_START)
