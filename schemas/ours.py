"""What of an engine is not its author's to say: flags that Muster sets, variables that lead out of an engine's isolation.

Both are refused by name when a model is sent, and never left out in silence. Sources: vLLM's, SGLang's and llama.cpp's references of
their servers' arguments; `man 8 ld.so` and glibc's unsecvars.h; Python's, Bash's and OpenSSL's documented environment.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from schemas.models import ModelSpec
from schemas.parameters import split
from schemas.reasons import FlagIsOurs, ParameterInvalid, Reason, VariableNotAllowed

_AGENT: Final = "leave it out, the agent chooses where the engine listens"
_KEY: Final = "leave it out, each attempt gets a key of its own"
_TLS: Final = "leave it out, the gateway reaches engines by plain HTTP"
_NAME: Final = "change the model's name"
_SOURCE: Final = "change the model's source"

_SERVED: Final = {"--host": _AGENT, "--port": _AGENT, "--api-key": _KEY}
_TLS_OF_UVICORN: Final = dict.fromkeys(
    ("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-ciphers", "--ssl-keyfile-password"),
    _TLS,
)
FLAGS: Final[Mapping[str, Mapping[str, str]]] = {
    "vLLM": _SERVED | _TLS_OF_UVICORN | {"--uds": _AGENT, "--served-model-name": _NAME, "--model": _SOURCE},
    "SGLang": _SERVED | _TLS_OF_UVICORN | {"--served-model-name": _NAME, "--model-path": _SOURCE, "--model": _SOURCE},
    "MindIE": _SERVED | {"--served-model-name": _NAME, "--model-name": _NAME},
    "llama.cpp": _SERVED
    | dict.fromkeys(("--ssl-key-file", "--ssl-cert-file", "--ssl-file-key", "--ssl-file-cert"), _TLS)
    | dict.fromkeys(("--model", "-m", "--model-url", "-mu", "--hf-repo", "-hf", "-hfr"), _SOURCE)
    | {"--alias": _NAME, "-a": _NAME, "--api-key-file": _KEY, "--hostname": _AGENT}
    | {"--path": "leave it out, an engine serves no files"},
}
"""Backend → flag → what says it instead. Of `Custom` nothing is ours: its image may call things as it likes."""

_DEVICES: Final = re.compile(r"[A-Z0-9]+(_RT)?_VISIBLE_DEVICES")
"""Every vendor's: what a framework or a container hook takes for the GPUs that it may use."""
_GPUS: Final = ("which GPUs an engine sees follows from its place", "use gpu_selector")
_CODE: Final = ("it makes programs load or run what its author names", "use an image that holds what is needed")
_ENGINE: Final = ("it is how Muster itself is told what to do", "use a name of your own")
_LISTENS: Final = ("Muster sets what it says", "leave it out")
_ASKS: Final = ("each attempt gets a key of its own", "leave it out")

VARIABLES: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(
        ("CUDA_DEVICE_ORDER", "GPU_DEVICE_ORDINAL", "NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"), _GPUS
    ),
    **dict.fromkeys(
        (
            *("BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "IFS", "PROMPT_COMMAND", "PATH"),
            *("GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "HOSTALIASES", "LOCALDOMAIN", "LOCPATH", "MALLOC_TRACE"),
            *("NIS_PATH", "NLSPATH", "RESOLV_HOST_CONF", "RES_OPTIONS", "TZDIR", "CUDA_INJECTION64_PATH"),
            *("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES", "PERL5LIB", "PERL5OPT", "RUBYOPT", "NODE_OPTIONS"),
        ),
        _CODE,
    ),
    **dict.fromkeys(("CONTAINER_HOST", "TINI_KILL_PROCESS_GROUP"), _ENGINE),
    **dict.fromkeys(("VLLM_API_KEY", "LLAMA_API_KEY"), _ASKS),
    **dict.fromkeys(
        (
            *("LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_SSL_KEY_FILE", "LLAMA_ARG_SSL_CERT_FILE"),
            *("LLAMA_ARG_MODEL", "LLAMA_ARG_ALIAS", "LLAMA_ARG_STATIC_PATH"),
        ),
        _LISTENS,
    ),
}
"""Name → why not, and what to use instead."""
PREFIXES: Final[Mapping[str, tuple[str, str]]] = {"LD_": _CODE, "PYTHON": _CODE, "DOCKER_": _ENGINE, "MUSTER_": _ENGINE}
_HARMLESS: Final = frozenset(
    {
        *("PYTHONUNBUFFERED", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONFAULTHANDLER", "PYTHONMALLOC"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "PYTHONNOUSERSITE", "PYTHONASYNCIODEBUG", "PYTHONTRACEMALLOC"),
    }
)
_ENGINE_KEY: Final = re.compile(r"\{\{\s*engine_key\s*\}\}")
_SHORT: Final = re.compile(r"(-[a-z])(?![a-z]{1,4}(?:=|$)).+")
"""`-m/etc/passwd`: a value right behind a flag of one letter; `-mg` and `-mmu` are flags of their own."""


def not_the_authors(spec: ModelSpec) -> tuple[Reason, ...]:
    """What is given and may not be, in the order in which it was given."""
    flags, variables = flags_of_ours(spec.backend, spec.backend_parameters), variables_not_allowed(spec.env)
    return (*flags, *variables, *_key_in_the_open(spec))


def flags_of_ours(engine: str, parameters: Sequence[str]) -> Iterator[Reason]:
    ours = FLAGS.get(engine, {})
    for parameter in split([parameter.strip() for parameter in parameters]):
        name = _meant(parameter, ours)
        if name is not None:
            yield FlagIsOurs(flag=name, instead=ours[name])


def _meant(parameter: str, ours: Mapping[str, str]) -> str | None:
    """Which of ours an argument names, in whatever spelling; parsers take a long flag's beginning for the whole."""
    name = parameter.partition("=")[0].replace("_", "-")
    if name in ours:
        return name
    if name.startswith("--"):
        return next((flag for flag in ours if len(name) > 2 and flag.startswith(name)), None)
    match = _SHORT.fullmatch(parameter)
    return match[1] if match is not None and match[1] in ours else None


def variables_not_allowed(env: Mapping[str, str]) -> Iterator[Reason]:
    for name in env:
        told = _why_not(name.upper())
        if told is not None:
            yield VariableNotAllowed(variable=name, why=told[0], instead=told[1])


def _why_not(name: str) -> tuple[str, str] | None:
    if name in _HARMLESS:
        return None
    if _DEVICES.fullmatch(name):
        return _GPUS
    return VARIABLES.get(name) or next((told for prefix, told in PREFIXES.items() if name.startswith(prefix)), None)


def _key_in_the_open(spec: ModelSpec) -> Iterator[Reason]:
    """Everybody can read a command line."""
    words: Mapping[str, Sequence[str]] = {
        "backend_parameters": spec.backend_parameters,
        "run_command": (spec.run_command or "",),
        "entrypoint": spec.entrypoint,
    }
    for field, texts in words.items():
        if any(_ENGINE_KEY.search(text) for text in texts):
            yield ParameterInvalid(
                parameter=field,
                value="{{engine_key}}",
                expected="without it: put it into a variable (`env`)",
                field=field,
            )
