"""The order of arrival must not matter; loss may only mark; nothing is ever wrong, doubled or invented."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.emit import iso
from tests.support import EPOCH, TRACEPARENT, Heard, Story, envelope, found

EVERYTHING = CorrelateConfig(logs=LogsConfig(min_severity="TRACE"))
ENDS = ("succeeded", "failed", "revoked")

histories = st.lists(
    st.tuples(
        st.integers(0, 3),  # retries before the end
        st.sampled_from(ENDS),
        st.booleans(),  # traced
        st.booleans(),  # changes the worker after each retry
        st.booleans(),  # revoked before it runs
    ),
    min_size=1,
    max_size=4,
)
chance = st.randoms(use_true_random=False)


def tell(history: Sequence[tuple[int, str, bool, bool, bool]]) -> list[bytes]:
    """Tell what a fleet of two workers did; return every payload."""
    payloads: list[bytes] = []
    for index, (retries, end, traced, moves, early) in enumerate(history):
        stories = (Story("worker-1", "pod-1"), Story("worker-2", "pod-2"))
        start = EPOCH + timedelta(seconds=index)
        headers = {"traceparent": TRACEPARENT} if traced else {}
        task = envelope(id=f"task-{index}", headers=headers)
        for number in range(retries + 1):
            story = stories[number % 2 if moves else 0]
            story.time.now = start
            before = len(story.payloads)
            if number == retries and early:
                story.attempt(task).revoked("before it ran")
            else:
                story.run(end if number == retries else "retry", task, run_s=0.01)
            payloads += story.payloads[before:]
            start = story.time.now + timedelta(seconds=8)
            task = {**task, "attempt": number + 1, "notBefore": iso(start)}
    return payloads


def outcome(payloads: Sequence[bytes]) -> tuple[list[bytes], set[tuple[Any, ...]], dict[str, float]]:
    """Hear everything within the settlement time; return spans, logs and counts in a form that can be compared."""
    heard = Heard(EVERYTHING)
    heard.hear(payloads).pass_time(1)
    records = [
        (record.event_name, found(record)["log.record.uid"], record.body.string_value, record.trace_id, record.span_id)
        for record in heard.logs
    ]
    assert len(records) == len(set(records)), "a fact was logged twice"
    ids = [span.span_id for span in heard.spans]
    assert len(ids) == len(set(ids)), "a span was made twice"
    assert not len(heard.correlator.attempts)
    return sorted(heard.correlator.recorder.spans), set(records), heard.counts()


@settings(max_examples=400, deadline=None)
@given(histories, chance)
def test_any_order_gives_the_same(history: list[Any], order: random.Random) -> None:
    payloads = tell(history)
    shuffled = list(payloads)
    order.shuffle(shuffled)
    assert outcome(shuffled) == outcome(payloads)


@settings(max_examples=300, deadline=None)
@given(histories, chance, st.integers(1, 20))
def test_repeats_change_nothing(history: list[Any], order: random.Random, repeats: int) -> None:
    payloads = tell(history)
    repeated = payloads + order.choices(payloads, k=repeats)
    order.shuffle(repeated)
    assert outcome(repeated) == outcome(payloads)


@settings(max_examples=300, deadline=None)
@given(histories, chance, st.floats(0, 0.9))
def test_loss_marks_but_never_falsifies(history: list[Any], order: random.Random, loss: float) -> None:
    payloads = tell(history)
    whole = Heard(EVERYTHING).hear(payloads).pass_time(1)
    truth = {span.span_id: span for span in whole.spans}
    lossy = Heard(EVERYTHING).hear([payload for payload in payloads if order.random() >= loss]).pass_time(1)
    for span in lossy.spans:
        assert span.span_id in truth, "a span was invented"
        if found(span).get("stem.incomplete"):
            continue
        expected = truth[span.span_id]
        # What can be lost beside the attempt's own facts is the retry before it, and with it the link.
        assert {link.span_id for link in span.links} <= {link.span_id for link in expected.links}
        del span.links[:]
        comparable = type(expected)()
        comparable.CopyFrom(expected)
        del comparable.links[:]
        assert span == comparable
    for name, count in lossy.counts().items():
        assert count <= whole.counts()[name]


@settings(max_examples=200, deadline=None)
@given(histories, chance)
def test_one_surviving_ending_tells_the_whole_attempt(history: list[Any], order: random.Random) -> None:
    payloads = tell(history)
    whole = Heard().hear(payloads).pass_time(1)
    endings = [payload for payload in payloads if b'"endedAt"' in payload or b"before it ran" in payload]
    order.shuffle(endings)
    survived = Heard().hear(endings).pass_time(1)
    expected = {span.span_id: (span.name, span.start_time_unix_nano, span.end_time_unix_nano) for span in whole.spans}
    told = {span.span_id: (span.name, span.start_time_unix_nano, span.end_time_unix_nano) for span in survived.spans}
    assert told == expected


@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_given_back(count: int) -> None:
    heard = Heard(CorrelateConfig(settled_ttl=1.0, task_ttl=5.0))
    for _ in range(count):
        heard.hear(tell([(2, "succeeded", False, True, False)])).pass_time(1).pass_time(6)
    table = heard.correlator.attempts
    assert (len(table), len(table._buried), len(table._retries), len(table._due)) == (0, 0, 0, 0)
