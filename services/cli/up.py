"""`muster up` and `muster down`: all of Muster on this machine, in one process and its children."""

import contextlib
import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from schemas.masking import masked
from services.cli.failed import Failed
from services.cli.options import DataDirectory

if TYPE_CHECKING:
    from services.up.everything import Everything

STOP_SECONDS: Final = 30.0
"""How long `muster down` waits."""


def up(
    data_dir: DataDirectory = None,
    host: Annotated[str | None, typer.Option(help="Where the api listens [MUSTER_HOST, else 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port [MUSTER_PORT, else 8700].")] = None,
    inventory: Annotated[
        str | None, typer.Option(help="A JSON file that describes this machine by hand [MUSTER_INVENTORY].")
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Where model files go [MUSTER_CACHE_DIR, else cache in the data directory].")
    ] = None,
    worker_name: Annotated[
        str | None, typer.Option(help="What to call this machine [MUSTER_WORKER_NAME, else its host name].")
    ] = None,
    simulator: Annotated[
        bool | None,
        typer.Option("--simulator", help="Let `muster simulate` add workers that are not there [MUSTER_SIMULATOR]."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Deploy the bundled model `tinychat` on the first start, and wait for it.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background; `muster down` ends it.")] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start everything on this machine. Ctrl-C stops it.

    Log, database and all services run in one process and its children, and this machine becomes a worker.
    """
    from services.cli import background  # noqa: PLC0415 - not for `muster --help`

    flags = {
        "data_dir": data_dir,
        "host": host,
        "port": port,
        "inventory": inventory,
        "cache_dir": cache_dir,
        "worker_name": worker_name,
    }
    if detach:
        given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
        background.detach([*given, *(["--simulator"] if simulator else []), *(["--demo"] if demo else [])])
        return

    from services.cli.here import StopRequest, look_before, run_here  # noqa: PLC0415 - half a second

    stop = StopRequest()
    before = look_before(flags | {"simulator": simulator}, demo=demo)

    async def serve(everything: "Everything") -> None:
        import asyncio  # noqa: PLC0415 - was imported meanwhile

        from services.up.demo import Demo  # noqa: PLC0415 - the same

        trouble = None
        async with Demo.of(everything) as client:
            if before.model is not None:
                await client.deploy(before.model)
                trouble = await client.until_ready()
            served = await client.served_model()
        key_file = before.settings.data_dir / "admin.key" if before.settings.api_key is None else None
        print(ready_lines(everything.url, everything.api_key, key_file, served), end="", flush=True)
        if trouble is not None:
            sys.stderr.write(masked(f"muster: {trouble}\n"))
        if ready_fd is not None:
            background.let_go_of_the_terminal(ready_fd)
        await asyncio.Event().wait()

    print(f"Muster runs {before.chosen}", flush=True)
    with contextlib.closing(before.directory):
        run_here(before, stop, serve)
    stop.listen_no_more()


def down(data_dir: DataDirectory = None) -> None:
    """Stop the Muster that runs on a data directory."""
    from services.up.data_dir import running_pid  # noqa: PLC0415 - not for `muster --help`

    path = Path(data_dir or os.environ.get("MUSTER_DATA_DIR") or ".muster").absolute()
    pid = running_pid(path)
    if pid is None:
        print(f"No Muster runs on {path}.")
        return
    try:
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise Failed(f"the Muster on {path} (process {pid}) is another user's") from None
    else:
        if not select.select([process], [], [], STOP_SECONDS)[0]:
            raise Failed(
                f"the Muster on {path} (process {pid}) still runs {STOP_SECONDS:g} s after it was told to stop"
            )
    print(f"Muster on {path} has stopped; `muster up` goes on where it was.")


def ready_lines(url: str, key: str, key_file: Path | None, model: str | None) -> str:
    """Address, key, something to try. `key_file`: None when the key was given to us, and need not be shown."""
    shown = key if key_file is not None else "$MUSTER_API_KEY"
    where = f"in {key_file}: {key}" if key_file is not None else "the one that you gave in MUSTER_API_KEY"
    curl = f'curl {url}/v2/workers -H "Authorization: Bearer {shown}"'
    if model is not None:
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Who are you?"}}]}}'
        curl = f'curl {url}/v1/chat/completions -H "Authorization: Bearer {shown}"'
        curl += f" -H \"Content-Type: application/json\" -d '{body}'"
    return f"Address: {url} (OpenAI's API under /v1, Muster's under /v2)\nKey:     {where}\nTry:     {curl}\n"
