"""Files are fetched from the tests' hub, which fails as it is told to, and from servers that answer in odd ways."""

import errno
import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from schemas.reasons import (
    AnswerIsNoFile,
    ChecksumMismatch,
    DiskError,
    DownloadStalled,
    GatedRepository,
    HubError,
    HubRateLimited,
    HubUnauthorized,
    HubUnreachable,
    ModelFilesIncomplete,
    RedirectNotAllowed,
    RevisionChanged,
    SizeMismatch,
)
from services.downloader.adapters import fetching
from services.downloader.adapters.fetching import Fetch, Patience, Stalled, Stopped
from services.downloader.adapters.http_ranges import Location, Ranges, Rate, origin_of
from services.downloader.adapters.parts import DIRECTORY, Expected, Part
from services.downloader.domain import blocks
from services.downloader.domain.answers import Asked, NotFetched
from services.downloader.domain.blocks import KIB, MIB, SMALL_BLOCK
from services.downloader.domain.listing import RemoteFile
from tests.support.behind_nat import IP, UNSHARE, why_not
from tests.support.hub import Hub
from tests.support.hub_wire import Seen
from tests.support.odd_http import Manner, Odd, certificate, odd_server, proxy_server

NAME, SHORTER, LARGE, SMALL = "org/tiny", "org/shorter", "model.safetensors", "config.json"
WEIGHTS: Final = random.Random(5).randbytes(24 * MIB + 12_345)
CONFIG: Final = b'{"architectures": ["LlamaForCausalLM"]}'
TOKEN: Final = {"Authorization": "Bearer secret"}
QUICK: Final = Patience(stall_seconds=0.8, idle_seconds=0.4, first_wait_seconds=0.01, longest_wait_seconds=0.05)
SLOW: Final = Patience(stall_seconds=300, idle_seconds=100, first_wait_seconds=100, longest_wait_seconds=100)
"""Whoever ends early with it was stopped."""
PROMPTLY: Final = 5.0


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def running_hub() -> Iterator[Hub]:
    with Hub() as running:
        running.put(NAME, {LARGE: WEIGHTS, SMALL: CONFIG})
        running.put(SHORTER, {LARGE: WEIGHTS[:MIB]})
        running.allow("secret", NAME)
        yield running


@pytest.fixture
def hub(running_hub: Hub) -> Iterator[Hub]:
    yield running_hub
    running_hub.clear_faults()
    running_hub.clear_log()
    running_hub.repositories.of(NAME).gated = None


@cache
def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Download:
    """Into a directory of its own; what is there of the file stays for the next one."""

    directory: Path
    url: str
    content: bytes
    name: str = LARGE
    commit: str = "c" * 40
    headers: dict[str, str] = field(default_factory=lambda: dict(TOKEN))
    connections: int = 2
    patience: Patience = QUICK
    rate: Rate | None = None
    has_digest: bool = True

    @property
    def file(self) -> RemoteFile:
        return RemoteFile(self.name, len(self.content), sha256=digest(self.content) if self.has_digest else None)

    @contextmanager
    def part(self) -> Generator[Part]:
        descriptor = os.open(self.directory, DIRECTORY)
        try:
            part = Part.open(descriptor, self.name, Expected(len(self.content), "sha256:of it"), "boot")
            try:
                yield part
            finally:
                part.close()
        finally:
            os.close(descriptor)

    def fetch(self, part: Part) -> Fetch:
        locate = self.locate
        return Fetch(
            part,
            self.file,
            NAME,
            self.commit,
            locate,
            connections=self.connections,
            patience=self.patience,
            rate=self.rate,
        )

    def locate(self) -> Location:
        return Location(self.url, self.headers)

    def run(self) -> bytes:
        """What lies on the disk then."""
        with self.part() as part:
            assert self.fetch(part).run() == digest(self.content)
            assert part.is_complete
        return (self.directory / f"{self.name}.part").read_bytes()

    def refused(self) -> NotFetched:
        with self.part() as part, pytest.raises(NotFetched) as told:
            self.fetch(part).run()
        return told.value

    def missing(self) -> int:
        with self.part() as part:
            return part.missing_bytes

    def write_first(self, count: int) -> None:
        with self.part() as part:
            span = part.take(count)
            assert span is not None
            os.pwrite(part.file, self.content[: span.left], 0)
            part.filled(span, span.left)


def of(hub: Hub, directory: Path, name: str = LARGE, repository: str = NAME) -> Download:
    commit = hub.repositories.of(repository).branches["main"]
    content = {(NAME, LARGE): WEIGHTS, (NAME, SMALL): CONFIG, (SHORTER, LARGE): WEIGHTS[:MIB]}[repository, name]
    return Download(directory, f"{hub.url}/{repository}/resolve/{commit}/{name}", content, name, commit)


@pytest.fixture
def download(hub: Hub, tmp_path: Path) -> Download:
    return of(hub, tmp_path)


def statuses(seen: list[Seen]) -> list[int]:
    return [each.status for each in seen]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- what arrives -----------------------------------------------------------------------------------------------------


def test_a_file_arrives_by_several_connections_each_byte_once(hub: Hub, download: Download) -> None:
    assert download.run() == WEIGHTS
    assert hub.bytes_sent("localhost") == len(WEIGHTS)
    ranges = [seen.range for seen in hub.requests("localhost")]
    assert len(ranges) == len(set(ranges)) == 7


def test_where_the_kernel_can_not_splice_it_is_written(
    hub: Hub, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every file system can be spliced to."""
    splice, tried = os.splice, list[int]()

    def only_from_sockets(source: int, target: int, count: int, **where: int) -> int:
        if "offset_dst" in where:
            tried.append(count)
            raise OSError(errno.EINVAL, "Invalid argument")
        return splice(source, target, count, **where)

    monkeypatch.setattr(os, "splice", only_from_sockets)
    assert download.run() == WEIGHTS
    assert hub.bytes_sent("localhost") == len(WEIGHTS)
    assert 1 <= len(tried) <= download.connections


def test_the_token_is_told_to_the_hub_alone(hub: Hub, download: Download) -> None:
    hub.gate(NAME)
    hub.fault(where="cdn", cut_after=MIB, times=4)
    assert download.run() == WEIGHTS
    assert {(seen.host.partition(":")[0], seen.has_authorization) for seen in hub.requests()} == {
        ("127.0.0.1", True),
        ("localhost", False),
    }


def test_a_small_file_lies_at_a_second_address_of_the_same_hub(hub: Hub, tmp_path: Path) -> None:
    assert of(hub, tmp_path, SMALL).run() == CONFIG
    assert [(seen.status, seen.has_authorization) for seen in hub.requests()] == [(307, True), (200, True)]


def test_a_file_of_nothing_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    assert Download(tmp_path, hub.url, b"").run() == b""
    assert hub.requests() == []


def test_a_file_without_a_published_digest_arrives_too(download: Download) -> None:
    download.has_digest = False
    assert download.run() == WEIGHTS


def test_what_is_there_is_not_asked_for_again(hub: Hub, download: Download) -> None:
    download.write_first(10 * SMALL_BLOCK)
    assert download.run() == WEIGHTS
    assert hub.bytes_sent("localhost") == len(WEIGHTS) - 10 * SMALL_BLOCK


def test_many_files_come_over_one_connection(tmp_path: Path) -> None:
    with odd_server(CONFIG) as odd:
        ranges = Ranges(5)
        for number in range(20):
            one = Download(tmp_path, f"{odd.url}/plain", CONFIG, f"{number}.json")
            asked = Asked(one.file, NAME, one.commit, 0, len(CONFIG))
            assert ranges.read(one.locate(), asked) == CONFIG
            with one.part() as part:
                span = part.take(len(CONFIG))
                assert span is not None
                ranges.fetch(one.locate(), asked, span, part, lambda: False)
                assert part.is_complete
        ranges.close()
        assert (odd.connections, len(odd.requests)) == (1, 40)


def test_a_kept_connection_that_the_other_side_has_closed_is_made_anew(tmp_path: Path) -> None:
    with odd_server(CONFIG) as odd:
        ranges = Ranges(5)
        for manner in ("closing", "plain", "unframed", "hanging_up", "plain"):
            one = Download(tmp_path, f"{odd.url}/{manner}", CONFIG)
            assert ranges.read(one.locate(), Asked(one.file, NAME, one.commit, 0, len(CONFIG))) == CONFIG
        ranges.close()
        assert odd.connections == 4


@pytest.mark.parametrize("manner", ["plain", "chunked", "closing", "unframed"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_however_it_is_sent_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: Manner, *, encrypted: bool
) -> None:
    own, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    content = WEIGHTS[: 9 * MIB + 7]
    with odd_server(content, context if encrypted else None) as odd:
        assert Download(tmp_path, f"{odd.url}/{manner}", content, patience=Patience()).run() == content
        assert len(odd.requests) == 3
        assert odd.connections == (1 if manner in ("plain", "chunked") else 3)


def test_more_than_the_file_has_is_no_file(tmp_path: Path) -> None:
    with odd_server(CONFIG) as odd:
        refused = Download(tmp_path, f"{odd.url}/chunked_longer", CONFIG, has_digest=False).refused()
    reason = AnswerIsNoFile(path=LARGE, host="localhost", content="more bytes than it has")
    assert (refused.reason, refused.way) == (reason, "wrong")


def test_a_slow_connection_loses_its_last_part_to_one_that_has_nothing_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "WORTH_DIVIDING", 4 * MIB)
    monkeypatch.setattr(blocks, "SHORTEST_SPAN", 12 * MIB)
    hub.fault(where="cdn", rate=2 * MIB, times=1)
    assert of(hub, tmp_path).run() == WEIGHTS
    starts = [int((seen.range or "=0-").partition("=")[2].partition("-")[0]) for seen in hub.requests("localhost")]
    assert any(start % (12 * MIB) for start in starts)


# -- what goes wrong on the way ---------------------------------------------------------------------------------------


def test_after_a_cut_it_goes_on_where_it_was(hub: Hub, download: Download) -> None:
    hub.fault(where="cdn", cut_after=3 * MIB + 17, times=3)
    assert download.run() == WEIGHTS
    assert hub.bytes_sent("localhost") == len(WEIGHTS)


def test_a_trickle_is_more_than_nothing(hub: Hub, tmp_path: Path) -> None:
    """It arrives although a wake-up's worth of bytes takes longer than a connection may be silent."""
    one = of(hub, tmp_path, LARGE, SHORTER)
    one.write_first(MIB - 2 * SMALL_BLOCK)
    hub.fault(where="cdn", rate=100 * KIB)
    assert one.run() == one.content
    assert hub.bytes_sent("localhost") == 2 * SMALL_BLOCK


def test_a_connection_that_falls_silent_is_made_anew(hub: Hub, download: Download) -> None:
    hub.fault(where="cdn", stall_after=MIB, times=2)
    assert download.run() == WEIGHTS
    assert hub.bytes_sent("localhost") == len(WEIGHTS)


def test_silence_for_too_long_is_told_with_the_last_answer(hub: Hub, download: Download) -> None:
    hub.fault(where="cdn", stall_after=0)
    download.patience = Patience(0.5, 0.2, 0.01, 0.02)
    refused = download.refused()
    assert isinstance(refused, Stalled)
    assert isinstance(refused.reason, DownloadStalled)
    assert refused.reason.after_seconds >= 0.5
    assert refused.reason.last_answer == "206 Partial Content from localhost, then: timed out"
    assert refused.way == "final"


def test_what_came_before_the_silence_is_kept(hub: Hub, download: Download) -> None:
    download.connections = 1
    hub.fault(where="cdn", stall_after=MIB, times=1)
    hub.fault(where="cdn", stall_after=0)
    hub.fault(where="cdn", stall_after=MIB, times=1)
    refused = download.refused()
    assert isinstance(refused.reason, DownloadStalled)
    assert download.missing() == len(WEIGHTS) - MIB
    hub.clear_faults()
    assert download.run() == WEIGHTS


def test_a_hub_that_is_down_for_a_moment_is_asked_again(hub: Hub, download: Download) -> None:
    download.connections = 1
    hub.fault(where="hub", status=503, times=2)
    assert download.run() == WEIGHTS
    assert statuses(hub.requests(hub.url)) == [503, 503, 302]


def test_a_hub_that_stays_down_is_given_up_for_its_own_reason(hub: Hub, download: Download) -> None:
    hub.fault(where="hub", status=503)
    refused = download.refused()
    assert isinstance(refused, Stalled)
    assert refused.reason == HubError(host="127.0.0.1", status=503, problem="Service Unavailable")
    assert 2 < len(hub.requests()) < 200


def test_a_hub_that_is_asked_too_often_is_left_alone_for_as_long_as_it_wants(hub: Hub, download: Download) -> None:
    """Longer than we would have waited for bytes."""
    download.connections = 1
    hub.fault(where="hub", status=429, retry_after=1)
    heals = threading.Timer(0.5, hub.clear_faults)
    heals.start()
    assert download.run() == WEIGHTS
    heals.join()
    assert statuses(hub.requests(hub.url)) == [429, 302]


def test_a_hub_that_always_wants_to_be_asked_later_is_given_up(
    hub: Hub, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MOST_WAIT_SECONDS", 0.5)
    hub.fault(where="hub", status=429, retry_after=1)
    refused = download.refused()
    assert (refused.reason, refused.way) == (HubRateLimited(host="127.0.0.1", retry_after_seconds=1), "final")
    assert 2 <= len(hub.requests()) <= 8


def test_a_hub_that_wants_to_be_left_alone_for_too_long_has_refused(hub: Hub, download: Download) -> None:
    download.connections = 1
    hub.fault(where="hub", status=429, retry_after=3600)
    refused = download.refused()
    assert (refused.reason, refused.way) == (HubRateLimited(host="127.0.0.1", retry_after_seconds=3600), "final")
    assert len(hub.requests()) == 1


@pytest.mark.parametrize("connections", [1, 2])
def test_an_address_that_has_become_too_old_is_looked_up_anew(hub: Hub, download: Download, connections: int) -> None:
    """Also when all connections have the same one."""
    download.connections = connections
    hub.fault(where="hub", expire=True)
    assert download.run() == WEIGHTS
    assert 403 in statuses(hub.requests("localhost"))
    assert hub.bytes_sent("GET http://localhost") >= len(WEIGHTS)


def test_an_address_that_never_worked_is_not_looked_up_for_ever(hub: Hub, download: Download) -> None:
    hub.fault(where="cdn", status=403)
    refused = download.refused()
    assert (refused.reason, refused.way) == (HubUnauthorized(host="localhost", status=403), "final")
    assert len(hub.requests()) <= 4


def test_a_hub_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    reason = refused_for(Download(tmp_path, f"http://127.0.0.1:{port}/x", WEIGHTS))
    assert reason == HubUnreachable(host="127.0.0.1", problem="Connection refused")
    assert isinstance(refused_for(Download(tmp_path, "http://no-host.invalid/x", WEIGHTS)), HubUnreachable)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, HubUnauthorized(host="127.0.0.1", status=401)),
        (403, HubUnauthorized(host="127.0.0.1", status=403)),
        (404, ModelFilesIncomplete(path=NAME, missing=(LARGE,))),
        (400, HubError(host="127.0.0.1", status=400, problem="Bad Request")),
    ],
)
def test_a_refusal_ends_it(hub: Hub, download: Download, status: int, reason: object) -> None:
    download.connections = 1
    hub.fault(where="hub", status=status)
    refused = download.refused()
    assert (refused.reason, refused.way) == (reason, "final")
    assert len(hub.requests()) == 1


def test_a_gated_repository_is_named(hub: Hub, download: Download) -> None:
    hub.gate(NAME)
    download.headers = {}
    refused = download.refused()
    assert (refused.reason, refused.way) == (GatedRepository(repository=NAME), "final")


def test_wrong_bytes_are_found(hub: Hub, download: Download) -> None:
    hub.fault(where="cdn", corrupt_at=MIB + 1)
    refused = download.refused()
    assert isinstance(refused.reason, ChecksumMismatch)
    assert refused.reason.expected == f"sha256:{digest(WEIGHTS)}"
    assert refused.way == "wrong"
    hub.clear_faults()
    with download.part() as part:
        part.start_over()
        assert download.fetch(part).run() == digest(WEIGHTS)


def test_wrong_bytes_of_a_small_file_are_found_by_its_git_digest(hub: Hub, tmp_path: Path) -> None:
    one = of(hub, tmp_path, SMALL)
    git = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    file = RemoteFile(SMALL, len(CONFIG), git_sha1=git)
    with one.part() as part:
        assert Fetch(part, file, NAME, one.commit, one.locate).run() == digest(CONFIG)
        part.start_over()
        hub.fault(corrupt=True)
        with pytest.raises(NotFetched) as told:
            Fetch(part, file, NAME, one.commit, one.locate).run()
    assert isinstance(told.value.reason, ChecksumMismatch)
    assert told.value.reason.expected == f"git-sha1:{git}"


@pytest.mark.parametrize(
    ("fault", "actual"),
    [({"truncate": 9 * MIB}, 9 * MIB), ({"wrong_length": 5}, len(WEIGHTS) + 5)],
    ids=["shorter", "longer"],
)
def test_another_size_is_found_at_the_first_answer(
    hub: Hub, download: Download, fault: dict[str, object], actual: int
) -> None:
    hub.fault(**{"where": "cdn", **fault})  # pyright: ignore[reportArgumentType]
    refused = download.refused()
    assert refused.reason == SizeMismatch(path=LARGE, expected_bytes=len(WEIGHTS), actual_bytes=actual)
    assert refused.way == "wrong"


@pytest.mark.parametrize(
    ("fault", "content"), [({"html": True}, "a web page"), ({"gzip": True}, "gzip data")], ids=["page", "gzip"]
)
def test_what_is_no_file_is_not_written(hub: Hub, download: Download, fault: dict[str, object], content: str) -> None:
    hub.fault(**{"where": "cdn", **fault})  # pyright: ignore[reportArgumentType]
    refused = download.refused()
    assert refused.reason == AnswerIsNoFile(path=LARGE, host="localhost", content=content)
    assert refused.way == "wrong"
    assert download.missing() == len(WEIGHTS)


def test_another_revision_is_not_fetched(hub: Hub, download: Download) -> None:
    hub.fault(where="hub", change_revision=True)
    refused = download.refused()
    assert isinstance(refused.reason, RevisionChanged)
    assert (refused.reason.expected, refused.way) == (download.commit, "wrong")
    assert hub.bytes_sent("localhost") == 0


# -- hubs without ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 5 * MIB])
def test_a_hub_without_ranges_sends_the_whole_file(hub: Hub, download: Download, first: int) -> None:
    if first:
        download.write_first(first)
    hub.fault(where="cdn", ignore_range=True)
    assert download.run() == WEIGHTS
    assert hub.requests("localhost")[-1].range is None


def test_a_hub_without_ranges_is_asked_for_the_whole_file_again_after_a_cut(hub: Hub, download: Download) -> None:
    download.connections = 1
    hub.fault(where="cdn", ignore_range=True)
    hub.fault(where="cdn", cut_after=7 * MIB, times=3)  # the first answer is to a range, and not read at all
    assert download.run() == WEIGHTS


def test_a_hub_without_ranges_that_always_cuts_is_given_up(hub: Hub, download: Download) -> None:
    hub.fault(where="cdn", ignore_range=True, cut_after=MIB)
    refused = download.refused()
    assert isinstance(refused.reason, DownloadStalled)
    assert refused.reason.last_answer == f"200 OK from localhost, then: closed with {len(WEIGHTS) - MIB} bytes to go"
    assert len([seen for seen in hub.requests("localhost") if seen.range is None]) == fetching.MOST_WHOLE


def test_whoever_is_stopped_before_it_is_asked_for_as_a_whole_stays_stopped(
    hub: Hub, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault(where="cdn", ignore_range=True)
    with download.part() as part:
        fetch = download.fetch(part)

        def stopped(ranges: Ranges, close: Callable[[Ranges], None] = Ranges.close) -> None:
            """As by another thread: it is closed after the first try."""
            monkeypatch.undo()
            fetch.stop()
            close(ranges)

        monkeypatch.setattr(Ranges, "close", stopped)
        with pytest.raises(Stopped):
            fetch.run()


# -- where it is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["http://[bad/x", "ftp://localhost/x", "http://localhost:99999/x", "http:///x"])
def test_a_redirection_to_no_address_of_http_is_not_followed(hub: Hub, download: Download, target: str) -> None:
    hub.fault(where="hub", redirect_to=target)
    refused = download.refused()
    assert isinstance(refused.reason, RedirectNotAllowed)
    assert (refused.reason.host, refused.way) == ("127.0.0.1", "final")


@pytest.mark.parametrize("target", ["{cdn}/é/a b", "{cdn}/%C3%A9/a%20b"])
def test_an_address_is_asked_for_in_the_letters_that_http_knows(hub: Hub, download: Download, target: str) -> None:
    download.connections = 1
    hub.fault(where="hub", redirect_to=target.format(cdn=hub.cdn_url))
    assert isinstance(download.refused().reason, HubUnauthorized)
    assert hub.requests("localhost")[0].path.endswith("/a%20b")


def test_a_host_that_has_no_name_is_unreachable(hub: Hub, download: Download) -> None:
    hub.fault(where="hub", redirect_to=f"http://{'a' * 70}.example/x")
    assert refused_for(download) == HubUnreachable(host=f"{'a' * 70}.example", problem="it is no name of a host")


def refused_for(download: Download) -> object:
    """Before a byte came."""
    download.patience = Patience(0.1, 5, 0.01, 0.02)
    return download.refused().reason


def test_going_round_in_circles_ends(hub: Hub, download: Download) -> None:
    download.connections = 1
    hub.fault(where="hub", redirect_to=download.url)
    assert refused_for(download) == RedirectNotAllowed(host="127.0.0.1", to="127.0.0.1", problem="more than 5 in a row")
    assert len(hub.requests()) == 6


def test_what_is_encrypted_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    with odd_server(CONFIG) as plain, odd_server(CONFIG, context) as encrypted:
        encrypted.target = f"{plain.url}/plain"
        reason = refused_for(Download(tmp_path, f"{encrypted.url}/moved", CONFIG))
        assert reason == RedirectNotAllowed(
            host="localhost", to="localhost", problem="it would not be encrypted any more"
        )
        assert plain.requests == []


def test_a_public_host_does_not_lead_us_to_an_address_inside(tmp_path: Path) -> None:
    with odd_server(CONFIG) as inside:
        one = Download(tmp_path, f"{inside.url}/plain", CONFIG)
        asked = Asked(one.file, NAME, one.commit, 0, len(CONFIG))
        ranges = Ranges(5)
        sent = Location(one.url, sent_by="hub.example")
        refused = RedirectNotAllowed(host="hub.example", to="localhost", problem="its address is not a public one")
        for read_before in (False, True):  # by a connection of its own, and by one that was there before
            if read_before:
                assert ranges.read(one.locate(), asked) == CONFIG
            with pytest.raises(NotFetched) as told:
                ranges.read(sent, asked)
            assert told.value.reason == refused
        ranges.close()
        assert len(inside.requests) == 1


REDIRECTED_INSIDE = """
from services.downloader.adapters.http_ranges import Location, Ranges
from services.downloader.domain.answers import Asked, NotFetched
from services.downloader.domain.listing import RemoteFile
from tests.support.odd_http import odd_server

asked = Asked(RemoteFile("x", 1), "org/tiny", "c", 0, 1)
with odd_server(b"x", host="8.8.8.8", address="8.8.8.8") as public, odd_server(b"x") as inside:
    for server in (inside, public):
        public.target = f"{server.url}/plain"
        try:
            print(Ranges(5).read(Location(f"{public.url}/moved"), asked))
        except NotFetched as refused:
            print(refused.reason.sentence(), len(inside.requests))
"""


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_public_address_leads_to_public_ones(tmp_path: Path) -> None:
    """In a network of its own, where this machine has a public address; the connection is closed before we go on."""
    (program := tmp_path / "program.py").write_text(REDIRECTED_INSIDE, encoding="utf-8")
    addresses = f"{IP} link set lo up && {IP} address add 8.8.8.8/32 dev lo"
    command = [*UNSHARE, "sh", "-c", f'{addresses} && exec "$0" "$@"', sys.executable, str(program)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    said = "8.8.8.8 redirects to localhost, which is not followed: its address is not a public one"
    assert ran.stdout.splitlines() == [f"{said} 0", "b'x'"]


# -- TLS and proxies --------------------------------------------------------------------------------------------------


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, context = certificate(tmp_path)
    (other := tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(other)[0]))
    with odd_server(CONFIG, context) as odd:
        reason = refused_for(Download(tmp_path, f"{odd.url}/plain", CONFIG))
        assert isinstance(reason, HubUnreachable)
        assert reason.problem.startswith("its certificate is not accepted (")
        assert odd.requests == []


def test_an_encrypted_connection_that_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    content = WEIGHTS[: 3 * MIB]
    with odd_server(content, context) as odd:
        one = Download(tmp_path, f"{odd.url}/stuck_once", content)
        assert one.run() == content
        assert odd.requests[1][1] == f"bytes={3 * MIB // 2}-{3 * MIB - 1}"


def test_a_proxy_is_asked_for_what_is_not_excepted(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@{proxy.address}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert of(hub, tmp_path).run() == WEIGHTS
        assert {(method, target.startswith(f"{hub.cdn_url}/"), login) for method, target, login in proxy.seen} == {
            ("GET", True, "Basic dXNlcjpwQHNz")
        }
        assert len(hub.requests(hub.url)) >= 1


def test_an_encrypted_connection_goes_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    with odd_server(CONFIG, context) as odd, proxy_server() as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        assert Download(tmp_path, f"{odd.url}/plain", CONFIG).run() == CONFIG
        assert proxy.seen == [("CONNECT", f"localhost:{origin_of(odd.url).port}", None)]
        assert odd.requests == [("/plain", None, "Bearer secret")]


@pytest.mark.parametrize("address", ["https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://127.0.0.1:many"])
def test_a_proxy_that_is_not_understood_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", address)
    reason = refused_for(of(hub, tmp_path))
    assert isinstance(reason, HubUnreachable)
    assert "proxy" in reason.problem
    assert hub.requests() == []


# -- how fast, and the end --------------------------------------------------------------------------------------------


def test_all_connections_together_are_no_faster_than_the_limit(hub: Hub, tmp_path: Path) -> None:
    one = of(hub, tmp_path)
    one.rate = Rate(30 * MIB)
    begun = time.monotonic()
    assert one.run() == WEIGHTS
    assert time.monotonic() - begun > 0.55


def test_whoever_waits_for_the_limit_is_not_silent(hub: Hub, tmp_path: Path) -> None:
    one = of(hub, tmp_path, LARGE, SHORTER)
    one.rate, one.patience = Rate(MIB), Patience(0.3, 0.25, 0.01, 0.02)
    hub.fault(where="cdn", cut_after=600 * KIB, times=1)
    assert one.run() == one.content


def test_a_disk_that_fails_is_told(download: Download) -> None:
    with download.part() as part:
        reading = os.open(download.directory / f"{LARGE}.part", os.O_RDONLY)
        os.dup2(reading, part.file)
        os.close(reading)
        with pytest.raises(NotFetched) as told:
            download.fetch(part).run()
    assert (told.value.reason, told.value.way) == (DiskError(path=LARGE, problem="Bad file descriptor"), "final")


def test_a_file_that_somebody_cuts_off_meanwhile_is_told(download: Download) -> None:
    download.run()
    with download.part() as part:
        os.truncate(download.directory / f"{LARGE}.part", MIB)
        with pytest.raises(NotFetched) as told:
            download.fetch(part).run()
    assert isinstance(told.value.reason, DiskError)


def test_who_was_started_nicer_than_we_would_be_stays_so(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuses)
    assert download.run() == WEIGHTS


def test_when_no_more_threads_can_be_started_those_that_were_end(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []

    def start(thread: threading.Thread, really: Callable[[threading.Thread], None] = threading.Thread.start) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        really(thread)

    with download.part() as part, monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            download.fetch(part).run()
    assert [thread.is_alive() for thread in started] == [False]


@contextmanager
def silent_server(backlog: int = 8) -> Generator[int]:
    """It takes connections and says nothing; with no room for them it doesn't even take them."""
    with socket.socket() as listening, ExitStack() as held:
        listening.bind(("127.0.0.1", 0))
        listening.listen(backlog)
        port = int(listening.getsockname()[1])
        for _ in range(0 if backlog else 3):
            one = held.enter_context(socket.socket())
            one.settimeout(0)
            with suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        yield port


def stopped_in(download: Download, seconds: float, begun: Callable[[], bool] = lambda: True) -> float:
    """How long it takes to end."""
    ended: list[BaseException | str | None] = []
    with download.part() as part:
        fetch = download.fetch(part)

        def run() -> None:
            try:
                ended.append(fetch.run())
            except (NotFetched, Stopped) as error:
                ended.append(error)

        running = threading.Thread(target=run)
        running.start()
        give_up_at = time.monotonic() + 20
        while not begun() and time.monotonic() < give_up_at:
            time.sleep(0.01)
        time.sleep(seconds)
        assert ended == []
        asked_at = time.monotonic()
        fetch.stop()
        running.join()
        took = time.monotonic() - asked_at
    assert [type(each) for each in ended] == [Stopped]
    return took


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"where": "cdn", "stall_after": MIB}, id="bytes"),
        pytest.param({"where": "hub", "delay": 100.0}, id="an answer of the hub"),
        pytest.param({"where": "cdn", "delay": 100.0}, id="an answer of where it sends us"),
        pytest.param({"where": "hub", "status": 429, "retry_after": 500}, id="leave to ask again"),
        pytest.param({"where": "hub", "status": 503}, id="the next try"),
        pytest.param({"where": "cdn", "rate": 200 * KIB}, id="many more bytes"),
    ],
)
def test_it_ends_at_once_whatever_it_waits_for(hub: Hub, download: Download, fault: dict[str, object]) -> None:
    download.patience = SLOW
    hub.fault(**fault)  # pyright: ignore[reportArgumentType]
    assert stopped_in(download, 0.2, lambda: bool(hub.requests())) < PROMPTLY


def test_it_ends_at_once_while_the_limit_holds_it_back(download: Download) -> None:
    download.patience, download.rate = SLOW, Rate(KIB)
    assert stopped_in(download, 0.3) < PROMPTLY


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("backlog", [0, 8])
def test_it_ends_at_once_while_it_connects(tmp_path: Path, scheme: str, backlog: int) -> None:
    with silent_server(backlog) as port:
        one = Download(tmp_path, f"{scheme}://127.0.0.1:{port}/x", WEIGHTS, patience=SLOW)
        assert stopped_in(one, 0.2) < PROMPTLY


def test_it_ends_at_once_while_a_proxy_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        one = Download(tmp_path, "https://hub.example/x", WEIGHTS, patience=SLOW)
        assert stopped_in(one, 0.2) < PROMPTLY


def test_it_ends_at_once_while_dns_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        asked.set()
        answers.wait(60)
        return []

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", slow)
        one = Download(tmp_path, "http://hub.example/x", WEIGHTS, patience=SLOW)
        assert stopped_in(one, 0.1, asked.is_set) < PROMPTLY
    answers.set()


@pytest.mark.parametrize("encrypted", [False, True])
def test_it_ends_at_once_in_an_answer_that_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, encrypted: bool
) -> None:
    own, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    with odd_server(WEIGHTS, context if encrypted else None) as odd:
        one = Download(tmp_path, f"{odd.url}/stuck", WEIGHTS, patience=SLOW)
        assert stopped_in(one, 0.3, lambda: len(odd.requests) == 2) < PROMPTLY
        assert one.missing() < len(WEIGHTS) - 3 * MIB


def test_whoever_is_stopped_before_it_begins_reads_nothing(download: Download) -> None:
    download.run()
    with download.part() as part:
        fetch = download.fetch(part)
        fetch.stop()
        with pytest.raises(Stopped):
            fetch.run()


def test_what_was_stopped_goes_on_where_it_was(hub: Hub, download: Download) -> None:
    download.patience = SLOW
    hub.fault(where="cdn", stall_after=MIB)
    stopped_in(download, 0.2, lambda: hub.bytes_sent("localhost") == 2 * MIB)
    hub.clear_faults()
    assert download.run() == WEIGHTS
    assert hub.bytes_sent("localhost") <= len(WEIGHTS) + 2 * SMALL_BLOCK


def test_neither_threads_nor_descriptors_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    content = WEIGHTS[: 17 * MIB]
    with odd_server(content) as plain, odd_server(content, context) as encrypted, silent_server() as silent:
        threads, files = threading.active_count(), open_files()

        def after(what: Callable[[], object]) -> None:
            what()
            give_up_at = time.monotonic() + 5
            while (threading.active_count(), open_files()) != (threads, files) and time.monotonic() < give_up_at:
                time.sleep(0.01)  # the servers are of this program, too
            assert (threading.active_count(), open_files()) == (threads, files)

        def one(odd: Odd, manner: Manner) -> Download:
            (directory := tmp_path / f"{manner}{odd.url[-5:]}").mkdir()
            return Download(directory, f"{odd.url}/{manner}", content)

        for odd in (plain, encrypted):
            odd.target = f"{odd.url.replace('localhost', '127.0.0.1')}/plain"
            after(one(odd, "plain").run)
            after(one(odd, "chunked").run)
            after(one(odd, "unframed").run)
            after(one(odd, "moved").run if odd is plain else one(odd, "moved").refused)
            stuck = one(odd, "stuck")
            stuck.patience = SLOW
            stopped_in(stuck, 0.1)
            odd.ended.set()
            after(lambda: None)
        (tmp_path / "silent").mkdir()
        for scheme in ("http", "https"):
            silence = Download(tmp_path / "silent", f"{scheme}://127.0.0.1:{silent}/x", content)
            after(silence.refused)
