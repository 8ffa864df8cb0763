"""How a model is doing, from how its instances are doing."""

from schemas.facts import ModelDegraded, ModelPending, ModelReady
from schemas.ids import ModelId
from schemas.reasons import OnItsWay, Reason
from services.scheduler.domain.fleet import Fleet, Model, Status
from services.scheduler.domain.instance import Failed, Pending, Unreachable
from services.scheduler.domain.rollout import rolled_back


def status_of(fleet: Fleet, model_id: ModelId) -> Status | None:
    """None when the model is deleted, or nothing can be said yet because an instance has not been looked at."""
    wish = fleet.wishes[model_id]
    if wish.deleted:
        return None
    counts = fleet.counts_of(model_id)
    running = counts.get("running", 0)
    on_its_way = counts.get("scheduled", 0) + counts.get("downloading", 0) + counts.get("starting", 0)
    reasons: list[Reason] = []
    if any(counts.get(kind) for kind in ("pending", "failed", "unreachable")):
        told: list[tuple[Reason, ...]] = []
        for instance in fleet.instances_of(model_id):
            match instance.state:
                case Pending(explained=False):
                    return None
                case Pending(reasons=why) | Failed(reasons=why) | Unreachable(reasons=why):
                    if not any(why is before or why == before for before in told):  # many wait for the same
                        reasons += why if not told else [reason for reason in why if reason not in reasons]
                        told.append(why)
                case _:
                    pass
    wanted = wish.spec.replicas
    back = rolled_back(fleet, model_id)
    if back is not None:
        reasons.insert(0, back)
    if running >= wanted and back is None:
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
