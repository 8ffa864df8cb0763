import pytest

from services.up.machine import Machine, NotSupported, look_at_machine


def test_a_machine_without_the_library_of_the_bundled_engine_is_told_what_to_install() -> None:
    with pytest.raises(
        NotSupported, match=r"needs libnowhere\.so\.1, which is not installed: `apt-get install libgomp1`"
    ):
        look_at_machine(libgomp="libnowhere.so.1")


def test_who_brings_another_engine_needs_no_library_of_the_bundled_one() -> None:
    look_at_machine(own_llama_cpp=True, libgomp="libnowhere.so.1")


@pytest.mark.parametrize(
    ("machine", "vllm", "said"),
    [
        (Machine((), docker=False), False, "llama.cpp on the CPU, as local processes: no GPU was found"),
        (Machine((), docker=False), True, "llama.cpp on the CPU and vLLM, as local processes: no GPU was found"),
        (
            Machine(("NVIDIA",), docker=True),
            False,
            (
                "llama.cpp on the CPU, as local processes: NVIDIA GPU and Docker Engine found, which it does not use"
                " (an agent with MUSTER_RUNTIME=docker does)"
            ),
        ),
        (
            Machine(("NVIDIA",), docker=False),
            True,
            (
                "llama.cpp on the CPU and vLLM, as local processes: NVIDIA GPU, no Docker Engine found, for vLLM unless that is a"
                " build for processors"
            ),
        ),
    ],
)
def test_what_will_run_is_told_before_it_is_started(machine: Machine, vllm: bool, said: str) -> None:
    assert machine.choice(vllm=vllm) == said
