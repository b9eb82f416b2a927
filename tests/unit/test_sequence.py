"""Holes and repeats in an emitter's numbering."""

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.receivers.stem_signals.backlog import MESSAGE_OVERHEAD, Backlog
from agent.receivers.stem_signals.sequence import MAX_BOOTS, MAX_HOLES, SequenceTracker
from tests.support import SECOND


def observe(tracker: SequenceTracker, *numbers: int, boot: str = "b", now: int = 0) -> list[bool]:
    return [tracker.observe("stem", "pod-1", boot, number, now) for number in numbers]


def missing(tracker: SequenceTracker, now: int = 10 * SECOND) -> list[tuple[int, int]]:
    return [(gap.first, gap.last) for gap in tracker.tick(now)]


def test_numbers_in_order_are_new_and_leave_no_gap() -> None:
    tracker = SequenceTracker()
    assert observe(tracker, 1, 2, 3) == [True, True, True]
    assert missing(tracker) == []


def test_a_hole_becomes_a_gap_only_after_its_grace() -> None:
    tracker = SequenceTracker(grace=1.0)
    observe(tracker, 1, 5)
    assert missing(tracker, now=SECOND - 1) == []
    assert missing(tracker, now=SECOND) == [(2, 4)]
    assert missing(tracker, now=2 * SECOND) == []


def test_a_signal_that_was_overtaken_fills_its_hole() -> None:
    tracker = SequenceTracker()
    assert observe(tracker, 1, 5, 3, 2, 4) == [True] * 5
    assert missing(tracker) == []


def test_a_repeat_is_recognised_also_of_one_that_was_overtaken() -> None:
    tracker = SequenceTracker()
    assert observe(tracker, 1, 3, 2, 2, 3, 1) == [True, True, True, False, False, False]


def test_a_new_boot_numbers_anew() -> None:
    tracker = SequenceTracker()
    observe(tracker, 1, 2, 3)
    assert observe(tracker, 1, 2, boot="other") == [True, True]
    assert missing(tracker) == []


def test_whoever_subscribes_late_has_lost_nothing() -> None:
    tracker = SequenceTracker()
    observe(tracker, 1000, 1001)
    assert missing(tracker) == []


def test_a_broken_emitter_costs_bounded_memory() -> None:
    tracker = SequenceTracker(grace=3600)
    observe(tracker, *range(1, 4 * MAX_HOLES, 2))
    list(tracker.tick(1))
    assert sum(1 for _ in tracker.close()) <= MAX_HOLES


def test_an_absurd_step_is_no_loss_but_a_numbering_to_begin_anew() -> None:
    tracker = SequenceTracker()
    assert observe(tracker, 1, (1 << 63) - 1) == [True, True]
    assert missing(tracker) == []


def test_short_lived_emitters_cost_bounded_memory() -> None:
    tracker = SequenceTracker()
    for boot in range(MAX_BOOTS + 10):
        observe(tracker, 1, 3, boot=str(boot))
    assert len(tracker._boots) == MAX_BOOTS
    assert len(missing(tracker)) == MAX_BOOTS


def test_closing_tells_every_hole_that_is_left() -> None:
    tracker = SequenceTracker()
    observe(tracker, 1, 3, 6)
    assert [(gap.first, gap.last, gap.count) for gap in tracker.close()] == [(2, 2, 1), (4, 5, 2)]
    assert list(tracker.close()) == []


def test_numbers_before_the_first_one_heard_are_new_once_and_never_a_gap() -> None:
    tracker = SequenceTracker()
    assert observe(tracker, 5, 2, 3, 2, 4, 1) == [True, True, True, False, True, True]
    assert missing(tracker) == []


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80))
def test_every_number_is_new_exactly_once_in_any_order(numbers: list[int]) -> None:
    tracker = SequenceTracker()
    assert sum(observe(tracker, *numbers)) == len(set(numbers))
    lost = {n for first, last in missing(tracker) for n in range(first, last + 1)}
    assert lost == {n for n in range(numbers[0], max(numbers)) if n not in numbers}


@given(st.lists(st.integers(2, 60), max_size=80), st.randoms(use_true_random=False))
def test_heard_and_missing_always_add_up(numbers: list[int], chance: random.Random) -> None:
    tracker = SequenceTracker()
    heard = [1, *numbers]
    chance.shuffle(heard)
    heard.insert(0, 1)
    new = observe(tracker, *heard)
    lost = {n for first, last in missing(tracker) for n in range(first, last + 1)}
    assert sum(new) == len(set(heard))
    assert lost == set(range(1, max(heard) + 1)) - set(heard)


@given(st.lists(st.binary(max_size=300), max_size=60), st.integers(1, 3000), st.integers(1, 7))
def test_the_backlog_keeps_the_newest_within_its_limit_and_loses_nothing_silently(
    payloads: list[bytes], limit: int, most: int
) -> None:
    shed: list[bytes] = []
    backlog = Backlog(limit, lambda _channel, payload: shed.append(payload))
    for payload in payloads:
        backlog.push(b"c", payload)
        assert backlog.bytes <= limit or len(backlog) == 1
    kept = []
    while backlog:
        kept += [payload for _, payload in backlog.take(most)]
    assert shed + kept == payloads
    assert backlog.bytes == 0


def test_a_backlog_counts_what_a_message_really_costs() -> None:
    backlog = Backlog(1 << 20, lambda _channel, _payload: None)
    backlog.push(b"channel", b"payload")
    assert backlog.bytes == 14 + MESSAGE_OVERHEAD
