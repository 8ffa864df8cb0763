"""llama.cpp's own HTTP server out of the `xllamacpp` wheel, behind the flags of `llama-server`.

Names and meanings are those of llama.cpp's common/arg.cpp; any further plain field of its `common_params` is a flag of
that name. Ends with 0 on SIGTERM or SIGINT, 1 when the server can't start (its own lines on stderr say why), 2 for a
flag it doesn't know.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

ON: Final = {"on", "enabled", "true", "1"}
OFF: Final = {"off", "disabled", "false", "0"}


class Valued(NamedTuple):
    """`--name VALUE`; the fields that it sets are joined with commas, and dots lead into a field."""

    names: str
    fields: str
    parse: Callable[[str], Any]


class Switch(NamedTuple):
    """`--name` sets the field to True, `--no-name` to False; `inverted` the other way round."""

    names: str
    field: str
    inverted: bool = False


def main(argv: list[str]) -> int:
    try:
        xllamacpp = importlib.import_module("xllamacpp")  # without type information
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    params = xllamacpp.CommonParams()
    params.port = 8080
    params.api_keys = _list(os.environ.get("LLAMA_API_KEY", ""))  # a command line can be read by everybody
    params.n_parallel = -1  # as llama-server, which the wheel leaves to us: four slots that share one cache
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(threads) > 0:
        params.cpuparams.n_threads = int(threads)  # otherwise llama.cpp takes the physical cores
    parser = flags(xllamacpp, params)
    for fields, value in vars(parser.parse_args([_dashed(argument) for argument in argv])).items():
        for field in fields.split(","):
            try:
                _set(params, field, value)
            except (TypeError, ValueError, OverflowError) as error:
                parser.error(f"argument --{field.replace('_', '-')}: invalid value: {value!r} ({error})")
    if not params.model.path:
        parser.error("the following arguments are required: --model")
    try:
        server = xllamacpp.Server(params)  # until nothing refers to it any more
    except RuntimeError as error:
        _explain_the_port(params)
        sys.stderr.write(f"error: the server did not start: {error}\n")
        return 1
    _wait_for_a_signal()
    sys.stderr.write(f"ending the server on {server.listening_address}\n")
    sys.stderr.flush()
    os._exit(0)  # its destructor cuts streams off as well, and waits for clients that don't read


def flags(xllamacpp: Any, params: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama_cpp_server",
        usage="%(prog)s --model FILE [FLAG …]",  # all of them are eighty lines, and an error would drown in them
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for flag in (*_valued(xllamacpp, params), *_SWITCHES):
        names = flag.names.split()
        if isinstance(flag, Valued):
            parser.add_argument(*names, dest=flag.fields, type=flag.parse, metavar="V")
        else:
            _add_switch(parser, names, flag.field, inverted=flag.inverted)
    for field in dir(params):
        with contextlib.suppress(argparse.ArgumentError):  # one of the names above
            _add_field(parser, field, getattr(params, field))
    return parser


def _valued(x: Any, params: Any) -> tuple[Valued, ...]:
    cache_type = _member_of(x.ggml_type, "GGML_TYPE_")
    return (
        Valued("-m --model", "model.path", str),
        Valued("-a --alias", "model_alias", _names),
        Valued("--host", "hostnames", _list),
        Valued("--port", "port", _port),
        Valued("--api-key", "api_keys", _list),
        Valued("--api-key-file", "api_keys", _keys_in),
        Valued("-to --timeout", "timeout_read,timeout_write", _integer),
        Valued("--threads-http", "n_threads_http", _integer),
        Valued("-c --ctx-size", "n_ctx", _integer),
        Valued("-n --predict --n-predict", "n_predict", _integer),
        Valued("-b --batch-size", "n_batch", _integer),
        Valued("-ub --ubatch-size", "n_ubatch", _integer),
        Valued("-np --parallel", "n_parallel", _integer),
        Valued("-t --threads", "cpuparams.n_threads", _integer),
        Valued("-tb --threads-batch", "cpuparams_batch.n_threads", _integer),
        Valued("--keep", "n_keep", _integer),
        Valued("-cram --cache-ram", "cache_ram_mib", _integer),
        Valued("--cache-reuse", "n_cache_reuse", _integer),
        Valued("-ctxcp --ctx-checkpoints --swa-checkpoints", "n_ctx_checkpoints", _integer),
        Valued("-ctk --cache-type-k", "cache_type_k", cache_type),
        Valued("-ctv --cache-type-v", "cache_type_v", cache_type),
        Valued(
            "-ngl --gpu-layers --n-gpu-layers",
            "n_gpu_layers",
            _layers,
        ),
        Valued("-sm --split-mode", "split_mode", _member_of(x.llama_split_mode, "LLAMA_SPLIT_MODE_")),
        Valued("-ts --tensor-split", "tensor_split", _shares(len(params.tensor_split))),
        Valued("-mg --main-gpu", "main_gpu", _integer),
        Valued("-ot --override-tensor", "tensor_buft_overrides", str),
        Valued("-fit --fit", "fit_params", _on_or_off),
        Valued("-fitc --fit-ctx", "fit_params_min_ctx", _integer),
        Valued("-fa --flash-attn", "flash_attn_type", _member_of(x.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_")),
        Valued("-lm --load-mode", "load_mode", _member_of(x.llama_load_mode, "LLAMA_LOAD_MODE_")),
        Valued("--numa", "numa", _member_of(x.ggml_numa_strategy, "GGML_NUMA_STRATEGY_")),
        Valued("--pooling", "pooling_type", _member_of(x.llama_pooling_type, "LLAMA_POOLING_TYPE_")),
        Valued("--attention", "attention_type", _member_of(x.llama_attention_type, "LLAMA_ATTENTION_TYPE_")),
        Valued(
            "--rope-scaling", "rope_scaling_type", _member_of(x.llama_rope_scaling_type, "LLAMA_ROPE_SCALING_TYPE_")
        ),
        Valued("--rope-scale", "rope_freq_scale", _inverse),
        Valued("-s --seed", "sampling.seed", _integer),
        Valued("--temp --temperature", "sampling.temp", float),
        Valued("--top-k", "sampling.top_k", _integer),
        Valued("--top-p", "sampling.top_p", float),
        Valued("--min-p", "sampling.min_p", float),
        Valued("--repeat-penalty", "sampling.penalty_repeat", float),
        Valued("--presence-penalty", "sampling.penalty_present", float),
        Valued("--frequency-penalty", "sampling.penalty_freq", float),
        Valued("--reasoning-budget", "sampling.reasoning_budget_tokens", _integer),
        Valued(
            "--reasoning-format", "reasoning_format", _member_of(x.common_reasoning_format, "COMMON_REASONING_FORMAT_")
        ),
        Valued("--chat-template-file", "chat_template", _text_of),
        Valued("--chat-template-kwargs", "default_template_kwargs", _json_members),
        Valued("-mm --mmproj", "mmproj.path", str),
        Valued("-sps --slot-prompt-similarity", "slot_prompt_similarity", float),
        Valued("-lv --verbosity --log-verbosity", "verbosity", _integer),
    )


_SWITCHES: Final = (
    Switch("--embedding --embeddings", "embedding"),
    Switch("--metrics", "endpoint_metrics"),
    Switch("--slots", "endpoint_slots"),
    Switch("--props", "endpoint_props"),
    Switch("-cb --cont-batching", "cont_batching"),
    Switch("-kvu --kv-unified", "kv_unified"),
    Switch("--context-shift", "ctx_shift"),
    Switch("--jinja", "use_jinja"),
    Switch("--webui --ui", "ui"),
    Switch("--kv-offload", "no_kv_offload", inverted=True),
    Switch("--op-offload", "no_op_offload", inverted=True),
    Switch("--mmproj-offload", "mmproj_use_gpu"),
    Switch("--perf", "no_perf", inverted=True),
)


def _add_field(parser: argparse.ArgumentParser, field: str, default: object) -> None:
    name = f"--{field.replace('_', '-')}"
    if isinstance(default, bool):
        parser.add_argument(name, dest=field, action="store_const", const=True)
        if not field.startswith("no_"):
            parser.add_argument(f"--no-{name[2:]}", dest=field, action="store_const", const=False)
    elif type(default) in {int, float, str}:  # and no enumeration
        parse = _integer if isinstance(default, int) else type(default)
        parser.add_argument(name, dest=field, type=parse, metavar="V")


def _add_switch(parser: argparse.ArgumentParser, names: list[str], field: str, *, inverted: bool) -> None:
    parser.add_argument(*names, dest=field, action="store_const", const=not inverted)
    off = [f"--no-{name.removeprefix('--')}" for name in names if name.startswith("--")]
    parser.add_argument(*off, dest=field, action="store_const", const=inverted)


def _dashed(argument: str) -> str:
    """`--ctx_size=1` → `--ctx-size=1`, as llama-server reads it."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _set(params: Any, path: str, value: Any) -> None:
    *owners, field = path.split(".")
    for owner in owners:
        params = getattr(params, owner)
    setattr(params, field, value)


def _member_of(enumeration: Any, prefix: str) -> Callable[[str], Any]:
    """`q8_0` → `GGML_TYPE_Q8_0`, `on` → `…_ENABLED`, `mmap+mlock` → `…_MMAP_MLOCK`."""

    def parse(value: str) -> Any:
        name = value.upper().replace("-", "_").replace("+", "_")
        switched = "ENABLED" if value in ON else "DISABLED" if value in OFF else None
        for candidate in (name, switched, "DIRECT_IO" if value == "dio" else None):
            if candidate and hasattr(enumeration, prefix + candidate):
                return getattr(enumeration, prefix + candidate)
        raise argparse.ArgumentTypeError(f"invalid value: {value!r}")

    return parse


def _on_or_off(value: str) -> bool:
    if value not in ON | OFF:
        raise argparse.ArgumentTypeError(f"invalid value: {value!r}")
    return value in ON


def _integer(value: str) -> int:
    """Wide enough for a seed; the fields check their own width."""
    try:
        number = int(value)
    except ValueError:
        number = None
    if number is None or not -(2**31) <= number < 2**32:
        raise argparse.ArgumentTypeError(f"invalid value: {value!r}")
    return number


def _layers(value: str) -> int:
    return {"auto": -1, "all": -2}.get(value) or _integer(value)


def _inverse(value: str) -> float:
    return 1 / float(value)


def _names(value: str) -> set[str]:
    return {name.strip() for name in value.split(",") if name.strip()}


def _list(value: str) -> list[str]:
    return [member for member in value.split(",") if member]


def _text_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _port(value: str) -> int:
    if not 0 <= _integer(value) <= 65535:
        raise argparse.ArgumentTypeError(f"invalid value: {value!r}")
    return _integer(value)


def _shares(length: int) -> Callable[[str], list[float]]:
    """`3,1` → three quarters for the first GPU, a quarter for the second, nothing for the others."""

    def parse(value: str) -> list[float]:
        shares = [float(share) for share in value.replace("/", ",").split(",")]
        if len(shares) > length:
            raise argparse.ArgumentTypeError(f"invalid value: {value!r}")
        return shares + [0.0] * (length - len(shares))

    return parse


def _json_members(value: str) -> dict[str, str]:
    return {name: json.dumps(member) for name, member in json.loads(value).items()}


def _keys_in(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _explain_the_port(params: Any) -> None:
    """llama.cpp says only that it couldn't bind: say whether the port is taken or the address isn't ours."""
    import socket  # noqa: PLC0415 - a start that works doesn't pay for it

    for host in params.hostnames:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, params.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
        except OSError as error:
            sys.stderr.write(f"error: can't listen on {host}:{params.port}: {error}\n")


def _wait_for_a_signal() -> None:
    """A pipe rather than `signal.pause`: the signal may come at any time, and to any of the server's threads."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)
    os.read(woken, 1)


def _ignore(_signal: int, _frame: object) -> None:
    """Without a handler Python would not write to the pipe."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
