"""What each worker is to do: one complete document, derived from the fleet alone."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Final

from schemas.assignment import Assigned, AssignedFile, AssignedInstance, Neighbour
from schemas.ids import FileId, WorkerId
from schemas.models import Member
from schemas.sources import LocalPath
from services.scheduler.domain.draining import is_draining
from services.scheduler.domain.fleet import File, Fleet
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


MOST_NEIGHBOURS: Final = 8
"""That are named to a worker: it needs one, and another one where that fails."""


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
    used: dict[FileId, int] = {}
    """By placed instances → how many of them wait for it."""
    for instance in fleet.on(worker_id):
        placement = _placement_that_stays(instance)
        if placement is None:
            continue
        member = placement.on(worker_id)
        if member is None:
            continue
        waits = 1 if isinstance(instance.state, Scheduled | Downloading) else 0
        for file_id in member.file_ids:
            used[file_id] = used.get(file_id, 0) + waits
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
        files=tuple(_files(fleet, worker_id, used)),
    )


def _files(fleet: Fleet, worker_id: WorkerId, used: Mapping[FileId, int]) -> Iterable[AssignedFile]:
    """Those that instances need, those that somebody wants, and what else of a hub the worker has: it is not to be removed."""
    running = {file_id for claim in fleet.claims_on(worker_id) for file_id in claim.file_ids}
    for file in sorted(fleet.files_on(worker_id), key=lambda file: file.id):
        kept = file.state in ("wanted", "deleting") or (
            file.state == "ready" and not isinstance(file.source, LocalPath)
        )
        if file.id in used or kept:
            yield AssignedFile(
                file_id=file.id,
                source=file.source,
                commit=file.commit,
                want="deleted" if file.state == "deleting" else "ready",
                priority=used.get(file.id, 0),
                in_use=file.id in used or file.id in running,
                bytes=file.bytes,
                digest=file.digest or _digest(fleet, file),
                neighbours=_neighbours(fleet, file) if file.state == "wanted" else (),
                paths=file.paths if file.id in used else (),
                model_path=file.model_path,
                wanted=file.wanted,
            )


def _digest(fleet: Fleet, file: File) -> str | None:
    if file.commit is None:
        return None
    return next((each.digest for each in fleet.like(file.source, file.commit) if each.digest is not None), None)


def _neighbours(fleet: Fleet, file: File) -> tuple[Neighbour, ...]:
    """Workers that have it; while none has, the one that was to have it first: it alone asks the hub, and the others ask it.

    Each worker begins with another one, so that many do not ask the same.
    """
    if file.commit is None:
        return ()
    others = [each for each in fleet.like(file.source, file.commit) if _is_heard(fleet, each.worker_id)]
    ready = sorted((each.id, each) for each in others if each.state == "ready" and each.id != file.id)
    if ready:
        turn = zlib.crc32(file.worker_id.encode()) % len(ready)
        chosen = [each for _, each in [*ready[turn:], *ready[:turn]]][:MOST_NEIGHBOURS]
    else:
        first = next((each for each in others if each.state == "wanted"), file)
        chosen = [] if first.id == file.id else [first]
    return tuple(
        Neighbour(
            worker_id=each.worker_id,
            file_id=each.id,
            address=fleet.workers[each.worker_id].address,
            ready=each.state == "ready",
        )
        for each in chosen
    )


def _is_heard(fleet: Fleet, worker_id: WorkerId) -> bool:
    machine = fleet.machines.get(worker_id)
    return machine is not None and machine.state == "ready" and machine.downloader_alive


def waiting_for_like(fleet: Fleet, file_id: FileId) -> tuple[WorkerId, ...]:
    """Workers whose assignment says where else these files are, or that another one is to have them first."""
    file = fleet.files.get(file_id)
    if file is None or file.commit is None:
        return ()
    return tuple(each.worker_id for each in fleet.like(file.source, file.commit) if each.state == "wanted")
