"""What each worker is to do: one complete document, derived from the fleet alone."""

import hashlib
from typing import Final

from schemas.assignment import Assigned, AssignedFile, AssignedInstance
from schemas.ids import FileId, WorkerId
from schemas.models import Member
from schemas.sources import Source
from services.scheduler.domain.draining import is_draining
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.instance import (
    Downloading,
    Failed,
    Instance,
    Pending,
    Placement,
    Running,
    Scheduled,
    Starting,
    Stopping,
    Unreachable,
)

MOST_LISTED: Final = 256
"""Workers whose addresses an engine is told."""


def file_id_of(source: Source, commit: str | None, worker_id: WorkerId) -> FileId:
    """One file resource for each source, commit and worker."""
    digest = hashlib.sha256("\0".join((source.model_dump_json(), commit or "", worker_id)).encode())
    return FileId("f-" + digest.hexdigest()[:20])


def files_ready(fleet: Fleet, member: Member) -> bool:
    return all((file := fleet.files.get(file_id)) is not None and file.state == "ready" for file_id in member.file_ids)


def all_files_ready(fleet: Fleet, placement: Placement) -> bool:
    """On each of the workers: an engine on several starts nowhere before."""
    return all(files_ready(fleet, member) for member in placement.members)


def _placement_that_stays(instance: Instance) -> Placement | None:
    """Where its engine is to be; None where it has none, or none any more."""
    match instance.state:
        case Scheduled() | Downloading() | Starting() | Running() | Unreachable():
            return instance.state.placement
        case Stopping(placement=placement) if is_draining(instance):
            return placement
        case Stopping() | Failed() | Pending():
            return None


def _is_to_run(instance: Instance, placement: Placement, fleet: Fleet) -> bool:
    """What has run goes on, whatever becomes of its files. A draining engine goes on, and is not started again when it is gone."""
    match instance.state:
        case Starting() | Running():
            return True
        case Unreachable(running=running) if running is not None:
            return True
        case _:
            return not is_draining(instance) and all_files_ready(fleet, placement)


def _addresses(fleet: Fleet) -> tuple[str, ...]:
    """Of all workers; of none where the list would be longer than programs read (an environment, a line)."""
    if len(fleet.workers) > MOST_LISTED:
        return ()
    return tuple(sorted({worker.address for worker in fleet.workers.values()}))


def assigned_to(
    fleet: Fleet,
    worker_id: WorkerId,
    election: int,
    *,
    engine_key_ref: str | None = None,
    near: tuple[str, ...] = (),
) -> Assigned:
    instances: list[AssignedInstance] = []
    files: dict[FileId, AssignedFile] = {}
    for instance in fleet.on(worker_id):
        placement = _placement_that_stays(instance)
        if placement is None:
            continue
        member = placement.on(worker_id)
        if member is None:
            continue
        for file_id in member.file_ids:
            file = fleet.files[file_id]
            files[file_id] = AssignedFile(
                file_id=file_id, source=file.source, commit=file.commit, paths=file.paths, wanted=file.wanted
            )
        instances.append(
            AssignedInstance(
                instance_id=instance.id,
                model_id=instance.model_id,
                attempt=placement.attempt,
                rank=member.rank,
                world_size=len(placement.members),
                members=placement.members,
                leader_address=placement.leader.address,
                launch=placement.launch,
                accelerator=member.accelerator,
                gpu_indexes=member.gpu_indexes,
                claim=member.claim,
                files=member.file_ids,
                ports=member.ports,
                want="running" if _is_to_run(instance, placement, fleet) else "prepared",
                engine_key_ref=engine_key_ref,
            )
        )
    return Assigned(
        election=election,
        seq=fleet.seq,
        worker_id=worker_id,
        instances=tuple(instances),
        near=(*near, *_addresses(fleet)) if instances else (),
        files=tuple(files[file_id] for file_id in sorted(files)),
    )
