"""Which workers are meant."""

from typing import Any

import pytest

from kernel.errors import Refused
from services.api.domain.where import Where


def a_worker(name: str, arch: str = "amd64", **labels: str) -> dict[str, Any]:
    return {"id": f"w-{name}", "name": name, "os": "linux", "arch": arch, "labels": labels}


FLEET = [a_worker("a", rack="b4"), a_worker("b", arch="x86_64"), a_worker("c", arch="aarch64", rack="b4")]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({}, ["a", "b", "c"]),
        ({"rack": "b4"}, ["a", "c"]),
        ({"arch": "amd64"}, ["a", "b"]),
        ({"arch": "arm64", "rack": "b4"}, ["c"]),
        ({"worker-name": "b", "os": "linux"}, ["b"]),
        ({"rack": "b5"}, []),
    ],
)
def test_labels_mean_workers_that_have_all_of_them_built_in_ones_included(
    labels: dict[str, str], names: list[str]
) -> None:
    assert [worker["name"] for worker in Where(labels=labels).among(FLEET, "workers")] == names


def test_a_name_or_an_id_means_its_worker_once() -> None:
    assert [worker["name"] for worker in Where(["c", "w-a", "w-c"]).among(FLEET, "workers")] == ["c", "a"]
    with pytest.raises(Refused) as refused:
        Where(["a", "nobody"]).among(FLEET, "worker_ids")
    assert (refused.value.status, refused.value.code, refused.value.field) == (404, "not_found", "worker_ids")
