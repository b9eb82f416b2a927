"""Result records, in every form that Stem writes them; whatever else is found costs no more than itself."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from agent.stem.catalogue import TaskState
from agent.stem.envelope import decode_envelope, envelope_of
from agent.stem.heartbeat import decode_heartbeat
from agent.stem.lenient import DecodeError
from agent.stem.status import TaskStatus, decode_status
from tests.support import TASK_ID, TRACEPARENT
from tests.unit.test_stem_wire import json_values

STARTED, ENDED = "2026-04-23T10:00:00.123456Z", "2026-04-23T10:00:01.123Z"
STARTED_AT, ENDED_AT = (
    datetime(2026, 4, 23, 10, 0, 0, 123456, tzinfo=UTC),
    datetime(2026, 4, 23, 10, 0, 1, 123000, tzinfo=UTC),
)
RUNNING = {
    "traceparent": TRACEPARENT,
    "task": "email.send",
    "stem.task": "email.send",
    "queue": "mail",
    "stem.queue": "mail",
    "worker": "worker-1",
    "startedAt": STARTED,
}
RAN = {"task": "email.send", "queue": "mail", "worker": "worker-1", "started_at": STARTED_AT}


def record(state: str, meta: Any, error: Any = None, **changes: Any) -> bytes:
    written = {
        "id": TASK_ID,
        "state": state,
        "payload": {"state": "failed", "meta": {"task": "another"}},
        "error": error,
        "meta": meta,
        "attempt": 1,
        "createdAt": STARTED,
        "updatedAt": ENDED,
    }
    return json.dumps({**written, **changes}).encode()


def error(kind: str, *, retryable: bool = False, **meta: Any) -> dict[str, Any]:
    return {"type": kind, "message": "it broke", "stack": None, "retryable": retryable, "meta": meta}


# Every row of what Stem writes: state, the meta beside the envelope's own, the error, what must be read of it.
ROWS: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "queued": (
        "queued",
        {"queue": "mail", "maxRetries": 3, "__stemResultEncoder": "json", "stem.task": "email.send"},
        None,
        {"task": "email.send", "queue": "mail"},
    ),
    "queued by a canvas": ("queued", {"queue": "mail", "groupId": "grp-1"}, None, {"queue": "mail"}),
    "queued as a chord's callback": (
        "queued",
        {"queue": "mail", "chordId": "chord-1", "dispatchedAt": STARTED},
        None,
        {"queue": "mail"},
    ),
    "queued in a chain": ("queued", {"stem.queue": "mail", "chainIndex": 1}, None, {"queue": "mail"}),
    "running": ("running", RUNNING, None, RAN),
    "succeeded": ("succeeded", {**RUNNING, "completedAt": ENDED}, None, {**RAN, "completed_at": ENDED_AT}),
    "failed": (
        "failed",
        {**RUNNING, "failedAt": ENDED},
        {**error("SocketException"), "stack": "#0 main"},
        {**RAN, "failed_at": ENDED_AT},
    ),
    "failed by its signature": (
        "failed",
        {"failedAt": ENDED, "security": "signature-invalid"},
        error("SignatureVerificationException", reason="unknown key", keyId="k1"),
        {"failed_at": ENDED_AT, "security": "signature-invalid"},
    ),
    "failed with its retries exhausted": (
        "failed",
        {"failedAt": ENDED, "retryExhausted": True},
        error("RetryExhausted"),
        {"failed_at": ENDED_AT, "retry_exhausted": True},
    ),
    "retried after an error": (
        "retried",
        {"retryDelayMs": 8000},
        error("TimeoutException", retryable=True),
        {"retry_delay_ms": 8000},
    ),
    "retried on request": ("retried", {"retryDelayMs": 0}, error("RetryRequested"), {"retry_delay_ms": 0}),
    "rate limited": (
        "retried",
        {"rateLimited": True, "retryAfterMs": 1500},
        None,
        {"rate_limited": True, "retry_after_ms": 1500},
    ),
    "rate limited as a group": (
        "retried",
        {"groupRateLimited": True, "groupKey": "tenant-1", "retryAfterMs": 1500},
        None,
        {"rate_limited": True, "retry_after_ms": 1500},
    ),
    "put back because the limiter is down": (
        "retried",
        {"rateLimiterUnavailable": True, "failureMode": "closed", "error": "no route", "retryAfterMs": 250},
        None,
        {"rate_limited": True, "retry_after_ms": 250},
    ),
    "put back because the queue is paused": (
        "retried",
        {"queuePaused": True, "retryAfterMs": 250},
        None,
        {"queue_paused": True, "retry_after_ms": 250},
    ),
    "revoked": (
        "cancelled",
        {"worker": "worker-1", "revoked": True, "revokedReason": "no longer wanted", "revokedBy": "ops"},
        None,
        {"worker": "worker-1", "revoked": True, "revoked_reason": "no longer wanted"},
    ),
    "expired": (
        "cancelled",
        {"worker": "worker-1", "expiredAt": ENDED, "stem.expired": True},
        error("TaskExpired"),
        {"worker": "worker-1", "expired_at": ENDED_AT, "expired": True},
    ),
    "replayed from the dead letters": (
        "failed",
        {**RUNNING, "failedAt": ENDED, "lastReplayAt": ENDED, "replayCount": 1},
        error("SocketException"),
        {**RAN, "failed_at": ENDED_AT},
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_record_that_stem_writes_is_read(row: str) -> None:
    state, meta, problem, expected = ROWS[row]
    status = decode_status(record(state, meta, problem))
    found = {name: value for name in TaskStatus.__struct_fields__ if (value := getattr(status, name))}
    kept = status.error
    found.pop("error", None)
    basics = {"id": TASK_ID, "state": TaskState(state), "attempt": 1, "created_at": STARTED_AT, "updated_at": ENDED_AT}
    assert found == basics | {name: value for name, value in expected.items() if value}
    assert all(getattr(status, name) == value for name, value in expected.items())
    assert (kept is None) == (problem is None)
    if kept:
        assert (kept.type, kept.message, kept.stack, kept.retryable) == (
            problem["type"],
            problem["message"],
            problem["stack"],
            problem["retryable"],
        )


def test_an_unnamed_worker_is_none() -> None:
    assert decode_status(record("running", {**RUNNING, "worker": None})).worker is None


def test_a_time_without_an_offset_is_told_as_it_was_written() -> None:
    local = "2026-04-23T12:00:00.123456"
    status = decode_status(record("running", {"startedAt": local}, createdAt=local, updatedAt="2026-04-23T12:00:00"))
    naive = datetime.fromisoformat(local)
    assert (status.started_at, status.created_at) == (naive, naive)
    assert status.updated_at == naive.replace(microsecond=0)
    assert naive.tzinfo is None


def test_a_state_that_stem_does_not_know_is_queued_to_it() -> None:
    assert decode_status(record("paused", {})).state is TaskState.QUEUED


@pytest.mark.parametrize(
    ("odd", "field"),
    [
        ({"attempt": -1}, "attempt"),
        ({"createdAt": 5}, "created_at"),
        ({"updatedAt": "soon"}, "updated_at"),
        ({"error": "it broke"}, "error"),
    ],
)
def test_an_odd_field_costs_only_itself(odd: dict[str, Any], field: str) -> None:
    status = decode_status(record("running", RUNNING, **odd))
    assert getattr(status, field) is None
    assert (status.task, status.worker, status.state) == ("email.send", "worker-1", TaskState.RUNNING)


@pytest.mark.parametrize("odd", [{"worker": 7}, {"startedAt": []}, {"retryDelayMs": "long"}, {"stem.queue": {}}])
def test_an_odd_field_of_meta_costs_only_itself(odd: dict[str, Any]) -> None:
    status = decode_status(record("running", {**RUNNING, **odd}))
    assert (status.task, status.queue) == ("email.send", "mail")


def test_an_odd_field_of_the_error_costs_only_itself() -> None:
    status = decode_status(record("failed", RUNNING, {"type": "StateError", "message": {}, "retryable": []}))
    assert status.error
    assert (status.error.type, status.error.message, status.error.retryable) == ("StateError", None, None)


@pytest.mark.parametrize("meta", [None, 5, "text", []])
def test_meta_that_is_no_object_is_no_meta(meta: Any) -> None:
    assert decode_status(record("succeeded", meta)).task is None


def test_what_a_task_returned_is_never_decoded() -> None:
    # A number that the JSON decoder refuses, in a record that needs the lenient way.
    text = record("succeeded", RUNNING, payload="HERE", attempt="odd")
    status = decode_status(text.replace(b'"HERE"', b"1" * 5000))
    assert (status.state, status.attempt, status.worker) == (TaskState.SUCCEEDED, None, "worker-1")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"\x80\x04", "not_json"),
        (b'{"id": "a"', "not_json"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"state": "queued"}', "missing_id"),
        (b'{"id": "a"}', "missing_state"),
        (b'{"id": 5, "state": "queued"}', "invalid_id"),
        (b'{"id": "a", "state": null}', "invalid_state"),
    ],
)
def test_what_is_no_record_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_status(payload)
    assert refused.value.reason == reason


@settings(max_examples=200)
@given(st.binary())
def test_no_bytes_ever_raise_anything_else(payload: bytes) -> None:
    try:
        decode_status(payload)
    except DecodeError as refusal:
        assert refusal.reason


@settings(max_examples=300)
@given(
    st.fixed_dictionaries(
        {"id": st.just("a"), "state": st.sampled_from(["running", "x"])},
        optional=dict.fromkeys(("attempt", "createdAt", "updatedAt", "error", "payload"), json_values)
        | {"meta": json_values | st.dictionaries(st.sampled_from(list(RUNNING)), json_values)},
    )
)
def test_a_record_with_an_id_and_a_state_is_always_read(value: dict[str, Any]) -> None:
    assert decode_status(msgspec.json.encode(value)).id == "a"  # in which, unlike in Python's own, NaN is null


HALF = rb"\ud83d"  # what Dart writes for text that was cut in the middle of an emoji


def test_text_that_was_cut_in_the_middle_of_an_emoji_costs_that_character_only() -> None:
    payload = b'{"id":"a","state":"failed","payload":"%b","error":{"message":"no %b"}}' % (HALF, HALF)
    status = decode_status(payload)
    assert (status.state, status.error and status.error.message) == (TaskState.FAILED, "no \ufffd")
    beat = decode_heartbeat(b'{"workerId":"w","timestamp":"2026-01-01T00:00:00Z","extras":{"x":"%b"}}' % HALF)
    assert beat.worker_id == "w"
    envelope = decode_envelope(Raw(b'{"id":"a","args":{"x":"%b"},"priority":"odd"}' % HALF))
    assert envelope is not None
    assert envelope.id == "a"
    assert envelope_of({"headers": b'{"traceparent":"t","x":"%b"}' % HALF}).headers.traceparent == "t"
