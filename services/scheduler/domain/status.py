"""How a model is doing, from how its instances are doing."""

from schemas.facts import ModelDegraded, ModelPending, ModelReady
from schemas.ids import ModelId
from schemas.reasons import OnItsWay, Reason
from services.scheduler.domain.fleet import Fleet, Model, Status
from services.scheduler.domain.instance import Downloading, Failed, Pending, Running, Scheduled, Starting, Unreachable


def status_of(fleet: Fleet, model_id: ModelId) -> Status | None:
    """None when the model is deleted, or nothing can be said yet because an instance has not been looked at."""
    wish = fleet.wishes[model_id]
    if wish.deleted:
        return None
    running, on_its_way = 0, 0
    reasons: list[Reason] = []
    for instance in sorted(fleet.instances_of(model_id), key=lambda i: i.id):
        match instance.state:
            case Running():
                running += 1
            case Scheduled() | Downloading() | Starting():
                on_its_way += 1
            case Pending(explained=False):
                return None
            case Pending(reasons=why) | Failed(reasons=why) | Unreachable(reasons=why):
                reasons.extend(reason for reason in why if reason not in reasons)
            case _:
                pass
    wanted = wish.spec.replicas
    if running >= wanted:
        return Status("ready", wish.generation, running, running, ())
    if running + on_its_way == 0:
        return Status("pending", wish.generation, wanted, 0, tuple(reasons))
    if on_its_way:
        reasons.insert(0, OnItsWay(instances=on_its_way))
    return Status("degraded", wish.generation, wanted, running, tuple(reasons))


def news(model_id: ModelId, model: Model, status: Status | None) -> ModelPending | ModelDegraded | ModelReady | None:
    """The fact that states a status, unless it was stated already."""
    if status is None or status == model.status:
        return None
    match status.state:
        case "ready":
            return ModelReady(model_id=model_id, generation=status.generation, running=status.running)
        case "pending":
            return ModelPending(
                model_id=model_id, generation=status.generation, wanted=status.wanted, reasons=status.reasons
            )
        case "degraded":
            return ModelDegraded(
                model_id=model_id,
                generation=status.generation,
                wanted=status.wanted,
                running=status.running,
                reasons=status.reasons,
            )
