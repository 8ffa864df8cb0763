"""ModelScope, or what speaks like it. Source: the documentation of modelscope-hub 0.5, and its answers.

It tells the commit of a branch in one place only, which is not documented. Where it does not, the listing itself is what a
revision is pinned to: of each file the digest is known, so no other one is ever taken for it.
"""

import hashlib
from typing import Any, Final, cast
from urllib.parse import quote, urlencode, urlsplit

from schemas.reasons import (
    GatedRepository,
    HubError,
    HubRateLimited,
    HubUnauthorized,
    HubUnreachable,
    Reason,
    RepositoryNotFound,
    RevisionNotFound,
)
from schemas.sources import HubSource
from services.downloader.adapters.http_ranges import Location
from services.downloader.adapters.hub import (
    CLIENT_SECONDS,
    Account,
    Listed,
    ListedFile,
    ToList,
    list_apart,
    listed,
    problem_of,
)
from services.downloader.adapters.sandbox import Sandbox
from services.downloader.domain.answers import retry_after
from services.downloader.domain.listing import Listing

ENDPOINT: Final = "https://modelscope.cn"
OF_LISTING: Final = "listing-"
"""What a commit begins with that is none."""
_NO_ACCESS: Final = 10010200001


class ModelScopeHub:
    """A `Hub`."""

    def __init__(self, account: Account, sandbox: Sandbox) -> None:
        self._account = account
        self._sandbox = sandbox
        self._host = urlsplit(account.endpoint).hostname or account.endpoint

    async def list(self, source: HubSource, commit: str | None = None) -> Listing:
        by_listing = commit is not None and commit.startswith(OF_LISTING)
        asked = ToList(
            endpoint=self._account.endpoint,
            token=self._account.token,
            repo_id=source.repo_id,
            revision=source.revision if commit is None or by_listing else commit,
            pin_listing=by_listing,
        )
        return await list_apart(self._sandbox, list_here, asked, self._host)

    def location(self, source: HubSource, commit: str, name: str) -> Location:
        revision = source.revision if commit.startswith(OF_LISTING) else commit
        query = urlencode({"Revision": revision, "FilePath": name})
        url = f"{self._account.endpoint.rstrip('/')}/api/v1/models/{quote(source.repo_id)}/repo?{query}"
        cookie = {} if self._account.token is None else {"Cookie": f"m_session_id={self._account.token}"}
        return Location(url, {**self._account.headers, **cookie})


# In the sandbox


def list_here(argument: bytes) -> bytes:
    asked = ToList.model_validate_json(argument)
    return _list(asked).model_dump_json().encode()


def _list(asked: ToList) -> Listed:
    import requests  # noqa: PLC0415 - as the client does
    from modelscope_hub import HubApi, errors  # noqa: PLC0415 - nobody else needs it

    host = urlsplit(asked.endpoint).hostname or asked.endpoint
    api: Any = HubApi(endpoint=asked.endpoint, token=asked.token)
    try:
        raw: Any = api.legacy.list_repo_files(
            repo_id=asked.repo_id, repo_type="model", revision=asked.revision, recursive=True
        )
        if not raw:
            return _refused(RevisionNotFound(repository=asked.repo_id, revision=asked.revision))
        commit = None if asked.pin_listing else asked.revision if _is_commit(asked.revision) else _commit_of(asked)
    except errors.HubError as error:
        return _refused(_reason(host, asked, error))
    except (OSError, requests.RequestException) as error:
        return _refused(HubUnreachable(host=host, problem=problem_of(error)))
    files = [
        ListedFile(name=str(each["Path"]), size=int(each.get("Size") or 0), sha256=each.get("Sha256") or None)
        for each in cast("list[dict[str, Any]]", raw)
        if each.get("Type") != "tree"
    ]
    return listed(asked.repo_id, commit or _pinned(files), files)


def _commit_of(asked: ToList) -> str | None:
    """None: the hub does not tell."""
    import requests  # noqa: PLC0415

    headers = {} if asked.token is None else {"Authorization": f"Bearer {asked.token}"}
    cookies = {} if asked.token is None else {"m_session_id": asked.token}
    url = f"{asked.endpoint.rstrip('/')}/api/v1/models/{quote(asked.repo_id)}/commits"
    try:
        answer = requests.get(
            url,
            params={"Ref": asked.revision, "PageSize": "1"},
            headers=headers,
            cookies=cookies,
            timeout=CLIENT_SECONDS,
            allow_redirects=False,
        )
        found: Any = answer.json()
        commit = found["Data"]["Commit"][0]["Id"]
    except (requests.RequestException, ValueError, KeyError, TypeError, IndexError):
        return None
    return commit if isinstance(commit, str) and _is_commit(commit) else None


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _pinned(files: list[ListedFile]) -> str:
    lines = sorted(f"{file.name}\0{file.size}\0{file.sha256}" for file in files)
    return OF_LISTING + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:40]


def _reason(host: str, asked: ToList, error: Any) -> Reason:
    """Whoever has no access is told that there is nothing; the code of the answer tells more."""
    status = int(getattr(error, "status_code", None) or getattr(error, "http_status", None) or 0)
    said = str(error)[:200]
    if str(_NO_ACCESS) in f"{getattr(error, 'code', '')} {getattr(error, 'body', '')} {said}":
        return GatedRepository(repository=asked.repo_id)
    match status:
        case 404:
            return RepositoryNotFound(repository=asked.repo_id)
        case 401 | 403:
            return HubUnauthorized(host=host, status=status)
        case 429:
            after = getattr(error, "retry_after", None)
            return HubRateLimited(host=host, retry_after_seconds=retry_after(None if after is None else str(after)))
        case 0:
            return HubUnreachable(host=host, problem=said)
        case _:
            return HubError(host=host, status=status, problem=said)


def _refused(reason: Reason) -> Listed:
    return Listed(reasons=(reason,))
