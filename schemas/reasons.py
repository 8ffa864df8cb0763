"""Why something is Pending, in Error, Degraded or Unreachable: a closed set of codes with their numbers.

A reason is stated by its code and numbers, never by prose; the sentence is rendered from them here, in one place.
`who` says who must act: `wait` (it can change by itself), `operator` (of the fleet), `author` (of the model).
The docstring of each class is its entry in docs/reference/reasons.md.
"""

from typing import Annotated, ClassVar, Final, Literal, Union, get_args

from pydantic import Field

from schemas.ids import WorkerId
from schemas.value import Bytes, Value

Who = Literal["wait", "operator", "author"]


def gib(size: int) -> str:
    """A size for people: `20.3 GiB`, `512 MiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    if size >= 2**20:
        return f"{size / 2**20:.0f} MiB"
    return f"{size} bytes"


class ReasonBase(Value):
    who: ClassVar[Who]
    worker_id: WorkerId | None = None

    def sentence(self) -> str:
        raise NotImplementedError  # pragma: no cover - every reason below renders itself


class NoWorkers(ReasonBase):
    """No worker has joined the fleet yet. Start an agent on a machine."""

    code: Literal["no_workers"] = "no_workers"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "no worker has joined the fleet"


class BeingInspected(ReasonBase):
    """The size and kind of the model's files are still being read by a downloader."""

    code: Literal["being_inspected"] = "being_inspected"
    who: ClassVar[Who] = "wait"

    def sentence(self) -> str:
        return "the model's files are being looked at"


class ModelNotFound(ReasonBase):
    """The worker has no file or directory at the model's path. Copy it there, or correct `local_path`."""

    code: Literal["model_not_found"] = "model_not_found"
    who: ClassVar[Who] = "author"
    path: str

    def sentence(self) -> str:
        return f"there is no file or directory {self.path} on this worker"


class ModelFilesIncomplete(ReasonBase):
    """Files that belong to the model are missing beside those that are there (shards, config.json)."""

    code: Literal["model_files_incomplete"] = "model_files_incomplete"
    who: ClassVar[Who] = "author"
    path: str
    missing: tuple[str, ...]

    def sentence(self) -> str:
        return f"{self.path} is incomplete: {', '.join(self.missing)} missing"


class ModelFileTruncated(ReasonBase):
    """A file is shorter than its own header says. Copy it again."""

    code: Literal["model_file_truncated"] = "model_file_truncated"
    who: ClassVar[Who] = "author"
    path: str
    expected_bytes: Bytes
    actual_bytes: Bytes

    def sentence(self) -> str:
        return f"{self.path} is truncated: {self.actual_bytes} of {self.expected_bytes} bytes are there"


class ModelFileInvalid(ReasonBase):
    """A file is not what its name says (bad magic, impossible header)."""

    code: Literal["model_file_invalid"] = "model_file_invalid"
    who: ClassVar[Who] = "author"
    path: str
    problem: str

    def sentence(self) -> str:
        return f"{self.path} is not a valid model file: {self.problem}"


class PathNotAllowed(ReasonBase):
    """The path lies outside the directories that this worker's operator allows for local models."""

    code: Literal["path_not_allowed"] = "path_not_allowed"
    who: ClassVar[Who] = "operator"
    path: str

    def sentence(self) -> str:
        return f"{self.path} is outside the directories that this worker allows"


class WeightsUnknown(ReasonBase):
    """The files tell no weight size, so no memory can be promised."""

    code: Literal["weights_unknown"] = "weights_unknown"
    who: ClassVar[Who] = "author"
    path: str

    def sentence(self) -> str:
        return f"no weights were found in {self.path}, so the memory it takes is unknown"


class InspectionFailed(ReasonBase):
    """A downloader could not answer what the model weighs. It is asked again."""

    code: Literal["inspection_failed"] = "inspection_failed"
    who: ClassVar[Who] = "wait"
    problem: str

    def sentence(self) -> str:
        return f"the downloader could not look at the model's files: {self.problem}"


class WorkerNotReady(ReasonBase):
    """The worker is not ready: its agent has not reported since it was last lost."""

    code: Literal["worker_not_ready"] = "worker_not_ready"
    who: ClassVar[Who] = "wait"
    state: str

    def sentence(self) -> str:
        return f"the worker is {self.state}"


class WorkerCordoned(ReasonBase):
    """The operator has cordoned the worker: it takes no new instances."""

    code: Literal["worker_cordoned"] = "worker_cordoned"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker is cordoned"


class DownloaderSilent(ReasonBase):
    """The worker's downloader does not answer, so files cannot be checked or fetched there."""

    code: Literal["downloader_silent"] = "downloader_silent"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker's downloader is silent"


class LabelsDoNotMatch(ReasonBase):
    """The model's `worker_selector` asks for labels that the worker does not have."""

    code: Literal["labels_do_not_match"] = "labels_do_not_match"
    who: ClassVar[Who] = "operator"
    wanted: dict[str, str]

    def sentence(self) -> str:
        return "the worker lacks the label " + ", ".join(f"{k}={v}" for k, v in sorted(self.wanted.items()))


class BackendNotAvailable(ReasonBase):
    """The worker's agent cannot run this backend."""

    code: Literal["backend_not_available"] = "backend_not_available"
    who: ClassVar[Who] = "operator"
    backend: str
    available: tuple[str, ...]

    def sentence(self) -> str:
        return f"the worker runs {', '.join(self.available) or 'no backend'}, not {self.backend}"


class NotEnoughRam(ReasonBase):
    """The model needs more of the machine's memory than is free there."""

    code: Literal["not_enough_ram"] = "not_enough_ram"
    who: ClassVar[Who] = "wait"
    needed_bytes: Bytes
    free_bytes: Bytes
    total_bytes: Bytes

    def sentence(self) -> str:
        return f"needs {gib(self.needed_bytes)} of RAM, {gib(self.free_bytes)} of {gib(self.total_bytes)} are free"


class NotEnoughVram(ReasonBase):
    """The model needs more memory on one GPU than the roomiest GPU has free."""

    code: Literal["not_enough_vram"] = "not_enough_vram"
    who: ClassVar[Who] = "wait"
    needed_bytes: Bytes
    largest_free_bytes: Bytes
    largest_total_bytes: Bytes

    def sentence(self) -> str:
        return (
            f"needs {gib(self.needed_bytes)} on one GPU, the roomiest has {gib(self.largest_free_bytes)}"
            f" of {gib(self.largest_total_bytes)}"
        )


class NoGpu(ReasonBase):
    """The model asks for a GPU (`--n-gpu-layers`, `gpu_selector`) and the worker has none."""

    code: Literal["no_gpu"] = "no_gpu"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker has no GPU"


class OnItsWay(ReasonBase):
    """Instances have their place and are being prepared; nothing is wrong."""

    code: Literal["on_its_way"] = "on_its_way"
    who: ClassVar[Who] = "wait"
    instances: int

    def sentence(self) -> str:
        return f"{self.instances} {'instance is' if self.instances == 1 else 'instances are'} on the way"


class GpuNotSelected(ReasonBase):
    """The model's `gpu_selector` names GPUs, and none of them is on this worker."""

    code: Literal["gpu_not_selected"] = "gpu_not_selected"
    who: ClassVar[Who] = "operator"
    wanted: tuple[str, ...]

    def sentence(self) -> str:
        return f"none of the selected GPUs is on this worker: {', '.join(self.wanted)}"


class WorkerSilent(ReasonBase):
    """No beat of the worker's agent has been heard for longer than the lease."""

    code: Literal["worker_silent"] = "worker_silent"
    who: ClassVar[Who] = "operator"
    silent_seconds: float

    def sentence(self) -> str:
        return f"nothing was heard of the worker's agent for {self.silent_seconds:.0f} s"


class AgentStopped(ReasonBase):
    """The worker's agent said goodbye: it was stopped in order."""

    code: Literal["agent_stopped"] = "agent_stopped"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker's agent was stopped"


class WorkerShutDown(ReasonBase):
    """The machine's Muster was stopped in order, and took its engines with it. They start again when it is back."""

    code: Literal["worker_shut_down"] = "worker_shut_down"
    who: ClassVar[Who] = "wait"

    def sentence(self) -> str:
        return "Muster was stopped on this worker"


class EngineExited(ReasonBase):
    """The engine's process ended by itself, and its log shows no known cause. Read `log_tail`."""

    code: Literal["engine_exited"] = "engine_exited"
    who: ClassVar[Who] = "author"
    exit_code: int | None

    def sentence(self) -> str:
        return f"the engine exited with {_exit(self.exit_code)}"


class EngineKilled(ReasonBase):
    """The engine's process was ended by a signal from outside."""

    code: Literal["engine_killed"] = "engine_killed"
    who: ClassVar[Who] = "operator"
    signal: int

    def sentence(self) -> str:
        return f"the engine was ended by signal {self.signal}"


class EngineVanished(ReasonBase):
    """The agent no longer knows of the engine: the machine or its agent was restarted without it."""

    code: Literal["engine_vanished"] = "engine_vanished"
    who: ClassVar[Who] = "wait"

    def sentence(self) -> str:
        return "the engine is no longer there"


class EngineUnhealthy(ReasonBase):
    """The engine's process lives but has stopped answering its health probe."""

    code: Literal["engine_unhealthy"] = "engine_unhealthy"
    who: ClassVar[Who] = "wait"

    def sentence(self) -> str:
        return "the engine does not answer its health probe"


class EngineNotInstalled(ReasonBase):
    """The program of the engine is not there on the worker. Install the backend, or correct its path."""

    code: Literal["engine_not_installed"] = "engine_not_installed"
    who: ClassVar[Who] = "operator"
    program: str

    def sentence(self) -> str:
        return f"the engine's program {self.program} is not installed on this worker"


class PortInUse(ReasonBase):
    """The port that the engine was to listen on is taken by another process."""

    code: Literal["port_in_use"] = "port_in_use"
    who: ClassVar[Who] = "operator"
    port: int | None = None

    def sentence(self) -> str:
        return f"port {self.port} is used by another process" if self.port else "every port of the range is in use"


class OutOfMemory(ReasonBase):
    """The engine could not get the memory it needed."""

    code: Literal["out_of_memory"] = "out_of_memory"
    who: ClassVar[Who] = "author"

    def sentence(self) -> str:
        return "the engine ran out of memory"


class UnsupportedModel(ReasonBase):
    """The engine does not know the architecture of the model."""

    code: Literal["unsupported_model"] = "unsupported_model"
    who: ClassVar[Who] = "author"
    detail: str

    def sentence(self) -> str:
        return f"the engine does not support this model: {self.detail}"


class UnknownParameter(ReasonBase):
    """The engine refused one of the model's `backend_parameters`."""

    code: Literal["unknown_parameter"] = "unknown_parameter"
    who: ClassVar[Who] = "author"
    parameter: str

    def sentence(self) -> str:
        return f"the engine does not know the parameter {self.parameter}"


class NotAccepted(ReasonBase):
    """The worker did not take up its assignment in time; the instance is placed elsewhere."""

    code: Literal["not_accepted"] = "not_accepted"
    who: ClassVar[Who] = "wait"
    after_seconds: float

    def sentence(self) -> str:
        return f"the worker did not take up its assignment within {self.after_seconds:.0f} s"


class DownloadStalled(ReasonBase):
    """No byte of the model's files has arrived for too long."""

    code: Literal["download_stalled"] = "download_stalled"
    who: ClassVar[Who] = "wait"
    after_seconds: float

    def sentence(self) -> str:
        return f"no byte of the model's files arrived for {self.after_seconds:.0f} s"


class StartTimeout(ReasonBase):
    """The engine made no progress for longer than its start timeout."""

    code: Literal["start_timeout"] = "start_timeout"
    who: ClassVar[Who] = "author"
    after_seconds: float

    def sentence(self) -> str:
        return f"the engine made no progress for {self.after_seconds:.0f} s"


class StopOverdue(ReasonBase):
    """The engine was told to stop and has not been seen gone yet. It is told again."""

    code: Literal["stop_overdue"] = "stop_overdue"
    who: ClassVar[Who] = "wait"
    after_seconds: float

    def sentence(self) -> str:
        return f"the engine was told to stop {self.after_seconds:.0f} s ago and is not gone"


Reason = Annotated[
    Union[  # noqa: UP007 - pydantic needs the union as an object, and get_args reads it below
        NoWorkers, BeingInspected, ModelNotFound, ModelFilesIncomplete, ModelFileTruncated, ModelFileInvalid, PathNotAllowed,
        WeightsUnknown, InspectionFailed, WorkerNotReady, WorkerCordoned, DownloaderSilent, LabelsDoNotMatch,
        BackendNotAvailable, NotEnoughRam, NotEnoughVram, NoGpu, OnItsWay, GpuNotSelected, WorkerSilent, AgentStopped,
        WorkerShutDown, EngineExited,
        EngineKilled, EngineVanished, EngineUnhealthy, EngineNotInstalled, PortInUse, OutOfMemory, UnsupportedModel,
        UnknownParameter, NotAccepted, DownloadStalled, StartTimeout, StopOverdue,
    ],
    Field(discriminator="code"),
]  # fmt: skip
"""Any reason; on the wire the object with its `code`."""

REASONS: Final[tuple[type[ReasonBase], ...]] = get_args(get_args(Reason)[0])


def _exit(code: int | None) -> str:
    return "an unknown code" if code is None else f"code {code}"


class Suggestion(Value):
    """A change that was run through the same placement and made it fit."""

    change: dict[str, object]
    """A JSON merge patch on the model, or `{"action": …}`."""
    text: str
