"""What engines compile outlives them, for each model apart, and not for ever."""

import os
import stat
import time
from pathlib import Path

import pytest

from schemas.ids import ModelId
from services.agent.adapters.engine_caches import KEPT_SECONDS, EngineCaches

M, N = ModelId("m-1"), ModelId("m-2")


def test_each_model_has_its_own_which_stays(tmp_path: Path) -> None:
    caches = EngineCaches(tmp_path / "caches", for_others=False)
    first = Path(caches.of(M))
    (first / "compiled").touch()
    assert caches.of(N) != str(first)
    assert Path(caches.of(M), "compiled").exists()
    assert first.is_absolute()


@pytest.mark.parametrize(("for_others", "mode"), [(False, 0o700), (True, 0o777)])
def test_others_write_where_they_are_let_and_get_nowhere_else(tmp_path: Path, *, for_others: bool, mode: int) -> None:
    path = Path(EngineCaches(tmp_path / "caches", for_others=for_others).of(M))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_that_of_a_model_nobody_starts_any_more_is_removed(tmp_path: Path) -> None:
    caches = EngineCaches(tmp_path / "caches", for_others=False)
    old, young = Path(caches.of(M)), Path(caches.of(N))
    (old / "compiled").touch()
    for path, age in ((old, KEPT_SECONDS + 60), (young, KEPT_SECONDS - 3600)):
        os.utime(path, (time.time() - age, time.time() - age))
    caches.of(ModelId("m-3"))
    assert (old.exists(), young.exists()) == (False, True)
