"""Muster in this process: what is looked at before, how it is asked to stop, and what ends it with a sentence."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kernel.settings import BadSettings, ServiceSettings
from services.agent.adapters.inventory import read_inventory
from services.cli.failed import CORRUPT, USAGE, Failed
from services.up.data_dir import DataDir
from services.up.demo import bundled_model
from services.up.machine import NotSupported, look_at_machine
from services.up.settings import UpSettings

if TYPE_CHECKING:
    from services.up.everything import Everything

LOG_BYTES: Final = 10 * 1024 * 1024
LOGS_KEPT: Final = 3
QUIET: Final = ("nats", "asyncio", "aiohttp.access", "uvicorn", "alembic")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Before:
    """What is known before anything is started."""

    settings: UpSettings
    directory: DataDir
    chosen: str
    """What will run engines here, and why."""
    model: Path | None
    """The demo's."""


def look_before(flags: Mapping[str, Any], *, demo: bool) -> Before:
    """Raises Failed; then nothing was started."""
    try:
        settings = UpSettings.from_environment(**flags)
        machine = look_at_machine(own_llama_cpp=settings.llama_cpp_command is not None)
        read_inventory(settings.inventory, {})
        model = bundled_model() if demo else None
        return Before(
            settings, DataDir.open(settings.data_dir), machine.choice(vllm=bool(settings.vllm_command)), model
        )
    except (BadSettings, NotSupported) as error:
        raise Failed(str(error), exit_code=USAGE) from error


class Stopped(Exception):
    """Somebody asked us to stop."""


class StopRequest:
    """SIGINT, SIGTERM and SIGHUP ask for an orderly stop, from now on and to the end; the second one changes nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._heard: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                # Not the loop's own handlers: those end with the loop, and a second Ctrl-C may come later than that.
                signal.signal(number, self._hear)

    async def wait(self) -> None:
        self._heard, self._loop = asyncio.Event(), asyncio.get_running_loop()
        if not self.asked:
            await self._heard.wait()

    @staticmethod
    def listen_no_more() -> None:
        """All is stopped. Python gives signals their defaults back before it ends, and the exit code would be theirs."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _hear(self, _number: int, _frame: types.FrameType | None) -> None:
        if self.asked:
            return
        self.asked = True
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            if sys.stderr.isatty():
                sys.stderr.write("\nMuster stops …\n")
        if self._loop is not None and self._heard is not None:
            self._loop.call_soon_threadsafe(self._heard.set)


def run_here(before: Before, stop: StopRequest, work: Callable[["Everything"], Coroutine[Any, Any, T]]) -> T | None:
    """What the work returns, done while everything runs; None when it was asked to stop before. Raises Failed."""
    with _collector_at_rest():
        import uvloop  # noqa: PLC0415 - two seconds, with what follows

        from kernel.bus import ServerTooOld  # noqa: PLC0415 - the same
        from kernel.errors import Corrupt, Unavailable  # noqa: PLC0415 - the same
        from kernel.log.streams import Drift  # noqa: PLC0415 - the same
        from services.api.process import PortTaken  # noqa: PLC0415 - the same
        from services.up.child import ServerFailed  # noqa: PLC0415 - the same
        from services.up.everything import Everything  # noqa: PLC0415 - the same

    async def run() -> T:
        async with contextlib.AsyncExitStack() as running:
            stopping = asyncio.create_task(stop.wait())
            running.callback(stopping.cancel)
            everything = Everything(before.settings, before.directory)
            await _unless(running.enter_async_context(everything), stopping)
            return await _unless(work(everything), stopping, everything.failed)

    try:
        _set_up_logging(before.settings, before.directory.path / "logs", stop)
        return uvloop.run(run())
    except Stopped:
        return None
    except Exception as error:
        cause = _first(error)
        match cause:
            case ServerFailed():
                raise Failed(cause.sentence, exit_code=USAGE) from error
            case BadSettings() | PortTaken() | ServerTooOld() | Drift():
                raise Failed(str(cause), exit_code=USAGE) from error
            case Corrupt():
                raise Failed(str(cause), exit_code=CORRUPT) from error
            case Unavailable():
                raise Failed(str(cause)) from error
            case OSError():
                raise Failed(
                    f"{cause.filename or before.settings.data_dir}: {cause.strerror}", exit_code=USAGE
                ) from error
            case _:
                raise


async def _unless(work: Awaitable[T], stopping: asyncio.Task[None], failed: asyncio.Future[None] | None = None) -> T:
    """The work's result. When we are to stop, or a service fails, it is cancelled first, and has cleaned up."""
    task = asyncio.ensure_future(work)
    ends: list[asyncio.Future[Any]] = [task, stopping, *([failed] if failed is not None else [])]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait({task})
    if failed is not None and failed.done():
        failed.result()
    raise Stopped


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def _collector_at_rest() -> Generator[None]:
    """Importing makes many objects that stay: not looking for garbage among them, then or ever, saves 40 % of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _set_up_logging(settings: UpSettings, logs: Path, stop: StopRequest) -> None:
    """Everything into the file, as JSON; warnings to whoever looks."""
    from kernel.telemetry import JsonFormatter, set_up_tracing  # noqa: PLC0415 - see run_here

    level = logging.getLevelNamesMapping().get(settings.log_level.upper())
    if level is None:
        raise BadSettings(f"MUSTER_LOG_LEVEL is wrong: {settings.log_level[:20]} is no level")
    logs.mkdir(exist_ok=True, mode=0o700)
    file = RotatingFileHandler(logs / "muster.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8")
    file.setFormatter(JsonFormatter("up"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    terminal.setLevel(level)
    # Of streams that are cut off at the end, uvicorn tells with a page of traceback each.
    terminal.addFilter(lambda record: not (stop.asked and record.name.startswith("uvicorn")))
    logging.basicConfig(level=min(level, logging.INFO), handlers=[file, terminal], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    set_up_tracing("up", ServiceSettings(otlp_endpoint=settings.otlp_endpoint))
