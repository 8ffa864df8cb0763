"""SGLang: what is special to it."""

from typing import Any

import pytest

from services.agent.domain.engines.sglang import sglang
from tests.services.agent.starts import MODEL, a_launch, a_start, over


def argv(
    *parameters: str, kind: str = "cuda", gpus: int = 1, nodes: int = 1, rank: int = 0, **fields: Any
) -> tuple[str, ...]:
    launch = a_launch("SGLang", *parameters, **fields)
    return sglang(a_start(launch, kind, gpus=gpus, nodes=nodes, rank=rank)).argv


def speculation(found: tuple[str, ...]) -> dict[str, str]:
    return {name: found[at + 1] for at, name in enumerate(found) if name.startswith("--speculative")}


@pytest.mark.parametrize("rank", [0, 1])
def test_machines_meet_at_the_leaders(rank: int) -> None:
    launch = a_launch("SGLang", **over(tensor=4, pipeline=2))
    command = sglang(a_start(launch, gpus=4, nodes=2, rank=rank))
    first = command.argv.index("--nnodes")
    assert command.argv[first : first + 6] == (
        *("--nnodes", "2", "--node-rank", str(rank)),
        *("--dist-init-addr", "10.0.0.1:21404"),
    )
    assert command.health_path == ("/health" if rank == 0 else None)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"algorithm": "mtp"}, {"--speculative-algorithm": "EAGLE"}),
        (
            {"algorithm": "eagle3", "draft_model": {"path": "/models/e"}, "draft_tokens": 3},
            {
                "--speculative-algorithm": "EAGLE3",
                "--speculative-draft-model-path": "/models/e",
                "--speculative-num-steps": "3",
                "--speculative-eagle-topk": "1",
                "--speculative-num-draft-tokens": "4",
            },
        ),
        (
            {"algorithm": "ngram", "draft_tokens": 3},
            {"--speculative-algorithm": "NGRAM", "--speculative-num-draft-tokens": "3"},
        ),
        (
            {"algorithm": "draft_model", "draft_model": {"path": "/models/d"}},
            {"--speculative-algorithm": "STANDALONE", "--speculative-draft-model-path": "/models/d"},
        ),
    ],
)
def test_drafting(asked: dict[str, Any], told: dict[str, str]) -> None:
    assert speculation(argv(speculative_config=asked)) == told


def test_numbers_that_go_together_are_all_the_users_where_one_is() -> None:
    found = argv("--speculative-num-steps", "5", speculative_config={"algorithm": "mtp", "draft_tokens": 2})
    assert speculation(found) == {"--speculative-algorithm": "EAGLE", "--speculative-num-steps": "5"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ram_size": 63.6}, ("--hicache-size", "64")),
        ({"ram_size": 0.1}, ("--hicache-size", "1")),
        ({"ram_ratio": 1.5}, ("--hicache-ratio", "1.5")),
        ({"chunk_size": 64}, ("--page-size", "64", "--hicache-ratio", "1.2")),
    ],
)
def test_a_cache_in_ram(asked: dict[str, float], told: tuple[str, ...]) -> None:
    found = argv(extended_kv_cache=asked)
    first = found.index("--enable-hierarchical-cache") + 1
    assert found[first : first + len(told)] == told


def test_ranks_share_the_ram_of_a_worker_out() -> None:
    command = sglang(a_start(a_launch("SGLang", extended_kv_cache={"ram_size": 64}), gpus=4))
    assert command.argv[command.argv.index("--hicache-size") + 1] == "16"


def test_the_users_size_excludes_our_ratio() -> None:
    assert "--hicache-ratio" not in argv("--hicache-size=8", extended_kv_cache={})


def test_adapters() -> None:
    found = argv(lora_list=[{"lora_name": name, "source": {"path": f"/models/{name}"}} for name in ("a", "b")])
    first = found.index("--enable-lora")
    assert found[first : first + 4] == ("--enable-lora", "--lora-paths", "a=/models/a", "b=/models/b")


@pytest.mark.parametrize(("category", "reads"), [("embedding", True), ("reranker", True), ("llm", False)])
def test_models_that_answer_with_vectors_or_scores(category: str, reads: bool) -> None:
    assert ("--is-embedding" in argv(categories=[category])) == reads


def test_models_that_make_images_have_parameters_of_their_own() -> None:
    assert argv("--vae-path=/v", gpus=2, categories=["image"], memory_fraction=0.9, **over(tensor=2)) == (
        *("sglang", "serve", "--model-path", MODEL, "--num-gpus", "2", "--host", "10.0.0.1", "--port", "40000"),
        "--vae-path=/v",
    )


@pytest.mark.parametrize(
    ("version", "program"),
    [
        ("0.4.6", ("python3", "-m", "sglang.launch_server")),
        ("0.5.6.post2", ("python3", "-m", "sglang.launch_server")),
        ("0.5.23", ("sglang", "serve", "--model-path")),
        (None, ("sglang", "serve", "--model-path")),
    ],
)
def test_older_ones_are_started_as_modules(version: str | None, program: tuple[str, ...]) -> None:
    assert argv(backend_version=version)[:3] == program


@pytest.mark.parametrize(("version", "known"), [(None, False), ("0.5.8", False), ("0.5.9", True)])
def test_what_older_ones_do_not_know_is_not_passed(version: str | None, known: bool) -> None:
    assert ("--uvicorn-access-log-exclude-prefixes" in argv(backend_version=version)) == known


@pytest.mark.parametrize("kind", ["cuda", "cann"])
def test_on_ascend_attention_is_ascends(kind: str) -> None:
    assert ("--attention-backend" in argv(kind=kind)) == (kind == "cann")
