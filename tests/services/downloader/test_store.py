"""The store alone: where files lie, what is removed, what others did to it, and who may fetch into it."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.sources import HubSource, HuggingFace, ModelScope
from services.downloader.adapters.parts import Expected
from services.downloader.adapters.store import LEASE, LEASE_BYTES, Home, Lease, Store, part_name
from services.downloader.domain.blocks import span_bytes
from services.downloader.domain.manifest import Manifest, ManifestFile
from services.downloader.domain.names import OURS
from tests.services.downloader.desk import left_on
from tests.support.disks import a_disk

COMMIT = "c0ffee" * 6 + "c0ff"
QWEN = HuggingFace(repo_id="Qwen/Qwen3-8B")
FOUR, EIGHT = HuggingFace(repo_id="org/q", filename="*q4*"), HuggingFace(repo_id="org/q", filename="*q8*")
CONTENT = b"weights" * 1000
BOOT = "this boot"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def a_manifest(source: HubSource, *names: str, content: bytes = CONTENT, commit: str = COMMIT) -> Manifest:
    sha256 = hashlib.sha256(content).hexdigest()
    files = tuple(ManifestFile(name=name, size=len(content), sha256=sha256, is_verified=True) for name in names)
    return Manifest(source=source, commit=commit, files=files, weights=names, boot=BOOT)


def fill(store: Store, manifest: Manifest, content: bytes = CONTENT) -> Path:
    """Each of its files as it would be fetched."""
    with store.home(manifest.source, manifest.commit, create=True) as home:
        for file in manifest.files:
            put(home, file.name, content)
            home.settle(file.name)
        home.write_manifest(manifest)
        return home.path


def put(home: Home, name: str, content: bytes) -> None:
    part = home.open_part(name, Expected(len(content), "sha256:x"), BOOT)
    while (span := part.take(span_bytes(len(content), 1))) is not None:
        os.pwrite(part.file, content[span.position : span.end], span.position)
        part.filled(span, span.left)
        part.give_back(span)
    assert part.is_complete
    part.close()


@pytest.mark.parametrize(
    ("source", "path"),
    [
        (QWEN, f"huggingface/Qwen/Qwen3-8B/{COMMIT}"),
        (HuggingFace(repo_id="gpt2"), f"huggingface/gpt2/{COMMIT}"),
        (ModelScope(repo_id="Qwen/Qwen3-8B"), f"model_scope/Qwen/Qwen3-8B/{COMMIT}"),
    ],
)
def test_files_lie_where_a_person_finds_them(store: Store, source: HubSource, path: str) -> None:
    home = fill(store, a_manifest(source, "config.json", "parts/deep/one.safetensors"))
    assert home == store.root / path
    assert (home / "parts/deep/one.safetensors").read_bytes() == CONTENT
    assert [manifest.source for manifest, _ in store.manifests()] == [source]


def test_what_was_noted_is_read_again_and_nothing_that_is_damaged(store: Store) -> None:
    manifest = a_manifest(QWEN, "a.safetensors")
    path = fill(store, manifest) / OURS / f"{manifest.key}.json"
    with store.home(QWEN, COMMIT) as home:
        assert home.manifest(QWEN) == manifest
        other = a_manifest(QWEN.model_copy(update={"revision": "other"}), "a.safetensors")
        assert home.manifest(other.source) is None
        (path.parent / f"{other.key}.json").write_bytes(path.read_bytes())
        assert home.manifest(other.source) is None
        for damaged in (b"", b"{", path.read_bytes()[:-10], path.read_bytes().replace(b'"version":1', b'"version":2')):
            path.write_bytes(damaged)
            assert home.manifest(QWEN) is None
        (path.parent / f"{other.key}.json").unlink()
    assert list(store.manifests()) == []


def test_a_manifest_that_lies_where_it_does_not_belong_is_none(store: Store) -> None:
    manifest = a_manifest(QWEN, "a.safetensors")
    elsewhere = fill(store, manifest).rename(store.root / "huggingface/Qwen/Qwen3-8B/another")
    assert elsewhere.exists()
    assert list(store.manifests()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes disks")
def test_a_manifest_that_does_not_fit_on_the_disk_leaves_the_former_one(tmp_path: Path) -> None:
    with a_disk(tmp_path / "disk", 256 * 1024) as disk:
        store = Store(disk)
        fill(store, manifest := a_manifest(QWEN, "a.safetensors"))
        many = a_manifest(QWEN, *(f"file-{number:0200}.safetensors" for number in range(500)))
        (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 8192))
        with store.home(QWEN, COMMIT) as home:
            with pytest.raises(OSError, match="No space left") as full:
                home.write_manifest(many)
            assert full.value.errno == errno.ENOSPC
            assert home.manifest(QWEN) == manifest
        assert [name for name in left_on(disk) if ".new" in name] == []


def test_a_part_becomes_the_file_in_one_step_and_leaves_nothing(store: Store) -> None:
    with store.home(QWEN, COMMIT, create=True) as home:
        put(home, "deep/a.safetensors", CONTENT)
        assert home.part_bytes(["deep/a.safetensors"]) >= len(CONTENT)
        assert home.size_of("deep/a.safetensors") is None
        home.settle("deep/a.safetensors")
        assert home.size_of("deep/a.safetensors") == len(CONTENT)
        assert home.part_bytes(["deep/a.safetensors"]) == 0
    assert left_on(store.root / "huggingface/Qwen/Qwen3-8B" / COMMIT / OURS) == []


def test_digests_are_those_of_the_hubs(store: Store) -> None:
    fill(store, a_manifest(QWEN, "a"), CONTENT)
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT, usedforsecurity=False).hexdigest()
    with store.home(QWEN, COMMIT) as home:
        assert home.digests("a") == (hashlib.sha256(CONTENT).hexdigest(), git)
        with pytest.raises(InterruptedError):
            home.digests("a", lambda: True)


# -- removing


def test_removing_the_last_choice_leaves_nothing_but_what_others_put_there(store: Store) -> None:
    home = fill(store, a_manifest(QWEN, "config.json", "deep/deeper/a.safetensors"))
    store.remove(QWEN, COMMIT)
    assert left_on(store.root) == []
    fill(store, a_manifest(QWEN, "config.json"))
    (home / "notes.txt").write_text("mine")
    store.remove(QWEN, COMMIT)
    assert [path.name for path in home.iterdir()] == ["notes.txt"]


def test_removing_one_choice_keeps_what_another_one_has(store: Store) -> None:
    home = fill(store, a_manifest(FOUR, "eyes.gguf", "four/q4.gguf"))
    fill(store, a_manifest(EIGHT, "eyes.gguf", "eight/q8.gguf"))
    with store.home(FOUR, COMMIT) as opened:
        assert len(CONTENT) <= opened.freed_by(a_manifest(FOUR).key) < 2 * len(CONTENT)
    store.remove(FOUR, COMMIT)
    assert sorted(path.name for path in home.rglob("*.gguf")) == ["eyes.gguf", "q8.gguf"]
    assert not (home / "four").exists()
    store.remove(EIGHT, COMMIT)
    assert left_on(store.root) == []


def test_removing_keeps_other_commits_and_repositories(store: Store) -> None:
    fill(store, a_manifest(QWEN, "a.gguf"))
    other = fill(store, a_manifest(QWEN, "a.gguf", commit="f" * 40))
    store.remove(QWEN, COMMIT)
    assert (other / "a.gguf").exists()
    fill(store, a_manifest(QWEN, "a.gguf"))
    store.remove(QWEN, None)
    assert left_on(store.root) == []


def test_removing_what_is_not_there_is_fine(store: Store) -> None:
    store.remove(QWEN, COMMIT)
    store.remove(QWEN, None)
    assert left_on(store.root) == []


def test_parts_go_with_their_files(store: Store) -> None:
    with store.home(QWEN, COMMIT, create=True) as home:
        home.write_manifest(a_manifest(QWEN, "a", "b"))
        put(home, "a", CONTENT)
    store.remove(QWEN, COMMIT)
    assert left_on(store.root) == []


def test_files_whose_manifest_was_damaged_are_removed_too(store: Store) -> None:
    manifest = a_manifest(QWEN, "config.json", "deep/a.safetensors")
    home = fill(store, manifest)
    (home / OURS / f"{manifest.key}.json").write_bytes(b"{")
    (home / OURS / "a directory").mkdir()
    store.remove(QWEN, COMMIT)
    assert left_on(store.root) == []


# -- links


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Nothing of it is touched."""
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    for name in ("a.safetensors", "deep/b.safetensors", "manifest.json"):
        (directory / name).write_bytes(b"mine")
    before = {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}
    yield directory
    assert {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))} == before


@pytest.mark.parametrize("depth", range(1, 5))
def test_a_link_on_the_way_is_not_followed(store: Store, outside: Path, depth: int) -> None:
    manifest = a_manifest(QWEN, "a.safetensors", "deep/b.safetensors")
    home = fill(store, manifest)
    link = home if depth == 4 else store.root.joinpath(*home.relative_to(store.root).parts[:depth])
    link.rename(store.root / "aside")
    link.symlink_to(outside)
    assert list(store.manifests()) == []
    with pytest.raises(OSError, match="Not a directory"):
        store.remove(QWEN, COMMIT)
    with pytest.raises(OSError, match="Not a directory"), store.home(QWEN, COMMIT, create=True):
        pass


def test_links_in_place_of_files_and_directories_are_removed_and_not_followed(store: Store, outside: Path) -> None:
    manifest = a_manifest(QWEN, "a.safetensors", "deep/b.safetensors")
    home = fill(store, manifest)
    (home / "a.safetensors").unlink()
    (home / "a.safetensors").symlink_to(outside / "a.safetensors")
    (home / "deep" / "b.safetensors").unlink()
    (home / "deep").rmdir()
    (home / "deep").symlink_to(outside / "deep")
    with store.home(QWEN, COMMIT) as opened:
        assert opened.size_of("a.safetensors") is None
        assert opened.size_of("deep/b.safetensors") is None
        put(opened, "a.safetensors", CONTENT)
        opened.settle("a.safetensors")
        assert not (home / "a.safetensors").is_symlink()
        put(opened, "deep/b.safetensors", CONTENT)
        with pytest.raises(OSError, match="Not a directory"):
            opened.settle("deep/b.safetensors")
    store.remove(QWEN, COMMIT)


def test_a_link_in_place_of_a_manifest_or_a_part_is_not_followed(store: Store, outside: Path) -> None:
    manifest = a_manifest(QWEN, "a.safetensors")
    home = fill(store, manifest)
    noted = home / OURS / f"{manifest.key}.json"
    noted.unlink()
    noted.symlink_to(outside / "manifest.json")
    (home / OURS / f"{part_name('b')}.part").symlink_to(outside / "a.safetensors")
    with store.home(QWEN, COMMIT) as opened:
        assert opened.manifest(QWEN) is None
        opened.use(QWEN)
        with pytest.raises(OSError, match="Too many levels"):
            opened.open_part("b", Expected(10, "sha256:x"), BOOT)
        opened.write_manifest(manifest)
    assert not noted.is_symlink()
    (home / OURS / "link").symlink_to(outside)
    store.remove(QWEN, COMMIT)
    assert left_on(store.root) == []


def test_a_damaged_manifest_does_not_lead_its_removal_outside(store: Store, outside: Path) -> None:
    manifest = a_manifest(QWEN, "a.safetensors")
    home = fill(store, manifest)
    (home / OURS / f"{manifest.key}.json").write_bytes(b"{")
    (home / "link").symlink_to(outside)
    (home / "deep").mkdir()
    (home / "deep" / "link").symlink_to(outside / "a.safetensors")
    store.remove(QWEN, COMMIT)
    assert left_on(store.root) == []


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "deep/../../a", "./a", "deep//a", ".."])
def test_a_name_that_leads_elsewhere_leads_nowhere(store: Store, name: str) -> None:
    fill(store, a_manifest(QWEN, "a"))
    with (
        store.home(QWEN, COMMIT) as home,
        pytest.raises(OSError, match=r"no name of a file|no regular file|No such file|Not a directory"),
        home.open(name),
    ):
        pass


def test_what_is_no_regular_file_is_not_there(store: Store) -> None:
    path = fill(store, a_manifest(QWEN, "a"))
    os.mkfifo(path / "pipe")
    (path / "directory").mkdir()
    with store.home(QWEN, COMMIT) as home:
        assert home.size_of("pipe") is None
        assert home.size_of("directory") is None


# -- leases


@pytest.fixture
def home(store: Store) -> Iterator[Home]:
    with store.home(QWEN, COMMIT, create=True) as opened:
        yield opened


def lease_of(home: Home) -> Path:
    return home.path / OURS / LEASE


def test_a_lease_is_taken_by_one_and_kept_by_renewing_it(home: Home) -> None:
    mine, yours = Lease(home, "w-1", 0.2), Lease(home, "w-2", 0.2)
    assert mine.take()
    for _ in range(6):
        assert not yours.take()
        time.sleep(0.1)
        assert mine.renew()
    mine.give_back()
    assert yours.take()
    assert not mine.take()


def test_a_lease_that_does_not_change_is_taken_over_whatever_its_clock_says(home: Home) -> None:
    Lease(home, "w-1", 0.2).take()
    os.utime(lease_of(home), (2**32, 2**32))  # a clock that is far ahead
    yours = Lease(home, "w-2", 0.2)
    began = time.monotonic()
    while not yours.take():
        time.sleep(0.02)
    assert time.monotonic() - began >= 0.2


def test_whoever_lost_a_lease_is_told_and_takes_nothing_back(home: Home) -> None:
    mine, yours = Lease(home, "w-1", 0.05), Lease(home, "w-2", 0.05)
    mine.take()
    yours.take()
    time.sleep(0.1)
    assert yours.take()
    assert not mine.renew()
    mine.give_back()
    assert yours.renew()


def test_a_lease_of_the_same_holder_that_was_left_over_is_its_own_at_once(home: Home) -> None:
    Lease(home, "w-1").take()
    assert Lease(home, "w-1").take()
    assert len(lease_of(home).read_bytes()) == LEASE_BYTES


def test_of_many_that_find_a_lease_expired_one_takes_it_over(home: Home) -> None:
    for number in range(20):
        Lease(home, f"gone-{number}", 0.0).take()
        rivals = [Lease(home, f"w-{number}-{rival}", 0.0) for rival in range(8)]
        assert not any(rival.take() for rival in rivals)  # each has seen it now
        together, took = threading.Barrier(8), list[Lease]()

        def take(rival: Lease, together: threading.Barrier, took: list[Lease]) -> None:
            together.wait()
            if rival.take():
                took.append(rival)

        threads = [threading.Thread(target=take, args=(rival, together, took)) for rival in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = [rival for rival in took if rival.renew()]
        assert len(holders) == 1
        holders[0].give_back()
        assert left_on(home.path / OURS) == []


def test_of_a_shared_store_what_another_worker_has_stays(tmp_path: Path) -> None:
    mine, theirs = Store(tmp_path, "w-1"), Store(tmp_path, "w-2")
    manifest = a_manifest(QWEN, "a")
    fill(mine, manifest)
    for store in (mine, theirs):
        store.use(QWEN, COMMIT)
    assert mine.freed_by(manifest) == 0
    mine.remove(QWEN, COMMIT)
    with theirs.home(QWEN, COMMIT) as home:
        assert home.manifest(QWEN) == manifest
        assert home.size_of("a") is not None
    assert theirs.freed_by(manifest) > 0
    theirs.remove(QWEN, COMMIT)
    assert list(tmp_path.iterdir()) == []
