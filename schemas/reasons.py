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


def _kept(size: int) -> str:
    return f", of which the system keeps {gib(size)}" if size else ""


class ReasonBase(Value):
    who: ClassVar[Who]
    """Who must act; of one reason see `whose`."""
    worker_id: WorkerId | None = None

    @property
    def whose(self) -> Who:
        """Who must act, with these numbers."""
        return self.who

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
    path: str = ""

    def sentence(self) -> str:
        if not self.path:
            return "it is not known what the model weighs, so no memory can be promised"
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
    """The worker takes no new instances: the operator wants it so, or a GPU is unhealthy (`MUSTER_CORDON_UNHEALTHY`)."""

    code: Literal["worker_cordoned"] = "worker_cordoned"
    who: ClassVar[Who] = "operator"
    unhealthy_gpus: tuple[int, ...] = ()
    """Why, when it was not the operator."""

    def sentence(self) -> str:
        which = ", ".join(str(index) for index in self.unhealthy_gpus)
        return "the worker is cordoned" + (f", because its GPU {which} is unhealthy" if which else "")


class DownloaderSilent(ReasonBase):
    """The worker's downloader does not answer, so files cannot be checked or fetched there."""

    code: Literal["downloader_silent"] = "downloader_silent"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker's downloader is silent"


class AgentSilent(ReasonBase):
    """The worker's agent does not answer, so nobody knows which images are there, and none is pulled."""

    code: Literal["agent_silent"] = "agent_silent"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker's agent does not answer"


class RunsNoContainers(ReasonBase):
    """The worker runs engines as processes (`MUSTER_RUNTIME=process`), which come from no image."""

    code: Literal["runs_no_containers"] = "runs_no_containers"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker runs engines as processes, which come from no image"


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
    reserved_bytes: Bytes = 0
    """Kept for the system, so that it never becomes free."""

    @property
    def whose(self) -> Who:
        """Waiting does not help where even an empty one is too small."""
        return "wait" if self.needed_bytes <= self.total_bytes - self.reserved_bytes else "operator"

    def sentence(self) -> str:
        return (
            f"needs {gib(self.needed_bytes)} of RAM, {gib(self.free_bytes)} of {gib(self.total_bytes)} are free"
            f"{_kept(self.reserved_bytes)}"
        )


class NotEnoughVram(ReasonBase):
    """The model needs more memory on a GPU than is free there. With `gpus` above 1, on each of so many."""

    code: Literal["not_enough_vram"] = "not_enough_vram"
    who: ClassVar[Who] = "wait"
    needed_bytes: Bytes
    """On each GPU."""
    largest_free_bytes: Bytes
    """Of the roomiest GPU; with several, of the roomiest that is one too many."""
    largest_total_bytes: Bytes
    gpus: int = 1
    reserved_bytes: Bytes = 0
    """Of that GPU: kept for the system, so that it never becomes free."""

    @property
    def whose(self) -> Who:
        """Waiting does not help where even an empty one is too small."""
        return "wait" if self.needed_bytes <= self.largest_total_bytes - self.reserved_bytes else "operator"

    def sentence(self) -> str:
        which = "one GPU, the roomiest" if self.gpus == 1 else f"each of {self.gpus} GPUs, one of them"
        return (
            f"needs {gib(self.needed_bytes)} on {which} has {gib(self.largest_free_bytes)}"
            f" of {gib(self.largest_total_bytes)}{_kept(self.reserved_bytes)}"
        )


class NoGpu(ReasonBase):
    """The model asks for a GPU (`--n-gpu-layers`, `gpu_selector`) and the worker has none."""

    code: Literal["no_gpu"] = "no_gpu"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker has no GPU"


class InventoryIncomplete(ReasonBase):
    """The worker does not tell what placement must know (its memory, a GPU's memory). Look at its agent's log."""

    code: Literal["inventory_incomplete"] = "inventory_incomplete"
    who: ClassVar[Who] = "operator"
    field: str
    gpu_index: int | None = None

    def sentence(self) -> str:
        of = "" if self.gpu_index is None else f" of its GPU {self.gpu_index}"
        return f"the worker does not tell the {self.field}{of}"


class WorkerDraining(ReasonBase):
    """The operator drains the worker: its instances go elsewhere, and it takes no new ones."""

    code: Literal["worker_draining"] = "worker_draining"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the worker is being drained"


class PlatformNotSupported(ReasonBase):
    """The backend does not run on the worker's operating system or processor architecture."""

    code: Literal["platform_not_supported"] = "platform_not_supported"
    who: ClassVar[Who] = "author"
    backend: str
    platform: str
    supported: tuple[str, ...]

    def sentence(self) -> str:
        return f"{self.backend} runs on {' and '.join(self.supported)}, and the worker is {self.platform}"


class AcceleratorNotSupported(ReasonBase):
    """The backend (in this version) does not run on the kind of GPU that the worker has."""

    code: Literal["accelerator_not_supported"] = "accelerator_not_supported"
    who: ClassVar[Who] = "author"
    backend: str
    version: str | None = None
    accelerators: tuple[str, ...]
    """What the worker has; empty: no GPU."""
    supported: tuple[str, ...]

    def sentence(self) -> str:
        has = " and ".join(self.accelerators) or "no GPU"
        version = f" {self.version}" if self.version else ""
        return f"{self.backend}{version} runs on {', '.join(self.supported)}, and the worker has {has}"


class ImageMissing(ReasonBase):
    """The worker runs containers, and the backend has no image (of this version) for what it is and has. Name one
    (`image_name`), or add one to the backend.
    """

    code: Literal["image_missing"] = "image_missing"
    who: ClassVar[Who] = "author"
    backend: str
    version: str | None = None
    accelerators: tuple[str, ...]
    """What it would run on: kinds of GPU, or `cpu`."""
    platform: str

    def sentence(self) -> str:
        of = f"{self.backend} {self.version or ''}".strip()
        return f"{of} has no image for {' or '.join(self.accelerators)} on {self.platform}; image_name can name one"


class DriverTooOld(ReasonBase):
    """The GPU's driver cannot run what the backend version was built for. Update the driver, or choose an older version."""

    code: Literal["driver_too_old"] = "driver_too_old"
    who: ClassVar[Who] = "operator"
    gpu_index: int
    runtime_version: str
    needed_version: str
    backend: str
    version: str | None = None

    def sentence(self) -> str:
        of = f"{self.backend} {self.version or ''}".strip()
        return f"{of} needs a driver for {self.needed_version}, and that of GPU {self.gpu_index} runs {self.runtime_version}"


class ComputeCapabilityTooLow(ReasonBase):
    """The GPU's architecture is older than the backend supports."""

    code: Literal["compute_capability_too_low"] = "compute_capability_too_low"
    who: ClassVar[Who] = "author"
    gpu_index: int
    compute_capability: str
    needed: str
    backend: str

    def sentence(self) -> str:
        return f"{self.backend} needs compute capability {self.needed}, and GPU {self.gpu_index} has {self.compute_capability}"


class GpuUnhealthy(ReasonBase):
    """The driver calls GPUs of the worker broken, and without them the model does not fit. Repair or replace them."""

    code: Literal["gpu_unhealthy"] = "gpu_unhealthy"
    who: ClassVar[Who] = "operator"
    gpu_indexes: tuple[int, ...]
    problem: str

    def sentence(self) -> str:
        which = ", ".join(str(index) for index in self.gpu_indexes)
        return f"GPU {which} is unhealthy: {self.problem}"


class GpuShareNotFree(ReasonBase):
    """The engine reserves a share of each GPU (`--gpu-memory-utilization` and the like), and too few GPUs have it free."""

    code: Literal["gpu_share_not_free"] = "gpu_share_not_free"
    who: ClassVar[Who] = "wait"
    share: float
    gpus_needed: int
    gpus_free: int
    freest_share: float
    free_bytes: Bytes
    total_bytes: Bytes
    reserved_bytes: Bytes = 0
    """Of each GPU: kept for the system, so that it never becomes free."""

    @property
    def whose(self) -> Who:
        """Waiting does not help where the system keeps a part of the share."""
        return "wait" if int(self.share * self.total_bytes) <= self.total_bytes - self.reserved_bytes else "author"

    def sentence(self) -> str:
        gpus = "a GPU" if self.gpus_needed == 1 else f"each of {self.gpus_needed} GPUs"
        return (
            f"the engine takes {self.share:.0%} of {gpus}, {self.gpus_free} have that free, the freest has"
            f" {gib(self.free_bytes)} of {gib(self.total_bytes)} ({self.freest_share:.0%})"
        )


class GpuShareTooSmall(ReasonBase):
    """The share of a GPU that the engine takes is less than the model needs there. Raise the share, or use more GPUs."""

    code: Literal["gpu_share_too_small"] = "gpu_share_too_small"
    who: ClassVar[Who] = "author"
    share: float
    share_bytes: Bytes
    needed_bytes: Bytes
    """On each GPU."""
    total_bytes: Bytes
    gpus: int = 1

    def sentence(self) -> str:
        each = "a GPU" if self.gpus == 1 else f"each of {self.gpus} GPUs"
        return (
            f"needs {gib(self.needed_bytes)} on {each}, and the engine's share of {self.share:.0%} of"
            f" {gib(self.total_bytes)} is {gib(self.share_bytes)}"
        )


class GpuMemoryInUseByOthers(ReasonBase):
    """Processes that are not Muster's hold GPU memory; without them the model would fit."""

    code: Literal["gpu_memory_in_use_by_others"] = "gpu_memory_in_use_by_others"
    who: ClassVar[Who] = "operator"
    gpu_index: int
    used_bytes: Bytes
    total_bytes: Bytes

    def sentence(self) -> str:
        return (
            f"processes of others hold {gib(self.used_bytes)} of {gib(self.total_bytes)} on GPU {self.gpu_index};"
            " without them it would fit"
        )


class NotEnoughGpus(ReasonBase):
    """The model is to run on more GPUs of one kind than the worker has."""

    code: Literal["not_enough_gpus"] = "not_enough_gpus"
    who: ClassVar[Who] = "operator"
    needed: int
    available: int

    def sentence(self) -> str:
        return f"needs {self.needed} GPUs of one kind, the worker has {self.available}"


class NotEnoughDisk(ReasonBase):
    """The model's files, or the image of its engine, do not fit on the worker's disk."""

    code: Literal["not_enough_disk"] = "not_enough_disk"
    who: ClassVar[Who] = "operator"
    needed_bytes: Bytes
    free_bytes: Bytes
    image: str | None = None
    """Which does not fit, before it is unpacked; None: files."""
    promised_bytes: Bytes = 0
    """… and not to this: other downloads need it."""
    reserved_bytes: Bytes = 0
    """… and kept free."""

    def sentence(self) -> str:
        what = "the files take" if self.image is None else f"the image {self.image} takes"
        others = [
            *([f"{gib(self.promised_bytes)} are promised to other downloads"] if self.promised_bytes else []),
            *([f"{gib(self.reserved_bytes)} are kept free"] if self.reserved_bytes else []),
        ]
        but = f", of which {' and '.join(others)}" if others else ""
        return f"{what} {gib(self.needed_bytes)} of disk, {gib(self.free_bytes)} are free{but}"


class ContextDoesNotFit(ReasonBase):
    """Beside the weights there is no room for the KV cache of one sequence of the whole context. Set a shorter context."""

    code: Literal["context_does_not_fit"] = "context_does_not_fit"
    who: ClassVar[Who] = "author"
    context_tokens: int
    fitting_tokens: int
    cache_bytes: Bytes
    """Of one sequence of that length, on each GPU."""
    room_bytes: Bytes
    """What the engine's share of a GPU leaves beside the weights."""

    def sentence(self) -> str:
        return (
            f"the KV cache of {self.context_tokens} tokens takes {gib(self.cache_bytes)} on a GPU, {gib(self.room_bytes)}"
            f" are left beside the weights: {self.fitting_tokens} tokens fit"
        )


class Quarantined(ReasonBase):
    """The model's engine crashed on this worker again and again. Edit the model, or clear the quarantine."""

    code: Literal["quarantined"] = "quarantined"
    who: ClassVar[Who] = "author"
    crashes: int

    def sentence(self) -> str:
        return f"its engine crashed {self.crashes} times in a row on this worker"


class NetworkDown(ReasonBase):
    """An instance over several machines needs the GPUs' own network (RoCE), and this worker's is down."""

    code: Literal["network_down"] = "network_down"
    who: ClassVar[Who] = "operator"
    gpu_indexes: tuple[int, ...]

    def sentence(self) -> str:
        return f"the network of GPU {', '.join(str(index) for index in self.gpu_indexes)} is down"


class WorkersDoNotAddUp(ReasonBase):
    """Several machines may run the model together, and no group of equal ones has enough free GPUs of one kind."""

    code: Literal["workers_do_not_add_up"] = "workers_do_not_add_up"
    who: ClassVar[Who] = "wait"
    gpus_needed: int
    largest_group: int
    """So many GPUs has the largest group of workers that could run it together now."""
    accelerator: str
    largest_if_empty: int | None = None
    """… and would have with nothing on any worker, those included that are not ready. None: not counted."""

    @property
    def whose(self) -> Who:
        """Waiting does not help where the machines are too few or too small even when they are empty."""
        too_few = self.largest_if_empty is not None and self.largest_if_empty < self.gpus_needed
        return "operator" if too_few else "wait"

    def sentence(self) -> str:
        at_most = "" if self.whose == "wait" else f", and to {self.largest_if_empty} if all were free"
        return (
            f"needs {self.gpus_needed} {self.accelerator} GPUs over several workers, equal groups of free ones add up to"
            f" {self.largest_group}{at_most}"
        )


class HeadsNotDivisible(ReasonBase):
    """Tensor parallelism gives each GPU the same number of attention heads. Choose a size that divides them."""

    code: Literal["heads_not_divisible"] = "heads_not_divisible"
    who: ClassVar[Who] = "author"
    heads: int
    tensor_parallel_size: int
    of: Literal["attention", "vision"] = "attention"
    field: str = "backend_parameters"

    def sentence(self) -> str:
        of = "vision attention heads" if self.of == "vision" else "attention heads"
        return f"its {self.heads} {of} can't be divided by a tensor parallel size of {self.tensor_parallel_size}"


class VocabularyNotDivisible(ReasonBase):
    """Tensor parallelism divides the vocabulary among the GPUs. Choose a size that divides it."""

    code: Literal["vocabulary_not_divisible"] = "vocabulary_not_divisible"
    who: ClassVar[Who] = "author"
    vocabulary_size: int
    tensor_parallel_size: int
    field: str = "backend_parameters"

    def sentence(self) -> str:
        return (
            f"its vocabulary of {self.vocabulary_size} can't be divided by a tensor parallel size of"
            f" {self.tensor_parallel_size}"
        )


class TooFewLayers(ReasonBase):
    """Pipeline parallelism gives each stage at least one layer of the model. Choose fewer stages."""

    code: Literal["too_few_layers"] = "too_few_layers"
    who: ClassVar[Who] = "author"
    layers: int
    pipeline_parallel_size: int
    field: str = "backend_parameters"

    def sentence(self) -> str:
        return f"its {self.layers} layers can't be divided into {self.pipeline_parallel_size} stages of a pipeline"


class WorldSizeDoesNotMatch(ReasonBase):
    """The sizes in the parameters multiply to another number of GPUs than the model selects. Make them match."""

    code: Literal["world_size_does_not_match"] = "world_size_does_not_match"
    who: ClassVar[Who] = "author"
    world_size: int
    """tensor × pipeline × data parallel size."""
    selected: int
    """GPUs for one instance."""
    field: str = "gpu_selector"

    def sentence(self) -> str:
        return (
            f"the parallel sizes multiply to {self.world_size} GPUs, and {self.selected} are selected for an instance"
        )


class GpuUnknown(ReasonBase):
    """The model selects GPUs that no worker of the fleet has. An id is `<worker name>:<type>:<index>`."""

    code: Literal["gpu_unknown"] = "gpu_unknown"
    who: ClassVar[Who] = "author"
    gpu_ids: tuple[str, ...]
    field: str = "gpu_selector.gpu_ids"

    def sentence(self) -> str:
        return f"no worker has the selected GPU {', '.join(self.gpu_ids)}"


class GpuTypesMixed(ReasonBase):
    """The model selects GPUs of different kinds, and one instance runs on one kind."""

    code: Literal["gpu_types_mixed"] = "gpu_types_mixed"
    who: ClassVar[Who] = "author"
    types: tuple[str, ...]
    field: str = "gpu_selector.gpu_ids"

    def sentence(self) -> str:
        return f"the selected GPUs are of different kinds: {', '.join(self.types)}"


class TooFewGpusSelected(ReasonBase):
    """The selected GPUs are fewer than the replicas need together."""

    code: Literal["too_few_gpus_selected"] = "too_few_gpus_selected"
    who: ClassVar[Who] = "author"
    needed: int
    selected: int
    replicas: int = 1
    """Instances that need them together."""
    field: str = "gpu_selector"

    def sentence(self) -> str:
        whom = "one instance" if self.replicas == 1 else f"{self.replicas} instances"
        return f"{self.needed} GPUs are needed for {whom}, and {self.selected} are selected"


class ParameterInvalid(ReasonBase):
    """A value in `backend_parameters` is none that the engine could take."""

    code: Literal["parameter_invalid"] = "parameter_invalid"
    who: ClassVar[Who] = "author"
    parameter: str
    value: str
    expected: str
    field: str = "backend_parameters"

    def sentence(self) -> str:
        return f"{self.parameter} is {self.value!r}, and must be {self.expected}"


class ParametersContradict(ReasonBase):
    """Two of the model's parameters exclude each other."""

    code: Literal["parameters_contradict"] = "parameters_contradict"
    who: ClassVar[Who] = "author"
    parameters: tuple[str, ...]
    problem: str
    field: str = "backend_parameters"

    def sentence(self) -> str:
        return f"{' and '.join(self.parameters)} exclude each other: {self.problem}"


class FlagIsOurs(ReasonBase):
    """A flag in `backend_parameters` is one that Muster sets: where the engine listens, what it serves under which name, its key."""

    code: Literal["flag_is_ours"] = "flag_is_ours"
    who: ClassVar[Who] = "author"
    flag: str
    instead: str
    field: str = "backend_parameters"

    def sentence(self) -> str:
        return f"{self.flag} is set by Muster: {self.instead}"


class VariableNotAllowed(ReasonBase):
    """A variable in `env` would lead out of the engine's isolation, or is one that Muster sets."""

    code: Literal["variable_not_allowed"] = "variable_not_allowed"
    who: ClassVar[Who] = "author"
    variable: str
    why: str
    instead: str
    field: str = "env"

    def sentence(self) -> str:
        return f"{self.variable} is not allowed, since {self.why}: {self.instead}"


class BackendUnknown(ReasonBase):
    """There is no backend of that name."""

    code: Literal["backend_unknown"] = "backend_unknown"
    who: ClassVar[Who] = "author"
    backend: str
    known: tuple[str, ...]
    field: str = "backend"

    def sentence(self) -> str:
        return f"there is no backend {self.backend}; known are {', '.join(self.known)}"


class BackendDisabled(ReasonBase):
    """An operator has switched the backend off."""

    code: Literal["backend_disabled"] = "backend_disabled"
    who: ClassVar[Who] = "operator"
    backend: str
    field: str = "backend"

    def sentence(self) -> str:
        return f"the backend {self.backend} is switched off"


class BackendVersionUnknown(ReasonBase):
    """The backend has no such version."""

    code: Literal["backend_version_unknown"] = "backend_version_unknown"
    who: ClassVar[Who] = "author"
    backend: str
    version: str
    known: tuple[str, ...]
    """The oldest and the newest."""
    field: str = "backend_version"

    def sentence(self) -> str:
        return f"{self.backend} has no version {self.version}; known are {' to '.join(self.known)}"


class RolledBack(ReasonBase):
    """The newest revision of the model did not run, so the former one runs. Edit the model again."""

    code: Literal["rolled_back"] = "rolled_back"
    who: ClassVar[Who] = "author"
    revision: int
    """The generation that did not run."""
    problem: str

    def sentence(self) -> str:
        return f"the newest revision did not run ({self.problem}), the former one runs in its stead"


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
    who: ClassVar[Who] = "author"
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


class MachineRestarted(ReasonBase):
    """The worker's machine was started anew, and the engine ended with it. The next attempt starts as soon as that is known."""

    code: Literal["machine_restarted"] = "machine_restarted"
    who: ClassVar[Who] = "wait"

    def sentence(self) -> str:
        return "the worker's machine was restarted, and the engine ended with it"


class EngineExited(ReasonBase):
    """The engine's process ended by itself, and its log shows no known cause. Read `log_tail`."""

    code: Literal["engine_exited"] = "engine_exited"
    who: ClassVar[Who] = "author"
    exit_code: int | None

    def sentence(self) -> str:
        return f"the engine exited with {_exit(self.exit_code)}"


class EngineKilled(ReasonBase):
    """The engine's process was ended by a signal: by hand, or (SIGSEGV, SIGABRT) by a fault of its own. SIGKILL without the kernel's
    word that memory ran out (that would be `out_of_memory`) was somebody's.
    """

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


class NeedNotAllowed(ReasonBase):
    """The backend needs more than a locked-down container, and the worker's operator does not allow it
    (`MUSTER_ALLOWED_NEEDS`).
    """

    code: Literal["need_not_allowed"] = "need_not_allowed"
    who: ClassVar[Who] = "operator"
    needs: tuple[str, ...]

    def sentence(self) -> str:
        return f"the engine needs {' and '.join(self.needs)}, which this worker does not allow"


class EngineNotInstalled(ReasonBase):
    """The program of the engine is not there on the worker. Install the backend, or correct its path."""

    code: Literal["engine_not_installed"] = "engine_not_installed"
    who: ClassVar[Who] = "operator"
    program: str

    def sentence(self) -> str:
        return f"the engine's program {self.program} is not installed on this worker"


class ImageNotFound(ReasonBase):
    """There is no such image, neither on the worker nor in its registry. Correct the name, or give the worker access to it."""

    code: Literal["image_not_found"] = "image_not_found"
    who: ClassVar[Who] = "author"
    image: str

    def sentence(self) -> str:
        return f"there is no image {self.image}, neither on this worker nor in its registry"


class ImageNotPulled(ReasonBase):
    """The registry could not be reached, or did not hand the image out."""

    code: Literal["image_not_pulled"] = "image_not_pulled"
    who: ClassVar[Who] = "operator"
    image: str
    problem: str

    def sentence(self) -> str:
        return f"the image {self.image} could not be pulled: {self.problem}"


class ImageForAnotherPlatform(ReasonBase):
    """The image has no variant for the worker's operating system and processor."""

    code: Literal["image_for_another_platform"] = "image_for_another_platform"
    who: ClassVar[Who] = "author"
    image: str
    platform: str
    """The worker's."""

    def sentence(self) -> str:
        return f"the image {self.image} has no variant for {self.platform}"


class DevicesNotAvailable(ReasonBase):
    """The container engine can't hand the GPUs to a container: the vendor's container toolkit is missing, or a node under /dev."""

    code: Literal["devices_not_available"] = "devices_not_available"
    who: ClassVar[Who] = "operator"
    problem: str

    def sentence(self) -> str:
        return f"the container engine can't hand out the GPUs: {self.problem}"


class ContainerNotStarted(ReasonBase):
    """The container engine refused to start the engine's container, for a reason of its own."""

    code: Literal["container_not_started"] = "container_not_started"
    who: ClassVar[Who] = "operator"
    problem: str

    def sentence(self) -> str:
        return f"the container was not started: {self.problem}"


class PortInUse(ReasonBase):
    """The port that the engine was to listen on is taken by another process."""

    code: Literal["port_in_use"] = "port_in_use"
    who: ClassVar[Who] = "operator"
    port: int | None = None

    def sentence(self) -> str:
        return f"port {self.port} is used by another process" if self.port else "every port of the range is in use"


class OutOfMemory(ReasonBase):
    """The engine could not get the memory (RAM) it needed, or the kernel ended it for want of memory. Take a shorter context, a
    smaller model, or a worker with more memory.
    """

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


class GpuOutOfMemory(ReasonBase):
    """The engine asked a GPU for more memory than it had left. Take a shorter context (`--max-model-len`, `--ctx-size`), fewer
    sequences at a time, a smaller share for the cache, a quantised model, or more GPUs.
    """

    code: Literal["gpu_out_of_memory"] = "gpu_out_of_memory"
    who: ClassVar[Who] = "author"
    wanted_bytes: Bytes | None = None
    """Of the allocation that failed, where the engine says so."""

    def sentence(self) -> str:
        wanted = f" when it asked for {gib(self.wanted_bytes)}" if self.wanted_bytes else ""
        return f"the engine ran out of GPU memory{wanted}"


class GpuMemoryTaken(ReasonBase):
    """When the engine started, less of a GPU was free than the share that it is to take. End what holds the memory (the engine before
    it, a process of others), or lower the share.
    """

    code: Literal["gpu_memory_taken"] = "gpu_memory_taken"
    who: ClassVar[Who] = "operator"
    free_bytes: Bytes
    wanted_bytes: Bytes

    def sentence(self) -> str:
        return f"the engine was to take {gib(self.wanted_bytes)} of a GPU, and {gib(self.free_bytes)} were free when it started"


class KvCacheTooSmall(ReasonBase):
    """Beside the weights the engine's share of the GPU leaves no room for one sequence of the whole context. Set a shorter
    `--max-model-len`, or a larger share (`--gpu-memory-utilization`, `--mem-fraction-static`).
    """

    code: Literal["kv_cache_too_small"] = "kv_cache_too_small"
    who: ClassVar[Who] = "author"
    context_tokens: int | None = None
    fitting_tokens: int | None = None
    """What the engine says would fit."""

    def sentence(self) -> str:
        if self.context_tokens is None:
            return "the weights leave no room for a KV cache in the engine's share of the GPU"
        fits = f", {self.fitting_tokens} would fit" if self.fitting_tokens else ""
        return f"the KV cache has no room for a sequence of {self.context_tokens} tokens{fits}"


class NoKernelForGpu(ReasonBase):
    """The engine was built for other GPUs: it has no code for the architecture of this one. Choose a backend version or an image
    that supports it, or other GPUs.
    """

    code: Literal["no_kernel_for_gpu"] = "no_kernel_for_gpu"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the engine was not built for GPUs of this architecture"


class GpuDriverMissing(ReasonBase):
    """The engine can't find the library of the GPU's driver. Install the driver; in a container, the vendor's container toolkit."""

    code: Literal["gpu_driver_missing"] = "gpu_driver_missing"
    who: ClassVar[Who] = "operator"
    library: str

    def sentence(self) -> str:
        return f"the library {self.library} of the GPU's driver is not there for the engine"


class GpuDriverTooOld(ReasonBase):
    """The engine needs a newer GPU driver than the worker has. Update the driver, or choose an older backend version."""

    code: Literal["gpu_driver_too_old"] = "gpu_driver_too_old"
    who: ClassVar[Who] = "operator"
    found: str | None = None
    """The newest version of its runtime that the driver can serve, in the engine's words."""

    def sentence(self) -> str:
        return "the engine needs a newer GPU driver" + (f": this one is for {self.found}" if self.found else "")


class QuantizationNotSupported(ReasonBase):
    """The GPU can't run the model's quantisation. Take a model that is quantised otherwise, or a newer GPU."""

    code: Literal["quantization_not_supported"] = "quantization_not_supported"
    who: ClassVar[Who] = "author"
    method: str | None = None
    needed: str
    """The least compute capability, as the engine writes it: `80` is 8.0."""
    found: str

    def sentence(self) -> str:
        return (
            f"{self.method or 'the quantisation'} needs compute capability {self.needed}, and the GPU has {self.found}"
        )


class CollectiveTimeout(ReasonBase):
    """The GPUs of an instance waited for each other in vain (NCCL, HCCL, RCCL). One of its processes hangs or has died, or the
    network between them does not carry: look at the log of every worker, at interfaces (`NCCL_SOCKET_IFNAME`) and links.
    """

    code: Literal["collective_timeout"] = "collective_timeout"
    who: ClassVar[Who] = "operator"
    library: str

    def sentence(self) -> str:
        return f"the GPUs of the instance waited for each other in vain ({self.library})"


class PeerUnreachable(ReasonBase):
    """The engine did not find its other processes: the leader's port can't be reached, or somebody did not come. Let the workers
    reach each other, and look at the logs of the other members.
    """

    code: Literal["peer_unreachable"] = "peer_unreachable"
    who: ClassVar[Who] = "operator"
    address: str | None = None

    def sentence(self) -> str:
        return f"the engine did not reach {self.address or 'its other processes'}"


class SharedMemoryTooSmall(ReasonBase):
    """The shared memory (/dev/shm) that the engine's processes talk through is full, or too small. Make it larger."""

    code: Literal["shared_memory_too_small"] = "shared_memory_too_small"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the engine ran out of shared memory (/dev/shm)"


class LockedMemoryLimited(ReasonBase):
    """The engine may not lock memory for the network card. Raise the limit (`ulimit -l unlimited`, `LimitMEMLOCK=infinity`)."""

    code: Literal["locked_memory_limited"] = "locked_memory_limited"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the engine may not lock as much memory as the network card needs (ulimit -l)"


class TooManyOpenFiles(ReasonBase):
    """The engine may not open as many files and sockets as it needs. Raise the limit (`ulimit -n`, `LimitNOFILE`)."""

    code: Literal["too_many_open_files"] = "too_many_open_files"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the engine may not open more files (ulimit -n)"


class DiskFull(ReasonBase):
    """The engine, or what pulls its image and starts it, could not write: the disk, or the temporary directory, is full. Make room;
    delete model files and images that nobody needs.
    """

    code: Literal["disk_full"] = "disk_full"
    who: ClassVar[Who] = "operator"
    path: str | None = None

    def sentence(self) -> str:
        return "the disk is full: " + (f"{self.path} can't be written" if self.path else "the engine could not write")


class CpuNotSupported(ReasonBase):
    """The engine uses instructions that this processor does not have (AVX2, AVX-512, AMX), or that a virtual machine hides.
    Take a build for it, or another worker.
    """

    code: Literal["cpu_not_supported"] = "cpu_not_supported"
    who: ClassVar[Who] = "operator"

    def sentence(self) -> str:
        return "the engine uses instructions that this processor does not have"


class RemoteCodeNotTrusted(ReasonBase):
    """The model brings Python code of its own, which is run only when its author's word is trusted. Read it, then add
    `--trust-remote-code`.
    """

    code: Literal["remote_code_not_trusted"] = "remote_code_not_trusted"
    who: ClassVar[Who] = "author"
    model: str | None = None

    def sentence(self) -> str:
        return f"{self.model or 'the model'} brings code of its own, which --trust-remote-code would let run"


class GatedRepository(ReasonBase):
    """The repository gives its files to those alone who have accepted its terms. Accept them, and give a token."""

    code: Literal["gated_repository"] = "gated_repository"
    who: ClassVar[Who] = "author"
    repository: str

    def sentence(self) -> str:
        return f"{self.repository} is a gated repository: it wants its terms accepted and a token"


class ChatTemplateMissing(ReasonBase):
    """The model says nothing about how a conversation is written down. Give a template (`--chat-template`)."""

    code: Literal["chat_template_missing"] = "chat_template_missing"
    who: ClassVar[Who] = "author"

    def sentence(self) -> str:
        return "the model has no chat template"


class PackageMissing(ReasonBase):
    """The engine or the model needs a Python package that is not installed. In a container, name it in `PYPI_PACKAGES_INSTALL`."""

    code: Literal["package_missing"] = "package_missing"
    who: ClassVar[Who] = "author"
    package: str

    def sentence(self) -> str:
        return f"the Python package {self.package} is missing"


class PackagesDoNotMatch(ReasonBase):
    """Two libraries of the engine were built for different versions of each other (torch and torchvision, torch and a kernel
    library). Take the image as it is published, or install versions that belong together.
    """

    code: Literal["packages_do_not_match"] = "packages_do_not_match"
    who: ClassVar[Who] = "operator"
    detail: str

    def sentence(self) -> str:
        return f"libraries of the engine do not match: {self.detail}"


class ProgramNotExecutable(ReasonBase):
    """The program that the engine is to be started with may not be executed: it lacks the permission, or lies on a disk mounted
    `noexec`. `chmod +x` it, or name another entrypoint.
    """

    code: Literal["program_not_executable"] = "program_not_executable"
    who: ClassVar[Who] = "author"
    program: str

    def sentence(self) -> str:
        return f"{self.program} may not be executed"


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
    last_answer: str | None = None
    """What the other side said last."""

    def sentence(self) -> str:
        said = "" if self.last_answer is None else f"; the last answer was: {self.last_answer}"
        return f"no byte of the model's files arrived for {self.after_seconds:.0f} s{said}"


class NotTheFirstShard(ReasonBase):
    """`local_path` names a later shard of a GGUF. Give the first one; the others are found beside it."""

    code: Literal["not_the_first_shard"] = "not_the_first_shard"
    who: ClassVar[Who] = "author"
    path: str
    first: str

    def sentence(self) -> str:
        return f"{self.path} is not the first of its shards: give {self.first}"


class RepositoryNotFound(ReasonBase):
    """The hub knows no such repository, or shows it to nobody without a token that may see it."""

    code: Literal["repository_not_found"] = "repository_not_found"
    who: ClassVar[Who] = "author"
    repository: str

    def sentence(self) -> str:
        return f"the hub has no repository {self.repository}, or none that this worker's token may see"


class RevisionNotFound(ReasonBase):
    """The repository has no such branch, tag or commit."""

    code: Literal["revision_not_found"] = "revision_not_found"
    who: ClassVar[Who] = "author"
    repository: str
    revision: str

    def sentence(self) -> str:
        return f"{self.repository} has no branch, tag or commit {self.revision}"


class HubUnauthorized(ReasonBase):
    """The hub does not accept the downloader's token (`HF_TOKEN`, `MODELSCOPE_API_TOKEN`), or wants one."""

    code: Literal["hub_unauthorized"] = "hub_unauthorized"
    who: ClassVar[Who] = "operator"
    host: str
    status: int

    def sentence(self) -> str:
        return f"{self.host} answered {self.status}: it does not accept this worker's token, or wants one"


class HubUnreachable(ReasonBase):
    """The hub (or what it redirects to) can't be reached from this worker: name, network, proxy or certificate."""

    code: Literal["hub_unreachable"] = "hub_unreachable"
    who: ClassVar[Who] = "operator"
    host: str
    problem: str

    def sentence(self) -> str:
        return f"{self.host} can't be reached: {self.problem}"


class HubRateLimited(ReasonBase):
    """The hub wants fewer requests from this worker's address or token. It is asked again when it says so."""

    code: Literal["hub_rate_limited"] = "hub_rate_limited"
    who: ClassVar[Who] = "wait"
    host: str
    retry_after_seconds: float | None = None

    def sentence(self) -> str:
        when = (
            "" if self.retry_after_seconds is None else f", and wants to be asked in {self.retry_after_seconds:.0f} s"
        )
        return f"{self.host} answered 429 (too many requests){when}"


class HubError(ReasonBase):
    """The hub answered with an error that is its own."""

    code: Literal["hub_error"] = "hub_error"
    who: ClassVar[Who] = "wait"
    host: str
    status: int
    problem: str = ""

    def sentence(self) -> str:
        return f"{self.host} answered {self.status}" + (f": {self.problem}" if self.problem else "")


class RedirectNotAllowed(ReasonBase):
    """The hub sent the downloader to an address that nobody outside should send it to."""

    code: Literal["redirect_not_allowed"] = "redirect_not_allowed"
    who: ClassVar[Who] = "operator"
    host: str
    to: str
    problem: str

    def sentence(self) -> str:
        return f"{self.host} redirects to {self.to}, which is not followed: {self.problem}"


class NoFileMatches(ReasonBase):
    """No file of the repository is what was asked for."""

    code: Literal["no_file_matches"] = "no_file_matches"
    who: ClassVar[Who] = "author"
    repository: str
    pattern: str
    available: tuple[str, ...] = ()
    """Some of those that could have been meant."""

    def sentence(self) -> str:
        there = f"; there are {', '.join(self.available)}" if self.available else ""
        return f"no model in {self.repository} matches {self.pattern}{there}"


class FilesAmbiguous(ReasonBase):
    """The repository has several models that could be meant: choose one by its file name (`*Q4_K_M*.gguf`)."""

    code: Literal["files_ambiguous"] = "files_ambiguous"
    who: ClassVar[Who] = "author"
    repository: str
    models: tuple[str, ...]

    def sentence(self) -> str:
        return f"{self.repository} has several models, and one must be chosen: {', '.join(self.models)}"


class UnsafeFormat(ReasonBase):
    """The weights are pickled, which runs whatever their author wrote when they are loaded. An operator may trust one commit of
    the repository (`MUSTER_TRUSTED_REPOSITORIES`).
    """

    code: Literal["unsafe_format"] = "unsafe_format"
    who: ClassVar[Who] = "operator"
    repository: str
    formats: tuple[str, ...]

    def sentence(self) -> str:
        return f"{self.repository} has pickled weights only ({', '.join(self.formats)}), which may run any program"


class RemoteCodeNotAllowed(ReasonBase):
    """The model brings programs of its own that an engine would run (`auto_map`). An operator may trust one commit of the
    repository (`MUSTER_TRUSTED_REPOSITORIES`).
    """

    code: Literal["remote_code_not_allowed"] = "remote_code_not_allowed"
    who: ClassVar[Who] = "operator"
    repository: str
    commit: str

    def sentence(self) -> str:
        return f"{self.repository} at {self.commit} brings programs of its own, which this worker does not trust"


class UnsafeFileName(ReasonBase):
    """The repository has a file name that must not be written to a disk."""

    code: Literal["unsafe_file_name"] = "unsafe_file_name"
    who: ClassVar[Who] = "author"
    repository: str
    name: str
    problem: str

    def sentence(self) -> str:
        return f"{self.repository} has a file {self.name!r}, which is not written: {self.problem}"


class TooManyFiles(ReasonBase):
    """The repository has more files than any model has."""

    code: Literal["too_many_files"] = "too_many_files"
    who: ClassVar[Who] = "author"
    repository: str
    files: int
    most: int

    def sentence(self) -> str:
        return f"{self.repository} has {self.files} files, and at most {self.most} are taken"


class SizeMismatch(ReasonBase):
    """What was sent is not as long as the hub said. It was asked for again."""

    code: Literal["size_mismatch"] = "size_mismatch"
    who: ClassVar[Who] = "wait"
    path: str
    expected_bytes: Bytes
    actual_bytes: Bytes

    def sentence(self) -> str:
        return f"{self.path} was to have {self.expected_bytes} bytes, and was sent with {self.actual_bytes}"


class ChecksumMismatch(ReasonBase):
    """What was sent is not what the hub said: it was damaged, or somebody changed it on the way. It was asked for again."""

    code: Literal["checksum_mismatch"] = "checksum_mismatch"
    who: ClassVar[Who] = "wait"
    path: str
    expected: str
    actual: str

    def sentence(self) -> str:
        return f"{self.path} was to have the digest {self.expected}, and has {self.actual}"


class RevisionChanged(ReasonBase):
    """The hub sent another version of the file than the one that was asked for."""

    code: Literal["revision_changed"] = "revision_changed"
    who: ClassVar[Who] = "wait"
    path: str
    expected: str
    actual: str

    def sentence(self) -> str:
        return f"{self.path} was asked for as of {self.expected}, and came as of {self.actual}"


class AnswerIsNoFile(ReasonBase):
    """Something else than the file was sent, such as the page of a network that wants a login."""

    code: Literal["answer_is_no_file"] = "answer_is_no_file"
    who: ClassVar[Who] = "operator"
    path: str
    host: str
    content: str

    def sentence(self) -> str:
        return f"in place of {self.path}, {self.host} sent {self.content}"


class DiskError(ReasonBase):
    """The worker's disk, or the store that it shares, can't be read or written."""

    code: Literal["disk_error"] = "disk_error"
    who: ClassVar[Who] = "operator"
    path: str
    problem: str

    def sentence(self) -> str:
        return f"{self.path}: {self.problem}"


class FileInUse(ReasonBase):
    """The files can't be deleted: instances run from them."""

    code: Literal["file_in_use"] = "file_in_use"
    who: ClassVar[Who] = "author"
    instances: tuple[str, ...]

    def sentence(self) -> str:
        return f"the files are in use by {', '.join(self.instances)}"


class StartTimeout(ReasonBase):
    """The engine made no progress for longer than its start timeout."""

    code: Literal["start_timeout"] = "start_timeout"
    who: ClassVar[Who] = "author"
    after_seconds: float

    def sentence(self) -> str:
        return f"the engine made no progress for {self.after_seconds:.0f} s"


class FinishingRequests(ReasonBase):
    """The instance was replaced, or is one too many: it gets no new requests, and its engine finishes those that it has."""

    code: Literal["finishing_requests"] = "finishing_requests"
    who: ClassVar[Who] = "wait"
    up_to_seconds: float

    def sentence(self) -> str:
        return f"no new requests go there, and those in flight have {self.up_to_seconds:.0f} s to end"


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
        WeightsUnknown, InspectionFailed, WorkerNotReady, WorkerCordoned, DownloaderSilent, AgentSilent, RunsNoContainers,
        LabelsDoNotMatch,
        BackendNotAvailable, NotEnoughRam, NotEnoughVram, NoGpu, InventoryIncomplete, WorkerDraining, PlatformNotSupported,
        AcceleratorNotSupported, ImageMissing, DriverTooOld, ComputeCapabilityTooLow, GpuUnhealthy, GpuShareNotFree, GpuShareTooSmall,
        GpuMemoryInUseByOthers, NotEnoughGpus, NotEnoughDisk, ContextDoesNotFit, Quarantined, NetworkDown,
        WorkersDoNotAddUp, HeadsNotDivisible, VocabularyNotDivisible, TooFewLayers, WorldSizeDoesNotMatch, GpuUnknown, GpuTypesMixed,
        TooFewGpusSelected, ParameterInvalid, ParametersContradict, FlagIsOurs, VariableNotAllowed, BackendUnknown,
        BackendDisabled, BackendVersionUnknown, RolledBack, OnItsWay, GpuNotSelected, WorkerSilent, AgentStopped,
        WorkerShutDown, MachineRestarted, ImageNotFound, ImageNotPulled, ImageForAnotherPlatform, DevicesNotAvailable,
        ContainerNotStarted, EngineExited,
        EngineKilled, EngineVanished, NeedNotAllowed, EngineUnhealthy, EngineNotInstalled, PortInUse, OutOfMemory, UnsupportedModel,
        GpuOutOfMemory, GpuMemoryTaken, KvCacheTooSmall, NoKernelForGpu, GpuDriverMissing,
        GpuDriverTooOld, QuantizationNotSupported, CollectiveTimeout, PeerUnreachable, SharedMemoryTooSmall,
        LockedMemoryLimited, TooManyOpenFiles, DiskFull, CpuNotSupported, RemoteCodeNotTrusted,
        GatedRepository, ChatTemplateMissing, PackageMissing, PackagesDoNotMatch, ProgramNotExecutable,
        UnknownParameter, NotAccepted, DownloadStalled, StartTimeout, FinishingRequests,
        StopOverdue, NotTheFirstShard, RepositoryNotFound, RevisionNotFound, HubUnauthorized, HubUnreachable,
        HubRateLimited, HubError, RedirectNotAllowed, NoFileMatches, FilesAmbiguous, UnsafeFormat, RemoteCodeNotAllowed,
        UnsafeFileName, TooManyFiles, SizeMismatch, ChecksumMismatch, RevisionChanged, AnswerIsNoFile, DiskError,
        FileInUse,
    ],
    Field(discriminator="code"),
]  # fmt: skip
"""Any reason; on the wire the object with its `code`."""

OF_A_WORKERS_HUB: Final = frozenset(
    {
        "hub_unreachable",
        "hub_unauthorized",
        "hub_rate_limited",
        "hub_error",
        "inspection_failed",
        "redirect_not_allowed",
    }
)
"""Codes of what one worker met when it asked a hub. What else is said of a repository holds for every worker."""

REASONS: Final[tuple[type[ReasonBase], ...]] = get_args(get_args(Reason)[0])


def _exit(code: int | None) -> str:
    return "an unknown code" if code is None else f"code {code}"


class Suggestion(Value):
    """A change that was run through the same placement and made it fit."""

    change: dict[str, object]
    """A JSON merge patch on the model, or `{"action": …}`."""
    text: str
