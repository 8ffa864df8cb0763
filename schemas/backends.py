"""Backends as data: what an engine runs on, which images there are of it, how it is started, what it needs.

Built-in ones are YAML files beside this module (`built_in/`); an operator's definition takes the place of a built-in one of
the same name. A model that brings its own `image_name` is asked for nothing but memory.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

import yaml
from pydantic import Field, field_validator, model_validator

from schemas.ids import BackendId
from schemas.models import Backend, ModelSpec, Needs
from schemas.parameters import names_in, without
from schemas.value import Value
from schemas.versions import is_newer, is_older, version_of

PLATFORMS: Final = ("linux/amd64", "linux/arm64")
CPU: Final = "cpu"
KINDS: Final = ("cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "neuware", "hggc", CPU)
"""Of accelerators; `cpu`: none is needed."""
VERSION: Final = "{version}"
"""In an image's name."""
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

_EXTEND_CACHE: Final = {"vLLM": ("cuda", "rocm"), "SGLang": KINDS[:-1]}
"""Engines that keep in RAM what falls out of a GPU's KV cache: vLLM by LMCache, of which there are builds for two kinds."""

Kind = Literal["cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "neuware", "hggc", "cpu"]
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
Text = Annotated[str, Field(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
Word = Annotated[str, Field(max_length=8192, pattern=r"^[^\x00]*$")]
Release = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
EnvName = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Env = Annotated[dict[EnvName, Word], Field(max_length=256)]
Words = Annotated[tuple[Word, ...], Field(max_length=64)]


class BackendImage(Value):
    """An image, and what it is for."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")]
    """`{version}` stands for the backend's version."""
    accelerator: Kind | None = None
    """None: whatever the backend runs on."""
    runtime: Release | None = None
    """The CUDA, ROCm, CANN … that it was built for: drivers that can't run it don't get it."""
    platforms: Annotated[tuple[Text, ...], Field(max_length=8)] = PLATFORMS
    devices: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """GPUs by the name that their maker gives them (`Ascend310P*`); empty: all of the kind."""
    versions: Annotated[tuple[Release, ...], Field(max_length=64)] = ()
    """Of the backend; empty: every one from its oldest to its newest."""
    entrypoint: Words = ()
    """Takes the place of the image's own, and of the program that Muster would start."""


class BackendVersion(Value):
    """One version that is not like the others."""

    image_name: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")] | None = None
    """For whatever the backend runs on; None: the backend's images for this version."""
    images: Annotated[tuple[BackendImage, ...], Field(max_length=64)] = ()
    entrypoint: Words = ()
    run_command: Word | None = None
    env: Env = {}


class InferenceBackend(Value):
    """How an engine is found, started and asked. Field names follow the peer's API where the concept is the same."""

    backend_name: Name
    description: Text = ""
    engine: Backend = "Custom"
    """Which of Muster's engines builds its command line and reckons what it takes."""
    enabled: bool = True
    accelerators: Annotated[dict[Kind, Release | None], Field(max_length=16)] = {}
    """What it runs on → the newest version there is for it; None: every one. Empty: what its images are for, or all."""
    platforms: Annotated[tuple[Text, ...], Field(max_length=8)] = ()
    """Empty: any."""
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}(\.[0-9]{1,2})?$")] | None = None
    """Of NVIDIA's: the oldest."""
    oldest_version: Release | None = None
    newest_version: Release | None = None
    """None: the backend has no versions of its own (the user's image)."""
    default_version: Release | None = None
    """Where the model names none. None: the newest that there is an image of."""
    images: Annotated[tuple[BackendImage, ...], Field(max_length=256)] = ()
    """The one that fits best is taken: of those for the newest runtime that the driver can run, the first."""
    version_configs: Annotated[dict[Release, BackendVersion], Field(max_length=64)] = {}
    default_backend_param: Annotated[tuple[Word, ...], Field(max_length=256)] = ()
    """Before the model's own, which win."""
    default_entrypoint: Words = ()
    default_run_command: Word | None = None
    """With `{{model_path}} {{port}} {{gpu_indexes}} …`; a version's own wins over it, and a model's over both."""
    default_env: Env = {}
    """A version's wins over it, and a model's over both."""
    health_check_path: Annotated[str, Field(max_length=256, pattern=r"^/[^\s\x00]*$")] | None = None
    """Where a `Custom` engine answers 200 when it is ready; None: it is taken to be well as long as it runs."""
    parameter_format: Literal["space", "equal"] | None = None
    """How a `Custom` engine wants its flags; None: as the model writes them."""
    common_parameters: Annotated[tuple[Text, ...], Field(max_length=256)] = ()
    """What people often give: proposed by editors."""
    needs: Needs = Needs()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.default_version is not None and not knows_version(self, self.default_version):
            raise ValueError(f"default_version: there is no version {self.default_version}")
        older, newer = self.oldest_version, self.newest_version
        if older is not None and newer is not None and is_older(newer, older):
            raise ValueError("oldest_version is newer than newest_version")
        return self

    @field_validator("version_configs")
    @classmethod
    def _have_one_image(cls, versions: dict[str, BackendVersion]) -> dict[str, BackendVersion]:
        for name, version in versions.items():
            if version.image_name is not None and version.images:
                raise ValueError(f"{name}: image_name or images, not both")
        return versions


def backend_id_of(name: str) -> BackendId:
    return BackendId(f"b-{hashlib.sha256(name.casefold().encode()).hexdigest()[:26]}")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What placement asks of a backend, in the version that a model wants."""

    accelerators: Mapping[str, str | None]
    """Kind of GPU → the newest version of the backend there is for it; None: every one. `cpu`: needs no GPU."""
    oldest: str | None = None
    newest: str | None = None
    platforms: tuple[str, ...] = PLATFORMS
    """Empty: any."""
    runtimes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Kind of GPU → the oldest runtime (CUDA, ROCm, CANN) that an image was built for."""
    compute_capability: str | None = None
    """Of NVIDIA's: the oldest."""
    tensor_parallel: bool = True
    """Divides a model's heads among GPUs."""
    pipeline_parallel: bool = False
    """Divides a model's layers among GPUs, where the sizes are ours to choose."""
    distributes: bool = True
    """One instance can run on several machines."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a worker is to run."""

    image: str
    version: str | None
    entrypoint: tuple[str, ...]


_DIVIDES_HEADS: Final = frozenset({"vLLM", "SGLang", "MindIE"})
_DIVIDES_LAYERS: Final = frozenset({"vLLM", "SGLang"})
_STAYS_ON_ONE_MACHINE: Final = frozenset({"llama.cpp"})


def info_of(backend: InferenceBackend, version: str | None = None) -> BackendInfo:
    """`version`: that a model wants; None: it takes any."""
    runtimes: dict[str, str] = {}
    for image in images_of(backend, version):
        for kind in _kinds_of(backend, image):
            if image.runtime is not None and not is_older(runtimes.get(kind), image.runtime):
                runtimes[kind] = image.runtime
    return BackendInfo(
        accelerators=accelerators_of(backend),
        oldest=backend.oldest_version,
        newest=backend.newest_version,
        platforms=backend.platforms,
        runtimes=runtimes,
        compute_capability=backend.compute_capability,
        tensor_parallel=backend.engine in _DIVIDES_HEADS,
        pipeline_parallel=backend.engine in _DIVIDES_LAYERS,
        distributes=backend.engine not in _STAYS_ON_ONE_MACHINE,
    )


def accelerators_of(backend: InferenceBackend) -> Mapping[str, str | None]:
    if backend.accelerators:
        return {kind: newest for kind, newest in backend.accelerators.items()}  # noqa: C416 - of any kind's name
    images = (*backend.images, *(image for each in backend.version_configs.values() for image in each.images))
    kinds = {image.accelerator for image in images}
    is_for_all = not kinds or None in kinds or any(each.image_name for each in backend.version_configs.values())
    return dict.fromkeys(kind for kind in KINDS if is_for_all or kind in kinds)


def knows_version(backend: InferenceBackend, version: str) -> bool:
    """One of its own, or between its oldest and its newest. Compared as far as both tell: 0.18.3 is no newer than 0.18."""
    if version in backend.version_configs or backend.newest_version is None:
        return True
    return (
        version_of(version) is not None
        and not is_older(version, backend.oldest_version)
        and not is_newer(version, backend.newest_version)
    )


def images_of(backend: InferenceBackend, version: str | None) -> Iterator[BackendImage]:
    """That there are of this version; None: of any."""
    if version is None:
        yield from backend.images
        for each in backend.version_configs.values():
            yield from _own_images(each)
    elif version in backend.version_configs and (own := tuple(_own_images(backend.version_configs[version]))):
        yield from own
    else:
        yield from (image for image in backend.images if not image.versions or version in image.versions)


def _own_images(version: BackendVersion) -> Iterable[BackendImage]:
    if version.image_name is not None:
        return (BackendImage(image=version.image_name, platforms=()),)
    return version.images


def extends_cache(engine: str, kind: str | None) -> bool:
    """Is a model's `extended_kv_cache` kept on GPUs of this kind?"""
    return kind in _EXTEND_CACHE.get(engine, ())


def image_for(
    backend: InferenceBackend,
    version: str | None,
    kind: str,
    platform: str,
    runtimes: Sequence[str | None] = (),
    devices: Sequence[str] = (),
) -> Chosen | None:
    """The image for GPUs of this kind (`cpu`: none) on this platform; None: there is none.

    `runtimes`: the newest that each driver can run; `devices`: what the GPUs are called. Of the images that all drivers can
    run it is the one for the newest runtime. A driver that does not tell gets the one for the oldest.
    """
    for number in (version,) if version is not None else _usual_versions(backend, kind):
        fitting = [
            image
            for image in images_of(backend, number)
            if kind in _kinds_of(backend, image)
            and (not image.platforms or platform in image.platforms)
            and all(not image.devices or _is_called(device, image.devices) for device in devices)
            and not any(is_older(runtime, image.runtime) for runtime in runtimes)
        ]
        if fitting:
            is_known = bool(runtimes) and all(version_of(runtime) is not None for runtime in runtimes)
            image = (max if is_known else min)(fitting, key=lambda image: version_of(image.runtime) or ())
            name = image.image.replace(VERSION, number or "latest")
            own = backend.version_configs.get(number or "", BackendVersion())
            return Chosen(name, number, image.entrypoint or own.entrypoint or backend.default_entrypoint)
    return None


def _usual_versions(backend: InferenceBackend, kind: str) -> Iterator[str | None]:
    """Where the model names none: the backend's usual one, then the newest that are told, then none at all."""
    told = {version for image in backend.images for version in image.versions} | backend.version_configs.keys()
    if backend.default_version is not None:
        yield backend.default_version
    newest = accelerators_of(backend).get(kind)
    for version in sorted(
        told - {backend.default_version}, key=lambda each: (version_of(each) or (), each), reverse=True
    ):
        if not is_newer(version, newest):
            yield version
    if backend.newest_version is None:
        yield None


def _kinds_of(backend: InferenceBackend, image: BackendImage) -> Iterable[str]:
    return (image.accelerator,) if image.accelerator is not None else accelerators_of(backend)


def _is_called(device: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(device.casefold(), pattern.casefold()) for pattern in patterns)


def effective(spec: ModelSpec, backend: InferenceBackend) -> ModelSpec:
    """The wish with what the backend adds: its engine in place of its name, its parameters, its environment.

    Of what is effective already it is the same.
    """
    version = backend.version_configs.get(spec.backend_version or backend.default_version or "", BackendVersion())
    env = backend.default_env | version.env
    if backend.engine == spec.backend and not backend.default_backend_param and not env:
        return spec
    defaults = without(backend.default_backend_param, names_in(spec.backend_parameters))
    return spec.model_copy(
        update={
            "backend": backend.engine,
            "backend_parameters": (*defaults, *spec.backend_parameters),
            "env": env | spec.env,
        }
    )


def run_command_of(spec: ModelSpec, backend: InferenceBackend, version: str | None) -> str | None:
    own = backend.version_configs.get(version or "", BackendVersion())
    return spec.run_command or own.run_command or backend.default_run_command


# -- as text ----------------------------------------------------------------------------------------------------------

BUILT_IN: Final = Path(__file__).parent / "built_in"


@cache
def built_in() -> Mapping[str, InferenceBackend]:
    """By name, in the order in which Muster's engines are named."""
    found = [read_yaml(file.read_text(encoding="utf-8")) for file in BUILT_IN.glob("*.yaml")]
    engines: tuple[str, ...] = get_args(Backend)
    return {each.backend_name: each for each in sorted(found, key=lambda each: engines.index(each.engine))}


class NotABackend(ValueError):
    """The text is no YAML, or describes no backend."""


class _Loader(yaml.SafeLoader):
    """Numbers stay as they are written: 12.10 is a version, and not 12.1."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise NotABackend("aliases (*) are not read: a few bytes of them become gigabytes")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> InferenceBackend:
    """Raises NotABackend, and pydantic's ValidationError for fields that are wrong or that nobody knows."""
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - made from the safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise NotABackend(f"this is no YAML: {str(error)[:300]}") from error
    if not isinstance(document, dict):
        raise NotABackend("a backend is a mapping of fields")
    return InferenceBackend.model_validate(document, extra="forbid")


def write_yaml(backend: InferenceBackend) -> str:
    """What `read_yaml` reads; fields that say what is usual are left out."""
    fields = backend.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)
