"""What modelscope.cn answers, as its client 0.5.1 reads it and as others measured it.

What surprises in it: every refusal of access is a 404, only `Code` tells more; an unknown revision has `Files: null` and
is no error; a listing ends silently at 3,000 entries; the default branch is `master`; `Revision` of a file is the commit
that changed it last; what lies in git is served whole whatever range is asked for; an unknown token is no token.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from tests.support.hub_repository import DIRECTORY, Commit, Content, Listed, Repositories, Repository
from tests.support.hub_wire import Answer, Link, Refused, Request, Route, Speaks

NO_SUCH_REPOSITORY: Final = 10010205001
NO_ACCESS: Final = 10010200001
NO_SUCH_FILE: Final = 10990101007
DEFAULT_BRANCH: Final = "master"


def failure(status: int, message: str, code: int | None = None) -> Answer:
    return _json({"Code": code or status, "Message": message, "RequestId": str(uuid4()), "Success": False}, status)


def _json(value: Mapping[str, object], status: int = 200) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(status, headers, Content.of(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")))


def _data(data: Mapping[str, object]) -> Answer:
    return _json({"Code": 200, "Data": data, "Message": "success", "RequestId": str(uuid4()), "Success": True})


@dataclass
class ModelScope(Speaks):
    repositories: Repositories
    link_to: Callable[[Link, str], str]
    listing_limit: int = 3000

    def routes(self) -> Sequence[Route]:
        return (
            (("GET",), r"/api/v1/models/(?P<repo>[^/]+/[^/]+)", self._info),
            (("GET",), r"/api/v1/models/(?P<repo>[^/]+/[^/]+)/repo/files", self._files),
            (("GET", "HEAD"), r"/api/v1/models/(?P<repo>[^/]+/[^/]+)/repo", self._file),
            (("GET",), r"/api/v1/models/(?P<repo>[^/]+/[^/]+)/revisions", self._revisions),
            (("GET",), r"/api/v1/models/(?P<repo>[^/]+/[^/]+)/commits", self._commits),
            (("GET",), r"/api/v1/repos/internalAccelerationInfo", self._acceleration),
            (("GET",), r"/openapi/v1/models/(?P<repo>[^/]+/[^/]+)", self._open_info),
            (("GET",), r"/openapi/v1/users/me", self._me),
        )

    def _files(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._readable(request, parts["repo"])
        commit = _find(repository, request.query.get("Revision") or DEFAULT_BRANCH)
        if commit is None:
            return _data({"Files": None, "IsVisual": 0, "LatestCommitter": None})
        recursive = request.query.get("Recursive", "").lower() == "true"
        entries = commit.below(request.query.get("Root", "").strip("/"), recursive=recursive)
        files = [self._entry(repository, commit, entry) for entry in entries[: self.listing_limit]]
        latest = {"Id": "", "ShortId": commit.id[:8], "CommitterName": "tester", "CommittedDate": int(commit.at)}
        return _data({"Files": files, "IsVisual": 0, "LatestCommitter": latest})

    def _file(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._readable(request, parts["repo"])
        commit = _find(repository, request.query.get("Revision") or DEFAULT_BRANCH)
        file = commit.by_path.get(request.query.get("FilePath", "")) if commit is not None else None
        if file is None or file.is_directory:
            raise Refused(failure(404, "file not found", NO_SUCH_FILE))
        served = {"Content-Type": "application/octet-stream"}
        if not file.in_lfs or request.method == "HEAD":
            return Answer(200, served, file.content, file.path)
        link = Link(file.content, f'"{file.sha256.upper()[:32]}"', file.path, {"X-Linked-ETag": f'"{file.sha256}"'})
        return Answer(302, {"Location": self.link_to(link, repository.name)}, file=file.path, link=link)

    def _revisions(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._readable(request, parts["repo"])

        def told(known: Mapping[str, str]) -> Sequence[Mapping[str, object]]:
            return [
                {"Revision": _shown(repository, name), "CreatedAt": int(repository.commits[commit].at)}
                for name, commit in known.items()
            ]

        return _data({"RevisionMap": {"Branches": told(repository.branches), "Tags": told(repository.tags)}})

    def _commits(self, request: Request, parts: Mapping[str, str]) -> Answer:
        """Undocumented, and the only way to learn the commit of a branch; a misspelled `Ref` means `master`."""
        repository = self._readable(request, parts["repo"])
        commit = _find(repository, request.query.get("Ref") or DEFAULT_BRANCH)
        if commit is None:
            return _data({"Commit": None, "TotalCount": 0})
        told = {"Id": commit.id, "ShortId": commit.id[:8], "CommittedDate": int(commit.at), "Message": "Upload files"}
        return _data({"Commit": [told], "TotalCount": 1})

    def _info(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._readable(request, parts["repo"])
        owner, _, name = repository.name.partition("/")
        return _data({"Id": 1, "Name": name, "Path": owner, "Downloads": 0, "Tags": [], "Visibility": 5})

    def _open_info(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._readable(request, parts["repo"])
        data = {
            "id": repository.name,
            "display_name": repository.name.partition("/")[2],
            "private": repository.private,
            "gated": repository.gated is not None,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }
        return _json({"success": True, "data": data, "request_id": str(uuid4())})

    def _me(self, request: Request, _parts: Mapping[str, str]) -> Answer:
        if self._token(request) is None:
            raise Refused(failure(401, "user not logged in"))
        return _json({"success": True, "data": {"username": "tester"}, "request_id": str(uuid4())})

    def _acceleration(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return _data({"InternalRegionQueryAddress": ""})

    def _token(self, request: Request) -> str | None:
        for token in (request.cookies.get("m_session_id"), request.bearer):
            if token is not None and token in self.repositories.tokens:
                return token
        return None

    def _readable(self, request: Request, name: str) -> Repository:
        if name not in self.repositories.by_name:
            raise Refused(failure(404, "获取模型信息失败,信息:record not found", NO_SUCH_REPOSITORY))
        if not self.repositories.may_read(self._token(request), name):
            raise Refused(failure(404, "无权限访问", NO_ACCESS))
        return self.repositories.by_name[name]

    def _entry(self, repository: Repository, commit: Commit, entry: Listed) -> Mapping[str, object]:
        changed = repository.commits.get(entry.changed_in, commit)
        return {
            "CommitMessage": "Upload files",
            "CommittedDate": int(changed.at),
            "CommitterName": "tester",
            "InCheck": False,
            "IsLFS": entry.in_lfs,
            "Mode": str(entry.mode),
            "Name": entry.path.rpartition("/")[2],
            "Path": entry.path,
            "Revision": changed.id,
            "Sha256": entry.sha256,
            "Size": entry.size,
            "Type": "tree" if entry.mode == DIRECTORY else "blob",
        }


def _find(repository: Repository, revision: str) -> Commit | None:
    """What is `main` elsewhere is `master` here, unless the repository has a `master` of its own."""
    if DEFAULT_BRANCH in repository.branches or revision not in (DEFAULT_BRANCH, repository.default_branch):
        return repository.find(revision)
    return repository.find(repository.default_branch) if revision == DEFAULT_BRANCH else None


def _shown(repository: Repository, branch: str) -> str:
    is_default = branch == repository.default_branch and DEFAULT_BRANCH not in repository.branches
    return DEFAULT_BRANCH if is_default else branch
