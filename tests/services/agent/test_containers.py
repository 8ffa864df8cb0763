"""What goes into an engine's container beside its GPUs."""

import pytest

from services.agent.domain.containers import contained, not_allowed
from services.agent.domain.engines.command import command_of
from services.agent.domain.engines.start import Start
from services.agent.domain.runtime import Container, GpuAccess, Mount, Needs
from tests.services.agent.starts import GIB, MODEL, a_launch, a_start

ACCESS = GpuAccess(env={"A": "1"})


def container(start: Start) -> Container:
    found = contained(start, command_of(start), "example.org/engine:1", ACCESS).container
    assert found is not None
    return found


def test_model_files_are_where_they_are_on_the_host_and_stay_as_they_are() -> None:
    launch = a_launch(
        "vLLM",
        lora_list=[{"lora_name": "support", "source": {"path": "/models/support"}}],
        speculative_config={"algorithm": "eagle3", "draft_model": {"path": "/models/draft"}},
    )
    assert container(a_start(launch, cache="/var/cache/muster")) == Container(
        image="example.org/engine:1",
        entrypoint=("vllm",),
        mounts=(
            *(Mount(MODEL), Mount("/models/support"), Mount("/models/draft")),
            Mount("/var/cache/muster", read_only=False),
        ),
        access=ACCESS,
        needs=Needs(writable_root=True),
        publish_on="10.0.0.1",
    )


def test_of_a_model_in_shards_all_are_there() -> None:
    shards = ("/m/a-00001-of-00002.gguf", "/m/a-00002-of-00002.gguf")
    assert container(a_start(a_launch("llama.cpp"), weights=shards)).mounts == tuple(Mount(path) for path in shards)


def test_machines_that_run_one_instance_talk_over_the_hosts_network() -> None:
    needs = container(a_start(a_launch("SGLang"), gpus=2, nodes=2)).needs
    assert needs == Needs(capabilities=("IPC_LOCK",), writable_root=True, host_network=True)


def test_llama_cpp_writes_nothing() -> None:
    assert container(a_start(a_launch("llama.cpp"))).needs == Needs()


@pytest.mark.parametrize(
    ("gib", "size"), [("20", 20), ("0.5", 0.5), ("", 10), ("much", 10), ("-1", 10), ("inf", 10), ("1e9", 10)]
)
def test_shared_memory_is_as_large_as_the_author_says(gib: str, size: float) -> None:
    launch = a_launch("vLLM", env={"GPUSTACK_MODEL_RUNTIME_SHM_SIZE_GIB": gib})
    assert container(a_start(launch)).shm_bytes == size * GIB


@pytest.mark.parametrize(
    ("uid", "gid", "user"),
    [("1000", "100", "1000:100"), ("1000", "", "1000:1000"), ("", "100", None), ("root", "", None)],
)
def test_it_runs_as_whom_the_author_says(uid: str, gid: str, user: str | None) -> None:
    env = {"GPUSTACK_MODEL_RUNTIME_UID": uid, "GPUSTACK_MODEL_RUNTIME_GID": gid}
    assert container(a_start(a_launch("vLLM", env=env))).needs.user == user


def test_words_without_an_entrypoint_are_arguments_of_the_images_own() -> None:
    start = a_start(a_launch("Custom", "--b", run_command="--a {{port}}"))
    command = contained(start, command_of(start), "example.org/own:1", ACCESS)
    assert command.container is not None
    assert (command.container.entrypoint, command.argv) == (None, ("--a", "40000", "--b"))


def test_an_entrypoint_takes_the_place_of_the_images() -> None:
    start = a_start(a_launch("Custom", run_command="serve {{port}}", entrypoint=("/app/run", "now")))
    command = contained(start, command_of(start), "example.org/own:1", ACCESS)
    assert command.container is not None
    assert (command.container.entrypoint, command.argv) == (("/app/run",), ("now", "serve", "40000"))


def test_its_backend_declares_what_it_needs() -> None:
    needs = {"host_ipc": True, "writable_root": True, "capabilities": ["SYS_NICE", "IPC_LOCK"]}
    assert container(a_start(a_launch("llama.cpp", needs=needs))).needs == Needs(
        capabilities=("SYS_NICE", "IPC_LOCK"), writable_root=True, host_ipc=True
    )
    several = container(a_start(a_launch("vLLM", needs={"capabilities": ["SYS_NICE"]}), gpus=1, nodes=2)).needs
    assert several == Needs(capabilities=("IPC_LOCK", "SYS_NICE"), host_network=True)


def test_what_is_needed_and_not_allowed_is_named() -> None:
    launch = a_launch("Custom", needs={"host_ipc": True, "writable_root": True, "capabilities": ["SYS_NICE"]})
    assert not_allowed(launch, ("writable_root",)) == ("host_ipc", "SYS_NICE")
    assert not_allowed(launch, ("writable_root", "host_ipc", "SYS_NICE")) == ()
    assert not_allowed(a_launch("Custom"), ()) == ()
