"""Documents of the REST API as people read them. Pure: what is shown follows from the arguments alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.cli.sources import label_in_fact, source_label

Document = Mapping[str, Any]
Names = Mapping[str, str]
"""Id → what people call it."""

STATE_STYLES: Final[Mapping[str, str]] = {
    "ready": "green",
    "running": "green",
    "pending": "yellow",
    "degraded": "yellow",
    "error": "red",
    "unreachable": "red",
    "wanted": "yellow",
    "deleting": "yellow",
}
LOG_LINES: Final = 12
"""Of a failed engine's last words; `muster logs` has the others."""
NARROW: Final = 64
"""Columns of a terminal below which a table's last column does not stand beside the others."""
UNSAID: Final = ("closest", "generation", "engine_gone", "digest", "model_path", "request")
"""Parts of events that say nothing to a person who reads a line."""
_NOT_TEXT: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences and control characters: what a server or an engine wrote does not steer our terminal."""


def plain(text: str) -> str:
    return _NOT_TEXT.sub("", text)


class Rows:
    """A table whose last column takes what is left; where little is left, it goes on a line of its own below its row."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        texts = [cell if isinstance(cell, Text) else Text(plain(cell)) for cell in cells]
        self._rows.append((*texts, *(Text() for _ in self._columns[len(cells) :])))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console  # rich's protocol gives it
        if options.max_width < NARROW and any(self._columns):
            for row in self._rows:
                yield Text("  ").join(cell for cell in row[:-1] if cell.plain)
                if row[-1].plain:
                    yield Padding(row[-1], (0, 0, 0, 4))
            return
        table = Table(
            box=None, pad_edge=False, show_header=any(self._columns), header_style="dim", padding=(0, 2, 0, 0)
        )
        for column in self._columns:
            table.add_column(column, overflow="fold")
        for row in self._rows:
            table.add_row(*row)
        yield table


# -- lists ------------------------------------------------------------------------------------------------------------


def ps(models: Sequence[Document], instances: Sequence[Document], now: datetime) -> RenderableType:
    """Each model with its instances below it: where they run, or why they don't."""
    if not models and not instances:
        return Text("No models. `muster deploy NAME --path FILE` runs one.")
    table = Rows("NAME", "STATE", "SINCE", "READY", "WHERE, OR WHY NOT")
    of: dict[str, list[Document]] = {}
    for instance in instances:
        of.setdefault(instance["model_id"], []).append(instance)
    for model in models:
        mine = of.pop(model["id"], [])
        ready = f"{model['ready_replicas']}/{model['replicas']}"
        why = "" if mine else _short(model["reasons"], None, f"muster explain {model['name']}")
        table.add_row(_bold(model["name"]), _state(model), _since(model["since"], now), ready, why)
        _add_instances(table, mine, now, more=f"muster explain {model['name']}")
    for orphans in of.values():
        table.add_row(Text("(deleted)", style="dim"))
        _add_instances(table, orphans, now, more="")
    return table


def _add_instances(table: Rows, instances: Iterable[Document], now: datetime, more: str) -> None:
    for instance in instances:
        why = _short(instance["reasons"], instance["closest_worker"], more)
        where = _where(instance) if instance["port"] else "" if why else instance["worker_name"] or ""
        about = "; ".join(
            part for part in (where, why, *map(_pulled, instance.get("pulls", ())), *_fetched(instance)) if part
        )
        table.add_row(Text(f"  {instance['name']}"), _state(instance), _since(instance["since"], now), "", about)


def _short(reasons: Sequence[Document], closest: str | None, more: str) -> str:
    """The reason that comes nearest to being none, and how many others there are."""
    if not reasons:
        return ""
    first = next((reason for reason in reasons if closest is not None and reason["worker_id"] == closest), reasons[0])
    others = f" (and {len(reasons) - 1} more: {more})" if len(reasons) > 1 else ""
    return _sentence(first) + others


def _sentence(reason: Document) -> str:
    return f"{reason['worker']}: {reason['text']}" if reason["worker"] else str(reason["text"])


def _where(instance: Document) -> str:
    gpus = ", ".join(f"{instance['gpu_type']}:{index}" for index in instance["gpu_indexes"])
    address = f" at {instance['worker_ip']}:{instance['port']}" if instance["port"] else ""
    return f"{instance['worker_name'] or instance['worker_id']}{address}" + (f" on {gpus}" if gpus else "")


def _pulled_where(pull: Document, instance: Document) -> str:
    """With the worker, where that is not the one that is named already."""
    where = "" if pull["worker_id"] == instance["worker_id"] else f"on {plain(pull['worker_id'])} "
    return where + _pulled(pull)


def _pulled(pull: Document) -> str:
    """How far an image is: from a server that does not tell its rate, or not yet, without it."""
    if pull["total"] is None:
        return "its image is pulled"
    return f"its image is pulled: {_so_far(pull)}"


def _fetched(instance: Document) -> list[str]:
    """How far its files are; nothing while none is on its way."""
    download = instance.get("download")
    return [] if download is None else [f"its files are fetched: {_so_far(download)}"]


def _so_far(pull: Document) -> str:
    told = _size(pull["bytes"]) if pull["total"] is None else f"{_size(pull['bytes'])} of {_size(pull['total'])}"
    if pull["bytes_per_second"] is not None:
        rate = pull["bytes_per_second"]
        told += f", {rate / 2**20:.1f} MiB/s" if not 0 < rate < 2**20 else f", {rate / 2**10:.0f} KiB/s"
    if pull["remaining_seconds"]:
        told += f", {_duration(pull['remaining_seconds'])} left"
    return told


def workers(items: Sequence[Document], now: datetime) -> RenderableType:
    if not items:
        return Text("No workers. `muster up` makes this machine one.")
    table = Rows("WORKER", "STATE", "SINCE", "ADDRESS", "RUNS", "HAS")
    for worker in items:
        state = _state(worker)
        if worker["cordoned"]:
            state.append(", cordoned", style="yellow")
        if worker.get("draining"):
            drained = worker.get("drained_at") is not None
            state.append(", drained" if drained else ", draining", style="yellow")
        runs = ", ".join(f"{name} {version or ''}".strip() for name, version in sorted(worker["backends"].items()))
        has = f"{_count(worker['cpu_count'], 'CPU')}, {_size(worker['memory_total'])}"
        for name, count in _counted(f"{gpu['name']} {_size(gpu['memory_total'])}" for gpu in worker["gpus"]):
            has += f", {count}× {name}"
        has = "; ".join([has, *(_sentence(reason | {"worker": None}) for reason in worker["reasons"])])
        table.add_row(_bold(worker["name"]), state, _since(worker["since"], now), worker["ip"], runs, has)
    return table


def backends(items: Sequence[Document]) -> RenderableType:
    table = Rows("BACKEND", "ENGINE", "VERSIONS", "RUNS ON", "IMAGES", "MODELS")
    for backend in items:
        name = _bold(backend["backend_name"])
        if not backend["enabled"]:
            name.append(", switched off", style="yellow")
        elif not backend["built_in"]:
            name.append(", yours", style="dim")
        oldest, newest = backend["oldest_version"], backend["newest_version"]
        versions = f"{oldest} to {newest}" if oldest and newest else ", ".join(backend["version_configs"]) or "-"
        if backend["default_version"]:
            versions += f", usually {backend['default_version']}"
        kinds = ", ".join(backend["accelerators"]) or "whatever its images are for"
        images = len(backend["images"]) + len(backend["version_configs"])
        table.add_row(name, backend["engine"], versions, kinds, str(images), ", ".join(backend["models"]))
    return table


def backend_images(answer: Document) -> RenderableType:
    """Which image each worker would be given, and how far it is."""
    name, items = answer["backend"], answer["workers"]
    if not items:
        return Text(f"No worker runs {plain(name)} in containers.")
    table = Rows("WORKER", "IMAGE", "STATE", "HOW FAR, OR WHY NOT")
    colours = {"here": "green", "pulling": "yellow", "absent": "", "failed": "red", "refused": "red"}
    for each in items:
        why = "; ".join(str(reason["text"]) for reason in each["reasons"])
        far = "" if each["total"] is None else _so_far(each)
        state = Text(each["state"], style=colours.get(each["state"], ""))
        table.add_row(_bold(each["worker"]), each["image"] or "-", state, why or far)
    return table


# -- model files ------------------------------------------------------------------------------------------------------


def files(items: Sequence[Document], now: datetime) -> RenderableType:
    if not items:
        return Text("No model files. `muster files pull SOURCE --worker NAME` fetches some ahead of a model.")
    table = Rows("FILE", "STATE", "SINCE", "WORKER", "SOURCE", "HOW FAR, OR WHY NOT")
    for each in items:
        table.add_row(
            _bold(each["id"]),
            _state(each),
            _since(each["since"], now),
            each["worker_name"] or each["worker_id"],
            _pinned_label(each),
            far(each),
        )
    return table


def _pinned_label(document: Document) -> str:
    """With the beginning of the commit, where the revision is a name."""
    label, commit = source_label(document), document["commit"]
    return label if not commit or commit == document.get("revision") else f"{label} ({commit[:8]})"


def file(document: Document, now: datetime) -> RenderableType:
    facts = Rows("", "")
    facts.add_row("file", document["id"])
    facts.add_row("source", source_label(document))
    if document["commit"]:
        facts.add_row("commit", document["commit"])
    facts.add_row("worker", document["worker_name"] or document["worker_id"])
    facts.add_row("state", f"{document['state']} since {_since(document['since'], now)}")
    facts.add_row("how far", far(document))
    for part in document["parts"]:
        facts.add_row("", f"{part['name']}: {_size(part['bytes'])} of {_size(part['total'])}")
    if document["model_path"]:
        facts.add_row("engines get", document["model_path"])
    users = ", ".join(each["name"] for each in document["instances"])
    facts.add_row("used by", users or "nothing")
    return facts


def file_name(document: Document, *, with_worker: bool = True) -> str:
    where = f" on {document['worker_name'] or document['worker_id']}" if with_worker else ""
    return source_label(document) + where


def far(document: Document) -> str:
    """How far a file is, or why not."""
    why = "; ".join(str(reason["text"]) for reason in document["reasons"])
    if document["state"] == "error":
        return why or "it failed"
    if document["state"] == "ready":
        return _size(document["bytes"] or 0) + (f" ({why})" if why else "")
    if document["state"] == "deleting":
        return "being removed"
    if document["phase"] is None:
        return "waits for its downloader" if document["total"] is None else f"{_size(document['total'])} to come"
    told = "" if document["phase"] == "downloading" else f"{document['phase']}: "
    told += _so_far(document)
    if document["files"]:
        told += f", {document['files_ready']} of {_count(document['files'], 'file')}"
    return told + (f", from {document['origin']}" if document["origin"] else "")


def files_line(items: Sequence[Document]) -> str:
    """All that is waited for, in a line."""
    wanted = [each for each in items if each["state"] == "wanted"]
    if len(items) == 1 or len(wanted) == 1:
        one = wanted[0] if wanted else items[0]
        return f"{file_name(one)}: {far(one)}"
    ready = sum(each["state"] == "ready" for each in items)
    totals = [each["total"] for each in items]
    rates = [each["bytes_per_second"] for each in wanted if each["bytes_per_second"] is not None]
    together = {
        "bytes": sum(each["bytes"] or 0 for each in items),
        "total": None if None in totals else sum(totals),
        "bytes_per_second": sum(rates) if rates else None,
        "remaining_seconds": max((each["remaining_seconds"] or 0 for each in wanted), default=0),
    }
    return f"{ready} of {len(items)} are ready: {_so_far(together)}"


def size(of: int) -> str:
    return _size(of)


# -- one model --------------------------------------------------------------------------------------------------------


def explain(
    model: Document, instances: Sequence[Document], now: datetime, placement: Document | None = None
) -> RenderableType:
    """Why a model is as it is: a sentence, then each instance, or each group that is waiting for the same reasons.

    `placement`: of the same model, as it is now; what was stated before stands in the instances.
    """
    parts: list[RenderableType] = [_summary(model)]
    places = {} if placement is None else {each["id"]: each for each in placement["instances"]}
    refusal = None if placement is None else placement["refusal"]
    pending: dict[str, list[Document]] = {}
    for instance in instances:
        if instance["state"] == "pending" and instance["reasons"]:
            pending.setdefault(_alike(instance), []).append(instance)
        else:
            parts += ["", *_explain_one(instance, now)]
        if instance["state"] not in ("pending", "error"):
            parts += _why_there(places.get(instance["id"]))
    for group in pending.values():
        parts += ["", *_explain_pending(group, now, refusal)]
    return Group(*parts, *_measured(placement))


def _measured(placement: Document | None) -> list[RenderableType]:
    """What is claimed, and what was measured."""
    lines: list[RenderableType] = []
    for each in placement.get("measured", ()) if placement is not None else ():
        lines.append(Text(f"{plain(each['text'])}."))
        if each["warning"] is not None:
            lines.append(Text(f"It {plain(each['warning'])}.", style="yellow"))
    return ["", *lines] if lines else []


def plan(name: str, answer: Document) -> RenderableType:
    """Would it run, where, and what would it take?"""
    needs = answer["needs"]
    share = needs["per_gpu_share"]
    parts: list[RenderableType] = [
        Text.assemble(_bold(name), ": ", (plain(answer["summary"]), "green" if answer["placed"] else "yellow")),
        Text(
            f"It needs {_size(needs['vram'])} of VRAM and {_size(needs['ram'])} of RAM"
            + (f"; its engine takes {share:.0%} of each GPU" if share is not None else "")
            + "."
        ),
    ]
    if answer["placed"]:
        table = Rows("INSTANCE", "WORKER", "GPUS", "CLAIMS", "BESIDE ITS OWN PARAMETERS")
        for number, each in enumerate(answer["placements"], start=1):
            for member in each["members"]:
                gpus = ", ".join(f"{member['type']}:{index}" for index in member["gpu_indexes"]) or "none"
                table.add_row(
                    str(number), member["worker"], gpus, _claimed(member["claim"]), " ".join(each["parameters"])
                )
        return Group(
            *parts, "", table, *(_why_there(answer["placements"][0]) if len(answer["placements"]) == 1 else ())
        )
    return Group(*parts, "", *_objections(answer["objections"], answer.get("unlisted") or {}), *_help(answer))


ROWS: Final = 40
"""Objections that are shown one by one; `--json` has all of them."""


def _objections(objections: Sequence[Document], unlisted: Mapping[str, int]) -> list[RenderableType]:
    table = Rows("WORKER", "OBJECTION", "WHO ACTS", "WHY")
    for each in objections[:ROWS]:
        table.add_row(each["worker"] or "–", Text(each["code"], style="yellow"), _who(each["who"]), each["text"])
    more = dict(unlisted)
    for each in objections[ROWS:]:
        more[each["code"]] = more.get(each["code"], 0) + 1
    if not more:
        return [table]
    said = ", ".join(f"{count}× {code}" for code, count in sorted(more.items()))
    return [table, Text(f"and of further workers: {said}")]


def _help(answer: Document) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if answer["closest"] is not None and len({each["worker"] for each in answer["objections"]}) > 1:
        parts.append(Text(f"Closest: {plain(answer['closest'])}"))
    if answer["suggestions"]:
        parts.append(Text("What would help:"))
        parts += [Padding(Text(f"- {plain(each['text'])}"), (0, 0, 0, 2)) for each in answer["suggestions"]]
    return parts


def _claimed(claim: Document) -> str:
    sizes = [
        f"{_size(size)} on GPU {index}" for index, size in sorted(claim["vram"].items(), key=lambda each: int(each[0]))
    ]
    if claim["ram"]:
        sizes.append(f"{_size(claim['ram'])} of RAM")
    return _and(sizes)


def _why_there(place: Document | None) -> list[RenderableType]:
    """Who else could have taken it, and by what they lost."""
    why = place["why"] if place is not None else None
    if why is None:
        return []
    if not why["runners_up"]:
        return (
            [Padding(Text("It was the only worker that could take it."), (0, 0, 0, 2))] if why["fitting"] == 1 else []
        )
    table = Rows("", "", "")
    for each in why["runners_up"]:
        gpus = f"GPU {', '.join(str(index) for index in each['gpu_indexes'])}" if each["gpu_indexes"] else ""
        table.add_row(each["worker"], gpus, each["text"])
    head = f"Why there: {_count(why['fitting'], 'worker')} could have taken it; the next best were"
    return [Padding(Group(Text(head), Padding(table, (0, 0, 0, 2))), (0, 0, 0, 2))]


def _summary(model: Document) -> Text:
    ready, wanted = model["ready_replicas"], model["replicas"]
    return Text.assemble(
        _bold(model["name"]), " is ", _state(model), f": {ready} of {_count(wanted, 'instance')} running."
    )


def _alike(instance: Document) -> str:
    """What pending instances have in common when one explanation does for all."""
    reasons = sorted(f"{reason['worker_id']} {reason['code']} {reason['numbers']}" for reason in instance["reasons"])
    return f"{reasons} {instance['closest_worker']} {instance['suggestions']}"


def _explain_pending(group: Sequence[Document], now: datetime, refusal: Document | None = None) -> list[RenderableType]:
    first = group[0]
    names = _and([instance["name"] for instance in group])
    parts: list[RenderableType] = [
        Text.assemble(
            _bold(names), " is " if len(group) == 1 else " are ", _state(first),
            f" since {_since(first['since'], now)}: no worker takes {'it' if len(group) == 1 else 'them'}.",
        )
    ]  # fmt: skip
    if refusal is not None:
        return [*parts, *_objections(refusal["objections"], refusal["unlisted"]), *_help(refusal)]
    table = Rows("WORKER", "OBJECTION", "WHO ACTS", "WHY")
    for reason in first["reasons"]:
        worker = reason["worker"] or reason["worker_id"] or "–"
        table.add_row(worker, Text(reason["code"], style="yellow"), _who(reason["who"]), reason["text"])
    parts.append(table)
    closest = first["closest_worker"]
    known = {reason["worker_id"]: reason["worker"] for reason in first["reasons"]}
    if closest is not None and len(known) > 1:
        parts.append(Text(f"Closest: {plain(known.get(closest) or closest)}"))
    if first["suggestions"]:
        parts.append(Text("What would help:"))
        parts += [Padding(Text(f"- {plain(each['text'])}"), (0, 0, 0, 2)) for each in first["suggestions"]]
    return parts


def _who(who: str) -> str:
    return {"wait": "nobody: wait", "operator": "operator", "author": "author"}.get(who, who)


def _explain_one(instance: Document, now: datetime) -> list[RenderableType]:
    verb = " is in " if instance["state"] == "error" else " is "
    head = Text.assemble(_bold(instance["name"]), verb, _state(instance), f" since {_since(instance['since'], now)}")
    if instance["state"] == "running":
        claim = instance["computed_resource_claim"] or {}
        promised = [f"{_size(claim['ram'])} of RAM"] if claim.get("ram") else []
        promised += [f"{_size(size)} on GPU {index}" for index, size in sorted((claim.get("vram") or {}).items())]
        head.append(f": {plain(_where(instance))}, attempt {instance['attempt']}")
        head.append(f", with {_and(promised)} promised." if promised else ".")
        return [head]
    if instance["worker_name"] and instance["state"] != "error":
        head.append(f" on {plain(instance['worker_name'])}, attempt {instance['attempt']}")
    about = [plain(reason["text"]) for reason in instance["reasons"]] + [
        _pulled_where(pull, instance) for pull in instance.get("pulls", ())
    ]
    about += _fetched(instance)
    head.append(": " + "; ".join(about) if about else "")
    head.append(".")
    if instance["failed_phase"] is None:
        return [head]
    return [head, Padding(_failure(instance, now), (0, 0, 0, 2))]


def _failure(instance: Document, now: datetime) -> RenderableType:
    """How the last attempt ended; stays until the next one runs."""
    facts = Rows("", "")
    worker = f" on {instance['worker_name']}" if instance["worker_name"] else ""
    ended = f"while {instance['failed_phase']}, attempt {instance['attempt']}{worker}"
    facts.add_row("ended", ended if instance["state"] == "error" else f"last time while {instance['failed_phase']}")
    facts.add_row("exit code", "none" if instance["exit_code"] is None else str(instance["exit_code"]))
    for reason in instance["reasons"]:
        facts.add_row("diagnosis", f"{reason['code']}: {reason['text']} (who acts: {_who(reason['who'])})")
    facts.add_row("crashes", f"{instance['restart_count']} in a row")
    if instance["next_restart_at"] is not None:
        at = datetime.fromisoformat(instance["next_restart_at"])
        seconds = (at - now).total_seconds()
        due = f"in {_duration(seconds)}" if seconds > 0 else "now"
        facts.add_row("next start", f"{due} ({_clock(at, now)[:8]})")
    tail: list[str] = instance["log_tail"]
    if not tail:
        return facts
    lines = [Text(f"  | {plain(line)}", style="dim") for line in tail[-LOG_LINES:]]
    return Group(facts, Text(f"last lines of its log (all of it: muster logs {instance['name']}):"), *lines)


# -- what happened ----------------------------------------------------------------------------------------------------


def timeline(events: Sequence[Document], names: Names, now: datetime) -> RenderableType:
    """Facts about one resource, as `/timeline` lists them."""
    table = Rows("AT", "EVENT", "WHAT")
    for event in events:
        at = datetime.fromisoformat(event["at"])
        table.add_row(_clock(at, now), _event_type(event["type"]), details(event["type"], event["data"], names))
    return table


def event_line(position: str, envelope: Document, names: Names, now: datetime) -> Text:
    at = datetime.fromisoformat(envelope["time"])
    about = envelope["subject"].partition("/")[2]
    what = details(envelope["type"], envelope["data"], names)
    name = "" if envelope["type"] in ("SchedulerElected", "ModelRenamed") else names.get(about, about)
    line = Text.assemble(
        (f"{position:<8}", "dim"), " ", (_clock(at, now), "dim"), " ", _event_type(f"{envelope['type']:<22}"), " "
    )
    line.append("  ".join(part for part in (plain(name), what) if part))
    return line


def named_by(envelope: Document) -> dict[str, str]:
    """Names of ids that an event tells."""
    data = envelope["data"]
    match envelope["type"]:
        case "ModelCreated" | "ModelUpdated":
            return {data["model_id"]: data["spec"]["name"]}
        case "InstanceCreated":
            return {data["instance_id"]: data["name"]}
        case "WorkerRegistered" | "WorkerRenamed":
            return {data["worker_id"]: data["name"]}
        case _:
            return {}


def details(kind: str, data: Document, names: Names) -> str:
    """What an event says beyond its type and whom it is about."""
    match kind, data:
        case (("ModelCreated" | "ModelUpdated"), {"spec": spec}):
            text = f"{_count(spec['replicas'], 'instance')} of {label_in_fact(spec['source'])}"
        case (("WorkerRegistered" | "WorkerInventoryChanged"), {"inventory": inventory}):
            gpus = "".join(f", {count}× {name}" for name, count in _counted(gpu["name"] for gpu in inventory["gpus"]))
            text = f"{_count(inventory['cpu_count'], 'CPU')}, {_size(inventory['memory_total'])}{gpus}"
        case "ModelInspected", {"weights": {"weight_bytes": size, "format": form}, "worker_id": worker}:
            text = f"{_size(size)} of {form} on {names.get(worker, worker)}"
        case (("ModelFileWanted" | "ModelFileRequested"), {"source": source, "worker_id": worker}):
            size = f", {_size(data['bytes'])}" if data.get("bytes") is not None else ""
            text = f"{label_in_fact(source)} on {names.get(worker, worker)}{size}"
        case "ModelPeakMeasured", {"gpu": gpu, "gpus": gpus, "peak_vram": vram, "peak_ram": ram}:
            peaks = ((vram, "on each GPU"), (ram, "of RAM"))
            sizes = [f"{_size(size)} {what}" for size, what in peaks if size is not None]
            text = f"{_and(sizes)} at most on {f'{gpus}× {gpu}' if gpus else 'the CPU'}"
        case "InstanceScheduled", {"attempt": attempt, "members": members}:
            places = [names.get(member["worker_id"], member["worker_id"]) for member in members]
            text = f"attempt {attempt} on {_and(places)}"
        case "ModelRenamed", {"name": name, "to": to}:
            text = f"{name} is called {to} now"
        case "ModelScaled", {"replicas": replicas}:
            text = _count(replicas, "instance")
        case "ModelDeleted", _:
            text = ""
        case "InstanceCreated", {"model_id": model}:
            text = f"of {names.get(model, model)}"
        case "InstanceRunning", {"attempt": attempt, "address": address, "port": port}:
            text = f"attempt {attempt} at {address}:{port}"
        case "InstanceFailed", {"phase": phase, "attempt": attempt, "exit_code": code}:
            exited = "" if code is None else f", exit code {code}"
            text = f"attempt {attempt}, while {phase}{exited}: {_sentences(data['reasons'], names)}"
        case "InstanceRestartPlanned", {"delay_seconds": seconds}:
            text = f"in {_duration(seconds)}"
        case _:
            text = _any_details(kind, data, names)
    return plain(text)


def _any_details(kind: str, data: Document, names: Names) -> str:
    """Plain values by their names, the worker by its own, reasons as sentences; ids and the rest are for --json."""
    said = [
        _size(int(value)) if key == "bytes" else f"{key.replace('_', ' ')} {value}"
        for key, value in data.items()
        if isinstance(value, int | float | str) and value != "" and not key.endswith("_id") and key not in UNSAID
    ]
    about = ", ".join(said)
    if not kind.startswith("Worker") and (worker := data.get("worker_id")):
        about = f"{about} on {names.get(worker, worker)}".lstrip()
    return ": ".join(part for part in (about, _sentences(data.get("reasons") or (), names)) if part)


def _sentences(reasons: Sequence[Document], names: Names) -> str:
    from schemas.reasons import REASONS  # noqa: PLC0415 - a quarter of a second, and most output needs none

    known = {reason.model_fields["code"].default: reason for reason in REASONS}
    said: list[str] = []
    for reason in reasons:
        try:
            text = known[reason["code"]].model_validate(reason).sentence()
        except (KeyError, ValueError):  # a newer server's
            text = str(reason["code"])
        worker = reason.get("worker_id")
        said.append(f"{names.get(worker, worker)}: {text}" if worker else text)
    return "; ".join(said)


# -- words ------------------------------------------------------------------------------------------------------------


def _bold(text: str) -> Text:
    return Text(plain(text), style="bold")


def _state(document: Document) -> Text:
    return Text(plain(document["state"]), style=STATE_STYLES.get(document["state"], ""))


def _event_type(name: str) -> Text:
    bad = ("Failed", "Unreachable", "Degraded", "Pending", "DeadlinePassed")
    good = ("Running", "Ready", "Reachable")
    kind = name.strip()
    return Text(name, style="yellow" if kind.endswith(bad) else "green" if kind.endswith(good) else "")


def _since(at: str, now: datetime) -> str:
    return _duration((now - datetime.fromisoformat(at)).total_seconds())


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _clock(at: datetime, now: datetime) -> str:
    """In the reader's zone; with the date when it was not today."""
    local = at.astimezone(now.tzinfo)
    text = f"{local:%H:%M:%S}.{local.microsecond // 1000:03}"
    return text if local.date() == now.date() else f"{local:%m-%d} {text}"


def _size(size: int) -> str:
    from schemas.reasons import gib  # noqa: PLC0415 - see _sentences

    return gib(size)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _counted(things: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for thing in things:
        counts[thing] = counts.get(thing, 0) + 1
    return list(counts.items())


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
