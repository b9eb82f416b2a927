"""An emitter that another agent goes on with: both together tell what one alone would have told, at every cut."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.correlate.counters import EVICTED, HANDED_OVER
from agent.correlate.metrics import OTHERS, WORKER_UP
from agent.stem.channels import HEARTBEATS
from agent.stem.wire import Lapse, Released, TakenOver
from tests.support import Heard, Story, envelope, signals_of, tell_end

CONFIG = CorrelateConfig(logs=LogsConfig(min_severity="DEBUG"))
ENDS = ("succeeded", "failed", "retry", "revoked")
SECOND = 1_000_000_000


def interleaved(ends: Sequence[str]) -> list[bytes]:
    """Attempts of several tasks that run at once, published and processed by the same process."""
    story = Story()
    attempts = []
    for number, _ in enumerate(ends):
        task = envelope(id=f"task-{number}")
        story.recorded.before_publish(task)
        story.recorded.after_publish(task)
        attempts.append(story.attempt(task))
    for step in ("received", "prerun"):
        for attempt in attempts:
            story.time.advance(0.001)
            getattr(attempt, step)()
        story.recorded.heartbeat()
    for attempt, end in zip(attempts, ends, strict=True):
        story.time.advance(0.002)
        tell_end(attempt, end, story.time)
    for attempt, end in zip(attempts, ends, strict=True):
        story.time.advance(0.001)
        attempt.postrun({"revoked": "cancelled", "retry": "retried"}.get(end, end))
    return story.payloads


def handed_over(payloads: list[bytes], cut: int, *, lost: int = 0) -> tuple[Heard, Heard]:
    """The first agent hears what is before the cut, the second what is after it and after what is lost."""
    first, second = Heard(CONFIG), Heard(CONFIG)
    first.hear(payloads[:cut]).fact(Released("stem", ("pod-1",)))
    second.fact(TakenOver("stem", "pod-1"))
    second.hear(payloads[cut + lost :])
    for heard in (first, second):
        heard.pass_time(10)
    return first, second


def counts(*heard: Heard) -> Counter[str]:
    totals: Counter[str] = Counter()
    for each in heard:
        totals.update({name: int(n) for name, n in each.counts().items()})
    return totals


def told(*heard: Heard) -> Counter[tuple[str, bytes]]:
    spans = Counter((span.name.split()[0], span.span_id) for each in heard for span in each.spans)
    logs = Counter(
        (record.event_name, record.attributes[-1].SerializeToString() + record.span_id)
        for each in heard
        for record in each.logs
        if record.event_name.startswith("stem.task.")
    )
    return spans + logs


@given(st.lists(st.sampled_from(ENDS), min_size=1, max_size=4), st.integers(0, 60))
@settings(deadline=None)
def test_two_agents_tell_what_one_would_have_told_and_nothing_twice(ends: list[str], cut: int) -> None:
    payloads = interleaved(ends)
    cut = min(cut, len(payloads))
    whole = Heard(CONFIG).hear(payloads).pass_time(10)
    parts = handed_over(payloads, cut)
    tasks = {name: n for name, n in counts(whole).items() if name.startswith("stem.tasks.")}
    assert {name: n for name, n in counts(*parts).items() if name in tasks} == tasks
    spans = {key: n for key, n in told(*parts).items() if len(key[1]) == 8}
    assert set(spans) == {key for key in told(whole) if len(key[1]) == 8}
    assert set(spans.values()) == {1}
    assert max(told(*parts).values()) == 1, "no log record twice"


@given(st.lists(st.sampled_from(ENDS), min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 10))
@settings(deadline=None)
def test_what_was_lost_between_them_is_the_most_that_is_missing(ends: list[str], cut: int, lost: int) -> None:
    payloads = interleaved(ends)
    whole = counts(Heard(CONFIG).hear(payloads).pass_time(10))
    parts = counts(*handed_over(payloads, min(cut, len(payloads)), lost=lost))
    for name, truth in whole.items():
        if name.startswith("stem.tasks."):
            assert truth - lost <= parts[name] <= truth, name


def test_what_is_open_is_left_to_the_other_and_is_no_loss() -> None:
    story = Story()
    signals = story.attempt()
    signals.received()
    signals.prerun()
    heard = Heard(CONFIG).hear(story.payloads).fact(Released("stem", ("pod-1",)))
    assert heard.correlator.counters[HANDED_OVER, ""] == 1
    assert not len(heard.correlator.tasks.attempts)
    heard.pass_time(3600)
    assert not heard.spans
    assert not [key for key in heard.correlator.counters if key[0] == EVICTED]
    assert not [record for record in heard.logs if record.event_name in {"stem.worker.lost", "stem.task.lost"}]


def test_what_has_ended_is_told_at_once() -> None:
    story = Story()
    payloads = story.run()[:-1]  # without its postrun, which alone would have settled it
    heard = Heard(CONFIG).hear(payloads)
    assert not heard.spans
    heard.fact(Released("stem", ("pod-1",)))
    assert {span.name.split()[0] for span in heard.spans} == {"send", "wait", "process"}
    assert not heard.correlator.counters[HANDED_OVER, ""]


def test_other_emitters_and_namespaces_go_on() -> None:
    heard = Heard(CONFIG)
    for emitter, namespace in (("pod-1", "stem"), ("pod-2", "stem"), ("pod-1", "other")):
        story = Story(emitter=emitter, namespace=namespace)
        story.attempt(envelope(id=f"{emitter}-{namespace}")).prerun()
        for signal in signals_of(story.payloads, namespace):
            heard.fact(signal)
    heard.fact(Released("stem", ("pod-1",)))
    assert {attempt.task_id for attempt in heard.correlator.tasks.attempts} == {"pod-2-stem", "pod-1-other"}


def test_workers_of_another_agent_are_neither_told_nor_missed() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(CONFIG).hear(story.payloads)
    assert "stem.worker.up" in heard.metrics()
    heard.fact(Released("stem", ("pod-1", HEARTBEATS))).pass_time(3600)
    assert "stem.worker.up" not in heard.metrics()
    assert not [record for record in heard.logs if record.event_name == "stem.worker.lost"]


def test_what_the_leader_tells_is_left_out_and_goes_on_when_there_is_none() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(CONFIG).hear([*story.payloads, *story.run()])
    heard.correlator.collect(heard.now_ns)
    aggregator = heard.correlator.recorder.metrics
    with_all, _ = aggregator.collect(heard.now_ns)
    without, points = aggregator.collect(heard.now_ns, without=OTHERS)
    assert len(without) == len(points) < len(with_all)
    assert any(WORKER_UP.name.encode() in metric for metric in with_all)
    assert not any(each.name.encode() in metric for each in OTHERS for metric in without)
    assert len(aggregator.collect(heard.now_ns)[0]) == len(with_all)


def test_while_nobody_knows_who_owns_what_nothing_is_concluded_from_records() -> None:
    heard = Heard(CONFIG)
    lapse = Lapse("stem", (), heard.now_ns, 0)
    heard.fact(lapse)
    assert heard.correlator.paused
    heard.fact(Lapse("stem", (), lapse.from_ns, heard.now_ns + SECOND))
    assert not heard.correlator.paused


@pytest.mark.parametrize("restarts", [False, True])
def test_who_was_taken_over_is_still_known_after_a_restart(restarts: bool) -> None:
    payloads = interleaved(["succeeded"])
    second = Heard(CONFIG).fact(TakenOver("stem", "pod-1"))
    if restarts:
        second.restart(0)
    second.hear(payloads[-2:]).pass_time(10)  # succeeded and postrun
    assert "stem.tasks.started" not in second.counts()
    assert second.counts()["stem.tasks.succeeded"] == 1
