"""Real vLLM on a real GPU: `TESTS_VLLM=/opt/vllm/bin/vllm pytest tests/vllm/test_on_a_gpu.py -m vllm`; skipped where there is none."""

import asyncio
import shutil
from typing import Any

import pytest

from schemas.versions import is_for_processors
from services.agent.adapters.installed import vllm_version
from tests.chaos.what_must_hold import facts_of, of_type
from tests.support.stack import EXAMPLES, Stack
from tests.vllm.test_vllm import STARTED_SECONDS, VLLM, answer_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def why_not() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return "this machine has no NVIDIA GPU (no nvidia-smi)"
    if is_for_processors(vllm_version([VLLM, "serve"])):
        return "this vLLM is a build for processors; TESTS_VLLM names another one"
    return None


async def test_a_detected_gpu_is_promised_used_and_measured(stack: Stack) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    await stack.start_all(vllm_command=f"{VLLM} serve")
    client = stack.client()
    (worker,) = (await client.get("/v2/workers"))["items"]
    assert worker["gpus"]
    await client.deploy("tinychat", EXAMPLES / "tinychat", backend="vLLM", backend_parameters=["--max-model-len=2048"])
    await client.until_state("/v2/models/tinychat", "ready", seconds=STARTED_SECONDS)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    (member,) = instance["members"]
    assert len(member["gpu_indexes"]) == 1
    assert "TinyChat" in await answer_of(client)

    measured: list[dict[str, Any]] = []
    for _ in range(600):
        measured = [event.envelope.data for event in of_type(await facts_of(stack), "ModelPeakMeasured")]
        if any(each["peak_vram"] for each in measured):
            break
        await asyncio.sleep(0.1)
    assert any(each["peak_vram"] for each in measured), measured
