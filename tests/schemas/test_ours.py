"""What of an engine is not its author's to say."""

from typing import Any

import pytest

from schemas.models import ModelSpec
from schemas.ours import FLAGS, not_the_authors
from schemas.reasons import FlagIsOurs, ParameterInvalid, VariableNotAllowed
from schemas.sources import LocalPath
from schemas.wanted import wanted_of
from services.agent.domain.gpu_access import VENDORS, AssignedGpu, gpu_access


def a_spec(backend: str = "vLLM", *parameters: str, **fields: Any) -> ModelSpec:
    return ModelSpec(
        name="m", source=LocalPath(path="/models/m"), backend=backend, backend_parameters=parameters, **fields
    )


def flags_of(backend: str, *parameters: str) -> list[str]:
    return [reason.flag for reason in not_the_authors(a_spec(backend, *parameters)) if isinstance(reason, FlagIsOurs)]


def variables_of(*names: str) -> list[str]:
    reasons = not_the_authors(a_spec(env=dict.fromkeys(names, "x")))
    return [reason.variable for reason in reasons if isinstance(reason, VariableNotAllowed)]


@pytest.mark.parametrize(("backend", "name"), [(backend, name) for backend, flags in FLAGS.items() for name in flags])
def test_a_flag_of_ours_is_refused_in_every_spelling(backend: str, name: str) -> None:
    spellings = [(name, "x"), (f"{name} x",), (f"{name}=x",), (f" {name}=x",), (f"--zz b\t{name}", name)]
    if name.startswith("--"):
        spellings += [(name.replace("-", "_").replace("__", "--", 1) + "=x",), (f"{name}\nx",)]
    for parameters in spellings:
        assert flags_of(backend, *parameters) == [name], parameters


def test_a_parser_that_takes_a_beginning_for_the_whole_is_not_fooled() -> None:
    assert flags_of("SGLang", "--hos=0.0.0.0", "--por 1", "--api-k", "x") == ["--host", "--port", "--api-key"]
    assert flags_of("llama.cpp", "-m/etc/passwd", "-aName") == ["-m", "-a"]


def test_what_only_looks_like_one_of_ours_is_the_authors() -> None:
    assert flags_of("vLLM", "--hostname=x", "--portable", "--model-impl=auto", "-tp", "2", "host", "--", "-1") == []
    assert flags_of("llama.cpp", "-mg", "1", "-mmu=x", "-c", "4096", "--mmproj", "/models/p.gguf") == []


def test_nothing_is_ours_in_an_image_that_only_its_author_knows() -> None:
    assert flags_of("Custom", "--host=0.0.0.0", "--api-key", "x") == []


@pytest.mark.parametrize("how", ["process", "hook", "cdi", "nodes"])
@pytest.mark.parametrize("kind", [*VENDORS, None])
def test_whatever_tells_an_engine_its_gpus_is_refused(kind: str | None, how: Any) -> None:
    access = gpu_access(kind, (AssignedGpu(0, "GPU-0"), AssignedGpu(1, "GPU-1")), how)
    assert variables_of(*access.env) == list(access.env)


def test_variables_that_load_code_or_talk_to_a_container_engine_are_refused_in_any_case() -> None:
    names = (
        "LD_PRELOAD",
        "ld_audit",
        "Ld_Library_Path",
        "GCONV_PATH",
        "PYTHONSTARTUP",
        "PythonPath",
        "BASH_ENV",
        "PATH",
    )
    ours = ("ROCR_VISIBLE_DEVICES", "DOCKER_HOST", "MUSTER_DATA_DIR", "VLLM_API_KEY", "LLAMA_ARG_PORT")
    assert variables_of(*names, *ours) == [*names, *ours]


def test_an_engines_own_variables_are_its_authors() -> None:
    assert (
        variables_of(
            *(
                "NCCL_DEBUG",
                "NCCL_NET_PLUGIN",
                "GLOO_SOCKET_IFNAME",
                "VLLM_USE_V1",
                "HF_TOKEN",
                "HTTPS_PROXY",
                "no_proxy",
            ),
            *("PYTHONUNBUFFERED", "PYTHONHASHSEED", "OMP_NUM_THREADS", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"),
            *("CUDA_LAUNCH_BLOCKING", "NVIDIA_DISABLE_REQUIRE", "GPUSTACK_MODEL_RUNTIME_UID", "PYPI_PACKAGES_INSTALL"),
        )
        == []
    )


def test_a_refusal_says_what_to_do() -> None:
    flag, variable = not_the_authors(a_spec("vLLM", "--served-model-name=x", env={"CUDA_VISIBLE_DEVICES": "0"}))
    assert flag.sentence() == "--served-model-name is set by Muster: change the model's name"
    assert (
        variable.sentence()
        == "CUDA_VISIBLE_DEVICES is not allowed, since which GPUs an engine sees follows from its place: use gpu_selector"
    )


def test_a_key_belongs_into_a_variable() -> None:
    spec = a_spec("Custom", "--key={{engine_key}}", run_command="serve {{ engine_key }}", env={"KEY": "{{engine_key}}"})
    fields = [reason.field for reason in not_the_authors(spec) if isinstance(reason, ParameterInvalid)]
    assert fields == ["backend_parameters", "run_command"]


def test_nothing_of_it_is_ever_placed() -> None:
    assert wanted_of(a_spec("vLLM", "--port=1")).problems == (
        FlagIsOurs(flag="--port", instead="leave it out, the agent chooses where the engine listens"),
    )
