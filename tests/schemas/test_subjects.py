"""Subjects: made and read in one place, the same both ways; nothing that is not a token gets into one."""

import json
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from docs.making.examples import example
from kernel.accounts import new_seed, public_key, worker_id_of
from kernel.log.port import subject_matches
from schemas.facts import FACTS
from schemas.facts.base import Fact
from schemas.facts.model import ModelWish
from schemas.facts.scheduler import SchedulerElected
from schemas.ids import NOBODY, TOKEN_PATTERN, InstanceId, ModelId, Name, Token, WorkerId
from schemas.reports import REPORTS, Report
from schemas.subjects import (
    ALL_BEATS,
    ALL_FACTS,
    ALL_REPORTS,
    ELECTION,
    FACTS_OF_THE_API,
    NAME_MARK,
    FactSubject,
    ReportSubject,
    api_part_of,
    ask,
    assigned,
    beat,
    facts_about,
    facts_under,
    name_token,
    parse_beat,
    parse_fact_subject,
    parse_report_subject,
)

tokens = st.from_regex(TOKEN_PATTERN, fullmatch=True)
TOKEN: Final = TypeAdapter[str](Token)
NAME: Final = TypeAdapter[str](Name)


@given(st.tuples(tokens, tokens, tokens, tokens, tokens))
def test_the_subject_of_a_fact_reads_as_it_was_made(parts: tuple[str, str, str, str, str]) -> None:
    subject = FactSubject(*parts)
    assert parse_fact_subject(str(subject)) == subject


@given(st.tuples(tokens, tokens, tokens, tokens))
def test_the_subject_of_a_report_reads_as_it_was_made(parts: tuple[str, str, str, str]) -> None:
    subject = ReportSubject(*parts)
    assert parse_report_subject(str(subject)) == subject


@given(tokens, st.sampled_from(["agent", "downloader"]))
def test_the_subject_of_a_beat_reads_as_it_was_made(worker: str, role: str) -> None:
    assert parse_beat(beat(worker, role)) == (worker, role)
    assert subject_matches(beat(worker, role), ALL_BEATS)


@pytest.mark.parametrize(
    "subject", ["", "muster.facts", "muster.reports.w.i.x.T", "other.facts.a.b.c.d.E", "muster.facts.a.b.c.d.E.F"]
)
def test_what_is_no_fact_has_no_subject_of_one(subject: str) -> None:
    with pytest.raises(ValueError, match="not the subject of a fact"):
        parse_fact_subject(subject)


@pytest.mark.parametrize("subject", ["", "muster.reports.w.i.x", "muster.facts.w.i.x.T", "muster.reports.w.i.x.T.U"])
def test_what_is_no_report_has_no_subject_of_one(subject: str) -> None:
    with pytest.raises(ValueError, match="not the subject of a report"):
        parse_report_subject(subject)


@pytest.mark.parametrize("of", FACTS, ids=lambda of: of.type)
def test_the_subject_of_a_fact_says_what_the_fact_says(of: type[Fact]) -> None:
    fact = example(of)
    subject = parse_fact_subject(fact.subject)
    assert subject == (of.owner, of.kind, fact.concern, fact.resource_id, of.type)
    assert subject.worker == (None if fact.worker == NOBODY else fact.worker)
    assert subject_matches(fact.subject, ALL_FACTS)
    assert subject_matches(fact.subject, FACTS_OF_THE_API) == (of.owner == "api")
    assert subject_matches(fact.subject, facts_about(of.kind, fact.resource_id))
    for token in (subject.owner, subject.kind, subject.id, subject.type):
        TOKEN.validate_python(token)


@pytest.mark.parametrize("of", FACTS, ids=lambda of: of.type)
def test_the_apis_facts_name_no_worker_but_those_about_workers(of: type[Fact]) -> None:
    fact = example(of)
    if of.owner == "api":
        assert (fact.worker == NOBODY) == (of.kind != "worker")
        assert subject_matches(fact.subject, api_part_of(of.kind, fact.resource_id, fact.concern))
    if fact.worker != NOBODY:
        TOKEN.validate_python(fact.worker)


@pytest.mark.parametrize("of", REPORTS, ids=lambda of: of.type)
def test_the_subject_of_a_report_says_what_the_report_says(of: type[Report]) -> None:
    report = example(of)
    assert parse_report_subject(report.subject) == (report.worker_id, of.kind, report.resource_id, of.type)
    assert subject_matches(report.subject, ALL_REPORTS)


def test_the_election_is_one_exact_subject() -> None:
    assert SchedulerElected(replica="7").subject == ELECTION


WISHES = [of for of in FACTS if of.kind == "model" and of.owner == "api"]


@pytest.mark.parametrize("of", WISHES, ids=lambda of: of.type)
def test_what_users_want_of_a_model_is_stated_under_its_name_however_that_is_written(of: type[ModelWish]) -> None:
    fact = example(of)
    assert subject_matches(fact.subject, facts_under("model", fact.known_as.swapcase()))
    assert not subject_matches(fact.subject, facts_under("model", fact.known_as + "x"))
    assert not subject_matches(fact.subject, facts_under("backend", fact.known_as))


def test_what_is_assigned_and_asked_names_the_worker() -> None:
    assert assigned("w-1") == "muster.assigned.w-1"
    assert ask("w-1", "logs") == "muster.ask.w-1.logs"


@pytest.mark.parametrize("text", ["", ".", "a.b", "a b", "*", ">", "-a", "~a", "a\n", "ä", "a" * 65])
def test_what_would_change_a_subject_is_no_token(text: str) -> None:
    for adapter in (TOKEN, TypeAdapter(WorkerId), TypeAdapter(ModelId), TypeAdapter(InstanceId)):
        with pytest.raises(ValidationError):
            adapter.validate_python(text)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,61}[A-Za-z0-9]", fullmatch=True))
def test_any_name_has_a_hash_that_is_a_token(name: str) -> None:
    NAME.validate_python(name)
    token = name_token(name)
    assert token.startswith(NAME_MARK)
    TOKEN.validate_python(token.removeprefix(NAME_MARK))


def test_a_worker_is_its_key_whatever_it_is_called() -> None:
    seed = new_seed()
    worker = worker_id_of(public_key(seed))
    assert worker == worker_id_of(public_key(seed))
    assert TypeAdapter(WorkerId).validate_python(worker) == worker
    assert worker != worker_id_of(public_key(new_seed()))


def test_every_golden_event_says_of_whom_it_is() -> None:
    for path in (Path(__file__).parents[1] / "golden").glob("*.json"):
        event = json.loads(path.read_bytes())
        if "type" in event:
            kind, _, resource_id = event["subject"].partition("/")
            TOKEN.validate_python(kind)
            TOKEN.validate_python(resource_id)
