"""Decoding the wire: one odd field costs that field, only what is no signal at all costs the signal."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.stem import channels
from agent.stem.envelope import decode_envelope
from agent.stem.error_text import OTHER, error_type
from agent.stem.heartbeat import decode_heartbeat
from agent.stem.lenient import DecodeError
from agent.stem.timestamps import MAX_NS, epoch_ns
from agent.stem.wire import decode_signal
from tests.support import Story, envelope

MINIMAL: dict[str, Any] = {"eventName": "task-prerun", "occurredAt": "2026-04-23T10:00:00.123456Z", "attributes": {}}


def encode(**changes: Any) -> bytes:
    return json.dumps({**MINIMAL, **changes}).encode()


def test_the_three_required_keys_are_enough() -> None:
    signal = decode_signal(encode())
    assert signal.event_name == "task-prerun"
    assert signal.occurred_at == datetime(2026, 4, 23, 10, 0, 0, 123456, tzinfo=UTC)


def test_unknown_keys_are_ignored() -> None:
    assert decode_signal(encode(somethingNew=[1, {"a": None}], attributes={"other": 1})).seq is None


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"nonsense", "not_json"),
        (b'{"eventName": "x"', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"\xff\xfe\x00", "not_json"),
        (b'{"eventName": "\xff", "occurredAt": "2026-04-23T10:00:00Z", "attributes": {}}', "not_json"),
        (b"[]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b"{}", "missing_eventName"),
        (b'{"eventName": "x", "attributes": {}}', "missing_occurredAt"),
        (b'{"eventName": "x", "occurredAt": "2026-04-23T10:00:00Z"}', "missing_attributes"),
        (encode(eventName=5), "invalid_eventName"),
        (encode(eventName=""), "invalid_eventName"),
        (encode(occurredAt="yesterday"), "invalid_occurredAt"),
        (encode(occurredAt=None), "invalid_occurredAt"),
        (encode(attributes=[]), "invalid_attributes"),
        (encode(attributes=None), "invalid_attributes"),
    ],
)
def test_what_is_no_signal_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_signal(payload)
    assert refused.value.reason == reason


def test_an_odd_field_costs_no_list_beside_it_and_no_neighbour_in_one() -> None:
    queues = [{"name": "a", "inflight": 2}, {"name": "b", "inflight": -3}]
    beat = {"workerId": "w", "timestamp": "2026-04-23T10:00:00Z", "inflight": "many", "queues": queues}
    told = decode_heartbeat(json.dumps(beat).encode())
    assert told.inflight is None
    assert [(queue.name, queue.inflight) for queue in told.queues] == [("a", 2), ("b", None)]
    assert decode_heartbeat(json.dumps({**beat, "queues": [{"name": "a"}, 5]}).encode()).queues == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": "many"},
        {"seq": -1},
        {"seq": 1 << 70},
        {"boot": 7},
        {"startedAt": "soon"},
        {"pid": {}},
        {"attributes": {"attempt": [], "taskId": "a"}},
    ],
)
def test_an_optional_field_of_the_wrong_type_costs_only_itself(changes: dict[str, Any]) -> None:
    signal = decode_signal(encode(workerId="w", **changes))
    assert signal.worker_id == "w"
    assert signal.event_name == "task-prerun"


def test_a_number_written_as_text_is_understood() -> None:
    assert decode_signal(encode(attempt="2")).attempt == 2


def test_an_odd_envelope_keeps_what_fits() -> None:
    signal = decode_signal(encode(envelope={**envelope(), "enqueuedAt": 5, "meta": [], "headers": {"traceparent": 1}}))
    decoded = decode_envelope(signal.envelope)
    assert decoded
    assert decoded.name == "email.send"
    assert decoded.enqueued_at is None
    assert decoded.headers.traceparent is None


@pytest.mark.parametrize("odd", [None, 5, "text", []])
def test_an_envelope_that_is_no_object_is_no_envelope(odd: object) -> None:
    assert decode_envelope(decode_signal(encode(envelope=odd)).envelope) is None


@settings(max_examples=300)
@given(st.binary())
def test_no_bytes_ever_raise_anything_else(payload: bytes) -> None:
    for decode in (decode_signal, decode_heartbeat):
        try:
            decode(payload)
        except DecodeError as error:
            assert error.reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(
    st.fixed_dictionaries(
        dict.fromkeys(MINIMAL, json_values),
        optional=dict.fromkeys(("envelope", "attempt", "seq", "boot", "startedAt", "pid", "host"), json_values),
    )
)
def test_no_json_object_ever_raises_anything_else(value: dict[str, Any]) -> None:
    try:
        signal = decode_signal(json.dumps(value).encode())
    except DecodeError as error:
        assert error.reason
    else:
        decode_envelope(signal.envelope)
        assert isinstance(signal.event_name, str)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-04-23T10:00:00.123456Z", 1776938400_123456000),
        ("2026-04-23T10:00:00.123Z", 1776938400_123000000),
        ("2026-04-23T10:00:00Z", 1776938400_000000000),
        ("2026-04-23T12:00:00.000+02:00", 1776938400_000000000),
        ("2026-04-23T10:00:00.123456", 1776938400_123456000),
    ],
)
def test_dart_timestamps_in_all_their_forms(written: str, expected: int) -> None:
    assert epoch_ns(decode_signal(encode(occurredAt=written)).occurred_at, UTC) == expected


def test_a_time_without_an_offset_is_in_the_zone_that_is_assumed() -> None:
    naive = datetime(2026, 7, 1, 12, 0)  # noqa: DTZ001 - that is the point
    assert epoch_ns(naive, ZoneInfo("Europe/Berlin")) == epoch_ns(datetime(2026, 7, 1, 10, 0, tzinfo=UTC), UTC)


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_every_time_fits_into_otlp(moment: datetime) -> None:
    assert 0 <= epoch_ns(moment, UTC) <= MAX_NS


@given(st.datetimes(datetime(1971, 1, 1), datetime(2500, 1, 1)))  # noqa: DTZ001 - hypothesis wants them naive
def test_microseconds_survive(moment: datetime) -> None:
    exact = (moment - datetime(1970, 1, 1)) // (datetime.resolution)  # noqa: DTZ001
    assert epoch_ns(moment, UTC) == exact * 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SocketException: Connection refused", "SocketException"),
        ("Bad state: No element", "StateError"),
        ("RangeError (index): Invalid value", "RangeError"),
        ("type 'Null' is not a subtype of type 'String'", "TypeError"),
        ("TimeoutException after 0:00:05.000000", "TimeoutException"),
        ("package.module.ValueError: x", "ValueError"),
        ("it just broke", OTHER),
        ("The user 7 was not found", OTHER),
        ("", OTHER),
        (None, OTHER),
        ("X" * 200 + ": y", OTHER),
    ],
)
def test_error_types_are_few(text: str | None, expected: str) -> None:
    assert error_type(text) == expected


def test_the_channel_names_namespace_and_emitter() -> None:
    assert channels.signal_channel("stem", "pod-1") == "stem:signals:stem:pod-1"
    assert channels.emitter_of("stem:signals:stem:pod-1", "stem") == "pod-1"
    assert channels.emitter_of("stem:signals:stem:deeper:pod-1", "stem") is None
    assert channels.emitter_of("stem:signals:other:pod-1", "stem") is None
    assert channels.emitter_of("stem:signals:stem:", "stem") is None


def test_glob_characters_in_a_namespace_match_themselves() -> None:
    assert channels.signal_pattern("a*[b]?") == "stem:signals:a\\*\\[b\\]\\?:*"


@pytest.mark.parametrize("emitter", ["", "a:b"])
def test_an_emitter_that_would_read_as_another_namespace_is_refused(emitter: str) -> None:
    with pytest.raises(ValueError, match="colon"):
        channels.signal_channel("stem", emitter)


def test_the_emitter_fills_every_field_of_the_wire() -> None:
    story = Story()
    received, prerun, failed, postrun = map(json.loads, story.run("failed"))
    assert [signal["seq"] for signal in (received, prerun, failed, postrun)] == [1, 2, 3, 4]
    assert "args" not in received["envelope"]
    assert "attempt" not in received["attributes"]
    assert received["attempt"] == 0
    assert prerun["receivedAt"] == received["occurredAt"]
    assert failed["startedAt"] == postrun["startedAt"] == prerun["occurredAt"]
    assert postrun["endedAt"] == failed["occurredAt"]
    assert postrun["error"] == failed["attributes"]["error"]
    assert {signal["boot"] for signal in (received, prerun, failed, postrun)} == {story.recorded.composer.boot}
    story.recorded.heartbeat(queues=["default"])
    beat = json.loads(story.payloads[-1])
    assert beat["pid"] > 0
    assert beat["host"]
    assert beat["attributes"]["timestamp"] == beat["occurredAt"]


def test_a_worker_never_suffers_from_what_it_cannot_say() -> None:
    story = Story()
    for odd in (float("nan"), {1, 2}, object()):
        story.attempt(envelope(meta={"odd": odd})).received()
    story.attempt({"queue": "no id, no name"}).prerun()
    assert [json.loads(payload)["seq"] for payload in story.payloads] == [2, 3, 4]
    assert story.recorded.dropped == 1


def test_numbers_are_taken_once_by_many_threads() -> None:
    story = Story()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: story.recorded.heartbeat(), range(4000)))
    assert sorted(json.loads(payload)["seq"] for payload in story.payloads) == list(range(1, 4001))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"cut \ud83d", "cut \ufffd"),
        (r"\ude00 cut", "\ufffd cut"),
        (r"\ud83d\ude00 \ud83d", "\U0001f600 \ufffd"),
    ],
)
def test_half_a_surrogate_pair_costs_that_character(text: str, read: str) -> None:
    """Dart writes it for text that was cut in the middle of an emoji."""
    payload = (
        '{"eventName":"task-failed","occurredAt":"2026-04-23T10:00:00Z","attributes":{"taskId":"t","error":"'
        + text
        + '"}}'
    )
    assert decode_signal(payload.encode()).attributes.error == read


def test_an_absurd_drift_costs_that_drift() -> None:
    payload = (
        b'{"eventName":"schedule-entry-dispatched","occurredAt":"2026-04-23T10:00:00Z",'
        b'"attributes":{"entryId":"nightly","driftMs":1' + b"0" * 400 + b"}}"
    )
    signal = decode_signal(payload)
    assert (signal.attributes.entry_id, signal.attributes.drift_ms) == ("nightly", None)
