"""How many instances of a model there are, and of which revision: what to create and what to stop next.

Make before break: an instance that is to be replaced (its engine was edited, its worker is drained) serves until another
one runs in its stead. Where there is no room for one more, one is stopped first. Asked again after every change, so each
step follows from how things are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.facts.instance import StopCause
from schemas.ids import InstanceId, ModelId
from schemas.models import ModelSpec
from schemas.reasons import RolledBack
from services.scheduler.domain.fleet import Fleet, Model
from services.scheduler.domain.instance import (
    Downloading,
    Failed,
    Instance,
    Pending,
    Running,
    Scheduled,
    Starting,
    Stopping,
    Unreachable,
    placement_of,
)

SURGE: Final = 1
"""So many instances more than wanted may be there while they are replaced."""

_USEFUL: Final[dict[type, int]] = {
    Pending: 0, Failed: 1, Unreachable: 2, Scheduled: 3, Downloading: 4, Starting: 5, Running: 6,
}  # fmt: skip
"""Which of two instances is stopped first when there are too many: the less useful one."""


@dataclass(frozen=True, slots=True)
class Stop:
    instance: Instance
    cause: StopCause


@dataclass(frozen=True, slots=True)
class Step:
    create: int = 0
    stop: tuple[Stop, ...] = ()


def next_step(
    fleet: Fleet, model_id: ModelId, helps: Callable[[Instance], bool], requests: Callable[[InstanceId], int]
) -> Step:
    """`helps`: would what a new instance waits for be free without this one? `requests`: how many an instance has in flight."""
    wish = fleet.wishes[model_id]
    alive = [each for each in fleet.instances_of(model_id) if not isinstance(each.state, Stopping)]
    if wish.deleted:
        return Step(stop=tuple(Stop(each, "model_deleted") for each in alive))
    wanted = wish.spec.replicas
    leaving = [each for each in alive if why_replaced(fleet, each) is not None]
    staying = [each for each in alive if why_replaced(fleet, each) is None]
    serving = [each for each in leaving if isinstance(each.state, Running)]
    ended = [_ended(fleet, each) for each in leaving if each not in serving]
    room = wanted + (SURGE if serving else 0) - len(staying) - len(serving)
    waiting = sum(
        isinstance(each.state, Pending) for each in staying
    )  # more of them than may run beside those that serve
    too_many = max(len(staying) - wanted, min(-room, waiting))
    surplus = [Stop(each, "scaled_down") for each in least_useful(fleet, staying, too_many, requests)]
    create = max(min(wanted - len(staying), room), 0)
    running = sum(isinstance(each.state, Running) for each in staying)
    spare = min(running + len(serving) - wanted, len(serving))
    replaced = [_ended(fleet, each) for each in least_useful(fleet, serving, spare, requests)]
    if spare <= 0 and not create and _is_stuck(fleet, model_id, staying):
        in_the_way = [each for each in serving if _is_outdated(fleet, each) and helps(each)]
        replaced = [_ended(fleet, each) for each in least_useful(fleet, in_the_way, 1, requests)]
    return Step(create, (*ended, *surplus, *replaced))


def why_replaced(fleet: Fleet, instance: Instance) -> StopCause | None:
    """None: it is as it should be, or its next attempt will be."""
    if isinstance(
        instance.state, Failed
    ):  # an edit is what was missing; without one its next attempt is as it should be
        return "replaced" if instance.state.final and _is_outdated(fleet, instance) else None
    if isinstance(instance.state, Pending | Stopping):
        return None
    if _is_outdated(fleet, instance):
        return "replaced"
    placement = placement_of(instance.state)
    if placement is not None and any(fleet.operator_of(member.worker_id).draining for member in placement.members):
        return "drained"
    return None


def _ended(fleet: Fleet, instance: Instance) -> Stop:
    return Stop(instance, why_replaced(fleet, instance) or "replaced")


def is_unsettled(fleet: Fleet, model_id: ModelId) -> bool:
    """Instances are being replaced, or there are more or fewer than are wanted."""
    wish = fleet.wishes[model_id]
    alive = [each for each in fleet.instances_of(model_id) if not isinstance(each.state, Stopping)]
    wanted = 0 if wish.deleted else wish.spec.replicas
    return len(alive) != wanted or any(why_replaced(fleet, each) is not None for each in alive)


def least_useful(
    fleet: Fleet, instances: Sequence[Instance], count: int, requests: Callable[[InstanceId], int]
) -> list[Instance]:
    """Those that are stopped first: not running before running, then the fewest requests in flight, then the worst placed,
    then the newest.
    """

    def useful(each: Instance) -> tuple[int, int, int, int, str]:
        busy = requests(each.id) if isinstance(each.state, Running) else 0
        return (_USEFUL.get(type(each.state), 0), busy, *_badly_placed(fleet, each))

    return sorted(instances, key=useful)[:count] if count > 0 else []


def _badly_placed(fleet: Fleet, instance: Instance) -> tuple[int, int, str]:
    """On a cordoned worker first, then where most is promised; the newest where all is equal."""
    placement = placement_of(instance.state)
    if placement is None:
        return (0, 0, _newest_first(instance.id))
    machines = [fleet.machines.get(member.worker_id) for member in placement.members]
    cordoned = any(machine is None or machine.cordoned for machine in machines)
    load = max(
        (machine.claims * 10_000 // max(len(machine.gpus), 1) for machine in machines if machine is not None), default=0
    )
    return (-int(cordoned), -load, _newest_first(instance.id))


def _newest_first(instance_id: str) -> str:
    """Ids end with a number that rises: a longer or later one comes first."""
    number = int(instance_id.rpartition("-")[2]) if instance_id.rpartition("-")[2].isdigit() else 0
    return f"{10**12 - number:013}"


def _is_outdated(fleet: Fleet, instance: Instance) -> bool:
    placement = placement_of(instance.state)
    if placement is None:
        return False
    revision = placement.launch.revision
    return revision is not None and revision != revision_of(fleet, instance.model_id)[1]


def _is_stuck(fleet: Fleet, model_id: ModelId, staying: Sequence[Instance]) -> bool:
    """A new instance waits for room, nothing else is on its way, and nothing is being stopped."""
    waits = any(isinstance(each.state, Pending) and each.state.explained for each in staying)
    moves = any(isinstance(each.state, Scheduled | Downloading | Starting | Failed) for each in staying)
    stopping = any(isinstance(each.state, Stopping) for each in fleet.instances_of(model_id))
    return waits and not moves and not stopping


# -- revisions --------------------------------------------------------------------------------------------------------


def revision_of(fleet: Fleet, model_id: ModelId) -> tuple[ModelSpec, int]:
    """What new attempts run: what is wanted, or what was wanted before when the newest revision was rolled back."""
    wish = fleet.wishes[model_id]
    model = fleet.models.get(model_id, Model())
    if model.rolled_back == wish.revision and wish.former is not None:
        before = wish.former.model_copy(update={"replicas": wish.spec.replicas, "name": wish.spec.name})
        return before, wish.former_revision
    return wish.spec, wish.revision


def is_on_trial(fleet: Fleet, model_id: ModelId) -> bool:
    """The newest revision has never run, and there is a former one to go back to."""
    wish = fleet.wishes[model_id]
    model = fleet.models.get(model_id, Model())
    return wish.former is not None and wish.revision not in (model.proven, model.rolled_back)


def rolled_back(fleet: Fleet, model_id: ModelId) -> RolledBack | None:
    """What is to be said of a model that runs its former revision."""
    wish = fleet.wishes[model_id]
    model = fleet.models.get(model_id, Model())
    if model.rolled_back != wish.revision:
        return None
    return RolledBack(revision=wish.revision, problem=model.rollback_problem or "it did not run")
