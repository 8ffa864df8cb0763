"""The user's word is the last one: what they gave is there as they gave it, and nothing of ours beside it."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.parameters import names_in, split
from services.agent.domain.engines.command import command_of
from services.agent.domain.engines.flags import arguments, flag
from tests.services.agent.starts import a_launch, a_start, over

OURS = {
    "vLLM": {
        "--gpu-memory-utilization": "0.9", "--tensor-parallel-size": "4", "--pipeline-parallel-size": "2",
        "--speculative-config": '{"method":"mtp","num_speculative_tokens":1}', "--max-loras": "1", "--host": "10.0.0.1",
        "--served-model-name": "qwen3-8b", "--distributed-executor-backend": "mp", "--nnodes": "2", "--node-rank": "0",
        "--master-addr": "10.0.0.1", "--master-port": "21405",
    },
    "SGLang": {
        "--mem-fraction-static": "0.9", "--tp-size": "4", "--pp-size": "2", "--speculative-algorithm": "EAGLE",
        "--host": "10.0.0.1", "--served-model-name": "qwen3-8b", "--nnodes": "2", "--node-rank": "0",
        "--dist-init-addr": "10.0.0.1:21404", "--lora-paths": "support=/models/support", "--model-path": "/models/qwen3-8b",
    },
}  # fmt: skip
"""Flag → value that we pass."""

SPELLINGS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "--a=b": lambda name: (f"{name}=theirs",),
    "--a b": lambda name: (name, "theirs"),
    "--a b in one": lambda name: (f"{name} theirs",),
    "--a_b=c": lambda name: (f"--{name[2:].replace('-', '_')}=theirs",),
    "--a_b c": lambda name: (f"--{name[2:].replace('-', '_')}", "theirs"),
}


def argv(backend: str, *parameters: str) -> tuple[str, ...]:
    launch = a_launch(
        backend,
        *parameters,
        memory_fraction=0.9,
        speculative_config={"algorithm": "mtp"},
        lora_list=[{"lora_name": "support", "source": {"path": "/models/support"}}],
        **over(tensor=4, pipeline=2),
    )
    return command_of(a_start(launch, gpus=4, nodes=2)).argv


@pytest.mark.parametrize("backend", OURS)
def test_what_the_user_leaves_open_is_passed_once(backend: str) -> None:
    found = argv(backend)
    for name, value in OURS[backend].items():
        assert found.count(name) == 1
        assert found[found.index(name) + 1] == value


@pytest.mark.parametrize(("backend", "name"), [(backend, name) for backend, flags in OURS.items() for name in flags])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_flag_of_the_users_is_not_given_again_in_whatever_spelling(backend: str, name: str, spelling: str) -> None:
    theirs = SPELLINGS[spelling](name)
    found = argv(backend, *theirs)
    given = split(theirs)
    assert found[-len(given) :] == given
    assert name not in names_in(found[: -len(given)])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("-tp", "2"), "--tensor-parallel-size"),
        (("-pp=2",), "--pipeline-parallel-size"),
        (("--no-enable-lora",), "--enable-lora"),
        (("--speculative-config.method", "ngram"), "--speculative-config"),
        (("-sc", "{}"), "--speculative-config"),
    ],
)
def test_another_name_of_a_flag_says_the_same(theirs: tuple[str, ...], ours: str) -> None:
    assert ours in argv("vLLM")
    assert ours not in argv("vLLM", *theirs)


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda word: not word.startswith("-")
)


@given(value=WORDS)
def test_a_value_is_one_argument_whatever_it_contains(value: str) -> None:
    assert arguments([flag("--name", value)], []) == ("--name", value)
    assert arguments([flag("--name", "ours")], ["--name", value]) == ("--name", value)


NAMES = st.sampled_from(["--alpha", "--beta-gamma", "--delta"])


@given(
    theirs=st.lists(st.tuples(NAMES, WORDS.filter(lambda word: not word.isspace())), max_size=4), ours=st.sets(NAMES)
)
def test_no_flag_of_ours_stands_beside_theirs_and_none_of_theirs_is_lost(
    theirs: list[tuple[str, str]], ours: set[str]
) -> None:
    parameters = [part for pair in theirs for part in pair]
    found = arguments([flag(name, "ours") for name in sorted(ours)], parameters)
    told = {name for name, _ in theirs}
    kept = [part for name in sorted(ours - told) for part in (name, "ours")]
    assert found == (*kept, *parameters)
