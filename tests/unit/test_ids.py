"""The identities of the telemetry contract, section 1, with its vectors."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.correlate import ids
from agent.correlate.origin import parse_traceparent
from tests.support import TASK_ID, TRACEPARENT


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("send", TASK_ID), "d7843494fa6a944d"),
        (("wait", TASK_ID, "0", "worker-1"), "6d9d855229118977"),
        (("process", TASK_ID, "0", "worker-1"), "91c497b69b448dbc"),
        (("process", TASK_ID, "1", "worker-1"), "59c420332469cd2f"),
        (("run", "wf-1"), "c8e4137dbe1bc8a1"),
    ],
)
def test_span_ids_match_the_vectors_of_the_contract(parts: tuple[str, ...], expected: str) -> None:
    assert ids.span_id(*parts).hex() == expected


def test_trace_ids_match_the_vectors_of_the_contract() -> None:
    assert ids.trace_id(TASK_ID).hex() == "01a20a2fd00c7e5ca83e04bca63517cf"
    assert ids.trace_id("order-77").hex() == "dad448082f7883e063cb29985459e56b"


@given(st.uuids().filter(lambda value: value.int))
def test_a_uuid_is_its_own_trace_id(task: uuid.UUID) -> None:
    assert ids.trace_id(str(task)) == task.bytes


@given(st.text())
def test_any_text_makes_a_valid_trace_id(subject: str) -> None:
    assert len(ids.trace_id(subject)) == 16
    assert any(ids.trace_id(subject))


def test_the_nil_uuid_does_not_make_the_invalid_trace_id() -> None:
    assert any(ids.trace_id(str(uuid.UUID(int=0))))


def test_a_valid_traceparent_is_read() -> None:
    context = parse_traceparent(TRACEPARENT)
    assert context
    assert context.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert context.span_id.hex() == "b7ad6b7169203331"
    assert context.flags == 1


def test_a_later_version_of_traceparent_may_append_fields() -> None:
    assert parse_traceparent(TRACEPARENT.replace("00-", "01-", 1) + "-more")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        "ff" + TRACEPARENT[2:],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        TRACEPARENT[:-1],
        TRACEPARENT.replace("b", "g"),
    ],
)
def test_an_invalid_traceparent_is_no_context(text: str | None) -> None:
    assert parse_traceparent(text) is None
