"""What a hub is to the downloader: it lists a repository as of one commit, and tells where each of its files is.

One module for each kind of hub. Listing is done by the hub's own client in the sandbox: it knows the hub's revisions, errors and
tokens, what comes back is a stranger's, and its libraries take more memory than all of ours. The bytes are fetched by us.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol

from pydantic import Field, ValidationError

from schemas.reasons import HubUnreachable, InspectionFailed, Reason, TooManyFiles, UnsafeFileName
from schemas.sources import HubSource
from schemas.value import Bytes, Value
from services.downloader.adapters.http_ranges import Location
from services.downloader.adapters.sandbox import Sandbox, SandboxLimit, Work
from services.downloader.domain import names
from services.downloader.domain.listing import Listing, RemoteFile

LISTING_SECONDS: Final = 60.0
CLIENT_SECONDS: Final = 20.0
"""What a client waits for one answer."""


class HubRefused(Exception):
    def __init__(self, *reasons: Reason) -> None:
        super().__init__("; ".join(reason.sentence() for reason in reasons))
        self.reasons = reasons


class Hub(Protocol):
    async def list(self, source: HubSource, commit: str | None = None) -> Listing:
        """As of the commit; None: as of what the source's revision names now. Raises HubRefused."""
        ...

    def location(self, source: HubSource, commit: str, name: str) -> Location:
        """Of one file."""
        ...


@dataclass(frozen=True, slots=True)
class Account:
    """At one hub."""

    endpoint: str
    token: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> Mapping[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


# What goes to the sandbox and back


class ToList(Value):
    endpoint: str
    token: str | None = None
    repo_id: str
    revision: str
    pin_listing: bool = False
    """The listing itself is to be what names the version, also where the hub would tell a commit."""


class ListedFile(Value):
    name: str
    size: Bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    git_sha1: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None


class Listed(Value):
    commit: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "none"
    files: tuple[ListedFile, ...] = ()
    reasons: tuple[Reason, ...] = ()


def listed(repository: str, commit: str, files: list[ListedFile]) -> Listed:
    """In the sandbox. Names that must not be written are refused here, before anybody has seen them."""
    try:
        names.check_names([file.name for file in files])
    except names.UnsafeName as unsafe:
        return Listed(reasons=(UnsafeFileName(repository=repository, name=unsafe.name, problem=unsafe.problem),))
    except names.TooManyFiles as many:
        return Listed(reasons=(TooManyFiles(repository=repository, files=many.count, most=names.MOST_FILES),))
    return Listed(commit=commit, files=tuple(files))


def problem_of(error: BaseException) -> str:
    """In words, as far as it has any."""
    said = str(error) or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", said)[:200]


async def list_apart(sandbox: Sandbox, work: Work, asked: ToList, host: str) -> Listing:
    """Raises HubRefused."""
    try:
        answer = Listed.model_validate_json(await sandbox.run(work, asked.model_dump_json().encode(), LISTING_SECONDS))
    except SandboxLimit as limit:
        if limit.again:
            raise HubRefused(HubUnreachable(host=host, problem=limit.problem)) from limit
        raise HubRefused(InspectionFailed(problem=f"{asked.repo_id} could not be listed: {limit.problem}")) from limit
    except ValidationError as error:
        problem = (
            f"{asked.repo_id} could not be listed: {error.errors(include_url=False, include_input=False)[0]['msg']}"
        )
        raise HubRefused(InspectionFailed(problem=problem)) from error
    if answer.reasons:
        raise HubRefused(*answer.reasons)
    files = tuple(RemoteFile(file.name, file.size, file.sha256, file.git_sha1) for file in answer.files)
    return Listing(answer.commit, files)
