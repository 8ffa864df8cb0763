"""What can go wrong at a hub of the tests, and for which requests."""

import re
import threading
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from tests.support.hub_wire import Answer, Plan, Request, Unsatisfiable, asked_range

REVISION_HEADERS: Final = ("X-Repo-Commit", "ETag", "X-Linked-ETag")
Where = Literal["hub", "cdn"]


class Fault(BaseModel):
    """What concerns the body is done to bodies only: redirects and answers to HEAD don't use a fault up."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    match: re.Pattern[str] = re.compile("")
    """A regular expression, looked for in `METHOD http://host/path?query`, unquoted, and in the file's name."""
    times: int | None = None
    method: str | None = None
    where: Where | None = None

    status: int | None = None
    retry_after: int | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    html: bool = False
    redirect_to: str | None = None
    delay: float | None = None
    """Seconds before the first byte of the answer."""

    change_revision: bool = False
    expire: bool = False
    """The address that the hub sends to works once, then answers 403."""

    cut_after: int | None = None
    stall_after: int | None = None
    rate: int | None = None
    """Bytes a second."""
    corrupt: bool = False
    corrupt_at: int | None = None
    """A byte of the file; its middle where not given."""
    truncate: int | None = None
    """The file is this long, and every header agrees."""
    ignore_range: bool = False
    wrong_length: int | None = None
    """What is added to the true Content-Length and to the total in Content-Range."""
    gzip: bool = False

    @property
    def replaces_the_answer(self) -> bool:
        return self.status is not None or self.html or self.redirect_to is not None

    def concerns(self, request: Request, where: Where, answer: Answer) -> bool:
        if self.method not in (None, request.method) or self.where not in (None, where):
            return False
        subject = f"{request.method} {request.url}"
        if not self.match.search(subject) and not (answer.file and self.match.search(answer.file)):
            return False
        if self.replaces_the_answer or self.delay is not None:
            return True
        if self.expire or self.change_revision:
            return (self.expire and answer.link is not None) or (self.change_revision and answer.file is not None)
        return request.method != "HEAD" and answer.content.size > 0 and not 300 <= answer.status < 400


NONE = Fault()


class Faults:
    """Read by the hub's thread while a test's adds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[tuple[Fault, int | None]] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._active.append((fault, fault.times))

    def clear(self) -> None:
        with self._lock:
            self._active.clear()

    def take(self, request: Request, where: Where, answer: Answer) -> Fault:
        """All faults that concern the request, as one; of two that say different things, the one added last."""
        together: dict[str, object] = {}
        with self._lock:
            still: list[tuple[Fault, int | None]] = []
            for fault, left in self._active:
                if not fault.concerns(request, where, answer):
                    still.append((fault, left))
                    continue
                together |= fault.model_dump(exclude_unset=True)
                if left is None or left > 1:
                    still.append((fault, None if left is None else left - 1))
            self._active = still
        return Fault.model_validate(together) if together else NONE


def planned(request: Request, answer: Answer, fault: Fault) -> Plan:
    """How the answer is sent, with everything that is to go wrong."""
    headers = dict(answer.headers)
    if fault.change_revision:
        headers |= {name: _another(value) for name, value in headers.items() if name in REVISION_HEADERS}
    content = answer.content
    if fault.truncate is not None:
        content = content.part(0, fault.truncate)
    if fault.corrupt or fault.corrupt_at is not None:
        content = content.with_flipped(content.size // 2 if fault.corrupt_at is None else fault.corrupt_at)
    told_more = fault.wrong_length or 0
    status, told = answer.status, content.size + told_more
    if answer.serves_ranges:
        headers["Accept-Ranges"] = "bytes"
        if not fault.ignore_range and not fault.gzip:
            match asked_range(request, content.size, headers.get("ETag")):
                case Unsatisfiable():
                    return Plan(416, {"Content-Range": f"bytes */{told}", "Content-Length": "0", **fault.headers})
                case (start, last):
                    headers["Content-Range"] = f"bytes {start}-{last}/{told}"
                    status, content = 206, content.part(start, last + 1)
                    told = content.size + told_more
                case None:
                    pass
    if fault.gzip:
        headers |= {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
    else:
        headers["Content-Length"] = str(max(told, 0))
    stops = [at for at in (fault.cut_after, fault.stall_after) if at is not None and at < content.size]
    cut = min([*stops, max(told, 0), content.size])
    return Plan(
        status,
        headers | fault.headers,
        content.part(0, cut),
        gzip=fault.gzip,
        delay_seconds=fault.delay or 0,
        bytes_per_second=fault.rate,
        stalls=fault.stall_after in stops and fault.stall_after == cut,
        closes=told_more != 0 or bool(stops),
    )


def _another(header: str) -> str:
    """Of the same form: each hexadecimal digit is the next one."""
    return header.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
