"""Who may say what on the bus: two NATS accounts, an NKey for each service, permissions by subject.

Agents and downloaders live in EDGE and reach CORE through service imports alone. No edge credential may create a
consumer, name a stream or touch a subject of FACTS: in a single account the *reply subject* of a report can be made to
land in FACTS as a fact (tried on 2.15.1; a test repeats it against this configuration).
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import nkeys

from schemas.ids import WorkerId
from schemas.relay import RELAY
from schemas.subjects import ALL_ASSIGNED, ALL_FACTS, ALL_REQUESTS, PROJECTED, ask

Role = Literal["operator", "api", "scheduler", "agent", "downloader", "observer", "simulator"]
CORE_ROLES: Final = frozenset({"operator", "api", "scheduler", "observer"})

_READ_STREAMS: Final = [
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.CREATE.>",
    "$JS.API.CONSUMER.DELETE.>",
    "$JS.API.CONSUMER.INFO.>",
    "$JS.API.CONSUMER.MSG.NEXT.>",
    "$JS.ACK.>",
    "$JS.FC.>",
]
_BUCKETS: Final = ["$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.PURGE.*", "$KV.>", "$O.>"]
"""Key-value and object buckets (lease, snapshots). FACTS itself denies deletion."""
_READ_FACTS: Final = [
    "$JS.API.STREAM.INFO.FACTS",
    "$JS.API.STREAM.MSG.GET.FACTS",
    "$JS.API.DIRECT.GET.FACTS",
    "$JS.API.DIRECT.GET.FACTS.>",
    "$JS.API.CONSUMER.CREATE.FACTS",
    "$JS.API.CONSUMER.CREATE.FACTS.>",
    "$JS.API.CONSUMER.DELETE.FACTS.*",
    "$JS.API.CONSUMER.INFO.FACTS.*",
    "$JS.API.CONSUMER.MSG.NEXT.FACTS.*",
]
"""Of FACTS alone: who may make a consumer of REPORTS can have reports *delivered* into FACTS (tried on 2.15.1)."""
_ASKED_BY_THE_SCHEDULER: Final = [ask("*", verb) for verb in ("inspect", "look", "logs", "agent-log", "downloader-log")]
"""Engines are talked to by gateways alone: `relay` is not among them."""
VERBS_OF_DOWNLOADERS: Final = ("inspect", "downloader-log", "share", "share-bytes")
"""The last two by other downloaders: workers give each other files that they have."""

PUBLISH: Final[dict[str, list[str]]] = {
    "operator": [">"],
    "api": [
        "muster.facts.api.>",
        "muster.projected",
        "muster.ask.>",
        "muster.core.*",
        ALL_REQUESTS,
        *_READ_STREAMS,
    ],
    "scheduler": ["muster.facts.scheduler.>", "muster.assigned.*", *_ASKED_BY_THE_SCHEDULER, *_READ_STREAMS, *_BUCKETS],
    "observer": _READ_FACTS,
    "simulator": ["muster.reports.*.>", "muster.beat.*.*"],
}
"""What each role may say; agents and downloaders of their own worker alone (`publishes`)."""


def new_seed() -> str:
    """A fresh seed of a user NKey (ed25519), as text."""
    return nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()


def public_key(seed: str) -> str:
    public: bytes = nkeys.from_seed(bytearray(seed.encode())).public_key  # pyright: ignore[reportAssignmentType] - bytes, annotated wrongly there
    return public.decode()


def worker_id_of(agent_public_key: str) -> WorkerId:
    """Identity is the key: a worker that is renamed or moves stays the same worker."""
    return WorkerId("w-" + hashlib.sha256(agent_public_key.encode()).hexdigest()[:12])


def inbox_prefix(role: Role, worker_id: WorkerId | None = None) -> str:
    return f"_INBOX_{worker_id}_{role}" if worker_id else f"_INBOX_{role}"


@dataclass(frozen=True, slots=True)
class Principal:
    role: Role
    public_key: str
    worker_id: WorkerId | None = None
    """Whose agent or downloader it is."""


def read_or_make_seed(path: Path) -> str:
    """The seed in this file; a new one, mode 0600, when there is none."""
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed = new_seed()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(seed + "\n")
    return seed


def render_server_config(
    principals: Sequence[Principal],
    *,
    store_dir: Path,
    listen: str = "127.0.0.1:-1",
    ports_dir: Path | None = None,
    server_name: str = "muster",
) -> str:
    """The configuration of a nats-server with both accounts. Paths must be free of quotes."""
    core = [p for p in principals if p.role in CORE_ROLES]
    edge = [p for p in principals if p.role not in CORE_ROLES]
    assigned = "$JS.API.DIRECT.GET.ASSIGNED.muster.assigned.*"
    ports = f'ports_file_dir: "{ports_dir}"\n' if ports_dir else ""
    return f"""# Written by Muster; changes are overwritten.
server_name: {server_name}
listen: "{listen}"
{ports}max_payload: 1MB
write_deadline: "10s"
jetstream {{ store_dir: "{store_dir}", sync_interval: always }}
accounts {{
  CORE {{
    jetstream: enabled
    users: [
{_users(core)}
    ]
    exports: [
      {{ service: "muster.reports.*.>", accounts: [EDGE] }}
      {{ service: "muster.beat.*.*", accounts: [EDGE] }}
      {{ service: "muster.progress.*", accounts: [EDGE] }}
      {{ service: "{assigned}", accounts: [EDGE] }}
      {{ stream: "muster.assigned.*", accounts: [EDGE] }}
    ]
    imports: [ {{ service: {{ account: EDGE, subject: "muster.ask.*.*" }} }} ]
  }}
  EDGE {{
    users: [
{_users(edge, [p.worker_id for p in edge if p.worker_id])}
    ]
    exports: [ {{ service: "muster.ask.*.*", accounts: [CORE], response_type: stream }} ]
    imports: [
      {{ service: {{ account: CORE, subject: "muster.reports.*.>" }} }}
      {{ service: {{ account: CORE, subject: "muster.beat.*.*" }} }}
      {{ service: {{ account: CORE, subject: "muster.progress.*" }} }}
      {{ service: {{ account: CORE, subject: "{assigned}" }} }}
      {{ stream: {{ account: CORE, subject: "muster.assigned.*" }} }}
    ]
  }}
}}
"""


def _users(principals: Sequence[Principal], workers: Iterable[WorkerId] = ()) -> str:
    return "\n".join(_user(principal, sorted(set(workers))) for principal in principals)


def _user(principal: Principal, workers: Sequence[WorkerId]) -> str:
    """`workers`: those that have keys of their own."""
    denied_to_say, denied_to_hear = denies(principal, workers)
    return (
        f"      {{ nkey: {principal.public_key}, permissions: {{"
        f" publish: {_allowed(publishes(principal), denied_to_say)},"
        f" subscribe: {_allowed(subscribes(principal), denied_to_hear)}{_responses(principal)} }} }}"
    )


def _allowed(subjects: Sequence[str], denied: Sequence[str]) -> str:
    return f"{{ allow: {_list(subjects)}, deny: {_list(denied)} }}" if denied else _list(subjects)


def publishes(principal: Principal) -> list[str]:
    worker = principal.worker_id
    match principal.role:
        case "agent":
            kinds = ("instance", "worker")
        case "downloader":
            kinds = ("file", "files")
        case _:
            return PUBLISH[principal.role]
    return [
        *(f"muster.reports.{worker}.{kind}.>" for kind in kinds),
        f"muster.beat.{worker}.{principal.role}",
        f"$JS.API.DIRECT.GET.ASSIGNED.muster.assigned.{worker}",
        *(
            [f"muster.progress.{worker}", ask("*", "share"), ask("*", "share-bytes")]
            if principal.role == "downloader"
            else []
        ),
    ]


def subscribes(principal: Principal) -> list[str]:
    inbox = f"{inbox_prefix(principal.role, principal.worker_id)}.>"
    match principal.role:
        case "agent":
            return [
                inbox,
                f"muster.assigned.{principal.worker_id}",
                *(
                    f"muster.ask.{principal.worker_id}.{verb}"
                    for verb in ("logs", "look", "images", "pull", "agent-log", RELAY)
                ),
            ]
        case "downloader":
            return [
                inbox,
                f"muster.assigned.{principal.worker_id}",
                *(f"muster.ask.{principal.worker_id}.{verb}" for verb in VERBS_OF_DOWNLOADERS),
            ]
        case "operator":
            return [">"]
        case "simulator":
            return [inbox, ALL_ASSIGNED, *(ask("*", verb) for verb in ("inspect", "logs", "look"))]
        case "observer":
            return [inbox, ALL_FACTS, PROJECTED, "_INBOX.>"]
        case _:
            return [inbox, "muster.>", "$KV.>", "$O.>", "_INBOX.>"]


def denies(principal: Principal, workers: Sequence[WorkerId]) -> tuple[list[str], list[str]]:
    """What a simulator may neither say nor hear although its wildcards cover it: all that is a real worker's."""
    if principal.role != "simulator":
        return [], []
    said = ("muster.reports.{}.>", "muster.beat.{}.*")
    heard = ("muster.assigned.{}", "muster.ask.{}.*")
    return (
        [subject.format(worker) for worker in workers for subject in said],
        [subject.format(worker) for worker in workers for subject in heard],
    )


def _responses(principal: Principal) -> str:
    if principal.role in CORE_ROLES and principal.role != "scheduler":
        return ""
    return ', allow_responses: { max: -1, expires: "10m" }'


def _list(subjects: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"
