"""`muster demo`: all of Muster on a free port in a temporary directory, one question, and the evidence."""

from typing import TYPE_CHECKING

import typer

from services.cli.failed import INTERRUPTED, Failed

if TYPE_CHECKING:
    from services.cli.here import Before
    from services.up.demo import Answer
    from services.up.everything import Everything


def demo() -> None:
    """Start, deploy, ask and stop, in a temporary directory.

    Shows what the event log says of it, and ends with 0 only if the engine itself answered.
    """
    import contextlib  # noqa: PLC0415 - not for `muster --help`
    import tempfile  # noqa: PLC0415 - not for `muster --help`

    from services.cli.here import StopRequest, look_before, run_here  # noqa: PLC0415 - half a second

    stop = StopRequest()
    with tempfile.TemporaryDirectory(prefix="muster-demo-") as name:
        before = look_before({"data_dir": name, "host": "127.0.0.1", "port": 0}, demo=True)
        _say(f"Muster runs {before.chosen}\n")
        with contextlib.closing(before.directory):
            answer = run_here(before, stop, lambda everything: _ask(everything, before))
    if answer is None:
        raise typer.Exit(INTERRUPTED)
    _show_evidence(answer)


async def _ask(everything: "Everything", before: "Before") -> "Answer":
    from services.up.demo import MODEL, QUESTION, Demo  # noqa: PLC0415 - was imported meanwhile

    if before.model is None:
        raise AssertionError("the demo was looked for")
    async with Demo.of(everything) as client:
        _say(f"The api answers at {everything.url}; deploying {MODEL} from {before.model}\n")
        await client.deploy(before.model)
        if (trouble := await client.until_ready()) is not None:
            raise Failed(trouble)
        _say(f"\n> {QUESTION}\n")
        answer = await client.ask(_say)
        _say("\n\n")
        return answer


def _show_evidence(answer: "Answer") -> None:
    from services.cli import render  # noqa: PLC0415 - not for `muster --help`
    from services.cli.terminal import local_time, show  # noqa: PLC0415 - not for `muster --help`

    instance = answer.instance
    print(
        f"{instance['name']} answered, an engine on {instance['worker_name']} at {instance['worker_ip']}:{instance['port']};"
        f" its first token came after {answer.first_token_seconds * 1000:.0f} ms. What the event log says of it:"
    )
    names = {instance[f"{kind}_id"]: instance[f"{kind}_name"] for kind in ("model", "worker")}
    show(render.timeline(answer.timeline, names, local_time()))
    if not answer.is_the_engines:
        raise Failed("there was no text, or the event log knows of no running engine: the demo has failed")


def _say(text: str) -> None:
    print(text, end="", flush=True)
