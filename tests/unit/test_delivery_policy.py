"""What an outcome means for a batch: the policy alone, under a time that is told."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.backoff import Backoff
from agent.exporters.sending.config import RetryConfig
from agent.exporters.sending.delivery import RETRIES_EXHAUSTED, Again, Delivery, Grace
from agent.exporters.sending.outcome import Delivered, Drop, Refused, Retry

BUSY = Retry("http_503", "http 503: busy")
REFUSED = Refused("http_401", "http 401: who are you?")


class Highest(random.Random):
    """Chance that always draws the ceiling, so that delays are known."""

    def uniform(self, _a: float, b: float) -> float:
        return b


def delivery(grace: Grace | None = None, **retry: Any) -> Delivery:
    config = RetryConfig(**retry)
    backoff = Backoff(config.initial_interval, config.max_interval, source=Highest())
    return Delivery(config, grace or Grace(0), 0.0, backoff)


def delays(course: Delivery, *outcomes: Any) -> list[float]:
    verdicts = [course.decide(outcome, 0.0) for outcome in outcomes]
    assert all(isinstance(verdict, Again) for verdict in verdicts)
    return [verdict.delay for verdict in verdicts if isinstance(verdict, Again)]


def test_what_was_accepted_or_is_refused_for_good_is_over() -> None:
    for outcome in (Delivered(), Delivered(3, "too old"), Drop("http_400", "http 400")):
        assert delivery().decide(outcome, 0.0) is outcome


def test_delays_double_up_to_the_maximum() -> None:
    course = delivery(initial_interval=1.0, max_interval=5.0)
    assert delays(course, BUSY, BUSY, BUSY, BUSY, BUSY) == [1, 2, 4, 5, 5]


def test_what_the_server_asks_for_is_waited_and_back_off_grows_from_it() -> None:
    course = delivery(initial_interval=1.0, max_interval=60.0)
    asked = Retry("grpc_unavailable", "", after=7.0)
    assert delays(course, asked, BUSY, BUSY) == [8, 14, 28]


def test_what_the_server_asks_for_has_our_own_maximum() -> None:
    assert delays(delivery(max_interval=30.0), Retry("http_429", "", after=1e9)) == [30]


def test_a_batch_is_given_up_after_max_elapsed_time() -> None:
    course = delivery(initial_interval=1.0, max_elapsed_time=10.0)
    assert isinstance(course.decide(BUSY, 8.0), Again)
    assert course.decide(BUSY, 9.0) == Drop(RETRIES_EXHAUSTED, "http_503: http 503: busy")


def test_without_retrying_the_first_failure_is_the_end() -> None:
    assert delivery(enabled=False).decide(BUSY, 0.0) == Drop(RETRIES_EXHAUSTED, "http_503: http 503: busy")
    assert delivery(Grace(600.0), enabled=False).decide(REFUSED, 0.0).reason == "http_401"  # type: ignore[union-attr]


def test_without_a_grace_a_refusal_drops_at_once_as_the_specification_says() -> None:
    assert delivery(Grace(0)).decide(REFUSED, 0.0) == Drop("http_401", REFUSED.detail)


def test_a_refusal_is_held_until_the_grace_ends_and_tried_once_more_then() -> None:
    course = delivery(Grace(10.0), initial_interval=8.0)
    told = f"{REFUSED.detail}; held for another {{}} s at most (auth_grace)"
    assert course.decide(REFUSED, 100.0) == Again(8.0, "http_401", told.format(10))
    assert course.decide(REFUSED, 108.0) == Again(2.0, "http_401", told.format(2))
    assert course.decide(REFUSED, 110.0) == Drop("http_401", f"{REFUSED.detail}; held for auth_grace of 10 s")


def test_the_grace_is_the_destinations_not_each_batchs() -> None:
    grace = Grace(10.0)
    delivery(grace).decide(REFUSED, 0.0)
    assert isinstance(delivery(grace).decide(REFUSED, 9.0), Again)
    assert isinstance(delivery(grace).decide(REFUSED, 10.0), Drop)
    assert isinstance(delivery(grace).decide(REFUSED, 1000.0), Drop)


def test_an_acceptance_gives_the_whole_grace_again() -> None:
    grace = Grace(10.0)
    delivery(grace).decide(REFUSED, 0.0)
    delivery(grace).decide(Delivered(), 9.0)
    assert isinstance(delivery(grace).decide(REFUSED, 15.0), Again)
    assert isinstance(delivery(grace).decide(REFUSED, 24.9), Again)
    assert isinstance(delivery(grace).decide(REFUSED, 25.0), Drop)


def test_while_stopping_nobody_waits_for_long() -> None:
    course = delivery(Grace(600.0), initial_interval=0.5, max_interval=600.0)
    for outcome in (Retry("http_429", "", after=300.0), BUSY, REFUSED):
        verdict = course.decide(outcome, 0.0, stopping=True)
        assert isinstance(verdict, Again)
        assert verdict.delay <= 0.5


OUTCOMES = st.one_of(
    st.just(Delivered()),
    st.just(Drop("http_400", "")),
    st.just(REFUSED),
    st.builds(Retry, st.just("http_503"), st.just(""), st.floats(-10, 1e12)),
)


@given(
    outcomes=st.lists(st.tuples(OUTCOMES, st.floats(0, 100)), max_size=30),
    initial=st.floats(0.001, 10),
    maximum=st.floats(0.001, 100),
    limit=st.one_of(st.just(0.0), st.floats(0.1, 1000)),
    grace_seconds=st.floats(0, 100),
    stopping=st.booleans(),
)
def test_whatever_happens_delays_are_bounded_and_limits_are_kept(
    outcomes: list[tuple[Any, float]],
    initial: float,
    maximum: float,
    limit: float,
    grace_seconds: float,
    stopping: bool,
) -> None:
    retry = RetryConfig(initial_interval=initial, max_interval=maximum, max_elapsed_time=limit)
    grace, now, refused_since = Grace(grace_seconds), 0.0, None
    course = Delivery(retry, grace, now)
    for outcome, takes in outcomes:
        now += takes
        verdict = course.decide(outcome, now, stopping=stopping)
        if isinstance(outcome, Delivered | Drop):
            assert verdict is outcome
            refused_since = None if isinstance(outcome, Delivered) else refused_since
            continue
        if isinstance(outcome, Refused):
            refused_since = now if refused_since is None else refused_since
        if isinstance(verdict, Again):
            assert 0 < verdict.delay <= maximum
            assert not limit or now + verdict.delay <= limit
            assert not stopping or verdict.delay <= initial
            if isinstance(outcome, Refused):
                assert refused_since is not None
                assert now < refused_since + grace_seconds
            now += verdict.delay
        elif isinstance(outcome, Refused) and not limit:
            assert refused_since is not None
            assert now == pytest.approx(max(now, refused_since + grace_seconds))
