"""How far model files are while somebody waits: bars in a terminal, elsewhere a line now and then. On standard error."""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from rich.console import Console

from services.cli import render
from services.cli.render import plain

if TYPE_CHECKING:
    from rich.progress import TaskID

Document = Mapping[str, Any]
LINE_SECONDS: Final = 5.0
"""Between lines, where no terminal shows bars."""
POLL_SECONDS: Final = 0.5


class Shown(Protocol):
    def update(self, files: Sequence[Document]) -> None:
        """All that is waited for, as it is now."""

    def say(self, line: str) -> None:
        """A line that stays."""


class Bars:
    """A bar for each file resource, and below it one for each file of the repository that is on its way."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 - others need none

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            transient=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._is_drawn = False

    def update(self, files: Sequence[Document]) -> None:
        wanted: dict[tuple[str, str], tuple[str, int | None, int | None, str]] = {}
        several = len(files) > 1
        for file in files:
            if file["state"] != "wanted":
                continue
            name = render.file_name(file, with_worker=several)
            wanted[file["id"], ""] = (name, file["bytes"] or 0, file["total"], render.far(file))
            for part in file["parts"]:
                told = f"{render.size(part['bytes'])} of {render.size(part['total'])}"
                wanted[file["id"], part["name"]] = (f"  {part['name']}", part["bytes"], part["total"], told)
        if wanted.keys() != self._tasks.keys():  # in their order: parts stand below what they are of
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks = {
                key: self._progress.add_task(plain(name), completed=done or 0, total=total or None, told=plain(told))
                for key, (name, done, total, told) in wanted.items()
            }
        for key, (name, done, total, told) in wanted.items():
            self._progress.update(
                self._tasks[key], description=plain(name), completed=done, total=total or None, told=plain(told)
            )
        if wanted and not self._is_drawn:
            self._progress.start()
            self._is_drawn = True
        elif self._is_drawn:
            self._progress.refresh()

    def say(self, line: str) -> None:
        self._progress.console.print(plain(line), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._is_drawn:
            self._progress.stop()


class Lines:
    """At most one in five seconds, and none that says what the one before said."""

    def __init__(self, write: Callable[[str], Any], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._monotonic = monotonic
        self._said = ""
        self._said_at: float | None = None

    def update(self, files: Sequence[Document]) -> None:
        now = self._monotonic()
        if not files or (self._said_at is not None and now - self._said_at < LINE_SECONDS):
            return
        line = plain(render.files_line(files))
        if line != self._said:
            self._said, self._said_at = line, now
            self.say(line)

    def say(self, line: str) -> None:
        self._write(f"{plain(line)}\n")

    def close(self) -> None:
        """Lines stay."""


@contextmanager
def shown_progress(*, quiet: bool = False) -> Generator[Shown]:
    """`quiet`: lines even in a terminal. NO_COLOR and TERM are rich's to obey."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    is_terminal = console.is_terminal and not console.is_dumb_terminal and not quiet
    shown = Bars(console) if is_terminal else Lines(_to_stderr)
    try:
        yield shown
    finally:
        shown.close()


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def still_wanted(files: Iterable[Document]) -> list[Document]:
    return [file for file in files if file["state"] in ("wanted", "deleting")]
