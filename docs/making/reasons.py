"""docs/reference/reasons.md: the closed set of reasons."""

from collections.abc import Iterator

from docs.making.examples import example
from docs.making.words import GENERATED, field_table, sentence_of, table
from schemas.reasons import REASONS, ReasonBase, Suggestion


def page() -> str:
    return "\n".join(_lines())


def code_of(reason: type[ReasonBase]) -> str:
    return str(reason.model_fields["code"].default)


def _lines() -> Iterator[str]:
    yield GENERATED
    yield from (
        "# Reasons",
        "",
        "Why something is Pending, in Error, Degraded or Unreachable. A closed set: a code, its numbers, and who must act.",
        "",
        "- `wait`: it can change by itself.",
        "- `operator`: who runs the fleet.",
        "- `author`: who deployed the model.",
        "",
        "REST shows them under `reasons`, with `code`, `who`, `numbers`, `text`, `worker`, `since` and the event that stated them.",
        "Each may name the worker that it is about.",
        "",
    )
    yield from table(
        ("Code", "Who acts", "For example"),
        ((f"[{code_of(each)}](#{code_of(each)})", each.who, example(each).sentence()) for each in REASONS),
    )
    for reason in REASONS:
        yield from (f"## {code_of(reason)}", "", sentence_of(reason), "")
        yield from (f"Who acts: {reason.who}. For example: “{example(reason).sentence()}”", "")
        yield from field_table(reason, without=("code", "worker_id"))
    yield from ("## Suggestions", "", sentence_of(Suggestion), "")
    yield from field_table(Suggestion)
