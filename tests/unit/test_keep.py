"""Which attempts become spans, and what their `tracestate` says of it."""

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.correlate.config import CorrelateConfig, KeepConfig, LogsConfig
from agent.correlate.keep import RANDOM_BITS, RunningQuantile, with_threshold
from tests.support import EPOCH, Heard, Story, ToldTime, envelope, found, nanoseconds

NOTHING = KeepConfig(ratio=0.0, failed=False, slow=0.0, rare=0.0)


def keeping(**changes: object) -> CorrelateConfig:
    return CorrelateConfig(keep=NOTHING.model_copy(update=changes), logs=LogsConfig(min_severity="DEBUG"))


def traceparent(randomness: int, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{'1' * 18}{randomness:014x}-b7ad6b7169203331-{flags}"}


def kept(heard: Heard) -> list[str]:
    return [found(span)["stem.task.id"] for span in heard.spans if span.name.startswith("process")]


def run_many(heard: Heard, count: int, run_s: float = 0.01) -> None:
    for index in range(count):
        heard.hear(Story(time=_time(heard)).run(task=envelope(id=f"task-{heard.now_ns}-{index}"), run_s=run_s))
        heard.correlator.recorder.spans.take()


def _time(heard: Heard) -> ToldTime:
    return ToldTime(EPOCH + timedelta(microseconds=(heard.now_ns - nanoseconds(EPOCH)) // 1000))


@given(st.integers(0, (1 << RANDOM_BITS) - 1), st.sampled_from([0.5, 0.25, 0.1]))
def test_the_share_is_taken_by_the_randomness_of_the_trace_id(randomness: int, ratio: float) -> None:
    heard = Heard(keeping(ratio=ratio)).hear(Story().run(task=envelope(headers=traceparent(randomness))))
    assert bool(heard.spans) == (randomness >= (1 - ratio) * (1 << RANDOM_BITS))


def test_a_quarter_of_many_is_about_a_quarter() -> None:
    chance = random.Random(7)
    heard = Heard(keeping(ratio=0.25))
    for index in range(2000):
        task = envelope(id=f"task-{index}", headers=traceparent(chance.getrandbits(RANDOM_BITS)))
        heard.hear(Story().run(task=task))
    assert len(kept(heard)) == pytest.approx(500, abs=60)
    assert heard.counts()["stem.tasks.succeeded"] == 2000, "metrics count all of them"


def test_kept_spans_carry_the_threshold() -> None:
    heard = Heard(keeping(ratio=0.25)).hear(Story().run(task=envelope(headers=traceparent((1 << RANDOM_BITS) - 1))))
    assert {span.trace_state for span in heard.spans} == {"ot=th:c"}


@pytest.mark.parametrize(
    ("before", "threshold", "after"),
    [
        ("", 0, "ot=th:0"),
        ("", 0xC << 52, "ot=th:c"),
        ("vendor=1", 0x8 << 52, "ot=th:8,vendor=1"),
        ("ot=th:e;rv:00000000000001,vendor=1", 0x8 << 52, "ot=th:e;rv:00000000000001,vendor=1"),
        ("vendor=1,ot=rv:00000000000001;th:4", 0x8 << 52, "ot=th:8;rv:00000000000001,vendor=1"),
        ("ot=th:zz", 0x8 << 52, "ot=th:8"),
    ],
)
def test_a_threshold_that_came_with_the_trace_may_only_rise(before: str, threshold: int, after: str) -> None:
    assert with_threshold(before, threshold) == after


def test_the_randomness_that_came_with_the_trace_decides() -> None:
    headers = {**traceparent(0), "tracestate": f"ot=rv:{'f' * 14}"}
    assert Heard(keeping(ratio=0.5)).hear(Story().run(task=envelope(headers=headers))).spans


def test_what_the_producer_rejected_stays_rejected() -> None:
    heard = Heard(keeping(ratio=0.5, failed=True)).hear(
        Story().run("failed", task=envelope(headers=traceparent((1 << RANDOM_BITS) - 1, flags="00")))
    )
    assert heard.spans == []


@pytest.mark.parametrize("end", ["failed", "retry"])
def test_failures_and_retries_are_kept_and_stand_for_themselves(end: str) -> None:
    heard = Heard(keeping(failed=True)).hear(Story().run(end))
    assert {span.trace_state for span in heard.spans} == {"ot=th:0"}
    assert Heard(keeping()).hear(Story().run(end)).spans == []


def test_what_follows_a_retry_is_kept_with_it() -> None:
    story = Story()
    heard = Heard(keeping(failed=True)).hear(story.run("retry")).hear(story.run(task=envelope(attempt=1)))
    assert len(kept(heard)) == 2


def test_lost_attempts_are_kept() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(keeping(failed=True)).hear([*story.payloads, *story.run()[:2]]).pass_time(31)
    assert len(kept(heard)) == 1


def test_what_is_slow_for_its_own_task_is_kept() -> None:
    heard = Heard(keeping(slow=0.95))
    run_many(heard, RunningQuantile.WARM_UP)
    heard.hear(Story().run(task=envelope(id="ordinary"), run_s=0.01))
    heard.hear(Story().run(task=envelope(id="slow"), run_s=0.5))
    heard.hear(Story().run(task=envelope(id="other", name="report.build"), run_s=5.0))
    assert kept(heard) == ["slow"]


def test_one_of_each_rare_task_is_kept() -> None:
    heard = Heard(keeping(rare=60.0))
    for second in range(100):
        heard.hear(Story(time=_time(heard)).run(task=envelope(id=f"task-{second}")))
        heard.pass_time(1)
    assert kept(heard) == ["task-0", "task-60"]


def test_exemplars_and_logs_follow_what_is_kept() -> None:
    heard = Heard(keeping()).hear(Story().run())
    assert heard.spans == []
    point = heard.metrics()["stem.task.duration"].histogram.data_points[0]
    assert list(point.exemplars) == []
    assert {record.span_id for record in heard.logs} == {b""}
    assert {record.flags for record in heard.logs} == {0}
    assert all(record.trace_id for record in heard.logs)


def test_the_logs_of_a_kept_end_point_to_its_span() -> None:
    heard = Heard(keeping(failed=True)).hear(Story().run("failed"))
    with_span = [record.event_name for record in heard.logs if record.span_id]
    assert with_span == ["stem.task.failed", "stem.task.finished"], "at its start nobody knew that it would be kept"


def test_without_rules_everything_is_kept_as_it_came() -> None:
    headers = {**traceparent(5), "tracestate": "vendor=1"}
    spans = Heard().hear(Story().run(task=envelope(headers=headers))).spans
    assert {span.trace_state for span in spans} == {"vendor=1"}


@given(st.lists(st.floats(0.001, 3600), min_size=RunningQuantile.WARM_UP, max_size=400), st.sampled_from([0.5, 0.9]))
def test_the_running_quantile_is_right_within_its_buckets(values: list[float], quantile: float) -> None:
    running = RunningQuantile(quantile)
    for value in values:
        running.above(value)
    running._look()
    exact = sorted(values)[max(0, -(-round(quantile * len(values) * 1000) // 1000) - 1)]
    assert not running.above(exact * 0.9)
    assert running.above(max(*values, exact) * 1.22)


def test_old_values_are_forgotten() -> None:
    running = RunningQuantile(0.9)
    for _ in range(20_000):
        running.above(0.01)
    assert running.above(10.0)
    for _ in range(20_000):
        running.above(10.0)
    assert not running.above(10.0)
    assert running._total <= RunningQuantile.HALVE_AT


def test_the_root_of_a_trace_comes_with_the_first_attempt_that_is_kept() -> None:
    story, elsewhere = Story(), Story("worker-2", "pod-2")
    heard = Heard(keeping(failed=True)).hear(story.run()).hear(elsewhere.run("failed"))
    assert sorted(span.name.partition(" ")[0] for span in heard.spans) == ["process", "send", "wait"]
    heard.hear(Story("worker-3", "pod-3").run("failed"))
    assert len([span for span in heard.spans if span.name.startswith("send")]) == 1
