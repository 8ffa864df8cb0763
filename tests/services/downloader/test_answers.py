from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.reasons import (
    AnswerIsNoFile,
    GatedRepository,
    HubError,
    HubRateLimited,
    HubUnauthorized,
    ModelFilesIncomplete,
    Reason,
    RevisionChanged,
    SizeMismatch,
)
from services.downloader.domain.answers import (
    Asked,
    Head,
    NoRanges,
    NotFetched,
    Way,
    check,
    check_redirecting,
    retry_after,
)
from services.downloader.domain.listing import RemoteFile

HOST, REPOSITORY, COMMIT, OTHER = "hub.example", "org/model", "c" * 40, "d" * 40
SHA, OTHER_SHA = "a" * 64, "b" * 64
FILE = RemoteFile("model.safetensors", 1000, sha256=SHA)
WHOLE = Asked(FILE, REPOSITORY, COMMIT, 0, 1000)
PART = Asked(FILE, REPOSITORY, COMMIT, 100, 300)
PAGE = Asked(RemoteFile("index.html", 1000), REPOSITORY, COMMIT, 0, 1000)
MISFIT = "a part that it calls "


def no_file(content: str, asked: Asked = PART) -> Reason:
    return AnswerIsNoFile(path=asked.file.name, host=HOST, content=content)


def another_size(actual: int) -> Reason:
    return SizeMismatch(path=FILE.name, expected_bytes=1000, actual_bytes=actual)


@dataclass(frozen=True)
class Refused:
    reason: Reason
    way: Way
    after_seconds: float | None = None


def outcome(status: int, asked: Asked, headers: dict[str, str]) -> int | type[NoRanges] | Refused:
    try:
        return check(Head(HOST, status, headers), asked)
    except NoRanges:
        return NoRanges
    except NotFetched as refused:
        return Refused(refused.reason, refused.way, refused.after_seconds)


def part(said: str, **more: str) -> dict[str, str]:
    return {"content-range": said, **{name.replace("_", "-"): value for name, value in more.items()}}


CASES: dict[str, tuple[int, Asked, dict[str, str], int | type[NoRanges] | Refused]] = {
    "the whole file": (200, WHOLE, {"content-length": "1000"}, 1000),
    "the whole file in pieces": (200, WHOLE, {}, 1000),
    "a whole file whose length is no number": (200, WHOLE, {"content-length": "many"}, 1000),
    "a length beyond all files": (200, WHOLE, {"content-length": "1" * 18}, 1000),
    "a part": (206, PART, part("bytes 100-299/1000"), 200),
    "a part, and its length": (206, PART, part("bytes 100-299/1000", content_length="200"), 200),
    "the beginning of the part": (206, PART, part("bytes 100-100/1000"), 1),
    "the whole file as a part": (206, WHOLE, part("bytes 0-999/1000"), 1000),
    "the whole file instead of a part": (200, PART, {"content-length": "1000"}, NoRanges),
    "the whole file instead of its beginning": (200, Asked(FILE, REPOSITORY, COMMIT, 0, 999), {}, NoRanges),
    "a whole file of another size": (200, WHOLE, {"content-length": "999"}, Refused(another_size(999), "wrong")),
    "another size instead of a part": (200, PART, {"content-length": "999"}, Refused(another_size(999), "wrong")),
    "a part of a file of another size": (206, PART, part("bytes 100-299/999"), Refused(another_size(999), "wrong")),
    "a part of which nothing is said": (206, PART, {}, Refused(no_file(MISFIT + "nothing"), "wrong")),
    "a part of something without an end": (
        206,
        PART,
        part("bytes 100-299/*"),
        Refused(no_file(MISFIT + "bytes 100-299/*"), "wrong"),
    ),
    "a later part": (
        206,
        PART,
        part("bytes 101-299/1000"),
        Refused(no_file("bytes 101 to 299 in place of 100 to 299"), "wrong"),
    ),
    "more than the part": (
        206,
        PART,
        part("bytes 100-300/1000"),
        Refused(no_file("bytes 100 to 300 in place of 100 to 299"), "wrong"),
    ),
    "a part that ends before it begins": (
        206,
        PART,
        part("bytes 100-99/1000"),
        Refused(no_file("bytes 100 to 99 in place of 100 to 299"), "wrong"),
    ),
    "a part that is not as long as it is": (
        206,
        PART,
        part("bytes 100-299/1000", content_length="201"),
        Refused(no_file("201 bytes that it calls 100 to 299"), "wrong"),
    ),
    "a page": (200, WHOLE, {"content-type": "text/HTML; charset=utf-8"}, Refused(no_file("a web page"), "wrong")),
    "a page as a part": (
        206,
        PART,
        part("bytes 100-299/1000", content_type="application/xhtml+xml"),
        Refused(no_file("a web page"), "wrong"),
    ),
    "a page that is the file": (200, PAGE, {"content-type": "text/html"}, 1000),
    "compressed": (200, WHOLE, {"content-encoding": "gzip"}, Refused(no_file("gzip data"), "wrong")),
    "not compressed": (200, WHOLE, {"content-encoding": "Identity"}, 1000),
    "of the commit": (200, WHOLE, {"x-repo-commit": COMMIT}, 1000),
    "of another commit": (
        200,
        WHOLE,
        {"x-repo-commit": OTHER},
        Refused(RevisionChanged(path=FILE.name, expected=COMMIT, actual=OTHER), "wrong"),
    ),
    "with the digest": (200, WHOLE, {"x-linked-etag": f'"{SHA}"'}, 1000),
    "with another digest": (
        200,
        WHOLE,
        {"x-linked-etag": f'W/"{OTHER_SHA}"'},
        Refused(RevisionChanged(path=FILE.name, expected=SHA, actual=OTHER_SHA), "wrong"),
    ),
    "with a tag that is no digest": (200, WHOLE, {"x-linked-etag": '"abc-7"'}, 1000),
    "with a digest that nobody published": (200, PAGE, {"x-linked-etag": f'"{OTHER_SHA}"'}, 1000),
    "linked with the size": (200, WHOLE, {"x-linked-size": "1000"}, 1000),
    "linked with another size": (200, WHOLE, {"x-linked-size": "7"}, Refused(another_size(7), "wrong")),
    "linked with a size that is none": (200, WHOLE, {"x-linked-size": "-7"}, 1000),
    "gated, without a token": (
        401,
        WHOLE,
        {"x-error-code": "GatedRepo"},
        Refused(GatedRepository(repository=REPOSITORY), "final"),
    ),
    "gated": (403, WHOLE, {"x-error-code": "GatedRepo"}, Refused(GatedRepository(repository=REPOSITORY), "final")),
    "not authorized": (401, WHOLE, {}, Refused(HubUnauthorized(host=HOST, status=401), "final")),
    "forbidden": (403, WHOLE, {}, Refused(HubUnauthorized(host=HOST, status=403), "final")),
    "not there": (404, WHOLE, {}, Refused(ModelFilesIncomplete(path=REPOSITORY, missing=(FILE.name,)), "final")),
    "gone": (410, WHOLE, {}, Refused(ModelFilesIncomplete(path=REPOSITORY, missing=(FILE.name,)), "final")),
    "beyond its end": (416, PART, part("bytes */50"), Refused(another_size(50), "wrong")),
    "beyond its end, wherever that is": (416, PART, {}, Refused(another_size(0), "wrong")),
    "too often": (429, WHOLE, {}, Refused(HubRateLimited(host=HOST), "again")),
    "too often, and when again": (
        429,
        WHOLE,
        {"retry-after": "7"},
        Refused(HubRateLimited(host=HOST, retry_after_seconds=7), "again", 7),
    ),
    "too often, and for long": (
        429,
        WHOLE,
        {"retry-after": "601"},
        Refused(HubRateLimited(host=HOST, retry_after_seconds=601), "final", 601),
    ),
    "too often, and a date": (
        429,
        WHOLE,
        {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"},
        Refused(HubRateLimited(host=HOST), "again"),
    ),
    "a fault of theirs": (
        503,
        WHOLE,
        {"x-error-message": "We are down", "retry-after": "2.5"},
        Refused(HubError(host=HOST, status=503, problem="We are down"), "again", 2.5),
    ),
    "a fault of theirs, for long": (
        503,
        WHOLE,
        {"retry-after": "86400"},
        Refused(HubError(host=HOST, status=503), "final", 86400),
    ),
    "a fault that they say is ours": (400, WHOLE, {}, Refused(HubError(host=HOST, status=400), "final")),
    "no redirection that leads anywhere": (304, WHOLE, {}, Refused(HubError(host=HOST, status=304), "final")),
    "nothing": (204, WHOLE, {}, Refused(HubError(host=HOST, status=204), "final")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_answer_means(case: str) -> None:
    status, asked, headers, expected = CASES[case]
    assert outcome(status, asked, headers) == expected


def test_a_redirection_to_another_version_is_not_followed() -> None:
    check_redirecting(Head(HOST, 302, {"x-repo-commit": COMMIT, "x-linked-size": "1000"}), WHOLE)
    with pytest.raises(NotFetched) as told:
        check_redirecting(Head(HOST, 302, {"x-repo-commit": OTHER}), WHOLE)
    assert told.value.reason == RevisionChanged(path=FILE.name, expected=COMMIT, actual=OTHER)


NAMES = (
    "content-type",
    "content-length",
    "content-range",
    "content-encoding",
    "x-repo-commit",
    "x-linked-size",
    "x-linked-etag",
    "x-error-code",
    "x-error-message",
    "retry-after",
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(max_codepoint=255), max_size=300),
    st.from_regex(r"\A\d{1,40}(\.\d{1,5})?\Z"),
    st.from_regex(r"\Abytes (\d{1,30}-\d{1,30}|\*)/(\d{1,30}|\*)\Z"),
    st.sampled_from(
        [COMMIT, SHA, OTHER_SHA, f'W/"{SHA}"', "gzip", "identity", "text/html", "GatedRepo", "1000", "200"]
    ),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is slow, too
@given(
    status=st.one_of(st.integers(100, 999), st.sampled_from([200, 206, 416, 429])),
    headers=st.dictionaries(st.sampled_from(NAMES), VALUES),
    asked=st.sampled_from([WHOLE, PART, PAGE]),
)
def test_any_answer_is_a_length_or_a_reason(status: int, headers: dict[str, str], asked: Asked) -> None:
    match outcome(status, asked, headers):
        case int() as length:
            assert 0 < length <= asked.end - asked.start
        case Refused(reason):
            assert reason.sentence()
        case _:
            assert status == 200


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7),
        (" 7.25 ", 7.25),
        ("-1", None),
        ("1e3", None),
        ("1234567", None),
        ("nan", None),
    ],
)
def test_when_a_hub_wants_to_be_asked_again(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds
