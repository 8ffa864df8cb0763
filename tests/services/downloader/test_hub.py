"""The tests' own hub, asked by the real clients and, where it lies, by a client that shows every byte."""

import gc
import gzip
import http.client
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import HfApi, RepoFile, RepoFolder, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from modelscope_hub import HubApi
from modelscope_hub.errors import AuthenticationError, FileDownloadError, NotExistError
from pydantic import ValidationError

from tests.support.hub import Hub
from tests.support.hub_repository import SYMBOLIC_LINK, listed
from tests.support.hub_wire import Seen

ROOT: Final = Path(__file__).parents[3]
NAME: Final = "org/tiny"
WEIGHTS: Final = random.Random(7).randbytes(300_000)
FILES: Final[Mapping[str, bytes]] = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer/vocab.txt": b"hello\nworld\n",
    "model.safetensors": WEIGHTS,
}
SMALL, LARGE = "config.json", "model.safetensors"
STALL_SECONDS: Final = 0.2


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The real clients know no other hub, and keep nothing where their user has it."""
    home = tmp_path_factory.mktemp("home")
    for name in ("MODELSCOPE_CACHE", "MODELSCOPE_HOME"):
        monkeypatch.setenv(name, str(home / name))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    harnesses = home / "harnesses.json"
    harnesses.write_text(
        '{"standardEnvVars": [], "harnesses": {}}', encoding="utf-8"
    )  # else it is fetched from the real hub
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(harnesses))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub() as running:
        running.put(NAME, FILES)
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def hugging_face(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def model_scope(hub: Hub) -> HubApi:
    return HubApi(endpoint=hub.url)


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool = True


def ask(url: str, method: str = "GET", body: bytes | None = None, timeout: float = 10, **headers: str) -> Got:
    """Follows nothing, decodes nothing; underscores in the names of headers are dashes."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, url[len(f"{parts.scheme}://{parts.netloc}") :], body, named)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        got = bytearray()
        try:
            while block := answer.read1(1 << 16):
                got += block
        except (http.client.IncompleteRead, TimeoutError):
            return Got(answer.status, told, bytes(got), is_whole=False)
        length = told.get("content-length")
        is_whole = method == "HEAD" or length is None or len(got) == int(length)
        return Got(answer.status, told, bytes(got), is_whole)
    finally:
        connection.close()


def address(hub: Hub, file: str, revision: str = "main") -> str:
    return f"{hub.url}/{NAME}/resolve/{revision}/{file}"


def link(hub: Hub, file: str = LARGE) -> str:
    """Where the content delivery network has the file."""
    return ask(address(hub, file)).headers["location"]


def read(directory: Path) -> Mapping[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


# What the real clients see


def test_hugging_face_lists_files_with_sizes_and_digests(hub: Hub, hugging_face: HfApi) -> None:
    info = hugging_face.model_info(NAME, files_metadata=True)
    assert info.siblings is not None
    told = {file.rfilename: (file.size, file.lfs and file.lfs.sha256) for file in info.siblings}
    assert told.keys() == FILES.keys()
    assert told[SMALL] == (len(FILES[SMALL]), None)
    size, sha256 = told[LARGE]
    assert (size, len(sha256 or "")) == (len(WEIGHTS), 64)
    assert (info.gated, info.private, info.sha) == (False, False, hub.repositories.of(NAME).branches["main"])


def test_hugging_face_lists_page_by_page(hub: Hub, hugging_face: HfApi) -> None:
    hub.hugging_face.page_size = 2
    entries = list(hugging_face.list_repo_tree(NAME, recursive=True, expand=True))
    assert [type(entry) for entry in entries] == [RepoFile, RepoFile, RepoFolder, RepoFile]
    assert [entry.path for entry in entries] == [SMALL, LARGE, "tokenizer", "tokenizer/vocab.txt"]
    assert len(hub.requests("/tree/")) == 2


def test_hugging_face_tells_of_the_paths_it_is_asked_for(hugging_face: HfApi) -> None:
    told = hugging_face.get_paths_info(NAME, [SMALL, "tokenizer", "missing"])
    assert [entry.path for entry in told] == [SMALL, "tokenizer"]
    assert [entry.path for entry in hugging_face.list_repo_tree(NAME, "tokenizer")] == ["tokenizer/vocab.txt"]


def test_a_snapshot_is_identical_and_the_published_digests_agree_with_it(
    hub: Hub, hugging_face: HfApi, tmp_path: Path
) -> None:
    snapshot_download(NAME, endpoint=hub.url, local_dir=tmp_path, token=False)
    assert read(tmp_path) == FILES
    verified = hugging_face.verify_repo_checksums(NAME, local_dir=tmp_path)
    assert (verified.checked_count, verified.mismatches, verified.missing_paths) == (3, [], [])
    (tmp_path / SMALL).write_bytes(FILES[SMALL][::-1])
    (tmp_path / LARGE).write_bytes(WEIGHTS[::-1])
    algorithms = [each["algorithm"] for each in hugging_face.verify_repo_checksums(NAME, local_dir=tmp_path).mismatches]
    assert sorted(algorithms) == ["git-sha1", "sha256"]


def test_a_branch_moves_and_what_it_was_stays_readable(hub: Hub, hugging_face: HfApi, tmp_path: Path) -> None:
    first = hub.repositories.of(NAME).branches["main"]
    hub.tag(NAME, "v1", first)
    second = hub.put(NAME, {**FILES, SMALL: b"{}"})
    assert second == hub.put(NAME, {**FILES, SMALL: b"{}"}) != first

    def config(revision: str) -> bytes:
        got = hf_hub_download(NAME, SMALL, revision=revision, endpoint=hub.url, cache_dir=tmp_path, token=False)
        return Path(got).read_bytes()

    assert [config(revision) for revision in ("main", second, first, "v1")] == [b"{}", b"{}", *[FILES[SMALL]] * 2]
    refs = hugging_face.list_repo_refs(NAME)
    assert [(ref.name, ref.target_commit) for ref in (*refs.branches, *refs.tags)] == [("main", second), ("v1", first)]
    assert [hugging_face.model_info(NAME, revision=revision).sha for revision in (first[:8], "v1")] == [first, first]
    commits = {file.path: file.last_commit and file.last_commit.oid for file in _expanded(hugging_face)}
    assert commits == {SMALL: second, LARGE: first, "tokenizer/vocab.txt": first}


def _expanded(hugging_face: HfApi) -> list[RepoFile]:
    entries = hugging_face.list_repo_tree(NAME, recursive=True, expand=True)
    return [entry for entry in entries if isinstance(entry, RepoFile)]


def test_a_branch_with_a_slash_in_its_name_is_found(hub: Hub, hugging_face: HfApi) -> None:
    commit = hub.put(NAME, {SMALL: b"1"}, revision="fp16/tests")
    assert hugging_face.model_info(NAME, revision="fp16/tests").sha == commit


def test_the_client_knows_what_is_missing(hub: Hub, hugging_face: HfApi, tmp_path: Path) -> None:
    hub.allow("hf_tests")
    with pytest.raises(RepositoryNotFoundError):
        hugging_face.model_info("org/none")
    with pytest.raises(RepositoryNotFoundError, match="404 Client Error"):
        hugging_face.model_info("org/none", token="hf_tests")
    with pytest.raises(RevisionNotFoundError):
        hugging_face.model_info(NAME, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(NAME, "none.json", endpoint=hub.url, cache_dir=tmp_path, token=False)
    with pytest.raises(RemoteEntryNotFoundError):
        list(hugging_face.list_repo_tree(NAME, "none"))


def test_a_gated_repository_shows_its_listing_and_refuses_its_files(
    hub: Hub, hugging_face: HfApi, tmp_path: Path
) -> None:
    hub.gate(NAME, "auto")
    hub.allow("hf_stranger")
    hub.allow("hf_friend", NAME)
    assert hugging_face.model_info(NAME).gated == "auto"
    for token, status in ((False, 401), ("hf_wrong", 401), ("hf_stranger", 403)):
        with pytest.raises(GatedRepoError, match=f"{status} Client Error"):
            hf_hub_download(NAME, LARGE, endpoint=hub.url, cache_dir=tmp_path, token=token)
    got = hf_hub_download(NAME, LARGE, endpoint=hub.url, cache_dir=tmp_path, token="hf_friend")
    assert Path(got).read_bytes() == WEIGHTS


def test_a_private_repository_does_not_exist_for_strangers(hub: Hub, hugging_face: HfApi, tmp_path: Path) -> None:
    hub.hide(NAME)
    hub.allow("hf_stranger")
    hub.allow("hf_friend", NAME)
    for token in (False, "hf_stranger"):
        with pytest.raises(RepositoryNotFoundError):
            hugging_face.model_info(NAME, token=token)
    snapshot_download(NAME, endpoint=hub.url, local_dir=tmp_path, token="hf_friend")
    assert read(tmp_path) == FILES


def test_a_wrong_token_is_told_from_a_missing_repository(hub: Hub, hugging_face: HfApi) -> None:
    hub.allow("hf_tests")
    assert hugging_face.whoami(token="hf_tests")["name"] == "tester"
    with pytest.raises(HfHubHTTPError, match="Invalid") as refused:
        hugging_face.model_info(NAME, token="hf_wrong")
    assert not isinstance(refused.value, RepositoryNotFoundError)


def test_the_token_is_not_sent_to_the_content_delivery_network(hub: Hub, tmp_path: Path) -> None:
    hub.hide(NAME)
    hub.allow("hf_tests", NAME)
    snapshot_download(NAME, endpoint=hub.url, local_dir=tmp_path, token="hf_tests")
    HubApi(endpoint=hub.url, token="hf_tests").download_repo(NAME, "model", local_dir=tmp_path / "scope")
    assert {seen.has_authorization for seen in hub.requests(f"{NAME}.*{LARGE}") if "Signature" not in seen.path} == {
        True
    }
    assert [(seen.has_authorization, seen.has_cookie) for seen in hub.requests(hub.cdn_url)] == [(False, False)] * 2


def test_hugging_faces_client_resumes_within_a_call(hub: Hub, tmp_path: Path) -> None:
    weights = random.Random(1).randbytes(11_500_000)
    hub.put(NAME, {LARGE: weights})
    hub.fault(LARGE, times=1, cut_after=11_000_000)
    got = hf_hub_download(NAME, LARGE, endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert Path(got).read_bytes() == weights
    # it keeps whole blocks of 10 MiB only
    assert [seen.range for seen in hub.requests(hub.cdn_url)] == [None, "bytes=10485760-"]
    assert [seen.sent for seen in hub.requests(hub.cdn_url)] == [11_000_000, len(weights) - 10_485_760]


def test_hugging_faces_client_waits_when_there_are_too_many_and_gives_up_when_it_is_unavailable(
    hub: Hub, tmp_path: Path
) -> None:
    hub.fault(LARGE, times=1, method="GET", status=429, retry_after=1)
    hf_hub_download(NAME, LARGE, endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert [seen.status for seen in hub.requests(f"GET .*{LARGE}")] == [429, 200]
    hub.fault(SMALL, method="GET", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        hf_hub_download(NAME, SMALL, endpoint=hub.url, cache_dir=tmp_path, token=False)


def test_hugging_faces_client_takes_corrupt_bytes_for_good_ones(hub: Hub, tmp_path: Path) -> None:
    hub.fault(LARGE, corrupt=True)
    got = Path(hf_hub_download(NAME, LARGE, endpoint=hub.url, cache_dir=tmp_path, token=False)).read_bytes()
    assert len(got) == len(WEIGHTS)
    assert got != WEIGHTS


def test_model_scope_lists_files_and_revisions(hub: Hub, model_scope: HubApi) -> None:
    hub.tag(NAME, "v1", hub.repositories.of(NAME).branches["main"])
    files = {file.path: file for file in model_scope.list_repo_files(NAME, "model") if not file.is_dir}
    assert {path: file.size for path, file in files.items()} == {path: len(content) for path, content in FILES.items()}
    assert all(len(file.sha256 or "") == 64 for file in files.values())
    assert [each["Revision"] for each in model_scope.list_repo_revisions(NAME, "model")] == ["v1", "master"]
    assert model_scope.get_repo(NAME, "model").name == "tiny"


def test_model_scope_has_its_own_default_branch_and_no_error_for_an_unknown_one(hub: Hub, model_scope: HubApi) -> None:
    first = hub.repositories.of(NAME).branches["main"]
    hub.put(NAME, {SMALL: b"{}"})
    listing = {
        revision: [file.path for file in model_scope.list_repo_files(NAME, "model", revision=revision)]
        for revision in ("master", first, "main")
    }
    assert listing == {"master": [SMALL], first: [SMALL, LARGE, "tokenizer", "tokenizer/vocab.txt"], "main": []}
    commits = f"{hub.url}/api/v1/models/{NAME}/commits?PageSize=1&Ref="
    told = {ref: json.loads(ask(commits + ref).body)["Data"]["Commit"] for ref in ("master", "main")}
    assert told["master"][0]["Id"] == hub.repositories.of(NAME).branches["main"]
    assert told["main"] is None


def test_model_scope_ends_a_listing_silently(hub: Hub, model_scope: HubApi) -> None:
    names = [f"{directory}/{number}.txt" for directory in ("a", "b") for number in range(1_600)]
    hub.put(NAME, dict.fromkeys(names, b""))
    whole = json.loads(ask(f"{hub.url}/api/v1/models/{NAME}/repo/files?Revision=master&Recursive=True").body)
    assert len(whole["Data"]["Files"]) == 3_000
    files = model_scope.list_repo_files(NAME, "model")
    assert sorted(file.path for file in files if not file.is_dir) == sorted(names)


def test_model_scopes_client_downloads_a_snapshot_that_is_identical(
    hub: Hub, model_scope: HubApi, tmp_path: Path
) -> None:
    model_scope.download_repo(NAME, "model", local_dir=tmp_path / "model")
    assert read(tmp_path / "model") == FILES
    assert len(hub.requests(hub.cdn_url)) == 1


def test_model_scopes_client_resumes_and_asks_again_for_what_is_corrupt(
    hub: Hub, model_scope: HubApi, tmp_path: Path
) -> None:
    hub.fault(LARGE, times=1, cut_after=123_456)
    model_scope.download_file(NAME, "model", LARGE, local_dir=tmp_path)
    assert [seen.range for seen in hub.requests(hub.cdn_url)] == [None, "bytes=123456-"]
    assert (tmp_path / LARGE).read_bytes() == WEIGHTS
    hub.clear_log()
    hub.fault(LARGE, times=1, corrupt=True)
    hub.fault(SMALL, times=1, status=503)
    model_scope.download_repo(NAME, "model", local_dir=tmp_path / "again")
    assert read(tmp_path / "again") == FILES
    assert [len(hub.requests(what)) for what in (hub.cdn_url, f"FilePath={SMALL}")] == [2, 2]


def test_model_scope_refuses_with_404_whoever_may_not_read(hub: Hub, model_scope: HubApi, tmp_path: Path) -> None:
    hub.gate(NAME)
    hub.allow("ms_stranger")
    hub.allow("ms_friend", NAME)

    def code_of(error: NotExistError) -> object:
        return error.response_body["Code"] if isinstance(error.response_body, dict) else None

    with pytest.raises(NotExistError) as hidden:
        model_scope.list_repo_files(NAME, "model")
    with pytest.raises(NotExistError) as missing:
        model_scope.list_repo_files("org/none", "model")
    assert (code_of(hidden.value), code_of(missing.value)) == (10010200001, 10010205001)
    with pytest.raises(NotExistError):
        HubApi(endpoint=hub.url, token="ms_stranger").list_repo_files(NAME, "model")
    friend = HubApi(endpoint=hub.url, token="ms_friend")
    assert friend.whoami().username == "tester"
    with pytest.raises(AuthenticationError):
        HubApi(endpoint=hub.url, token="ms_wrong").whoami()
    with pytest.raises(NotExistError):
        friend.download_file(NAME, "model", "none.json", local_dir=tmp_path)
    friend.download_repo(NAME, "model", local_dir=tmp_path)
    assert read(tmp_path) == FILES


def test_model_scopes_client_says_which_file_it_could_not_get(hub: Hub, model_scope: HubApi, tmp_path: Path) -> None:
    hub.fault(LARGE, status=403)
    with pytest.raises(FileDownloadError) as failed:
        model_scope.download_repo(NAME, "model", local_dir=tmp_path)
    assert list(failed.value.failed_files) == [LARGE]


# What a client sees that shows every byte


def test_a_large_file_lies_elsewhere_and_a_small_one_of_a_public_repository_at_a_relative_address(hub: Hub) -> None:
    commit = hub.repositories.of(NAME).branches["main"]
    large = ask(address(hub, LARGE), "HEAD")
    assert (large.status, large.headers["x-repo-commit"]) == (302, commit)
    assert (large.headers["x-linked-size"], len(large.headers["x-linked-etag"])) == ("300000", 66)
    assert large.headers["location"].startswith(hub.cdn_url)
    small = ask(address(hub, SMALL))
    assert small.status == 307
    assert small.headers["location"].startswith(f"/api/resolve-cache/models/{NAME}/{commit}/{SMALL}?")
    there = ask(hub.url + small.headers["location"])
    assert (there.status, there.body, there.headers["x-repo-commit"]) == (200, FILES[SMALL], commit)
    assert there.headers["etag"] == small.headers["x-linked-etag"]
    hub.hide(NAME)
    hub.allow("hf_tests", NAME)
    assert ask(address(hub, SMALL), Authorization="Bearer hf_tests").body == FILES[SMALL]


def test_a_part_of_a_file_is_served_from_disk_as_from_memory(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / LARGE).write_bytes(WEIGHTS)
    hub.put("org/disk", {LARGE: tmp_path / LARGE})
    on_disk = ask(f"{hub.url}/org/disk/resolve/main/{LARGE}").headers["location"]
    for url in (link(hub), on_disk):
        tag = ask(url, "HEAD").headers["etag"]
        for asked, expected in (
            ("bytes=0-9", WEIGHTS[:10]),
            ("bytes=299990-", WEIGHTS[-10:]),
            ("bytes=-7", WEIGHTS[-7:]),
            ("bytes=100-400000", WEIGHTS[100:]),
        ):
            got = ask(url, Range=asked, If_Range=tag)
            start = len(WEIGHTS) - len(expected) if expected != WEIGHTS[:10] else 0
            assert got.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/300000"
            assert (got.status, got.body, got.is_whole) == (206, expected, True)
        assert (whole := ask(url, Range="bytes=5-", If_Range='"other"')).status == 200
        assert whole.body == WEIGHTS
        beyond = ask(url, Range="bytes=300000-")
        assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */300000")


def test_model_scope_serves_a_small_file_whole_whatever_is_asked_for(hub: Hub) -> None:
    url = f"{hub.url}/api/v1/models/{NAME}/repo?Revision=master&FilePath={SMALL}"
    assert ask(url, Range="bytes=5-") == ask(url)
    large = f"{hub.url}/api/v1/models/{NAME}/repo?Revision=master&FilePath={LARGE}"
    assert (ask(large).status, ask(large, "HEAD").status) == (302, 200)


def test_an_address_of_the_content_delivery_network_needs_its_signature(hub: Hub) -> None:
    assert ask(link(hub).replace("Signature=0", "Signature=1")).status == 403


def test_a_connection_is_cut_after_so_many_bytes(hub: Hub) -> None:
    hub.fault(f"^{LARGE}$", times=1, cut_after=1_000)
    url = link(hub)
    cut, whole = ask(url), ask(url)
    assert (cut.status, cut.headers["content-length"], cut.body, cut.is_whole) == (
        200,
        "300000",
        WEIGHTS[:1_000],
        False,
    )
    assert whole.body == WEIGHTS
    assert [(seen.status, seen.sent) for seen in hub.requests(hub.cdn_url)] == [(200, 1_000), (200, 300_000)]


def test_a_listing_is_cut_as_a_file_is(hub: Hub) -> None:
    hub.fault("/tree/", cut_after=20)
    got = ask(f"{hub.url}/api/models/{NAME}/tree/main?recursive=true")
    assert (len(got.body), got.is_whole) == (20, False)


def test_bytes_are_flipped_in_the_same_place_of_every_answer(hub: Hub) -> None:
    hub.fault(LARGE, corrupt_at=200_000)
    whole, part, before = (ask(link(hub), Range=asked) for asked in ("", "bytes=200010-200020", "bytes=0-199999"))
    assert [at for at in range(300_000) if whole.body[at] != WEIGHTS[at]] == list(range(200_000, 200_016))
    assert part.body == whole.body[200_010:200_021] != WEIGHTS[200_010:200_021]
    assert before.body == WEIGHTS[:200_000]
    hub.clear_faults()
    hub.fault(LARGE, corrupt=True)
    assert [at for at, byte in enumerate(ask(link(hub)).body) if byte != WEIGHTS[at]] == list(range(150_000, 150_016))


def test_refusals_are_told_in_the_words_of_the_protocol(hub: Hub) -> None:
    hub.fault("repo/files", status=429, retry_after=7)
    hub.fault("/api/models/", status=500)
    hub.fault(LARGE, status=403, where="cdn")
    hub.fault(SMALL, status=503, body="<busy>", headers={"X-Cache": "Error"})
    scope = ask(f"{hub.url}/api/v1/models/{NAME}/repo/files")
    assert (scope.status, scope.headers["retry-after"]) == (429, "7")
    assert json.loads(scope.body)["Success"] is False
    assert json.loads(ask(f"{hub.url}/api/models/{NAME}").body) == {"error": "Internal Server Error"}
    assert (refused := ask(link(hub))).status == 403
    assert refused.body.startswith(b"<?xml")
    busy = ask(address(hub, SMALL))
    assert (busy.status, busy.body, busy.headers["x-cache"]) == (503, b"<busy>", "Error")


def test_bytes_come_as_slowly_as_they_are_told_to(hub: Hub) -> None:
    hub.fault(LARGE, rate=1_000_000)
    url, begun = link(hub), time.monotonic()
    assert ask(url).body == WEIGHTS
    assert 0.25 < time.monotonic() - begun < 1.5


def test_an_answer_comes_late(hub: Hub) -> None:
    hub.fault("/api/models/", delay=0.2)
    begun = time.monotonic()
    assert ask(f"{hub.url}/api/models/{NAME}").status == 200
    assert time.monotonic() - begun > 0.2


def test_a_range_is_ignored(hub: Hub) -> None:
    hub.fault(LARGE, ignore_range=True)
    got = ask(link(hub), Range="bytes=100-")
    assert (got.status, got.body, "content-range" in got.headers) == (200, WEIGHTS, False)


@pytest.mark.parametrize("more", [-1_000, 1_000])
def test_lengths_lie(hub: Hub, more: int) -> None:
    hub.fault(LARGE, wrong_length=more)
    whole, part = ask(link(hub)), ask(link(hub), Range="bytes=100000-")
    assert whole.headers["content-length"] == str(300_000 + more)
    assert whole.body == WEIGHTS[: 300_000 + more]
    assert whole.is_whole is (more < 0)
    assert part.headers["content-length"] == str(200_000 + more)
    assert part.headers["content-range"] == f"bytes 100000-299999/{300_000 + more}"


def test_a_captive_portal_answers_for_the_hub(hub: Hub) -> None:
    url = f"{hub.url}/api/models/{NAME}"
    hub.fault(html=True)
    portal = ask(url)
    assert (portal.status, portal.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert portal.body.startswith(b"<!DOCTYPE html>")
    hub.fault(html=True, status=511)
    assert ask(url).status == 511


def test_a_file_is_of_another_revision_than_was_listed(hub: Hub) -> None:
    true = {file: ask(address(hub, file), "HEAD").headers for file in (SMALL, LARGE)}
    hub.fault(change_revision=True)
    for file, headers in true.items():
        other = ask(address(hub, file), "HEAD").headers
        assert {name for name in headers if headers[name] != other.get(name)} >= {"x-repo-commit", "x-linked-etag"}
        assert len(other["x-repo-commit"]) == 40
    cdn = link(hub)
    changed = ask(cdn, "HEAD").headers["etag"]
    hub.clear_faults()
    assert ask(cdn, "HEAD").headers["etag"] != changed


def test_a_connection_stays_open_and_brings_nothing(hub: Hub) -> None:
    hub.fault(LARGE, stall_after=5_000)
    begun = time.monotonic()
    got = ask(link(hub), timeout=STALL_SECONDS)
    assert time.monotonic() - begun >= STALL_SECONDS
    assert (got.status, got.headers["content-length"], got.body, got.is_whole) == (
        200,
        "300000",
        WEIGHTS[:5_000],
        False,
    )


def test_a_file_is_shorter_than_it_was_listed_and_all_headers_agree(hub: Hub) -> None:
    hub.fault(LARGE, truncate=1_000)
    whole = ask(link(hub))
    assert (whole.headers["content-length"], whole.body, whole.is_whole) == ("1000", WEIGHTS[:1_000], True)
    assert ask(link(hub), Range="bytes=900-").headers["content-range"] == "bytes 900-999/1000"
    beyond = ask(link(hub), Range="bytes=2000-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */1000")


def test_a_file_comes_compressed_although_nobody_asked(hub: Hub) -> None:
    hub.fault(SMALL, gzip=True, times=1)
    url = hub.url + ask(address(hub, SMALL)).headers["location"]
    got = ask(url, Accept_Encoding="identity")
    assert (got.headers["content-encoding"], "content-length" in got.headers) == ("gzip", False)
    assert gzip.decompress(got.body) == FILES[SMALL]
    assert ask(url).body == FILES[SMALL]


def test_a_request_is_sent_elsewhere(hub: Hub) -> None:
    url = f"{hub.url}/api/models/{NAME}"
    hub.fault("/api/models/", redirect_to=f"{hub.cdn_url}/elsewhere", times=1)
    got = ask(url)
    assert (got.status, got.headers["location"]) == (302, f"{hub.cdn_url}/elsewhere")
    hub.fault("/api/models/", redirect_to=url, status=307)
    assert (ask(url).status, ask(url).headers["location"]) == (307, url)


def test_an_address_expires_once_it_was_used(hub: Hub) -> None:
    hub.fault(LARGE, expire=True, times=1)
    once, often = link(hub), link(hub)
    assert [ask(once, Range="bytes=0-9").status, ask(once).status] == [206, 403]
    assert [ask(often).status, ask(often).status] == [200, 200]


def test_faults_that_concern_the_same_answer_come_together(hub: Hub) -> None:
    hub.fault(LARGE, corrupt_at=0)
    hub.fault(LARGE, times=1, cut_after=100)
    url = link(hub)
    first, second = ask(url), ask(url)
    assert first.body == second.body[:100] != WEIGHTS[:100]
    assert len(second.body) == 300_000


def test_a_fault_that_does_not_exist_is_refused(hub: Hub) -> None:
    with pytest.raises(ValidationError):
        hub.fault(LARGE, cut_afterwards=1)
    with pytest.raises(ValidationError):
        hub.fault("(", cut_after=1)


def test_a_listing_says_whatever_a_test_wants(hub: Hub, hugging_face: HfApi, model_scope: HubApi) -> None:
    evil = ["../../evil", "/etc/x", "a\\b", "a\0b", "n" * 300, "same", "same", "SAME", "a/../b", ""]
    hub.list_raw(NAME, [*evil, listed("link", b"/etc/passwd", mode=SYMBOLIC_LINK), listed("big.bin", size=10**15)])
    told = {entry.path: entry for entry in hugging_face.list_repo_tree(NAME, recursive=True)}
    assert told.keys() == {*evil, "link", "big.bin"}
    big = told["big.bin"]
    assert isinstance(big, RepoFile)
    assert big.size == 10**15
    assert ask(address(hub, quote("../../evil", safe=""))).status == 307
    files = json.loads(ask(f"{hub.url}/api/v1/models/{NAME}/repo/files?Recursive=True").body)["Data"]["Files"]
    assert [file["Path"] for file in files] == [*evil, "link", "big.bin"]
    assert {file["Path"]: file["Mode"] for file in files}["link"] == str(SYMBOLIC_LINK)
    assert len(model_scope.list_repo_files(NAME, "model")) == len(files)


def test_a_listing_may_have_fifty_thousand_files(hub: Hub, hugging_face: HfApi) -> None:
    hub.list_raw(NAME, (f"{number:05}.json" for number in range(50_000)))
    assert sum(1 for _ in hugging_face.list_repo_tree(NAME, recursive=True)) == 50_000
    assert len(hub.requests("/tree/")) == 50


def test_the_log_tells_what_was_asked_and_what_was_sent(hub: Hub) -> None:
    url = link(hub)
    ask(url, Range="bytes=10-19", Authorization="Bearer hf_tests", User_Agent="tests/1")
    seen = hub.requests(f"^GET {hub.cdn_url}/.*{LARGE}")
    expected = Seen(
        method="GET",
        host=urlsplit(hub.cdn_url).netloc,
        path=url[len(hub.cdn_url) :],
        range="bytes=10-19",
        has_authorization=True,
        has_cookie=False,
        user_agent="tests/1",
        status=206,
        sent=10,
        ended=True,
    )
    assert seen == [expected]
    assert (hub.bytes_sent(hub.cdn_url), hub.bytes_sent("elsewhere")) == (10, 0)
    hub.clear_log()
    assert hub.requests() == []


def test_connections_are_used_again(hub: Hub) -> None:
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, f"/api/models/{NAME}" if method == "GET" else f"/{NAME}/resolve/main/{SMALL}")
        answer = connection.getresponse()
        assert answer.status in (200, 307)
        answer.read()
        assert not answer.will_close
    connection.close()


def test_what_is_no_http_ends_the_connection(hub: Hub) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(hub.url).port or 0), timeout=5) as stranger:
        stranger.sendall(b"nonsense\r\n\r\n")
        assert stranger.recv(100) == b""
    assert hub.requests() == []


def test_a_hub_ends_whoever_still_hangs_on_it() -> None:
    with Hub() as running:
        running.put(NAME, {LARGE: bytes(20_000_000)})
        url = urlsplit(link(running))
        reads_nothing = socket.create_connection(("127.0.0.1", url.port or 0))
        reads_nothing.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        asks_nothing = socket.create_connection(("127.0.0.1", url.port or 0))
        while not running.bytes_sent(LARGE + r"\?"):
            time.sleep(0.01)
    gc.collect()  # a connection that was left open warns
    for client in (reads_nothing, asks_nothing):
        client.close()
    with pytest.raises(ConnectionRefusedError):
        ask(running.url)


def test_a_port_that_is_taken_is_an_error(hub: Hub) -> None:
    with pytest.raises(OSError, match="in use"), Hub(cdn_port=urlsplit(hub.url).port or 0):
        pass


async def test_a_hub_runs_beside_an_event_loop_that_is_blocked() -> None:
    async with Hub() as running:
        running.put(NAME, FILES)
        assert ask(f"{running.url}/api/models/{NAME}").status == 200


def test_another_process_runs_a_hub_and_makes_it_fail(tmp_path: Path) -> None:
    for name in ("org/open", "org/gated"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / LARGE).write_bytes(WEIGHTS)
    options = [str(tmp_path), "--gated", "org/gated", "--private", "org/open", "--token", "hf_tests=org/open,org/gated"]
    program = [sys.executable, "-m", "tests.support.hub", *options]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            told = json.loads(running.stdout.readline())
            assert sorted(told["repositories"]) == ["org/gated", "org/open"]
            url = f"{told['url']}/org/open/resolve/main/sub/{LARGE}"
            assert ask(url).status == 401
            assert ask(f"{told['url']}/_fault", "POST", b'{"match": "safetensors", "cut_after": 10}').status == 200
            assert ask(f"{told['url']}/_fault", "POST", b'{"cut": 10}').status == 400
            there = ask(url, Authorization="Bearer hf_tests").headers["location"]
            assert (ask(there).body, ask(there).is_whole) == (WEIGHTS[:10], False)
            assert ask(f"{told['url']}/_faults", "DELETE").status == 200
            assert ask(there).body == WEIGHTS
            log = json.loads(ask(f"{told['url']}/_log").body)
            assert [(seen["status"], seen["sent"]) for seen in log if "Signature" in seen["path"]][-1] == (200, 300_000)
            assert ask(f"{told['url']}/_log", "DELETE").status == 200
            assert json.loads(ask(f"{told['url']}/_log").body) == []
        finally:
            running.terminate()
