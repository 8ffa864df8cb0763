import pytest

from services.up.machine import NotSupported, look_at_machine


def test_a_machine_without_the_library_of_the_bundled_engine_is_told_what_to_install() -> None:
    with pytest.raises(
        NotSupported, match=r"needs libnowhere\.so\.1, which is not installed: `apt-get install libgomp1`"
    ):
        look_at_machine(libgomp="libnowhere.so.1")


def test_who_brings_another_engine_needs_no_library_of_the_bundled_one() -> None:
    look_at_machine(own_llama_cpp=True, libgomp="libnowhere.so.1")
