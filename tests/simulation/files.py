"""What must hold of files, wherever they come from: looked at from outside, like `invariants.py`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from schemas.facts import (
    InstanceAttemptEnded,
    InstanceDeleted,
    InstanceFailed,
    InstanceScheduled,
    ModelFileDeleted,
    ModelFileDeleting,
    ModelFileDeletionRefused,
    ModelFileWanted,
    WorkerRegistered,
    WorkerRemoved,
)
from schemas.facts.base import Fact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.sources import LocalPath
from tests.simulation.invariants import Broken, Invariant, Ledger
from tests.simulation.worker import Machine

SETTLES_SECONDS: Final = 20.0
"""So long files may be on their way when nothing goes wrong any more: one after the other on each of a few workers."""


def check_removal(machine: Machine, path: str) -> None:
    for engine in machine.engines.values():
        if path in engine.files and engine.ends_at is None and not (engine.disowned or machine.has_lied):
            raise Broken(
                Invariant.FILES,
                f"{machine.id} removes {path}, from which attempt {engine.id.attempt} of {engine.id.instance_id} runs",
            )


@dataclass(slots=True)
class Files:
    """What the log tells of files, read by itself."""

    users: dict[tuple[InstanceId, int, WorkerId], tuple[FileId, ...]] = field(
        default_factory=dict[tuple[InstanceId, int, WorkerId], tuple[FileId, ...]]
    )
    """Attempts that may have an engine on a worker → what it runs from."""
    commits: dict[tuple[ModelId, str], str] = field(default_factory=dict[tuple[ModelId, str], str])
    """Of a model's source, since it was wanted last: the commit that its first instance was given."""
    heard: int = 0
    """All that users had asked up to here had been read, and all that followed from it stated, when it was looked at last."""
    answered: dict[FileId, int] = field(default_factory=dict[FileId, int])
    came: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """Worker → when it joined, as a sequence."""
    since: dict[FileId, float] = field(default_factory=dict[FileId, float])
    """When what is to become of it was said last."""

    def take(self, fact: Fact, sequence: int, ledger: Ledger, machines: Mapping[WorkerId, Machine]) -> None:
        """Before it is folded into the ledger's fleet."""
        match fact:
            case InstanceScheduled():
                for member in fact.members:
                    self.users[fact.instance_id, fact.attempt, member.worker_id] = member.file_ids
                    self._check_commit(fact, member.file_ids, ledger)
            case InstanceFailed(engine_gone=True) | InstanceAttemptEnded():
                self.users.pop((fact.instance_id, fact.attempt, fact.worker_id), None)
            case InstanceDeleted():
                self.users = {key: ids for key, ids in self.users.items() if key[0] != fact.instance_id}
            case WorkerRemoved():
                self.users = {key: ids for key, ids in self.users.items() if key[2] != fact.worker_id}
            case WorkerRegistered():
                self.came[fact.worker_id] = sequence
            case ModelFileWanted() | ModelFileDeleting() | ModelFileDeletionRefused():
                if not isinstance(fact, ModelFileDeletionRefused):
                    self.since[fact.file_id] = ledger.now
                if fact.request is not None:
                    self._check_answer(fact.file_id, fact.worker_id, fact.request)
                if isinstance(fact, ModelFileDeleting):
                    self._check_unused(fact)
            case ModelFileDeleted():
                machine, wish = machines[fact.worker_id], (fact.file_id, ledger.fleet.files[fact.file_id].wanted)
                if wish not in machine.removed and not machine.has_lied:
                    raise Broken(Invariant.REPORTS, f"{fact.file_id} is deleted, but nobody said so of wish {wish[1]}")
            case _:
                pass

    def _check_unused(self, fact: ModelFileDeleting) -> None:
        for (instance_id, attempt, _), file_ids in self.users.items():
            if fact.file_id in file_ids:
                raise Broken(
                    Invariant.FILES,
                    f"{fact.file_id} is to be deleted, and attempt {attempt} of {instance_id} may run from it",
                )

    def _check_answer(self, file_id: FileId, worker_id: WorkerId, request: int) -> None:
        if self.answered.get(file_id, 0) >= request:
            raise Broken(Invariant.FILES, f"the request {request} about {file_id} is answered a second time")
        if request <= self.heard and self.came.get(worker_id, 0) < request:
            raise Broken(
                Invariant.FILES, f"the request {request} about {file_id} was found to need nothing, and is answered now"
            )
        self.answered[file_id] = request

    def _check_commit(self, fact: InstanceScheduled, file_ids: Iterable[FileId], ledger: Ledger) -> None:
        model_id = ledger.lives[fact.instance_id].model_id
        for file in (ledger.fleet.files[file_id] for file_id in file_ids):
            if isinstance(file.source, LocalPath) or file.commit is None:
                continue
            first = self.commits.setdefault((model_id, f"{fact.launch.revision} {file.source.label}"), file.commit)
            if file.commit != first:
                raise Broken(
                    Invariant.FILES, f"{fact.instance_id} is given {file.commit} of {file.source.label}, others {first}"
                )

    # -- call what follows when a scheduler has nothing left to say

    def check_assignments(
        self, ledger: Ledger, documents: Mapping[WorkerId, tuple[int, bytes]], heard: set[WorkerId]
    ) -> None:
        """One worker asks the hub, the others ask it or who has the files. `heard`: with their downloaders."""
        self.heard = max(self.heard, ledger.last_of_api)
        wanted: dict[tuple[str, str], dict[WorkerId, dict[str, Any]]] = {}
        for worker_id in heard & documents.keys():
            for file in orjson.loads(documents[worker_id][1])["files"]:
                if file["want"] == "ready" and file["commit"] is not None and _is_wanted(ledger, file["file_id"]):
                    wanted.setdefault((str(file["source"]), file["commit"]), {})[worker_id] = file
        for (source, commit), files in wanted.items():
            asks = [worker_id for worker_id, file in files.items() if not file["neighbours"]]
            if len(asks) > 1:
                raise Broken(Invariant.FILES, f"{sorted(asks)} all ask the hub for {source} at {commit}")
            for worker_id, file in files.items():
                self._check_neighbours(worker_id, file, set(asks), ledger, heard)

    def _check_neighbours(
        self, worker_id: WorkerId, file: dict[str, Any], asks: set[WorkerId], ledger: Ledger, heard: set[WorkerId]
    ) -> None:
        for near in file["neighbours"]:
            there = ledger.fleet.files.get(near["file_id"])
            is_ready = there is not None and there.state == "ready"
            if near["worker_id"] not in heard or near["worker_id"] == worker_id or near["ready"] != is_ready:
                raise Broken(Invariant.FILES, f"{worker_id} is sent to {near}, and that is {there}")
            if not is_ready and near["worker_id"] not in asks:
                raise Broken(Invariant.FILES, f"{worker_id} waits for {near['worker_id']}, which waits for others")

    def check_ended(self, ledger: Ledger) -> None:
        """When all faults have healed long ago."""
        for file in ledger.fleet.files.values():
            if file.state in ("wanted", "deleting") and ledger.now - self.since.get(file.id, 0.0) > SETTLES_SECONDS:
                raise Broken(Invariant.CONVERGES, f"{file.id} on {file.worker_id} is still {file.state}")
            if file.state == "failed" and not file.reasons:
                raise Broken(Invariant.REASONS, f"{file.id} has failed, and nothing says why")


def _is_wanted(ledger: Ledger, file_id: FileId) -> bool:
    file = ledger.fleet.files.get(file_id)
    return file is not None and file.state == "wanted"
