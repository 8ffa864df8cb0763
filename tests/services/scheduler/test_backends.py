"""A backend's definition is looked at when an attempt is placed: what waits is looked at again, what runs is left alone."""

from datetime import UTC, datetime
from typing import Any

from schemas.asks import ModelInspection
from schemas.backends import InferenceBackend
from schemas.facts import BackendCreated, BackendDeleted, BackendUpdated, ModelCreated
from schemas.facts.base import Fact
from schemas.ids import ModelId, WorkerId
from schemas.models import Gpu, Inventory, Launch, ModelSpec, ModelWeights, Needs
from schemas.reasons import BackendDisabled, BackendUnknown, ImageMissing, Reason
from schemas.reports import WorkerObserved
from schemas.sources import LocalPath
from services.scheduler.domain.core import Core, Now
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.instance import Pending, placement_of
from services.scheduler.domain.policy import Policy

GIB = 2**30
W = WorkerId("w-1")
M = ModelId("m-a")
NOW = Now(datetime(2026, 11, 26, tzinfo=UTC), 1000.0)
WEIGHTS = ModelWeights(format="gguf", weight_bytes=GIB, files=("/m",), layers=4, kv_heads=1, head_size=8)
IMAGE = {"image": "mine:{version}", "accelerator": "cuda"}


def mine(**fields: Any) -> InferenceBackend:
    return InferenceBackend.model_validate(
        {"backend_name": "mine", "engine": "llama.cpp", "images": [IMAGE], "default_version": "1"} | fields
    )


class Story:
    """A worker with one GPU, and a container runtime."""

    def __init__(self) -> None:
        self.core = Core(Fleet(), Policy(), NOW)
        self.seq = 0
        inventory = Inventory(
            os="linux",
            arch="amd64",
            cpu_count=4,
            memory_total=32 * GIB,
            gpus=(Gpu(index=0, vendor="nvidia", type="cuda", name="x", memory_total=24 * GIB),),
            runtime="docker",
        )
        identity = {"worker_id": W, "boot_id": "b", "counter": 1, "observed_at": NOW.at}
        picture = {"name": "gpu-1", "address": "127.0.0.1", "agent_version": "1", "inventory": inventory, "engines": ()}
        self.core.heard(WorkerObserved.model_validate(identity | picture), NOW)
        self.core.beat(W, "downloader", NOW)

    def wishes(self, fact: Fact) -> None:
        self.seq += 1
        evolve(self.core.fleet, fact, self.core.fleet.seq + 1, NOW.at)
        self.core.wished(fact, NOW)
        for question in self.core.questions(NOW):
            self.core.inspected(question, ModelInspection(weights=WEIGHTS), NOW)

    def deploys(self, **fields: Any) -> None:
        spec = ModelSpec.model_validate({"name": "a", "source": LocalPath(path="/a"), "backend": "mine"} | fields)
        self.wishes(ModelCreated(model_id=M, spec=spec))

    @property
    def reasons(self) -> tuple[Reason, ...]:
        (instance,) = self.core.fleet.instances_of(M)
        assert isinstance(instance.state, Pending), instance.state
        return instance.state.reasons

    @property
    def launch(self) -> Launch:
        (instance,) = self.core.fleet.instances_of(M)
        placement = placement_of(instance.state)
        assert placement is not None, self.reasons
        return placement.launch


def test_a_definition_says_how_an_attempt_is_launched() -> None:
    story = Story()
    story.wishes(
        BackendCreated(
            backend=mine(
                default_entrypoint=["serve"],
                default_run_command="{{model_path}}",
                default_backend_param=["--ctx-size=512"],
                default_env={"A": "1"},
                health_check_path="/up",
                parameter_format="equal",
                needs={"host_ipc": True},
            )
        )
    )
    story.deploys(env={"B": "2"})
    launch = story.launch
    assert (launch.backend, launch.engine, launch.backend_version, launch.image) == ("mine", "llama.cpp", "1", "mine:1")
    assert (launch.entrypoint, launch.run_command, launch.env) == (("serve",), "{{model_path}}", {"A": "1", "B": "2"})
    assert launch.parameters[-1] == "--ctx-size=512"
    assert (launch.health_path, launch.parameter_format, launch.needs) == ("/up", "equal", Needs(host_ipc=True))


def test_a_model_of_an_unknown_backend_waits_for_it() -> None:
    story = Story()
    story.deploys()
    assert isinstance(story.reasons[0], BackendUnknown)
    story.wishes(BackendCreated(backend=mine()))
    assert story.launch.image == "mine:1"


def test_a_model_without_an_image_for_the_worker_waits_for_one() -> None:
    story = Story()
    story.wishes(BackendCreated(backend=mine(images=[IMAGE | {"platforms": ["linux/arm64"]}])))
    story.deploys()
    assert story.reasons == (ImageMissing(worker_id=W, backend="mine", accelerators=("cuda",), platform="linux/amd64"),)
    story.wishes(BackendUpdated(backend=mine()))
    assert story.launch.image == "mine:1"


def test_a_change_leaves_alone_what_has_its_place() -> None:
    story = Story()
    story.wishes(BackendCreated(backend=mine()))
    story.deploys()
    before = story.launch
    story.wishes(BackendUpdated(backend=mine(default_version="2")))
    story.wishes(BackendDeleted(backend_name="mine"))
    assert story.launch == before


def test_a_backend_that_is_switched_off_takes_nothing_new() -> None:
    story = Story()
    story.wishes(BackendCreated(backend=mine(enabled=False)))
    story.deploys()
    assert story.reasons[0] == BackendDisabled(backend="mine")
    story.wishes(BackendUpdated(backend=mine()))
    assert story.launch.image == "mine:1"


def test_an_operators_definition_takes_the_place_of_a_built_in_one_until_it_is_deleted() -> None:
    story = Story()
    story.wishes(BackendCreated(backend=mine(backend_name="llama.cpp")))
    assert story.core.fleet.all_backends()["llama.cpp"].images[0].image == "mine:{version}"
    story.wishes(BackendDeleted(backend_name="llama.cpp"))
    story.deploys(backend="llama.cpp")
    assert story.launch.image == "ghcr.io/ggml-org/llama.cpp:server-cuda"


def test_a_model_s_own_image_comes_before_the_backend_s() -> None:
    story = Story()
    story.wishes(BackendCreated(backend=mine()))
    story.deploys(image_name="theirs:7")
    assert (story.launch.image, story.launch.backend_version) == ("theirs:7", None)
