"""Where a model's files are, as it is typed and as it is shown."""

import os.path
import re
from collections.abc import Mapping
from typing import Any, Final

from services.cli.failed import USAGE, Failed

HUBS: Final[Mapping[str, tuple[str, str]]] = {
    "huggingface": ("huggingface_repo_id", "huggingface_filename"),
    "model_scope": ("model_scope_model_id", "model_scope_file_path"),
}
"""Source → its fields for the repository and for a file in it."""
_PREFIX: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*:")
HELP: Final = "huggingface:ORG/NAME[/FILE.gguf][@REVISION], model_scope:… alike, or a path on the workers"


def source_fields(text: str) -> dict[str, str]:
    """Fields of the REST API. Raises Failed."""
    prefix = _PREFIX.match(text)
    if prefix is None:
        if not text:
            raise Failed("the source is empty", exit_code=USAGE)
        return {"source": "local_path", "local_path": os.path.abspath(text)}  # noqa: PTH100 - also tidies `..`
    kind = prefix.group()[:-1]
    if kind not in HUBS:  # what follows is not repeated: an address may hold a token
        raise Failed(f"{kind}: is no source: write {HELP} (./… where it has a colon)", exit_code=USAGE)
    name, at, revision = text[prefix.end() :].partition("@")
    repository, filename = HUBS[kind]
    organisation, slash, rest = name.partition("/")
    model, _, file = rest.partition("/")
    if not organisation or (slash and not model) or (at and not revision):
        raise Failed(f"{kind}: wants a repository: write {HELP}", exit_code=USAGE)
    fields = {"source": kind, repository: f"{organisation}{slash}{model}"}
    return fields | ({filename: file} if file else {}) | ({"revision": revision} if revision else {})


def source_label(document: Mapping[str, Any]) -> str:
    """Of a model or file as REST shows it."""
    kind = document["source"]
    if kind not in HUBS:
        return str(document["local_path"])
    repository, filename = HUBS[kind]
    return _label(kind, document[repository], document[filename], document["revision"])


def label_in_fact(source: Mapping[str, Any]) -> str:
    """Of a source as facts have it."""
    if "path" in source:
        return str(source["path"])
    if "repo_id" not in source:  # of a newer server
        return str(source["type"])
    return _label(source["type"], source["repo_id"], source.get("filename"), source.get("revision"))


def _label(kind: str, repository: str, filename: str | None, revision: str | None) -> str:
    return f"{kind}:{repository}" + (f"/{filename}" if filename else "") + (f"@{revision}" if revision else "")
