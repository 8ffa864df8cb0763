"""A worker without engines: an agent that joins and leaves, and a downloader that knows what every model weighs.

Plain NATS clients with a worker's credentials; they answer at once, so what is measured is the fleet's side.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from nats.aio.msg import Msg

from kernel.bus import Bus
from kernel.clock import SystemClock
from kernel.edge import BEAT_SECONDS, Edge
from schemas.asks import InspectModel, ModelInspection
from schemas.models import Gpu, Inventory, ModelWeights
from schemas.reports import Beat, Report, WorkerLeaving, WorkerObserved
from schemas.subjects import ask, beat
from tests.support.stack import Stack

GIB: Final = 2**30
INVENTORY: Final = Inventory(
    os="linux",
    arch="amd64",
    cpu_count=64,
    memory_total=512 * GIB,
    gpus=tuple(
        Gpu(index=index, vendor="NVIDIA", type="cuda", name="NVIDIA H100 80GB HBM3", memory_total=80 * GIB)
        for index in range(8)
    ),
    backends={"llama.cpp": "b11549"},
)


class PretendWorker:
    def __init__(self, stack: Stack, agent: Bus, downloader: Bus) -> None:
        self._agent = agent
        self._downloader = downloader
        self.id = stack.workers[0].id
        self._joined = False
        state_file = stack.directory / "pretend" / "assigned.json"
        self._edge = Edge(agent, self.id, "agent", SystemClock(), state_file, self._picture)

    async def join(self) -> None:
        """Returns when the report is stored."""
        self._joined = True
        await self._edge.send(await self._picture())

    async def leave(self) -> None:
        self._joined = False
        await self._edge.send(WorkerLeaving(**self._edge.identity(), engines_stopped=True))

    async def _picture(self) -> Report:
        return WorkerObserved(
            **self._edge.identity(), name="pretended", address="10.0.0.1", agent_version="0.1.0", inventory=INVENTORY
        )

    async def listen(self) -> None:
        await self._downloader.subscribe(ask(self.id, "inspect"), self._inspect)

    async def _inspect(self, question: Msg) -> None:
        path = InspectModel.model_validate_json(question.data).source.label
        weights = ModelWeights(
            format="gguf",
            weight_bytes=8 * GIB,
            files=(path,),
            architecture="llama",
            context_length=8192,
            layers=32,
            kv_heads=8,
            head_size=128,
        )
        await question.respond(ModelInspection(weights=weights).model_dump_json().encode())

    async def beat(self) -> None:
        """The downloader always, the agent while it is there."""
        counter = 0
        while True:
            counter += 1
            body = Beat(boot_id=self._edge.boot_id, counter=counter).model_dump_json().encode()
            await self._downloader.publish(beat(self.id, "downloader"), body)
            if self._joined:
                await self._agent.publish(beat(self.id, "agent"), body)
            await asyncio.sleep(BEAT_SECONDS)


@asynccontextmanager
async def pretend_worker(stack: Stack) -> AsyncGenerator[PretendWorker]:
    """Not joined yet."""
    worker = PretendWorker(stack, await stack.bus("agent"), await stack.bus("downloader"))
    await worker.listen()
    beating = asyncio.create_task(worker.beat())
    try:
        yield worker
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
