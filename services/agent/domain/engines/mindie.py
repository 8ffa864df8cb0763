"""MindIE, Huawei's server for Ascend. It takes no flags: what a user gives as flags becomes its `config.json`.

Sources: "Service parameter configuration" and "Multi-node inference" of MindIE 2.x (2.3.0), HCCL's rank table (version 1.0).

A flag is a documented key in lower case with dashes: `--max-seq-len` is `maxSeqLen`. One that is none is refused with a
reason: there is nobody to pass it on to. The share of memory is an environment variable, `NPU_MEMORY_FRACTION`.

On several machines every one reads the same rank table and its own `config.json`; the one with rank 0 answers requests.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from schemas.models import Member
from schemas.parameters import find, split, whole_number
from schemas.reasons import ParameterInvalid, Reason, UnknownParameter
from schemas.wanted import FLAGS
from services.agent.domain.engines.environment import on_ascend
from services.agent.domain.engines.local import path_of
from services.agent.domain.engines.placeholders import substituted
from services.agent.domain.engines.start import Start, default_program
from services.agent.domain.runtime import EngineCommand, EngineNotStarted

_DAEMON: Final = """
for each in /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/nnal/atb/set_env.sh \\
    /usr/local/Ascend/atb-models/set_env.sh /usr/local/Ascend/mindie/set_env.sh; do
  if [ -r "$each" ]; then . "$each"; fi
done
cd "${MIES_INSTALL_PATH:-/usr/local/Ascend/mindie/latest/mindie-service}" && exec ./bin/mindieservice_daemon "$@"
"""
PROGRAM: Final = ("bash", "-c", _DAEMON, "mindie")
"""Its libraries are found through scripts that its images leave to the caller; the text is constant."""

Kind = Literal["number", "switch", "text"]
Section = Literal["ServerConfig", "BackendConfig", "ModelDeployConfig", "ModelConfig", "ScheduleConfig"]

KEYS: Final[Mapping[Section, Mapping[str, Kind]]] = {
    "ServerConfig": {
        "maxLinkNum": "number", "fullTextEnabled": "switch", "openAiSupport": "text", "tokenTimeout": "number",
        "e2eTimeout": "number", "maxRequestLength": "number", "allowAllZeroIpListening": "switch", "inferMode": "text",
        "distDPServerEnabled": "switch",
    },
    "BackendConfig": {"tokenizerProcessNumber": "number", "multiNodesInferPort": "number"},
    "ModelDeployConfig": {
        "maxSeqLen": "number", "maxInputTokenLen": "number", "truncation": "switch", "maxLoras": "number",
        "maxLoraRank": "number",
    },
    "ModelConfig": {
        "modelInstanceType": "text", "modelName": "text", "cpuMemSize": "number", "npuMemSize": "number",
        "backendType": "text", "trustRemoteCode": "switch", "async_scheduler_wait_time": "number",
        "tp": "number", "dp": "number", "pp": "number", "cp": "number", "sp": "number", "moe_tp": "number",
        "moe_ep": "number", "plugin_params": "text",
    },
    "ScheduleConfig": {
        "templateType": "text", "templateName": "text", "cacheBlockSize": "number", "maxPrefillBatchSize": "number",
        "maxPrefillTokens": "number", "prefillTimeMsPerReq": "number", "prefillPolicyType": "number",
        "decodeTimeMsPerReq": "number", "decodePolicyType": "number", "maxBatchSize": "number",
        "maxIterTimes": "number", "maxPreemptCount": "number", "supportSelectBatch": "switch",
        "maxQueueDelayMicroseconds": "number", "enablePrefixCache": "switch",
    },
}  # fmt: skip
_SIZES: Final = {
    "tensor-parallel-size": "tp", "pipeline-parallel-size": "pp", "data-parallel-size": "dp",
    "context-parallel-size": "cp", "sequence-parallel-size": "sp", "moe-tensor-parallel-size": "moe_tp",
    "moe-expert-parallel-size": "moe_ep", "served-model-name": "modelName", "max-model-len": "maxSeqLen",
}  # fmt: skip
"""Other names of keys, as vLLM's users know them."""
_FLAG: Final = re.compile(r"--?[A-Za-z][\w.-]*")
_SHARE: Final = FLAGS["MindIE"].share
DEFAULT_SHARE: Final = 0.8
"""Its own `NPU_MEMORY_FRACTION`."""
DEFAULT_TOKENS: Final = 8192
LEAST_PREFILL: Final = 8192


def mindie(start: Start) -> EngineCommand:
    """Raises EngineNotStarted for flags that MindIE has no key for, and for values that are none."""
    name = f"muster-{start.assigned.instance_id}.{start.assigned.attempt}"
    directory = start.directory or f"/tmp/{name}"  # noqa: S108 - where nothing better is told; of this attempt alone
    path, table = f"{directory}/config.json", f"{directory}/ranktable.json"
    files = {path: _written(_config(start))}
    env = on_ascend(start) | {"MIES_CONFIG_JSON_PATH": path, "NPU_MEMORY_FRACTION": f"{_share(start):g}"}
    if start.nodes > 1:
        files[table] = _written(rank_table(start.members))
        env |= {
            "RANKTABLEFILE": table,
            "RANK_TABLE_FILE": table,
            "WORLD_SIZE": str(sum(len(member.gpu_indexes) for member in start.members)),
            "MIES_CONTAINER_IP": start.address,
            "HOST_IP": start.address,
            "ATB_LLM_HCCL_ENABLE": "1",
            "ATB_LLM_COMM_BACKEND": "hccl",
        }
        if start.interface is not None:
            env["HCCL_SOCKET_IFNAME"] = start.interface
    command = start.launch.run_command
    program = default_program(start, PROGRAM)
    return EngineCommand(
        argv=program if command is None else (*start.launch.entrypoint, *substituted(command, start)),
        env=env | start.launch.env,
        program="mindieservice_daemon",
        health_path="/info" if start.is_leader else None,
        port=start.port,
        files=files,
    )


def rank_table(members: Sequence[Member]) -> dict[str, Any]:
    """All numbers are text there. A rank is a GPU's number over all machines; `device_id` its index on its own."""
    servers: list[dict[str, Any]] = []
    rank = 0
    for member in members:
        devices: list[dict[str, str]] = []
        for position, index in enumerate(member.gpu_indexes):
            device = {"device_id": str(index), "rank_id": str(rank)}
            if member.gpu_addresses:
                device["device_ip"] = member.gpu_addresses[position]
            devices.append(device)
            rank += 1
        servers.append({"server_id": member.address, "container_ip": member.address, "device": devices})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}


def _config(start: Start) -> dict[str, Any]:
    launch, given = start.launch, _given(start.launch.parameters)
    deploy, model, schedule = given["ModelDeployConfig"], given["ModelConfig"], given["ScheduleConfig"]
    tokens = deploy.get("maxSeqLen", launch.context_length or DEFAULT_TOKENS)
    several = start.nodes > 1
    sizes = {"tp": launch.parallelism.tensor, "pp": launch.parallelism.pipeline, "dp": launch.parallelism.data}
    return {
        "Version": "1.0.0",
        "ServerConfig": {
            "ipAddress": start.host,
            "managementIpAddress": start.host,
            "port": start.port,
            "managementPort": start.port,
            "metricsPort": start.port,
            "allowAllZeroIpListening": start.host == "0.0.0.0",  # noqa: S104 - compared, not bound
            "maxLinkNum": 1000,
            "httpsEnabled": False,
            "inferMode": "standard",
            "interCommTLSEnabled": False,
            "openAiSupport": "vllm",
        }
        | given["ServerConfig"],
        "BackendConfig": {
            "backendName": "mindieservice_llm_engine",
            "modelInstanceNumber": 1,
            "npuDeviceIds": [list(range(start.gpus))],
            "tokenizerProcessNumber": 8,
            "multiNodesInferEnabled": several,
            **({"multiNodesInferPort": start.meeting_port(0)} if several else {}),
            "interNodeTLSEnabled": False,
        }
        | given["BackendConfig"]
        | {
            "ModelDeployConfig": {"maxSeqLen": tokens, "maxInputTokenLen": max(tokens - 1, 1), "truncation": False}
            | _adapters(start)
            | deploy
            | {
                "ModelConfig": [
                    {
                        "modelInstanceType": "Standard",
                        "modelName": launch.model_name,
                        "modelWeightPath": start.model_path,
                        "worldSize": start.gpus,
                        "cpuMemSize": 5,
                        "npuMemSize": -1,
                        "backendType": "atb",
                        "trustRemoteCode": False,
                    }
                    | {name: size for name, size in sizes.items() if size > 1}
                    | _speculation(start)
                    | model
                ]
            },
            "ScheduleConfig": {
                "templateType": "Standard",
                "templateName": "Standard_LLM",
                "cacheBlockSize": 128,
                "maxPrefillBatchSize": 50,
                "maxPrefillTokens": max(deploy.get("maxInputTokenLen", tokens), LEAST_PREFILL),
                "prefillTimeMsPerReq": 150,
                "prefillPolicyType": 0,
                "decodeTimeMsPerReq": 50,
                "decodePolicyType": 0,
                "maxBatchSize": 200,
                "maxIterTimes": tokens,
                "maxPreemptCount": 0,
                "supportSelectBatch": False,
                "maxQueueDelayMicroseconds": 5000,
            }
            | schedule,
        },
    }


def _share(start: Start) -> float:
    """The user's flag, else what placement reckoned with; `NPU_MEMORY_FRACTION` in the environment beats both."""
    text = find(start.launch.parameters, _SHARE)
    if text is None:
        return start.launch.memory_fraction or DEFAULT_SHARE
    try:
        return float(text)
    except ValueError:
        raise _refused([ParameterInvalid(parameter=_SHARE[0], value=text[:80], expected="a share")]) from None


def _adapters(start: Start) -> dict[str, Any]:
    adapters = start.launch.lora_list
    if not adapters:
        return {}
    base = start.launch.model_name
    modules = [{"name": each.lora_name, "path": path_of(each.source), "baseModelName": base} for each in adapters]
    return {"maxLoras": len(adapters), "LoraModules": modules}


def _speculation(start: Start) -> dict[str, Any]:
    """Of the ways to draft that a model may ask for, MindIE has multi-token prediction."""
    wanted = start.launch.speculative_config
    if wanted is None:
        return {}
    if wanted.algorithm != "mtp":
        said = ParameterInvalid(
            parameter="algorithm", value=wanted.algorithm, expected="mtp with MindIE", field="speculative_config"
        )
        raise _refused([said])
    plugin = {"plugin_type": "mtp", "num_speculative_tokens": wanted.draft_tokens or 1}
    return {"plugin_params": json.dumps(plugin, separators=(",", ":"))}


# -- what the user gave -----------------------------------------------------------------------------------------------


def _given(parameters: Sequence[str]) -> dict[Section, dict[str, Any]]:
    """Section → key → value. All problems at once."""
    found: dict[Section, dict[str, Any]] = {section: {} for section in KEYS}
    problems: list[Reason] = []
    for name, value in _flags(split(parameters), problems):
        plain = name.lstrip("-").replace("_", "-")
        if f"--{plain}" in _SHARE:
            continue
        is_off = plain.startswith("no-") and plain not in _PLACES
        place = _PLACES.get(plain.removeprefix("no-") if is_off else plain)
        if place is None:
            problems.append(UnknownParameter(parameter=name))
            continue
        section, key, kind = place
        try:
            found[section][key] = not is_off if is_off else _value(kind, value)
        except ValueError as error:
            problems.append(ParameterInvalid(parameter=name, value=(value or "")[:80], expected=str(error)))
    if problems:
        raise _refused(problems)
    return found


def _flags(arguments: Sequence[str], problems: list[Reason]) -> Iterable[tuple[str, str | None]]:
    """Each flag with its value; what follows no flag is a problem."""
    waiting: str | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if _FLAG.fullmatch(name):
            if waiting is not None:
                yield waiting, None
            waiting = name
            if equals:
                yield name, value
                waiting = None
        elif waiting is not None:
            yield waiting, argument
            waiting = None
        else:
            problems.append(UnknownParameter(parameter=argument))
    if waiting is not None:
        yield waiting, None


def _value(kind: Kind, text: str | None) -> Any:
    match kind:
        case "number":
            number = whole_number(text or "")
            if number is None:
                raise ValueError("a whole number")
            return number
        case "switch":
            said = (text or "true").lower()
            if said not in ("true", "false"):
                raise ValueError("true or false")
            return said == "true"
        case "text":
            if text is None:
                raise ValueError("a text")
            return text


def _dashed(key: str) -> str:
    """`maxSeqLen` as `max-seq-len`; `e2eTimeout` as `e2e-timeout`; `distDPServerEnabled` as `dist-dp-server-enabled`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", key)
    return words.replace("_", "-").lower()


def _places() -> dict[str, tuple[Section, str, Kind]]:
    """Flag without its dashes → where its value goes."""
    found: dict[str, tuple[Section, str, Kind]] = {
        _dashed(key): (section, key, kind) for section, keys in KEYS.items() for key, kind in keys.items()
    }
    return found | {name: found[_dashed(key)] for name, key in _SIZES.items()}


_PLACES: Final = _places()


def _written(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _refused(problems: Sequence[Reason]) -> EngineNotStarted:
    return EngineNotStarted(tuple(problems), "; ".join(problem.sentence() for problem in problems))
