"""Hugging Face, or a mirror of it. Source: the documentation of huggingface_hub 2.4, "HfApi" and "Environment variables"."""

import re
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit

from schemas.reasons import (
    GatedRepository,
    HubError,
    HubRateLimited,
    HubUnauthorized,
    HubUnreachable,
    InspectionFailed,
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

ENDPOINT: Final = "https://huggingface.co"
_SHA1: Final = re.compile(r"[0-9a-f]{40}")


class HuggingFaceHub:
    """A `Hub`."""

    def __init__(self, account: Account, sandbox: Sandbox) -> None:
        self._account = account
        self._sandbox = sandbox
        self._host = urlsplit(account.endpoint).hostname or account.endpoint

    async def list(self, source: HubSource, commit: str | None = None) -> Any:
        asked = ToList(
            endpoint=self._account.endpoint,
            token=self._account.token,
            repo_id=source.repo_id,
            revision=commit or source.revision,
        )
        return await list_apart(self._sandbox, list_here, asked, self._host)

    def location(self, source: HubSource, commit: str, name: str) -> Location:
        url = f"{self._account.endpoint.rstrip('/')}/{source.repo_id}/resolve/{quote(commit, safe='')}/{quote(name)}"
        return Location(url, self._account.headers)


# In the sandbox


def list_here(argument: bytes) -> bytes:
    asked = ToList.model_validate_json(argument)
    return _list(asked).model_dump_json().encode()


def _list(asked: ToList) -> Listed:
    from huggingface_hub import errors, hf_api  # noqa: PLC0415 - 36 MB that nobody else needs

    api: Any = cast("Any", hf_api.HfApi)(endpoint=asked.endpoint, token=asked.token or False, library_name="muster")
    host = urlsplit(asked.endpoint).hostname or asked.endpoint
    of_the_network = errors.HfHubHTTPError.__mro__[1]  # of the library that the client is built on, whichever it is
    try:
        found: Any = api.model_info(asked.repo_id, revision=asked.revision, files_metadata=True, timeout=CLIENT_SECONDS)
    except errors.GatedRepoError:
        return _refused(GatedRepository(repository=asked.repo_id))
    except errors.RepositoryNotFoundError:
        return _refused(RepositoryNotFound(repository=asked.repo_id))
    except errors.RevisionNotFoundError:
        return _refused(RevisionNotFound(repository=asked.repo_id, revision=asked.revision))
    except errors.HfHubHTTPError as error:
        return _refused(_reason(host, error))
    except (OSError, cast("type[Exception]", of_the_network)) as error:
        return _refused(HubUnreachable(host=host, problem=problem_of(error)))
    files = [
        ListedFile(
            name=each.rfilename,
            size=each.size or 0,
            sha256=each.lfs.sha256 if each.lfs is not None else None,
            git_sha1=each.blob_id if each.lfs is None and _SHA1.fullmatch(each.blob_id or "") else None,
        )
        for each in found.siblings or ()
    ]
    if not found.sha:
        return _refused(InspectionFailed(problem=f"{host} does not tell the commit of {asked.repo_id}"))
    return listed(asked.repo_id, found.sha, files)


def _reason(host: str, error: Any) -> Reason:
    response = error.response
    match response.status_code:
        case 401 | 403 as status:
            return HubUnauthorized(host=host, status=status)
        case 429:
            return HubRateLimited(host=host, retry_after_seconds=retry_after(response.headers.get("retry-after")))
        case status:
            return HubError(host=host, status=status, problem=(error.server_message or "")[:200])


def _refused(reason: Reason) -> Listed:
    return Listed(reasons=(reason,))
