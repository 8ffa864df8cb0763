"""What people see, at 80 columns and in a narrow terminal."""

from datetime import UTC, datetime, timedelta, timezone
from inspect import cleandoc
from typing import Any

from rich.console import Console, RenderableType

from services.cli import render

Document = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
NAMES = {"w-1": "gpu-01", "w-2": "gpu-02", "m-1": "llama-8b", "i-1": "llama-8b-0"}


def shown(what: RenderableType, columns: int = 80) -> str:
    console = Console(width=columns, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def ago(**duration: float) -> str:
    return (NOW - timedelta(**duration)).isoformat()


def a_reason(worker: str | None, code: str, text: str, who: str = "wait") -> Document:
    return {
        "worker_id": worker and f"w-{worker}",
        "worker": worker,
        "code": code,
        "who": who,
        "numbers": {},
        "text": text,
    }


def an_instance(name: str, state: str, **fields: Any) -> Document:
    model = name.rpartition("-")[0]
    return {
        "id": f"i-{name}",
        "name": name,
        "model_id": f"m-{model}",
        "model_name": model,
        "state": state,
        "since": ago(seconds=5),
        "reasons": [],
        "closest_worker": None,
        "suggestions": [],
        "attempt": 1,
        "worker_id": None,
        "worker_name": None,
        "worker_ip": None,
        "port": None,
        "gpu_type": None,
        "gpu_indexes": [],
        "computed_resource_claim": None,
        "restart_count": 0,
        "next_restart_at": None,
        "exit_code": None,
        "failed_phase": None,
        "log_tail": [],
    } | fields


def a_model(name: str, state: str, ready: int, replicas: int, reasons: tuple[Document, ...] = ()) -> Document:
    fields = {"ready_replicas": ready, "replicas": replicas, "reasons": list(reasons)}
    return {"id": f"m-{name}", "name": name, "state": state, "since": ago(minutes=3), **fields}


OBJECTIONS = (
    a_reason("gpu-02", "worker_not_ready", "the worker is unreachable"),
    a_reason("gpu-01", "not_enough_vram", "needs 88.2 GiB on one GPU, the roomiest has 61.3 GiB of 79.6 GiB"),
    a_reason("laptop", "no_gpu", "the worker has no GPU", "operator"),
)
WAITING = an_instance(
    "qwen3-235b-0",
    "pending",
    reasons=list(OBJECTIONS),
    closest_worker="w-gpu-01",
    suggestions=[{"change": {}, "text": "with --ctx-size=16384 it fits"}],
)
FAILED = an_instance(
    "llama-8b-0",
    "error",
    worker_id="w-gpu-01",
    worker_name="gpu-01",
    attempt=3,
    reasons=[a_reason("gpu-01", "out_of_memory", "the engine ran out of memory", "author")],
    failed_phase="starting",
    exit_code=1,
    restart_count=3,
    next_restart_at=(NOW + timedelta(seconds=7)).isoformat(),
    log_tail=["ggml_aligned_malloc: insufficient memory", "error: \x1b[31mthe server\x07 did not start\x1b[0m"],
)
RUNNING = an_instance(
    "tinychat-0",
    "running",
    since=ago(hours=26),
    worker_id="w-gpu-01",
    worker_name="gpu-01",
    worker_ip="10.0.0.5",
    port=40001,
    gpu_type="cuda",
    gpu_indexes=[0],
    computed_resource_claim={"ram": 275 * 2**20, "vram": {"0": 20 * 2**30}},
)


def test_models_are_listed_with_their_instances_and_the_reason_that_is_nearest_to_none() -> None:
    models = [
        a_model("idle", "ready", 0, 0),
        a_model("llama-8b", "pending", 0, 1),
        a_model("new", "pending", 0, 1, (a_reason(None, "no_workers", "no worker has joined the fleet", "operator"),)),
        a_model("qwen3-235b", "pending", 0, 1, OBJECTIONS),
        a_model("tinychat", "ready", 1, 1),
    ]
    leaving = an_instance("gone-0", "stopping", worker_name="gpu-02", since=ago(days=3))
    table = render.ps(models, [FAILED, WAITING, RUNNING, leaving], NOW)
    assert shown(table) == cleandoc("""
        NAME            STATE     SINCE  READY  WHERE, OR WHY NOT
        idle            ready     3 min  0/0
        llama-8b        pending   3 min  0/1
          llama-8b-0    error     5 s           gpu-01: the engine ran out of memory
        new             pending   3 min  0/1    no worker has joined the fleet
        qwen3-235b      pending   3 min  0/1
          qwen3-235b-0  pending   5 s           gpu-01: needs 88.2 GiB on one GPU, the
                                                roomiest has 61.3 GiB of 79.6 GiB (and 2
                                                more: muster explain qwen3-235b)
        tinychat        ready     3 min  1/1
          tinychat-0    running   26 h          gpu-01 at 10.0.0.5:40001 on cuda:0
        (deleted)
          gone-0        stopping  3 d           gpu-02
    """)
    assert shown(render.ps([models[3]], [WAITING], NOW), 40) == cleandoc("""
        qwen3-235b  pending  3 min  0/1
          qwen3-235b-0  pending  5 s
            gpu-01: needs 88.2 GiB on one GPU,
            the roomiest has 61.3 GiB of 79.6
            GiB (and 2 more: muster explain
            qwen3-235b)
    """)
    assert shown(render.ps([], [], NOW)) == "No models. `muster deploy NAME --path FILE` runs one."


def test_pending_is_explained_once_for_all_instances_that_wait_for_the_same() -> None:
    model = a_model("qwen3-235b", "pending", 0, 2, OBJECTIONS)
    twin = WAITING | {"id": "i-2", "name": "qwen3-235b-1"}
    assert shown(render.explain(model, [WAITING, twin], NOW)) == cleandoc("""
        qwen3-235b is pending: 0 of 2 instances running.

        qwen3-235b-0 and qwen3-235b-1 are pending since 5 s: no worker takes them.
        WORKER  OBJECTION         WHO ACTS      WHY
        gpu-02  worker_not_ready  nobody: wait  the worker is unreachable
        gpu-01  not_enough_vram   nobody: wait  needs 88.2 GiB on one GPU, the roomiest
                                                has 61.3 GiB of 79.6 GiB
        laptop  no_gpu            operator      the worker has no GPU
        Closest: gpu-01
        What would help:
          - with --ctx-size=16384 it fits
    """)


def test_an_error_is_explained_by_phase_exit_code_diagnosis_last_lines_and_the_next_start() -> None:
    assert shown(render.explain(a_model("llama-8b", "pending", 0, 1), [FAILED], NOW)) == cleandoc("""
        llama-8b is pending: 0 of 1 instance running.

        llama-8b-0 is in error since 5 s: the engine ran out of memory.
          ended       while starting, attempt 3 on gpu-01
          exit code   1
          diagnosis   out_of_memory: the engine ran out of memory (who acts: author)
          crashes     3 in a row
          next start  in 7 s (12:00:07)
          last lines of its log (all of it: muster logs llama-8b-0):
            | ggml_aligned_malloc: insufficient memory
            | error: the server did not start
    """)
    again = FAILED | {"state": "starting", "attempt": 4, "reasons": [], "next_restart_at": None, "log_tail": []}
    assert shown(render.explain(a_model("llama-8b", "degraded", 0, 1), [again], NOW)) == cleandoc("""
        llama-8b is degraded: 0 of 1 instance running.

        llama-8b-0 is starting since 5 s on gpu-01, attempt 4.
          ended      last time while starting
          exit code  1
          crashes    3 in a row
    """)


def test_who_waits_for_an_image_is_told_how_far_it_is() -> None:
    pull = {
        "worker_id": "w-1",
        "image": "vllm/vllm-openai:v0.18.0",
        "bytes": 3 * 2**30,
        "total": 10 * 2**30,
        "bytes_per_second": 50 * 2**20,
        "remaining_seconds": 143.4,
    }
    begun = pull | {"worker_id": "w-2", "bytes_per_second": None, "remaining_seconds": None}
    waits = an_instance(
        "llama-8b-0", "starting", worker_id="w-1", worker_name="gpu-01", failed_phase=None, pulls=[pull, begun]
    )

    told = shown(render.explain(a_model("llama-8b", "pending", 0, 1), [waits], NOW), columns=200)
    assert told.splitlines()[-1] == (
        "llama-8b-0 is starting since 5 s on gpu-01, attempt 1: its image is pulled: 3.0 GiB of 10.0 GiB, 50.0 MiB/s, 2 min left;"
        " on w-2 its image is pulled: 3.0 GiB of 10.0 GiB."
    )
    listed = shown(render.ps([], [waits | {"pulls": [pull]}], NOW), columns=200)
    assert listed.splitlines()[-1].endswith("gpu-01; its image is pulled: 3.0 GiB of 10.0 GiB, 50.0 MiB/s, 2 min left")


def test_the_images_of_a_backend_are_listed_by_worker_with_how_far_they_are_or_why_not() -> None:
    unknown = {"bytes": None, "total": None, "bytes_per_second": None, "remaining_seconds": None, "reasons": []}
    known = {"bytes": 2**30, "total": 4 * 2**30, "bytes_per_second": 2**20, "remaining_seconds": 3072.0}
    why = a_reason("laptop", "runs_no_containers", "the worker runs engines as processes", "operator")
    items = [
        unknown | {"worker": "gpu-01", "image": "mine:1", "state": "here"},
        unknown | {"worker": "gpu-02", "image": "mine:1", "state": "pulling"} | known,
        unknown | {"worker": "laptop", "image": None, "state": "refused", "reasons": [why]},
    ]
    assert shown(render.backend_images({"backend": "mine", "workers": items}), columns=100) == cleandoc("""
        WORKER  IMAGE   STATE    HOW FAR, OR WHY NOT
        gpu-01  mine:1  here
        gpu-02  mine:1  pulling  1.0 GiB of 4.0 GiB, 1.0 MiB/s, 51 min left
        laptop  -       refused  the worker runs engines as processes
    """)
    assert shown(render.backend_images({"backend": "mine", "workers": []})) == "No worker runs mine in containers."


def test_a_running_instance_is_explained_by_where_it_is_and_what_it_holds() -> None:
    assert shown(render.explain(a_model("tinychat", "ready", 1, 1), [RUNNING], NOW)) == cleandoc("""
        tinychat is ready: 1 of 1 instance running.

        tinychat-0 is running since 26 h: gpu-01 at 10.0.0.5:40001 on cuda:0, attempt 1,
        with 275 MiB of RAM and 20.0 GiB on GPU 0 promised.
    """)


def test_what_is_claimed_is_explained_beside_what_was_measured() -> None:
    text = "1 instance on 1× A100: claims 20.0 GiB on each GPU, measured 21.0 GiB at most (105 %)"
    warning = "holds more VRAM than it claims: set claim_override"
    measured = [{"text": text, "warning": None}, {"text": "1 instance on the CPU: \x1b[1mclaims", "warning": warning}]
    placement = {"instances": [], "refusal": None, "measured": measured}
    told = shown(render.explain(a_model("tinychat", "ready", 1, 1), [RUNNING], NOW, placement)).partition(
        "promised.\n"
    )[2]
    assert told == "\n" + cleandoc("""
        1 instance on 1× A100: claims 20.0 GiB on each GPU, measured 21.0 GiB at most
        (105 %).
        1 instance on the CPU: claims.
        It holds more VRAM than it claims: set claim_override.
    """)


def test_a_measured_peak_is_told_in_a_line() -> None:
    peak = {"gpu": "A100", "gpus": 2, "peak_vram": 2**30, "peak_ram": 2**28, "claimed_vram": 1, "claimed_ram": 2}
    assert render.details("ModelPeakMeasured", peak, {}) == "1.0 GiB on each GPU and 256 MiB of RAM at most on 2× A100"
    on_cpu = peak | {"gpu": "cpu", "gpus": 0, "peak_vram": None}
    assert render.details("ModelPeakMeasured", on_cpu, {}) == "256 MiB of RAM at most on the CPU"


def test_workers_are_listed_with_what_they_have_run_and_lack() -> None:
    h100 = {"name": "NVIDIA H100", "memory_total": 80 * 2**30}
    common = {"since": ago(minutes=90), "cordoned": False, "reasons": [], "backends": {"llama.cpp": "2026.10"}}
    machines = [
        common
        | {"name": "gpu-01", "state": "ready", "ip": "10.0.0.5", "cpu_count": 64, "memory_total": 512 * 2**30}
        | {"cordoned": True, "gpus": [h100, h100]},
        common
        | {"name": "pi", "state": "unreachable", "ip": "10.0.0.6", "cpu_count": 1, "memory_total": 2**29, "gpus": []}
        | {"reasons": [a_reason("pi", "worker_silent", "nothing was heard of the worker's agent for 12 s")]},
    ]
    assert shown(render.workers(machines, NOW), 120) == cleandoc("""
        WORKER  STATE            SINCE   ADDRESS   RUNS               HAS
        gpu-01  ready, cordoned  90 min  10.0.0.5  llama.cpp 2026.10  64 CPUs, 512.0 GiB, 2× NVIDIA H100 80.0 GiB
        pi      unreachable      90 min  10.0.0.6  llama.cpp 2026.10  1 CPU, 512 MiB; nothing was heard of the worker's agent
                                                                      for 12 s
    """)
    assert shown(render.workers([], NOW)) == "No workers. `muster up` makes this machine one."


def an_event(kind: str, data: Document, *, subject: str = "instance/i-1", at: str = ago(seconds=1)) -> Document:
    return {"type": kind, "subject": subject, "time": at, "at": at, "data": data}


EVENTS = [
    an_event("WorkerReady", {"worker_id": "w-1"}, subject="worker/w-1", at="2026-11-22T23:59:59.5+00:00"),
    an_event("ModelRenamed", {"model_id": "m-1", "name": "llama", "to": "llama-8b"}, subject="model/m-1"),
    an_event("InstanceCreated", {"instance_id": "i-1", "model_id": "m-1", "name": "llama-8b-0"}),
    an_event("InstanceScheduled", {"attempt": 2, "members": [{"worker_id": "w-1"}, {"worker_id": "w-2"}]}),
    an_event("InstanceStarting", {"instance_id": "i-1", "worker_id": "w-1", "attempt": 2}),
    an_event(
        "InstanceFailed",
        {
            "attempt": 2,
            "phase": "starting",
            "exit_code": 1,
            "reasons": [{"worker_id": "w-1", "code": "out_of_memory"}, {"worker_id": "w-9", "code": "of_tomorrow"}],
        },
    ),
    an_event("InstanceRestartPlanned", {"instance_id": "i-1", "delay_seconds": 4.0, "at": "2026-11-23T12:00:04Z"}),
    an_event("ModelFileReady", {"file_id": "f-1", "worker_id": "w-1", "bytes": 1871872}, subject="file/f-1"),
    an_event("OfTomorrow", {"instance_id": "i-1", "greeting": "hel\x1blo", "parts": [1], "at_once": True}),
]


FAILURE = "attempt 2, while starting, exit code 1: gpu-01: the engine ran out of memory; w-9: of_tomorrow"


def test_events_are_lines_with_names_for_ids_and_sentences_for_reasons() -> None:
    lines = [render.event_line(f"1-{n}", event, NAMES, NOW).plain for n, event in enumerate(EVENTS, 1)]
    assert lines == [
        "1-1      11-22 23:59:59.500 WorkerReady            gpu-01",
        "1-2      11:59:59.000 ModelRenamed           llama is called llama-8b now",
        "1-3      11:59:59.000 InstanceCreated        llama-8b-0  of llama-8b",
        "1-4      11:59:59.000 InstanceScheduled      llama-8b-0  attempt 2 on gpu-01 and gpu-02",
        "1-5      11:59:59.000 InstanceStarting       llama-8b-0  attempt 2 on gpu-01",
        f"1-6      11:59:59.000 InstanceFailed         llama-8b-0  {FAILURE}",
        "1-7      11:59:59.000 InstanceRestartPlanned llama-8b-0  in 4 s",
        "1-8      11:59:59.000 ModelFileReady         f-1  2 MiB on gpu-01",
        "1-9      11:59:59.000 OfTomorrow             llama-8b-0  greeting hello, at once True",
    ]


def test_a_timeline_is_a_table_in_the_readers_time_zone() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=2)))
    assert shown(render.timeline(EVENTS[2:6], NAMES, there)) == cleandoc("""
        AT            EVENT              WHAT
        13:59:59.000  InstanceCreated    of llama-8b
        13:59:59.000  InstanceScheduled  attempt 2 on gpu-01 and gpu-02
        13:59:59.000  InstanceStarting   attempt 2 on gpu-01
        13:59:59.000  InstanceFailed     attempt 2, while starting, exit code 1: gpu-01:
                                         the engine ran out of memory; w-9: of_tomorrow
    """)


def test_names_are_learnt_from_the_facts_that_tell_them() -> None:
    told = [
        ("ModelCreated", {"model_id": "m-1", "spec": {"name": "a"}}, {"m-1": "a"}),
        ("InstanceCreated", {"instance_id": "i-1", "name": "a-0"}, {"i-1": "a-0"}),
        ("WorkerRenamed", {"worker_id": "w-1", "name": "new"}, {"w-1": "new"}),
        ("ModelReady", {"model_id": "m-1"}, {}),
    ]
    assert [render.named_by(an_event(kind, data)) for kind, data, _ in told] == [names for _, _, names in told]
