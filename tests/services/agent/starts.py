"""Assignments as a scheduler makes them, and what is known on a worker when it is to start one."""

from typing import Any

from schemas.assignment import AssignedInstance
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Claim, Launch, Member, Parallelism
from schemas.sources import LocalPath
from services.agent.domain.engines.start import Start

GIB = 2**30
MODEL = "/models/qwen3-8b"
LEADER, FOLLOWER = "10.0.0.1", "10.0.0.2"


def a_launch(backend: str, *parameters: str, **fields: Any) -> Launch:
    return Launch.model_validate(
        {
            "model_name": "qwen3-8b",
            "generation": 1,
            "backend": backend,
            "source": LocalPath(path=MODEL),
            "parameters": parameters,
        }
        | fields
    )


def a_start(
    launch: Launch,
    accelerator: str | None = "cuda",
    *,
    gpus: int = 1,
    nodes: int = 1,
    rank: int = 0,
    **fields: Any,
) -> Start:
    """`gpus`: of each of so many workers, and not the first ones there."""
    indexes = tuple(range(4, 4 + gpus)) if accelerator is not None else ()
    claim = Claim(ram=GIB, vram=dict.fromkeys(indexes, 72 * GIB))
    members = tuple(
        Member(
            worker_id=WorkerId(f"w-{number}"),
            address=f"10.0.0.{number + 1}",
            rank=number,
            accelerator=accelerator,
            gpu_indexes=indexes,
            gpu_addresses=tuple(f"10.1.{number}.{index}" for index in indexes) if accelerator == "cann" else (),
            claim=claim,
        )
        for number in range(nodes)
    )
    assigned = AssignedInstance(
        instance_id=InstanceId("i-1"),
        model_id=ModelId("m-1"),
        attempt=1,
        rank=rank,
        world_size=nodes,
        members=members,
        leader_address=LEADER,
        launch=launch,
        accelerator=accelerator,
        gpu_indexes=indexes,
        claim=claim,
    )
    address = members[rank].address
    given: dict[str, Any] = {"host": address, "address": address, "port": 40000} | fields
    return Start(assigned=assigned, **given)


def over(tensor: int = 1, pipeline: int = 1, data: int = 1) -> dict[str, Any]:
    return {"parallelism": Parallelism(tensor=tensor, pipeline=pipeline, data=data)}
