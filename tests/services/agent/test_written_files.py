"""Files that an engine is started with are its own user's, and nobody else's."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.agent.adapters.written_files import prepare
from services.agent.domain.runtime import Container, EngineCommand, Needs
from tests.services.agent.engines import a_script


def a_command(path: Path, user: str | None) -> EngineCommand:
    container = Container(image="i", needs=Needs(user=user))
    return replace(a_script(""), files={str(path): "api-key: x\n"}, container=container)


def owned(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("user", "owner"), [("1234:4321", (1234, 4321)), ("1234", (1234, 1234)), (None, (0, 0))])
def test_a_file_belongs_to_the_user_that_the_engine_runs_as(
    tmp_path: Path, user: str | None, owner: tuple[int, int]
) -> None:
    path = tmp_path / "i-1.1" / "key.yaml"
    prepare(a_command(path, user))
    assert (owned(path), owned(path.parent)) == ((*owner, 0o600), (*owner, 0o700))


def test_it_is_never_there_with_other_rights(tmp_path: Path) -> None:
    """A file that somebody made in its place is not written to."""
    path = tmp_path / "key.yaml"
    (tmp_path / ".key.yaml.part").symlink_to(tmp_path / "theirs")
    prepare(a_command(path, None))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["key.yaml"]
    assert path.read_text() == "api-key: x\n"
