"""What may stand in the file of a simulated fleet, and the workers that it describes.

What a machine has and what a model weighs are the fields of `Inventory`, `Gpu` and `ModelWeights` (schemas/models.py), the
ones that are added there included.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from kernel.errors import Refused
from schemas.ids import NAME_PATTERN, WorkerId
from schemas.models import Gpu, Inventory, ModelWeights
from schemas.reasons import Reason
from schemas.value import Bytes
from services.simulator.domain.dice import Span, draw, within

MOST_WORKERS: Final = 10_000
MOST_GPUS: Final = 256
"""Of one worker (`Inventory.gpus`)."""
NUMBER: Final = "{n}"


def _span(given: object) -> object:
    """A number is the span from itself to itself."""
    return (given, given) if isinstance(given, int | float) and not isinstance(given, bool) else given


Seconds = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], BeforeValidator(_span)]
"""A number, or `[lowest, highest]` to draw from."""
Sizes = Annotated[tuple[Bytes, Bytes], BeforeValidator(_span)]
"""The same of bytes."""
Probability = Annotated[float, Field(ge=0, le=1)]


SPANS: Final = ("_seconds", "_ram", "_vram")
"""How fields are called that are spans."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _spans_rise(self) -> "Part":
        for name in type(self).model_fields:
            value: object = getattr(self, name)
            if name.endswith(SPANS) and isinstance(value, tuple):
                low, high = cast("Span", value)
                if low > high:
                    raise ValueError(f"{name} goes from {low:g} down to {high:g}")
        return self


class Crash(Part):
    """Some engines end by themselves."""

    probability: Probability = 1.0
    after_seconds: Seconds = (60.0, 60.0)
    """From the start of the engine: when that is less than it needs to start, it never runs."""
    exit_code: Annotated[int, Field(ge=-255, le=255)] = 1
    reason: Reason | None = None
    """The agent's diagnosis; `engine_exited` when not given."""
    log: tuple[str, ...] = ("simulated crash",)
    """The last lines of the engine's log."""


class Slow(Part):
    """Some engines start and answer so many times slower."""

    probability: Probability = 1.0
    factor: Annotated[float, Field(ge=1)] = 10.0


class Engines(Part):
    """How the engines of these workers behave."""

    start_seconds: Seconds = (2.0, 5.0)
    stop_seconds: Seconds = (0.0, 0.5)
    serves: bool = True
    """False: nothing listens where the engine says that it does."""
    first_token_seconds: Seconds = (0.05, 0.05)
    token_seconds: Seconds = (0.01, 0.01)
    peak_ram: Sizes | None = None
    """The most that an engine is said to hold, from when it is healthy; when not given, nothing is said."""
    peak_vram: Sizes | None = None
    """… on each of its GPUs."""
    crash: Crash | None = None
    slow: Slow | None = None


class Files(Part):
    """How long the downloaders of these workers take."""

    verify_seconds: Seconds = (0.0, 0.0)
    inspect_seconds: Seconds = (0.0, 0.0)


class Life(Part):
    """Seconds of the simulation at which these workers leave and come back, without the engines that they had."""

    leaves_at_seconds: Seconds
    returns_at_seconds: Seconds | None = None
    says_goodbye: bool = True
    """False: they fall silent, as when a machine loses power."""

    @model_validator(mode="after")
    def _leaves_before_it_returns(self) -> "Life":
        if self.returns_at_seconds is not None and self.returns_at_seconds[0] <= self.leaves_at_seconds[1]:
            raise ValueError("returns_at_seconds begins before leaves_at_seconds ends")
        return self


class GpuGroup(Gpu):
    """`count` GPUs that are alike."""

    model_config = ConfigDict(extra="forbid")
    index: Annotated[int, Field(ge=0, lt=MOST_GPUS)] = 0
    """Of the first one; when not given they go on after the ones before."""
    count: Annotated[int, Field(ge=1, le=MOST_GPUS)] = 1


class WorkerGroup(Inventory):
    """`count` workers that are alike."""

    model_config = ConfigDict(extra="forbid")
    name: str
    """With `{n}` in it, which becomes 0, 1, 2 …, when there are several."""
    count: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    os: str = "linux"
    arch: str = "amd64"
    gpus: Annotated[tuple[GpuGroup, ...], Field(max_length=MOST_GPUS)] = ()  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    backends: dict[str, str | None] = {"llama.cpp": None}
    runtime: str = "simulated"
    engines: Engines = Engines()
    files: Files = Files()
    life: Life | None = None

    @field_validator("gpus")
    @classmethod
    def _one_gpu_for_each_index(cls, gpus: tuple[GpuGroup, ...]) -> tuple[GpuGroup, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - in its stead
        """The rule of Inventory, for what the groups stand for."""
        indexes = [gpu.index for gpu in _gpus("", gpus)]
        if twice := sorted({index for index in indexes if indexes.count(index) > 1}):
            raise ValueError(f"two GPUs have the index {twice[0]}")
        return gpus


class Weights(ModelWeights):
    """What lies at a path; `files` is the path itself when not given."""

    model_config = ConfigDict(extra="forbid")
    files: tuple[str, ...] = ()
    missing_on: tuple[str, ...] = ()
    """Names of workers that do not have it, or, where it is a hub's, don't reach the hub; `*` stands for anything."""


class FleetFile(Part):
    seed: int | str = 0
    """Another seed is another fleet: other workers, other draws."""
    workers: tuple[WorkerGroup, ...]
    models: dict[Annotated[str, Field(min_length=1)], Weights] = {}
    """Path, or what a hub's source is called (`huggingface:name@main`) → what lies there."""
    other_models: Weights | None = None
    """What lies at every other path; when not given, nothing does."""


@dataclass(frozen=True, slots=True)
class Described:
    """One worker of the fleet."""

    name: str
    id: WorkerId
    number: int
    """Of this worker in the fleet, from 0."""
    group: WorkerGroup
    seed: int | str

    def inventory(self) -> Inventory:
        fields = _fields_of(Inventory, self.group)
        return Inventory.model_validate(fields | {"gpus": tuple(_gpus(self.id, self.group.gpus))})

    def happens(self, probability: float, *what: object) -> bool:
        return draw(self.seed, self.name, *what) < probability

    def draw(self, span: Span, *what: object) -> float:
        return within(span, self.seed, self.name, *what)


@dataclass(frozen=True, slots=True)
class Fleet:
    workers: tuple[Described, ...]
    models: dict[str, Weights]
    other_models: Weights | None


def read_fleet(content: bytes) -> Fleet:
    """Raises Refused, with code and field."""
    try:
        file = FleetFile.model_validate(_json(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = first["msg"].removeprefix("Value error, ")
        raise Refused("fleet_invalid", what, field=".".join(map(str, first["loc"])) or None) from error
    if not file.workers:
        raise Refused("no_workers", "a fleet has at least one worker", field="workers")
    total = sum(group.count for group in file.workers)
    if total > MOST_WORKERS:
        raise Refused("too_many_workers", f"{total} workers are more than {MOST_WORKERS}", field="workers")
    workers: list[Described] = []
    named: dict[str, str] = {}
    for index, group in enumerate(file.workers):
        field = f"workers.{index}.name"
        for name in _names(group, field):
            if (before := named.setdefault(name.casefold(), field)) != field:
                raise Refused("duplicate_worker", f"{name} is called like a worker of {before}", field=field)
            workers.append(Described(name, worker_id_of(file.seed, name), len(workers), group, file.seed))
    return Fleet(tuple(workers), file.models, file.other_models)


def worker_id_of(seed: int | str, name: str) -> WorkerId:
    """A simulated worker is its name: the same fleet is there again after a restart."""
    return WorkerId("w-" + hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()[:12])


def _json(content: bytes) -> Any:
    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise Refused("fleet_invalid", f"{twice[:80]!r} stands twice in one object", field=twice[:80])
        return found

    try:
        return json.loads(content, object_pairs_hook=no_key_twice)
    except (ValueError, RecursionError) as error:
        raise Refused("fleet_not_json", f"this is not JSON: {error}") from error


def _names(group: WorkerGroup, field: str) -> Iterable[str]:
    if group.count > 1 and NUMBER not in group.name:
        raise Refused(
            "fleet_invalid", f"{group.count} workers need {NUMBER} in their name: {group.name[:80]}", field=field
        )
    for number in range(group.count):
        name = group.name.replace(NUMBER, str(number))
        if not re.fullmatch(NAME_PATTERN, name):
            why = "a name is 1 to 63 of letters, digits, '.', '_', '-', first and last a letter or digit"
            raise Refused("fleet_invalid", f"{name[:80]!r} is no name: {why}", field=field)
        yield name


def _gpus(worker_id: str, groups: Iterable[GpuGroup]) -> Iterable[Gpu]:
    index = 0
    for group in groups:
        if "index" in group.model_fields_set:
            index = group.index
        for _ in range(group.count):
            if index >= MOST_GPUS:
                raise ValueError(f"there are more than {MOST_GPUS} GPUs")
            uuid = group.uuid or f"GPU-{hashlib.sha256(f'{worker_id}-{index}'.encode()).hexdigest()[:16]}"
            yield Gpu.model_validate(_fields_of(Gpu, group) | {"index": index, "uuid": uuid})
            index += 1


def _fields_of(kind: type[BaseModel], value: BaseModel) -> dict[str, Any]:
    return {name: getattr(value, name) for name in kind.model_fields}
