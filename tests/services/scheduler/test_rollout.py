"""Which instance goes and which is made, where few histories of the simulation get."""

from schemas.asks import ModelInspection
from schemas.facts import InstanceCreated, InstanceFailed, InstanceStopping, ModelCreated, ModelScaled, ModelUpdated
from schemas.facts.base import Fact
from schemas.ids import InstanceId, WorkerId
from schemas.models import ModelSpec, ModelWeights
from schemas.reports import EnginePhase, EngineReported, EngineSeen
from schemas.sources import LocalPath
from services.scheduler.domain.core import Question
from services.scheduler.domain.fleet import question_about
from services.scheduler.domain.instance import Pending, Running, Scheduled
from tests.simulation.test_found import GIB, MODEL, ONE, TWO, Story


def spec(path: str = "/a", replicas: int = 1, **fields: object) -> ModelSpec:
    given = {"name": "a", "replicas": replicas, "source": LocalPath(path=path)}
    return ModelSpec.model_validate(given | fields)


def answers(story: Story, worker_id: WorkerId, path: str, size: int = GIB) -> list[Fact]:
    generation = story.core.fleet.wishes[MODEL].generation
    weights = ModelWeights(format="gguf", weight_bytes=size, files=(path,))
    question = Question(MODEL, worker_id, generation, question_about(spec(path)))
    return story.decided(story.core.inspected(question, ModelInspection(weights=weights), story.now))


def engine(story: Story, worker_id: WorkerId, number: int, phase: EnginePhase) -> list[Fact]:
    seen = EngineSeen(instance_id=InstanceId(f"i-a-{number}"), attempt=1, phase=phase, ports=(4000 + number,))
    return story.hear(EngineReported(**story.identity(worker_id), engine=seen))


def test_what_has_failed_for_good_is_replaced_when_the_engine_is_edited() -> None:
    story = Story()
    story.picture(ONE)
    story.beats(ONE)
    story.wish(ModelCreated(model_id=MODEL, spec=spec(restart_on_error=False)))
    answers(story, ONE, "/a")
    (failed,) = [fact for fact in engine(story, ONE, 0, "exited") if isinstance(fact, InstanceFailed)]
    assert failed.final
    facts = story.wish(ModelUpdated(model_id=MODEL, spec=spec("/b", restart_on_error=False)))

    assert [fact.cause for fact in facts if isinstance(fact, InstanceStopping)] == ["replaced"]
    assert [fact.instance_id for fact in facts if isinstance(fact, InstanceCreated)] == ["i-a-1"]


def test_of_those_that_wait_to_replace_others_no_more_stay_than_may_run_beside_them() -> None:
    """Two run a former revision; there is no room for the new one. Two wait, as long as three were wanted."""
    story = Story()
    for worker_id in (ONE, TWO):
        story.picture(worker_id)
    story.beats(ONE, TWO)
    story.wish(ModelCreated(model_id=MODEL, spec=spec(replicas=2)))
    answers(story, ONE, "/a")
    answers(story, TWO, "/a")
    for number, instance in enumerate(story.core.fleet.instances_of(MODEL)):
        assert isinstance(instance.state, Scheduled)
        engine(story, instance.state.placement.leader.worker_id, number, "healthy")
    story.wish(ModelUpdated(model_id=MODEL, spec=spec("/b", replicas=2)))
    answers(story, ONE, "/b", 100 * GIB)
    answers(story, TWO, "/b", 100 * GIB)
    story.wish(ModelScaled(model_id=MODEL, name="a", replicas=3))
    states = [type(instance.state) for instance in story.core.fleet.instances_of(MODEL)]
    assert (states.count(Running), states.count(Pending)) == (2, 2)
    facts = story.wish(ModelScaled(model_id=MODEL, name="a", replicas=2))

    assert [fact.cause for fact in facts if isinstance(fact, InstanceStopping)] == ["scaled_down"]
    states = [type(instance.state) for instance in story.core.fleet.instances_of(MODEL)]
    assert (states.count(Running), states.count(Pending)) == (2, 1)
