"""Backends as data: which image a worker gets, what a definition adds to a model, and what YAML says."""

from importlib.metadata import version
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.backends import (
    KINDS,
    VERSION,
    Chosen,
    InferenceBackend,
    NotABackend,
    accelerators_of,
    backend_id_of,
    built_in,
    effective,
    image_for,
    images_of,
    info_of,
    knows_version,
    read_yaml,
    run_command_of,
    write_yaml,
)
from schemas.models import ModelSpec
from schemas.sources import LocalPath

AMD64, ARM64 = "linux/amd64", "linux/arm64"


def a_backend(**fields: Any) -> InferenceBackend:
    return InferenceBackend.model_validate({"backend_name": "mine"} | fields)


def an_image(name: str, **fields: Any) -> dict[str, Any]:
    return {"image": name} | fields


def chosen(backend: InferenceBackend, *arguments: Any, **more: Any) -> str | None:
    found = image_for(backend, *arguments, **more)
    return None if found is None else found.image


RUNTIMES = a_backend(
    default_version="2.0",
    oldest_version="1.0",
    newest_version="2.0",
    images=[
        an_image("old:{version}", accelerator="cuda", runtime="12.6", versions=["1.0", "1.5"]),
        an_image("mid:{version}", accelerator="cuda", runtime="12.9", versions=["1.5", "2.0"]),
        an_image("new:{version}", accelerator="cuda", runtime="13.0", versions=["2.0"]),
        an_image("arm:{version}", accelerator="cuda", runtime="12.10", platforms=[ARM64]),
        an_image("roc:{version}", accelerator="rocm"),
    ],
)


@pytest.mark.parametrize(
    ("version", "runtimes", "expected"),
    [
        (None, ("13.1",), "new:2.0"),
        (None, ("12.9",), "mid:2.0"),
        (None, ("12.8",), "old:1.5"),  # an older version runs, the usual one would not
        (None, ("12.5",), None),
        (None, (), "mid:2.0"),  # the driver does not tell: what the oldest can run
        (None, (None,), "mid:2.0"),
        (None, ("13.0", "12.9"), "mid:2.0"),  # every GPU's driver
        ("1.5", ("13.0",), "mid:1.5"),
        ("1.5", ("12.6",), "old:1.5"),
        ("1.0", ("13.0",), "old:1.0"),
        ("1.2", ("13.0",), None),
    ],
)
def test_a_worker_gets_the_image_for_the_newest_runtime_that_its_drivers_can_run(
    version: str | None, runtimes: tuple[str | None, ...], expected: str | None
) -> None:
    assert chosen(RUNTIMES, version, "cuda", AMD64, runtimes) == expected


def test_versions_are_numbers_and_no_texts() -> None:
    assert chosen(RUNTIMES, "1.2", "cuda", ARM64, ("12.10",)) == "arm:1.2"
    assert chosen(RUNTIMES, "1.2", "cuda", ARM64, ("12.9",)) is None


def test_an_image_is_for_a_kind_and_a_platform() -> None:
    assert chosen(RUNTIMES, None, "rocm", AMD64, ("6.4",)) == "roc:2.0"
    assert chosen(RUNTIMES, None, "cann", AMD64) is None
    assert chosen(RUNTIMES, None, "rocm", "linux/riscv64") is None


def test_an_image_may_be_for_gpus_of_a_name() -> None:
    names = [
        an_image("b", accelerator="cann", devices=["*910B*"]),
        an_image("p", accelerator="cann", devices=["*310p*"]),
    ]
    backend = a_backend(images=names)
    assert chosen(backend, None, "cann", AMD64, devices=("Ascend910B2", "Ascend910B2")) == "b"
    assert chosen(backend, None, "cann", AMD64, devices=("Ascend310P3",)) == "p"
    assert chosen(backend, None, "cann", AMD64, devices=("Ascend910B2", "Ascend310P3")) is None
    assert chosen(backend, None, "cann", AMD64, devices=("Ascend950",)) is None


def test_a_version_of_its_own_has_its_own_image_and_entrypoint() -> None:
    backend = a_backend(
        default_entrypoint=["run"],
        default_run_command="usual",
        images=[an_image("usual")],
        version_configs={"x": {"image_name": "x:1", "entrypoint": ["own"], "run_command": "theirs"}, "y": {}},
    )
    assert image_for(backend, "x", "cuda", "linux/riscv64") == Chosen("x:1", "x", ("own",))
    assert image_for(backend, "y", "cuda", AMD64) == Chosen("usual", "y", ("run",))
    spec = ModelSpec(name="m", source=LocalPath(path="/m"), backend="mine")
    assert [run_command_of(spec, backend, version) for version in ("x", "y", None)] == ["theirs", "usual", "usual"]
    assert run_command_of(spec.model_copy(update={"run_command": "mine"}), backend, "x") == "mine"


def test_what_it_runs_on_follows_from_its_images_unless_it_says_so() -> None:
    assert tuple(accelerators_of(a_backend())) == KINDS
    assert tuple(accelerators_of(a_backend(images=[an_image("a", accelerator="rocm")]))) == ("rocm",)
    assert tuple(accelerators_of(a_backend(images=[an_image("a")]))) == KINDS
    assert tuple(accelerators_of(a_backend(version_configs={"1": {"image_name": "a"}}))) == KINDS
    assert dict(accelerators_of(a_backend(accelerators={"musa": "1.2"}))) == {"musa": "1.2"}


def test_the_oldest_runtime_is_that_of_the_version() -> None:
    assert info_of(RUNTIMES).runtimes == {"cuda": "12.6"}
    assert info_of(RUNTIMES, "2.0").runtimes == {"cuda": "12.9"}


def test_a_model_has_the_last_word_and_a_version_the_one_before() -> None:
    backend = a_backend(
        engine="vLLM",
        default_backend_param=["--max-model-len=4096", "--dtype", "half", "--eager"],
        default_env={"A": "backend", "B": "backend", "C": "backend"},
        version_configs={"v": {"env": {"B": "version", "C": "version"}}},
    )
    spec = ModelSpec(
        name="m",
        source=LocalPath(path="/m"),
        backend="mine",
        backend_version="v",
        backend_parameters=("--max_model_len 100",),
        env={"C": "model"},
    )
    made = effective(spec, backend)
    assert made.backend == "vLLM"
    assert made.backend_parameters == ("--dtype", "half", "--eager", "--max_model_len 100")
    assert made.env == {"A": "backend", "B": "version", "C": "model"}
    assert effective(made, backend) == made


def test_what_is_built_in_adds_nothing() -> None:
    for name, backend in built_in().items():
        spec = ModelSpec(name="m", source=LocalPath(path="/m"), backend=name, backend_parameters=("-x",))
        assert effective(spec, backend) is spec


def test_built_in_backends_have_images_for_what_they_run_on() -> None:
    """Of llama.cpp there is none for Ascend; `Custom` is the model's own."""
    without = set[tuple[str, str]]()
    for name, backend in built_in().items():
        devices = {"cann": ("Ascend910B2",)}
        for kind in accelerators_of(backend):
            if name != "Custom" and image_for(backend, None, kind, AMD64, (), devices.get(kind, ())) is None:
                without.add((name, kind))
    assert without == {("llama.cpp", "cann")}


def test_images_of_built_in_backends_name_versions_that_they_know() -> None:
    for backend in built_in().values():
        for image in images_of(backend, None):
            assert all(knows_version(backend, each) for each in image.versions), (backend.backend_name, image)
            assert (VERSION in image.image) == (backend.newest_version is not None), image


def test_the_image_for_processors_is_of_this_version_of_muster() -> None:
    assert chosen(built_in()["llama.cpp"], None, "cpu", ARM64) == f"muster-agent:{version('muster')}"


def test_names_that_differ_in_case_are_one_backend() -> None:
    assert backend_id_of("vLLM") == backend_id_of("VLLM") != backend_id_of("vLLM2")


@pytest.mark.parametrize("name", list(built_in()))
def test_what_is_written_as_yaml_is_read_again(name: str) -> None:
    backend = built_in()[name]
    assert read_yaml(write_yaml(backend)) == backend


def test_numbers_stay_as_they_are_written() -> None:
    text = "backend_name: mine\nversion_configs: {12.10: {image_name: 'a:1'}, 1_0: {image_name: 'a:2'}}\ndefault_version: 12.10\n"
    backend = read_yaml(text)
    assert (backend.default_version, list(backend.version_configs)) == ("12.10", ["12.10", "1_0"])
    assert read_yaml(write_yaml(backend)) == backend


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "no YAML"),
        ("- a", "mapping"),
        ("", "mapping"),
        ("!!python/object/apply:os.system ['true']", "no YAML"),
        ("backend_name: &a mine\ndescription: *a", "aliases"),
        ("[" * 5000, "no YAML"),
    ],
)
def test_what_is_no_definition_is_refused(text: str, said: str) -> None:
    with pytest.raises(NotABackend, match=said):
        read_yaml(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backend_name": "a b"}, "backend_name"),
        ({"health_check_path": "health"}, "health_check_path"),
        ({"engine": "TGI"}, "engine"),
        ({"images": [{"image": "a b"}]}, "images.0.image"),
        ({"images": [{"image": "a", "accelerator": "tpu"}]}, "images.0.accelerator"),
        ({"version_configs": {"1": {"image_name": "a", "images": [{"image": "b"}]}}}, "not both"),
        ({"newest_version": "1.0", "default_version": "2.0"}, "default_version"),
        ({"oldest_version": "2.0", "newest_version": "1.0"}, "oldest_version"),
        ({"needs": {"capabilities": ["SYS_ADMIN; rm"]}}, "needs.capabilities"),
        ({"needs": {"privileged": True}}, "needs.privileged"),
        ({"image": "a"}, "image"),
        ({"default_env": {"A=B": "c"}}, "default_env"),
    ],
)
def test_a_definition_that_is_wrong_says_where(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        InferenceBackend.model_validate({"backend_name": "mine"} | fields, extra="forbid")
