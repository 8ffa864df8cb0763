"""What an answer to a request for a part of a file means: that part, or why not, and what to do then. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

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
from services.downloader.domain.listing import RemoteFile

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_PAGES: Final = ("text/html", "application/xhtml+xml")
MOST_WAIT_SECONDS: Final = 600.0
"""A hub that wants to be left alone for longer has refused."""

Way = Literal["again", "wrong", "final"]
"""`again`: as soon as it may work, as long as bytes arrive now and then. `wrong`: what was sent is not the file; a few times.
`final`: asking again changes nothing.
"""


class NotFetched(Exception):
    def __init__(self, reason: Reason, way: Way, after_seconds: float | None = None) -> None:
        super().__init__(reason.sentence())
        self.reason = reason
        self.way: Way = way
        self.after_seconds = after_seconds
        """When the other side wants to be asked again."""


class NoRanges(Exception):
    """The whole file comes, whatever part of it is asked for."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of an answer: names of headers in lower case."""

    host: str
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    file: RemoteFile
    repository: str
    commit: str
    start: int
    end: int


def check_redirecting(head: Head, asked: Asked) -> None:
    """What a hub says of the file before it sends us to where it lies. Raises NotFetched."""
    headers, file = head.headers, asked.file
    commit = headers.get("x-repo-commit")
    if commit is not None and commit != asked.commit:
        raise NotFetched(RevisionChanged(path=file.name, expected=asked.commit, actual=commit[:64]), "wrong")
    size = headers.get("x-linked-size")
    if size is not None and size.isdecimal() and len(size) < 18 and int(size) != file.size:
        raise NotFetched(SizeMismatch(path=file.name, expected_bytes=file.size, actual_bytes=int(size)), "wrong")
    tag = headers.get("x-linked-etag", "").strip('W/"')
    if file.sha256 is not None and re.fullmatch(r"[0-9a-f]{64}", tag) and tag != file.sha256:
        raise NotFetched(RevisionChanged(path=file.name, expected=file.sha256, actual=tag), "wrong")


def check(head: Head, asked: Asked) -> int:
    """So many bytes of what was asked for follow. Raises NotFetched, NoRanges."""
    check_redirecting(head, asked)
    headers, file = head.headers, asked.file
    if head.status not in (200, 206):
        raise _refused(head, asked)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _PAGES and not file.name.lower().endswith((".html", ".htm", ".xhtml")):
        raise NotFetched(AnswerIsNoFile(path=file.name, host=head.host, content="a web page"), "wrong")
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise NotFetched(AnswerIsNoFile(path=file.name, host=head.host, content=f"{encoding[:32]} data"), "wrong")
    if head.status == 206:
        return _part(head, asked)
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 18 and int(length) != file.size:
        raise NotFetched(SizeMismatch(path=file.name, expected_bytes=file.size, actual_bytes=int(length)), "wrong")
    if (asked.start, asked.end) != (0, file.size):
        raise NoRanges
    return file.size


def _part(head: Head, asked: Asked) -> int:
    found = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
    if found is None:
        content = f"a part that it calls {head.headers.get('content-range', 'nothing')[:64]}"
        raise NotFetched(AnswerIsNoFile(path=asked.file.name, host=head.host, content=content), "wrong")
    start, last, total = (int(number) for number in found.groups())
    if total != asked.file.size:
        raise NotFetched(
            SizeMismatch(path=asked.file.name, expected_bytes=asked.file.size, actual_bytes=total), "wrong"
        )
    if start != asked.start or not start <= last < asked.end:
        content = f"bytes {start} to {last} in place of {asked.start} to {asked.end - 1}"
        raise NotFetched(AnswerIsNoFile(path=asked.file.name, host=head.host, content=content), "wrong")
    length = head.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) != last + 1 - start:
        content = f"{length[:20]} bytes that it calls {start} to {last}"
        raise NotFetched(AnswerIsNoFile(path=asked.file.name, host=head.host, content=content), "wrong")
    return last + 1 - start


def _refused(head: Head, asked: Asked) -> NotFetched:
    host, status = head.host, head.status
    said = head.headers.get("x-error-message", "")[:200]
    wait = retry_after(head.headers.get("retry-after"))
    way: Way = "final" if wait is not None and wait > MOST_WAIT_SECONDS else "again"
    match status:
        case 401 | 403 if head.headers.get("x-error-code") == "GatedRepo":
            return NotFetched(GatedRepository(repository=asked.repository), "final")
        case 401 | 403:
            return NotFetched(HubUnauthorized(host=host, status=status), "final")
        case 404 | 410:
            return NotFetched(ModelFilesIncomplete(path=asked.repository, missing=(asked.file.name,)), "final")
        case 416:
            found = re.fullmatch(r"bytes \*/(\d{1,18})", head.headers.get("content-range", ""))
            actual = int(found.group(1)) if found else 0
            reason = SizeMismatch(path=asked.file.name, expected_bytes=asked.file.size, actual_bytes=actual)
            return NotFetched(reason, "wrong")
        case 429:
            return NotFetched(HubRateLimited(host=host, retry_after_seconds=wait), way, wait)
        case _ if status >= 500:
            return NotFetched(HubError(host=host, status=status, problem=said), way, wait)
        case _:
            return NotFetched(HubError(host=host, status=status, problem=said), "final")


def retry_after(value: str | None) -> float | None:
    """In seconds; the other form, a date, is as good as none: clocks differ."""
    if value is None or not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", value.strip()):
        return None
    return float(value)
