"""Holes and repeats in an emitter's numbering."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.receivers.stem_signals.backlog import MESSAGE_OVERHEAD, Backlog
from agent.receivers.stem_signals.sequence import MAX_BOOTS, MAX_HEAD, MAX_HOLES, QUIET_SECONDS, SequenceTracker
from agent.stem.wire import Outage
from tests.support import SECOND


def observe(tracker: SequenceTracker, *numbers: int, boot: str = "b", now: int = 0, beat: bool = False) -> list[bool]:
    return [tracker.observe("stem", "pod-1", boot, number, now, beat=beat) for number in numbers]


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


QUIET = QUIET_SECONDS * SECOND


def listening(since: int | None = 0) -> SequenceTracker:
    tracker = SequenceTracker()
    tracker.listen(since)
    return tracker


def test_the_head_of_a_boot_that_began_while_we_listened_is_a_gap_once_it_beats() -> None:
    tracker = listening()
    observe(tracker, 4, 5, now=QUIET + 1)
    assert missing(tracker, now=QUIET + 9 * SECOND) == []
    observe(tracker, 6, now=QUIET + 10 * SECOND, beat=True)
    assert missing(tracker, now=QUIET + 10 * SECOND) == [(1, 3)]


def test_a_head_has_its_grace_too() -> None:
    tracker = listening()
    observe(tracker, 4, now=QUIET + 1, beat=True)
    assert missing(tracker, now=QUIET + 1) == []
    assert observe(tracker, 2, now=QUIET + 2) == [True]
    assert missing(tracker, now=QUIET + 2 * SECOND) == [(1, 1), (3, 3)]
    assert missing(tracker, now=QUIET + 9 * SECOND) == []


def test_what_was_heard_of_a_head_before_it_beats_is_not_missing() -> None:
    tracker = listening()
    observe(tracker, 4, 1, 3, now=QUIET + 1)
    observe(tracker, 5, now=QUIET + 2, beat=True)
    assert missing(tracker, now=QUIET + 9 * SECOND) == [(2, 2)]


@pytest.mark.parametrize(
    ("since", "first", "now"),
    [
        pytest.param(None, 4, 10 * QUIET, id="there is an outage"),
        pytest.param(0, 4, SECOND // 2, id="just subscribed"),
        pytest.param(0, 4, QUIET, id="it may have been there, and silent until now"),
        pytest.param(0, MAX_HEAD + 1, 10 * QUIET, id="it has said much before"),
    ],
)
def test_a_head_that_nothing_promised_is_no_gap(since: int | None, first: int, now: int) -> None:
    tracker = listening(since)
    observe(tracker, first, now=now, beat=True)
    observe(tracker, first + 1, now=now + SECOND, beat=True)
    assert missing(tracker, now=now + 9 * SECOND) == []


def test_an_outage_begins_the_wait_anew() -> None:
    tracker = listening()
    tracker.listen(None)
    tracker.listen(9 * QUIET)
    observe(tracker, 4, now=10 * QUIET, beat=True)
    assert missing(tracker, now=11 * QUIET) == []


def test_an_idle_worker_that_never_beats_has_lost_nothing() -> None:
    tracker = listening()
    observe(tracker, 4, 5, now=5 * QUIET)
    assert missing(tracker, now=9 * QUIET) == []


def test_a_second_process_of_an_emitter_has_lost_nothing() -> None:
    tracker = listening()
    observe(tracker, 1, 2, now=1, beat=True)
    observe(tracker, 4, boot="other", now=QUIET // 2, beat=True)
    observe(tracker, 5, boot="other", now=QUIET, beat=True)
    assert missing(tracker, now=2 * QUIET) == []


def test_a_boot_that_had_to_be_forgotten_has_lost_nothing_when_it_speaks_again() -> None:
    tracker = listening()
    observe(tracker, 1, 2, boot="first", now=1, beat=True)
    for boot in range(MAX_BOOTS):
        observe(tracker, 1, boot=str(boot), now=9 * QUIET)
    assert observe(tracker, 3, boot="first", now=10 * QUIET, beat=True) == [True]
    assert missing(tracker, now=11 * QUIET) == []


# Seconds since the signal before, whether it is a heartbeat, whether it is lost on the way.
signals = st.lists(st.tuples(st.integers(0, QUIET_SECONDS), st.booleans(), st.booleans()), min_size=1, max_size=80)


@given(signals, st.integers(0, 10 * QUIET_SECONDS))
def test_a_worker_that_was_there_before_us_never_counts_as_a_loss(
    spoken: list[tuple[int, bool, bool]], subscribed: int
) -> None:
    tracker = listening(subscribed * SECOND)
    now = 0
    for number, (pause, beat, _) in enumerate(spoken, 1):
        now += pause * SECOND
        if now > subscribed * SECOND:
            observe(tracker, number, now=now, beat=beat)
    assert missing(tracker, now + QUIET) == []


@given(signals, st.integers(0, 3 * QUIET_SECONDS))
def test_of_a_boot_that_begins_after_us_nothing_is_told_as_lost_but_what_is(
    spoken: list[tuple[int, bool, bool]], begins: int
) -> None:
    tracker = listening()
    now = begins * SECOND
    lost, heard, beaten = set(), [], False
    for number, (pause, beat, is_lost) in enumerate(spoken, 1):
        now += pause * SECOND
        if is_lost:
            lost.add(number)
            continue
        observe(tracker, number, now=now, beat=beat)
        heard.append((number, now))
        beaten |= beat
    told = {n for first, last in missing(tracker, now + QUIET) for n in range(first, last + 1)}
    assert told <= lost
    if heard and beaten and heard[0][1] > QUIET and heard[0][0] <= MAX_HEAD:
        assert told == {number for number in lost if number < heard[-1][0]}


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


@given(
    st.lists(st.tuples(st.sampled_from(["push", "push", "mark", "take"]), st.integers(1, 300)), max_size=80),
    st.integers(1, 3000),
)
def test_outages_keep_their_place_between_the_messages_whatever_is_shed(
    steps: list[tuple[str, int]], limit: int
) -> None:
    shed: list[int] = []
    backlog = Backlog(limit, lambda channel, _payload: shed.append(int(channel)))
    told: list[int | Outage] = []

    def take(most: int) -> None:
        told.extend(backlog.outages())
        told.extend(int(channel) for channel, _ in backlog.take(most))

    pushed: list[int | Outage] = []
    for number, (step, size) in enumerate(steps):
        if step == "push":
            backlog.push(b"%d" % number, b"x" * size)
            pushed.append(number)
        elif step == "mark":
            pushed.append(Outage("stem", (), number, 0))
            backlog.mark(Outage("stem", (), number, 0))
        else:
            take(size % 4 + 1)
    while backlog:
        take(3)
    assert told == [item for item in pushed if item not in shed]
    assert backlog.pushed == sum(isinstance(item, int) for item in pushed)
    assert backlog.bytes == 0


def test_a_backlog_counts_what_a_message_really_costs() -> None:
    backlog = Backlog(1 << 20, lambda _channel, _payload: None)
    backlog.push(b"channel", b"payload")
    assert backlog.bytes == 14 + MESSAGE_OVERHEAD


def test_an_absurd_number_does_not_make_its_emitter_deaf() -> None:
    tracker = SequenceTracker()
    assert [tracker.observe("stem", "pod-1", "b", seq, 0) for seq in (1, 1 << 62, 2, 3, 2)] == [
        *(True, True, True, True),
        False,
    ]
