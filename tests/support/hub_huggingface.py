"""What huggingface.co answers, as its client 2.4.0 reads it and as its answers were recorded by others."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, quote, urlencode

from tests.support.hub_repository import Commit, Content, Listed, Repositories, Repository
from tests.support.hub_wire import Answer, Link, Refused, Request, Route, Speaks

EXPANDED_PAGE: Final = 50
Json = Mapping[str, object] | Sequence[Mapping[str, object]]


def failure(status: int, message: str, code: str | None = None, commit: str | None = None) -> Answer:
    named = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
    headers = {name: value for name, value in named.items() if value is not None}
    return as_json({"error": message}, status, headers)


def as_json(value: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    content = Content.of(json.dumps(value).encode())
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, content)


@dataclass
class HuggingFace(Speaks):
    repositories: Repositories
    link_to: Callable[[Link, str], str]
    """The address at which a file of a repository is served from now on."""
    page_size: int = 1000

    def routes(self) -> Sequence[Route]:
        return (
            (("GET",), r"/api/whoami-v2", self._whoami),
            (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)", self._info),
            (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", self._info),
            (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", self._refs),
            (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", self._tree),
            (("POST",), r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", self._paths_info),
            (("GET", "HEAD"), r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
            (
                ("GET", "HEAD"),
                r"/api/resolve-cache/models/(?P<repo>[^/]+/[^/]+)/(?P<revision>[0-9a-f]{40})/(?P<path>.+)",
                self._cached,
            ),
        )

    def _whoami(self, request: Request, _parts: Mapping[str, str]) -> Answer:
        token = self._token(request)
        if token is None:
            raise Refused(failure(401, "Invalid username or password."))
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "read"}}
        who = {"type": "user", "id": _number(token), "name": "tester", "fullname": "Tester", "isPro": False, "orgs": []}
        return as_json({**who, "auth": access})

    def _info(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._visible(request, parts["repo"])
        commit = self._commit(repository, parts.get("revision") or repository.default_branch)
        with_blobs = request.query.get("blobs", "").lower() in ("true", "1")
        return as_json(
            {
                "_id": _number(repository.name)[:24],
                "id": repository.name,
                "modelId": repository.name,
                "author": repository.name.partition("/")[0],
                "sha": commit.id,
                "lastModified": _instant(commit.at),
                "createdAt": _instant(min(each.at for each in repository.commits.values())),
                "private": repository.private,
                "gated": repository.gated or False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": ["safetensors", "region:us"],
                "usedStorage": sum(file.size for file in commit.files),
                "siblings": [_sibling(file, with_blobs=with_blobs) for file in commit.files],
            }
        )

    def _refs(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._visible(request, parts["repo"])

        def refs(kind: str, known: Mapping[str, str]) -> list[Mapping[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in known.items()
            ]

        branches, tags = refs("heads", repository.branches), refs("tags", repository.tags)
        return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def _tree(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._visible(request, parts["repo"])
        commit = self._commit(repository, parts["revision"])
        path = parts["path"].strip("/")
        expand = request.query.get("expand", "").lower() == "true"
        entries = commit.below(path, recursive=request.query.get("recursive", "").lower() == "true")
        if path and not entries:
            raise Refused(failure(404, f'{path} does not exist on "{parts["revision"]}"', "EntryNotFound", commit.id))
        size = min(int(request.query.get("limit", self.page_size)), EXPANDED_PAGE if expand else self.page_size)
        start = _position(request.query.get("cursor"))
        page = [self._entry(repository, commit, each, expand=expand) for each in entries[start : start + size]]
        headers = {}
        if start + size < len(entries):
            query = urlencode({**request.query, "cursor": _cursor(start + size)})
            headers = {"Link": f'<http://{request.host}{request.path}?{query}>; rel="next"'}
        return as_json(page, headers=headers)

    def _paths_info(self, request: Request, parts: Mapping[str, str]) -> Answer:
        repository = self._visible(request, parts["repo"])
        commit = self._commit(repository, parts["revision"])
        if request.headers.get("content-type", "").startswith("application/json"):
            asked = json.loads(request.body)
            paths, expand = list(asked["paths"]), bool(asked.get("expand"))
        else:
            form = parse_qs(request.body.decode())
            paths, expand = form.get("paths", []), form.get("expand", [""])[-1].lower() == "true"
        found = [commit.by_path[path] for path in paths if path in commit.by_path]
        return as_json([self._entry(repository, commit, each, expand=expand) for each in found])

    def _resolve(self, request: Request, parts: Mapping[str, str]) -> Answer:
        """Large files lie elsewhere; small ones of public repositories at a second address, told relatively."""
        repository, commit, file = self._file(request, parts)
        headers = {"X-Repo-Commit": commit.id, "X-Linked-Size": str(file.size)}
        if file.in_lfs:
            linked = {**headers, "X-Linked-ETag": f'"{file.sha256}"', "Vary": "Origin, Accept"}
            served = {"Content-Disposition": f'inline; filename="{quote(file.path.rpartition("/")[2])}";'}
            link = Link(file.content, f'"{_number(file.sha256)}"', file.path, served)
            linked["Location"] = self.link_to(link, repository.name)
            return _redirection(302, linked, file, link)
        linked = {**headers, "X-Linked-ETag": f'"{file.blob_id}"'}
        if repository.private or repository.gated is not None:
            return _direct(commit, file)
        there = f"/api/resolve-cache/models/{repository.name}/{commit.id}/{quote(file.path, safe='' if '..' in file.path else '/')}"
        asked = quote(request.path, safe="")
        return _redirection(307, {**linked, "Location": f"{there}?{asked}=&etag=%22{file.blob_id}%22"}, file)

    def _cached(self, request: Request, parts: Mapping[str, str]) -> Answer:
        _, commit, file = self._file(request, parts)
        return _direct(commit, file)

    def _token(self, request: Request) -> str | None:
        token = request.bearer
        if token is not None and token not in self.repositories.tokens:
            raise Refused(failure(401, "Invalid credentials in Authorization header"))
        return token

    def _visible(self, request: Request, name: str) -> Repository:
        """Who shows no token is not told whether a repository is private or does not exist."""
        token = self._token(request)
        repository = self.repositories.by_name.get(name)
        if repository is None or (repository.private and not self.repositories.may_read(token, name)):
            if token is None:
                raise Refused(failure(401, "Invalid username or password.", "RepoNotFound"))
            raise Refused(failure(404, "Repository not found", "RepoNotFound"))
        return repository

    def _file(self, request: Request, parts: Mapping[str, str]) -> tuple[Repository, Commit, Listed]:
        """A gated repository refuses a wrong token as it refuses none."""
        name = parts["repo"]
        known = self.repositories.by_name.get(name)
        if known is not None and known.gated is not None and not known.private:
            token = request.bearer
            if token not in self.repositories.tokens:
                what = "You must have access to it and be authenticated to access it. Please log in."
                raise Refused(failure(401, f"Access to model {name} is restricted. {what}", "GatedRepo"))
            if not self.repositories.may_read(token, name):
                what = f"Visit https://huggingface.co/{name} to ask for access."
                message = f"Access to model {name} is restricted and you are not in the authorized list. {what}"
                raise Refused(failure(403, message, "GatedRepo"))
        repository = self._visible(request, name)
        commit = self._commit(repository, parts["revision"])
        file = commit.by_path.get(parts["path"])
        if file is None or file.is_directory:
            raise Refused(failure(404, "Entry not found", "EntryNotFound", commit.id))
        return repository, commit, file

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise Refused(failure(404, f"Invalid rev id: {revision}", "RevisionNotFound"))
        return commit

    def _entry(self, repository: Repository, commit: Commit, entry: Listed, *, expand: bool) -> Mapping[str, object]:
        kind = "directory" if entry.is_directory else "file"
        told: dict[str, object] = {"type": kind, "oid": entry.blob_id, "size": entry.size, "path": entry.path}
        if entry.in_lfs:
            told["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        if expand:
            changed = repository.commits.get(entry.changed_in, commit)
            told["lastCommit"] = {"id": changed.id, "title": "Upload files", "date": _instant(changed.at)}
        return told


def _direct(commit: Commit, file: Listed) -> Answer:
    headers = {
        "X-Repo-Commit": commit.id,
        "ETag": f'"{file.blob_id}"',
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file.path.rpartition('/')[2])};",
    }
    return Answer(200, headers, file.content, file.path, serves_ranges=True)


def _redirection(status: int, headers: Mapping[str, str], file: Listed, link: Link | None = None) -> Answer:
    said = Content.of(f"{HTTPStatus(status).phrase}. Redirecting to {headers['Location']}".encode())
    return Answer(status, {**headers, "Content-Type": "text/plain; charset=utf-8"}, said, file.path, link=link)


def _sibling(file: Listed, *, with_blobs: bool) -> Mapping[str, object]:
    if not with_blobs:
        return {"rfilename": file.path}
    told: dict[str, object] = {"rfilename": file.path, "size": file.size, "blobId": file.blob_id}
    if file.in_lfs:
        told["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return told


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(text: str) -> str:
    """An opaque identifier; no digest of a file can be compared with it."""
    return hashlib.sha256(f"of {text}".encode("utf-8", "surrogatepass")).hexdigest()


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(json.dumps({"position": position}).encode()).decode()


def _position(cursor: str | None) -> int:
    return 0 if cursor is None else int(json.loads(base64.urlsafe_b64decode(cursor))["position"])
