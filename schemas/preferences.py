"""What makes one place better than another, in the words of people. One file each in the scheduler's `preferences/`."""

from collections.abc import Mapping
from typing import Final

PREFERENCES: Final[Mapping[str, str]] = {
    "on_gpus": "more of it lies on GPUs where it is",
    "fewest_gpus": "it takes fewer GPUs where it is",
    "whole_island": "the GPUs where it is reach each other directly",
    "replicas_apart": "fewer instances of the model are where it is",
    "spread": "less was promised for each GPU where it is",
    "files_present": "the files were where it is",
    "most_free": "the GPUs where it is were emptier",
    "tightest": "less stays unused where it is",
    "name": "equal in everything, and later by name",
}
"""Preference → why the place that was taken was better than one that lost by it."""


def lost(lost_by: str) -> str:
    return PREFERENCES.get(lost_by, lost_by)
