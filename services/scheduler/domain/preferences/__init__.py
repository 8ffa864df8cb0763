"""Which of the places that fit is taken: one file each; a lower number is liked better, and the first that differs decides.

Names break what ties remain, so replays agree.
"""

from collections.abc import Callable
from typing import Final

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.preferences.fewest_gpus import fewest_gpus
from services.scheduler.domain.preferences.files_present import files_present
from services.scheduler.domain.preferences.most_free import most_free
from services.scheduler.domain.preferences.on_gpus import on_gpus
from services.scheduler.domain.preferences.replicas_apart import replicas_apart
from services.scheduler.domain.preferences.spread import spread
from services.scheduler.domain.preferences.tightest import tightest
from services.scheduler.domain.preferences.whole_island import whole_island
from services.scheduler.domain.shapes import Layout

Preference = Callable[[Layout, Request], int]

SPREAD: Final[tuple[Preference, ...]] = (
    on_gpus,
    fewest_gpus,
    whole_island,
    replicas_apart,
    spread,
    files_present,
    most_free,
)
BINPACK: Final[tuple[Preference, ...]] = (
    on_gpus,
    fewest_gpus,
    whole_island,
    tightest,
    replicas_apart,
    files_present,
)


def preferences_of(request: Request) -> tuple[Preference, ...]:
    return BINPACK if request.tight else SPREAD
