"""What models weigh, asked of a hub that speaks as Hugging Face and as ModelScope do: before anything is fetched."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from schemas.asks import InspectModel, ModelInspection
from schemas.models import Pinned
from schemas.reasons import FilesAmbiguous, HubRateLimited, NoFileMatches, RemoteCodeNotAllowed, TooManyFiles
from schemas.sources import HubSource, HuggingFace, ModelScope
from services.downloader.adapters.hub import Account, HubRefused
from services.downloader.adapters.huggingface import HuggingFaceHub
from services.downloader.adapters.modelscope import OF_LISTING, ModelScopeHub
from services.downloader.adapters.sandbox import Sandbox
from services.downloader.looking import Looking
from tests.services.downloader.desk import MIB, REPOSITORY, WEIGHTS, a_model, point_to, random_weights
from tests.services.downloader.files import TINYCHAT, a_gguf, a_tensor
from tests.support.hub import Hub
from tests.support.hub_repository import listed

SOURCES = (HuggingFace, ModelScope)
TOKEN = "hf_of_the_test"


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    opened = Sandbox()
    yield opened
    await opened.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name in ("MODELSCOPE_CACHE", "MODELSCOPE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with Hub() as running:
        point_to(running, monkeypatch)
        yield running


def looking_at(
    hub: Hub | str, sandbox: Sandbox, *, token: str | None = None, trusted: frozenset[str] = frozenset()
) -> Looking:
    account = Account(hub if isinstance(hub, str) else hub.url, token)
    hubs = {"huggingface": HuggingFaceHub(account, sandbox), "model_scope": ModelScopeHub(account, sandbox)}
    return Looking(hubs, sandbox, (), trusted)


@pytest.fixture
def looking(hub: Hub, sandbox: Sandbox) -> Looking:
    return looking_at(hub, sandbox)


def put(hub: Hub, files: Mapping[str, bytes], name: str = REPOSITORY) -> str:
    """On the branches that both hubs take for theirs."""
    hub.put(name, files, "master")
    return hub.put(name, files)


async def asked(looking: Looking, source: HubSource, **more: Any) -> ModelInspection:
    return await looking.inspect(InspectModel(source=source, **more))


def codes(found: ModelInspection) -> list[str]:
    assert found.weights is None
    return [reason.code for reason in found.reasons]


both = pytest.mark.parametrize("kind", SOURCES)


@both
async def test_a_model_is_weighed_and_its_branch_pinned_before_its_weights_are_fetched(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    commit = put(hub, files := a_model(8 * MIB))
    found = await asked(looking, source := kind(repo_id=REPOSITORY))
    assert found.weights is not None
    assert found.weights.weight_bytes == len(files[WEIGHTS])
    assert found.weights.config["num_hidden_layers"] == 4
    size = sum(map(len, files.values()))
    assert found.weights.pinned == (Pinned(source=source, commit=commit, bytes=size),)
    assert hub.bytes_sent() < 200_000


@both
async def test_a_gguf_is_weighed_by_its_header(hub: Hub, looking: Looking, kind: type[HubSource]) -> None:
    put(hub, {"tiny-Q4_0.gguf": TINYCHAT_BYTES, "tiny-Q8_0.gguf": a_gguf(data_bytes=3 * MIB)})
    found = await asked(looking, kind(repo_id=REPOSITORY, filename="*Q4_0*"))
    assert found.weights is not None
    assert found.weights.files == ("tiny-Q4_0.gguf",)


TINYCHAT_BYTES = (TINYCHAT.parent / "tinychat-f16.gguf").read_bytes()


@both
async def test_what_was_pinned_is_found_although_its_branch_has_moved(
    hub: Hub, sandbox: Sandbox, kind: type[HubSource]
) -> None:
    commit = put(hub, a_model(seed=1))
    source = kind(repo_id=REPOSITORY)
    before = await looking_at(hub, sandbox).find(source, commit)
    moved = put(hub, {**a_model(500_000, seed=2), "more.json": b"{}"})
    after = await looking_at(hub, sandbox).find(source, commit)
    assert after == before
    assert moved != commit
    assert (await looking_at(hub, sandbox).find(source)).listing.commit == moved


async def test_a_hub_that_tells_no_commit_is_pinned_to_what_it_lists(hub: Hub, sandbox: Sandbox) -> None:
    put(hub, a_model(seed=1))
    hub.fault("/commits", status=404)
    source = ModelScope(repo_id=REPOSITORY)
    found = await looking_at(hub, sandbox).find(source)
    pinned = found.listing.commit
    assert pinned.startswith(OF_LISTING)
    assert (await looking_at(hub, sandbox).find(source, pinned)).listing == found.listing
    hub.clear_faults()  # and now it tells
    assert (await looking_at(hub, sandbox).find(source, pinned)).listing == found.listing
    put(hub, a_model(seed=2))
    with pytest.raises(HubRefused) as refused:
        await looking_at(hub, sandbox).find(source, pinned)
    assert [reason.code for reason in refused.value.reasons] == ["revision_changed"]


async def test_a_commit_that_the_hub_does_not_confirm_for_once_stays_the_commit(hub: Hub, sandbox: Sandbox) -> None:
    commit = put(hub, a_model())
    hub.fault("/commits", status=503)
    assert (await looking_at(hub, sandbox).find(ModelScope(repo_id=REPOSITORY), commit)).listing.commit == commit


@both
async def test_what_is_not_there_is_told_apart(hub: Hub, looking: Looking, kind: type[HubSource]) -> None:
    put(hub, a_model())
    assert codes(await asked(looking, kind(repo_id="org/absent"))) == ["repository_not_found"]
    assert codes(await asked(looking, kind(repo_id=REPOSITORY, revision="absent"))) == ["revision_not_found"]


@both
async def test_a_gated_repository_needs_a_token_that_may_read_it(
    hub: Hub, sandbox: Sandbox, kind: type[HubSource]
) -> None:
    put(hub, a_model())
    hub.gate(REPOSITORY)
    hub.allow(TOKEN, REPOSITORY)
    source = kind(repo_id=REPOSITORY)
    assert codes(await asked(looking_at(hub, sandbox), source)) == ["gated_repository"]
    allowed = await asked(looking_at(hub, sandbox, token=TOKEN), source)
    assert allowed.weights is not None


@both
async def test_a_private_repository_looks_as_if_it_were_not_there(
    hub: Hub, sandbox: Sandbox, kind: type[HubSource]
) -> None:
    put(hub, a_model())
    hub.hide(REPOSITORY)
    hub.allow(TOKEN, REPOSITORY)
    source = kind(repo_id=REPOSITORY)
    told = codes(await asked(looking_at(hub, sandbox), source))
    assert told == (["repository_not_found"] if kind is HuggingFace else ["gated_repository"])
    assert (await asked(looking_at(hub, sandbox, token=TOKEN), source)).weights is not None


@both
async def test_a_hub_that_is_asked_too_often_says_how_long_to_wait(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    put(hub, a_model())
    hub.fault("/api/", status=429, retry_after=1)
    (reason,) = (await asked(looking, kind(repo_id=REPOSITORY))).reasons
    assert isinstance(reason, HubRateLimited)
    assert reason.retry_after_seconds in (1.0, None)


@pytest.mark.parametrize("kind", [HuggingFace, pytest.param(ModelScope, marks=pytest.mark.slow)])  # it tries often
async def test_a_hub_that_fails_is_told_apart_from_one_that_is_away(
    hub: Hub, looking: Looking, sandbox: Sandbox, kind: type[HubSource]
) -> None:
    put(hub, a_model())
    hub.fault("/api/", status=503)
    assert codes(await asked(looking, kind(repo_id=REPOSITORY))) == ["hub_error"]
    away = looking_at("http://127.0.0.1:9", sandbox)
    assert codes(await asked(away, kind(repo_id=REPOSITORY))) == ["hub_unreachable"]


@both
async def test_a_hub_that_fails_once_while_a_model_is_looked_at_is_asked_again(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    put(hub, a_model())
    hub.fault(WEIGHTS, where="cdn", status=503, times=1)
    assert (await asked(looking, kind(repo_id=REPOSITORY))).weights is not None


@both
async def test_a_file_that_can_not_be_looked_at_says_why(hub: Hub, looking: Looking, kind: type[HubSource]) -> None:
    put(hub, a_model())
    hub.fault(WEIGHTS, where="cdn", status=403)
    assert codes(await asked(looking, kind(repo_id=REPOSITORY))) == ["hub_unauthorized"]


@both
async def test_what_was_asked_for_is_named_where_it_is_not_or_not_alone(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    names = ("tiny-Q4_0.gguf", "tiny-Q8_0.gguf")
    put(hub, dict.fromkeys(names, TINYCHAT_BYTES[:1000]))
    (reason,) = (await asked(looking, kind(repo_id=REPOSITORY, filename="*Q2*"))).reasons
    assert reason == NoFileMatches(repository=REPOSITORY, pattern="*Q2*", available=names)
    (reason,) = (await asked(looking, kind(repo_id=REPOSITORY))).reasons
    assert reason == FilesAmbiguous(repository=REPOSITORY, models=names)


@both
async def test_pickled_weights_are_refused(hub: Hub, looking: Looking, kind: type[HubSource]) -> None:
    put(hub, {"config.json": b"{}", "pytorch_model.bin": b"pickled"})
    assert codes(await asked(looking, kind(repo_id=REPOSITORY))) == ["unsafe_format"]
    assert hub.requests("bin") == []


@both
async def test_a_model_with_programs_of_its_own_is_trusted_as_of_one_commit_only(
    hub: Hub, sandbox: Sandbox, kind: type[HubSource]
) -> None:
    source = kind(repo_id=REPOSITORY)
    commit = put(hub, a_model(auto_map={"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}))
    (reason,) = (await asked(looking_at(hub, sandbox), source)).reasons
    assert reason == RemoteCodeNotAllowed(repository=REPOSITORY, commit=commit)
    trusted = frozenset({f"{REPOSITORY}@{commit}"})
    assert (await asked(looking_at(hub, sandbox, trusted=trusted), source)).weights is not None
    put(hub, a_model(seed=2, auto_map={"AutoModelForCausalLM": "modeling_worse.TinyForCausalLM"}))
    assert codes(await asked(looking_at(hub, sandbox, trusted=trusted), source)) == ["remote_code_not_allowed"]


@both
@pytest.mark.parametrize("name", ["../../evil.json", "/etc/passwd", ".muster/lease", "a\u202egnp.json", "con\nfig"])
async def test_a_name_that_must_not_be_written_is_refused(
    hub: Hub, looking: Looking, kind: type[HubSource], name: str
) -> None:
    for branch in ("main", "master"):
        hub.list_raw(REPOSITORY, [listed(WEIGHTS, random_weights(100)), "config.json", name], branch)
    assert codes(await asked(looking, kind(repo_id=REPOSITORY))) == ["unsafe_file_name"]


@pytest.mark.slow
@both
async def test_a_repository_of_fifty_thousand_files_is_refused(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    hub.model_scope.listing_limit = 100_000
    for branch in ("main", "master"):
        hub.list_raw(REPOSITORY, [f"file-{number}.json" for number in range(50_000)], branch)
    (reason,) = (await asked(looking, kind(repo_id=REPOSITORY))).reasons
    assert isinstance(reason, TooManyFiles)
    assert reason.files == 50_000


@both
async def test_a_header_or_configuration_that_claims_to_be_huge_is_not_fetched(
    hub: Hub, looking: Looking, kind: type[HubSource], tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(160_000_000)
    for branch in ("main", "master"):
        repository = [listed("config.json", b"{}"), listed(WEIGHTS, huge, sha256="0" * 64)]
        hub.list_raw(REPOSITORY, repository, branch)
    assert codes(await asked(looking, kind(repo_id=REPOSITORY))) == ["model_file_invalid"]
    assert hub.bytes_sent() < 2 * MIB


@both
async def test_a_configuration_of_a_hundred_megabytes_is_not_read(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    put(hub, {"config.json": b" " * 100_000_000, WEIGHTS: random_weights(1000)})
    told = codes(await asked(looking, kind(repo_id=REPOSITORY)))
    assert told == ["model_file_invalid"]
    assert hub.bytes_sent() < 40 * MIB


@both
async def test_adapters_and_a_draft_are_weighed_together_with_their_model(
    hub: Hub, looking: Looking, kind: type[HubSource]
) -> None:
    put(hub, model := a_model(400_000))
    put(hub, draft := a_model(40_000, seed=3), "org/draft")
    lora = {
        "adapter_config.json": json.dumps({"r": 8, "peft_type": "LORA"}).encode(),
        "adapter_model.safetensors": LORA,
    }
    put(hub, lora, "org/lora")
    source = kind(repo_id=REPOSITORY)
    found = await asked(looking, source, adapters=(kind(repo_id="org/lora"),), draft=kind(repo_id="org/draft"))
    assert found.weights is not None, found.reasons
    assert [each.source.repo_id for each in found.weights.pinned if isinstance(each.source, kind)] == [
        REPOSITORY,
        "org/lora",
        "org/draft",
    ]
    assert found.weights.weight_bytes == len(model[WEIGHTS])
    assert found.weights.lora_bytes == len(LORA)
    assert found.weights.draft_bytes == len(draft[WEIGHTS])


def _lora() -> bytes:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header = json.dumps({name: a_tensor(0, 2048, shape=[8, 128])}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(2048)


LORA = _lora()


async def test_a_question_that_is_given_up_leaves_no_connection(hub: Hub, looking: Looking) -> None:
    put(hub, a_model())
    hub.fault(WEIGHTS, where="cdn", delay=30.0)
    asking = asyncio.create_task(asked(looking, HuggingFace(repo_id=REPOSITORY)))
    while not hub.requests(f"localhost.*{WEIGHTS}"):  # noqa: ASYNC110 - the hub is in a thread
        await asyncio.sleep(0.02)
    asking.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await asking
