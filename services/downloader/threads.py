"""What blocks, in a thread, and never behind the back of whoever was to wait for it."""

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(
    work: Callable[..., T],
    *arguments: Any,
    stop: Callable[[], object] | None = None,
    undo: Callable[[T], object] | None = None,
    pool: Executor | None = None,
) -> T:
    """As `asyncio.to_thread`; whoever is cancelled meanwhile goes on when the work has ended, however often it is cancelled.

    `stop` makes it end sooner, `undo` is given what came of it for nobody.
    """
    call: Callable[[], T] = functools.partial(work, *arguments)
    running = asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await ended(running)
        if undo is not None and not running.cancelled() and running.exception() is None:
            undo(running.result())
        raise


async def ended(work: asyncio.Future[Any]) -> None:
    """When it has ended, however it did; a cancellation doesn't change that, and is told by nobody but whoever asked for it."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({work})
    if not work.cancelled():
        work.exception()
