"""A run command as the author wrote it, with `{{…}}` for what only the worker knows. No shell ever reads it."""

import re
import shlex
from collections.abc import Mapping
from typing import Final

from services.agent.domain.engines.start import Start

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


def substituted(command: str, start: Start) -> tuple[str, ...]:
    """Split into words first, and once: what is put in afterwards stays inside its word, whatever it contains.

    What no value is known of stays as it is written. Raises ValueError for a quote that is not closed.
    """
    values = _values(start)
    return tuple(_PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), word) for word in shlex.split(command))


def _values(start: Start) -> Mapping[str, str]:
    """`gpu_indexes`: as the engine counts them, which sees no other GPUs than its own. Ours go before the environment's."""
    indexes = ",".join(str(number) for number in range(start.gpus))
    return start.launch.env | {
        "model_path": start.model_path,
        "model_name": start.launch.model_name,
        "port": str(start.port),
        "worker_ip": start.address,
        "host": start.host,
        "gpu_count": str(start.gpus),
        "gpu_indexes": indexes,
        "gpu_ids": indexes,
    }
