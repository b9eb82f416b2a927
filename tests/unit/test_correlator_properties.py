"""The order of arrival must not matter; loss may only mark; nothing is ever wrong, doubled or invented."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.correlate.config import CorrelateConfig, KeepConfig, LogsConfig
from agent.demo.sink import points
from agent.emit import iso
from agent.stem.catalogue import TaskState
from agent.stem.status import TaskError, TaskStatus
from agent.stem.wire import Gap, Outage
from tests.support import EPOCH, SECOND, TRACEPARENT, Heard, Story, envelope, found

EVERYTHING = CorrelateConfig(logs=LogsConfig(min_severity="TRACE"))
GONE = EVERYTHING.heartbeat_timeout + 1
ENDS = ("succeeded", "failed", "revoked")

Stages = list[list[bytes]]
"""What is told in any order, after what was told before."""


@dataclass(frozen=True)
class History:
    """A task: so many retries, then an end. `again`: how its last attempt is delivered a second time."""

    retries: int
    end: str
    traced: bool
    moves: bool  # changes the worker after each retry
    early: bool  # is revoked before it runs
    again: str
    family: str  # is the child of another task, with or without that one's header

    @property
    def delivered_again(self) -> str:
        """What was revoked before it ran was acknowledged: it comes no second time."""
        return "" if self.early else self.again


histories = st.lists(
    st.builds(
        History,
        st.integers(0, 3),
        st.sampled_from(ENDS),
        *(st.booleans() for _ in range(3)),
        st.sampled_from(["", "", "elsewhere", "restarted", "lease"]),
        st.sampled_from(["", "", "inherits", "derives"]),
    ),
    min_size=1,
    max_size=4,
)
# Seeds, not hypothesis' own randomness: shuffling through that costs ten times as much as what is tested.
chance = st.integers(0, 1 << 32).map(random.Random)


def task_of(index: int, history: History) -> dict[str, Any]:
    headers = {"traceparent": TRACEPARENT} if history.traced or history.family == "inherits" else {}
    parent = {"stem.parentTaskId": f"task-{index - 1}", "stem.rootTaskId": "task-0"} if history.family else {}
    return envelope(id=f"task-{index}", headers=headers, meta=parent)


def tell(tasks: Sequence[History]) -> Stages:
    """Tell what a fleet of two workers did."""
    stories = [Story(f"worker-{index}", f"pod-{index}") for index in range(2)]
    restarted = [Story(f"worker-{index}", f"pod-{index}") for index in range(2)]
    elsewhere = Story("worker-9", "pod-9")
    stages: Stages = [[], []]
    for story in (*stories, *restarted, elsewhere):
        story.recorded.heartbeat()
        stages[story in restarted] += story.payloads
    for index, history in enumerate(tasks):
        start = EPOCH + timedelta(seconds=index)
        task = task_of(index, history)
        for number in range(history.retries + 1):
            which = number % 2 if history.moves else 0
            last = number == history.retries
            told = _attempt(stories[which], task, start, history, last=last)
            if last and history.delivered_again in {"elsewhere", "restarted"}:
                told = told[:2]  # cut off; another worker, or the same one restarted, does it again
            stages[0] += told
            if last and history.delivered_again:
                other = {"elsewhere": elsewhere, "restarted": restarted[which], "lease": stories[which]}[
                    history.delivered_again
                ]
                again = _attempt(other, task, start + timedelta(seconds=30), history, last=True)
                stages[history.delivered_again != "elsewhere"] += again
            start = stories[which].time.now + timedelta(seconds=8, milliseconds=-1)  # as `nextRetryAt` says
            task = {**task, "attempt": number + 1, "notBefore": iso(start)}
    return stages


def _attempt(story: Story, task: dict[str, Any], start: Any, history: History, *, last: bool) -> list[bytes]:
    story.time.now = start
    before = len(story.payloads)
    if last and history.early:
        story.attempt(task).revoked("before it ran")
    else:
        story.run(history.end if last else "retry", task, run_s=0.01)
    return story.payloads[before:]


def hear(stages: Stages, *, with_repair: bool = False) -> Heard:
    heard = Heard(EVERYTHING, with_repair=with_repair)
    for payloads in stages:
        heard.hear(payloads).pass_time(1)
    return heard


def outcome(stages: Stages) -> tuple[list[bytes], set[tuple[Any, ...]], dict[str, float]]:
    """Hear everything within the settlement time; return spans, logs and counts in a form that can be compared."""
    heard = hear(stages).pass_time(GONE)
    records = [
        (record.event_name, found(record)["log.record.uid"], record.body.string_value, record.trace_id, record.span_id)
        for record in heard.logs
        if found(record).get("stem.task.id")
    ]
    assert len(records) == len(set(records)), "a fact was logged twice"
    ids = [span.span_id for span in heard.spans]
    assert len(ids) == len(set(ids)), "a span was made twice"
    assert not len(heard.correlator.tasks.attempts)
    return sorted(heard.correlator.recorder.spans), set(records), heard.counts()


def shuffled(stages: Stages, order: random.Random, repeats: int = 0) -> Stages:
    mixed = [[*payloads, *(order.choices(payloads, k=repeats) if payloads else [])] for payloads in stages]
    for payloads in mixed:
        order.shuffle(payloads)
    return mixed


@settings(max_examples=1000, deadline=None)
@given(histories, chance)
def test_any_order_gives_the_same(history: list[History], order: random.Random) -> None:
    stages = tell(history)
    assert outcome(shuffled(stages, order)) == outcome(stages)


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.integers(1, 20))
def test_repeats_change_nothing(history: list[History], order: random.Random, repeats: int) -> None:
    stages = tell(history)
    assert outcome(shuffled(stages, order, repeats)) == outcome(stages)


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.floats(0, 0.9))
def test_loss_marks_but_never_falsifies(history: list[History], order: random.Random, loss: float) -> None:
    stages = tell(history)
    whole = hear(stages).pass_time(GONE)
    truth = {span.span_id: span for span in whole.spans}
    lossy = hear([[payload for payload in payloads if order.random() >= loss] for payloads in shuffled(stages, order)])
    for span in lossy.spans:
        if found(span).get("stem.incomplete"):
            continue
        expected = _twin(span, truth)
        assert expected is not None, "a span was invented"
        # What can be lost beside the attempt's own facts: the retry before it, and with it the link; and the parent,
        # without which its header, carried on by a child, is believed.
        assert {link.span_id for link in span.links} <= {link.span_id for link in expected.links} | {CREATOR}
        for name in ("trace_id", "kind", "status"):
            assert getattr(span, name) == getattr(expected, name), name
        assert span.parent_span_id in {expected.parent_span_id, CREATOR}
    counts = whole.counts()
    for name, count in lossy.counts().items():
        assert count <= counts[name], name


CREATOR = bytes.fromhex(TRACEPARENT.split("-")[2])


def _twin(span: Any, truth: dict[bytes, Any]) -> Any:
    """The same span where nothing was lost: by its id, but a delivery whose first is unknown is itself the first."""
    known = truth.get(span.span_id)
    for other in [*([known] if known else []), *truth.values()]:
        told = found(span)
        told.pop("stem.task.wait.lower_bound", None)  # the retry before it, which would have told, is lost
        if _when(other) == _when(span) and found(other) == told:
            return other
    return None


def _when(span: Any) -> tuple[str, int, int]:
    return span.name, span.start_time_unix_nano, span.end_time_unix_nano


@settings(max_examples=1000, deadline=None)
@given(histories, chance)
def test_one_surviving_ending_tells_the_whole_attempt(history: list[History], order: random.Random) -> None:
    stages = [[p for p in payloads if not p.startswith(b'{"eventName":"worker')] for payloads in tell(history)]
    whole = hear(stages)
    endings = [[p for p in payloads if b'"endedAt"' in p or b"before it ran" in p] for payloads in stages]
    survived = hear(shuffled(endings, order))

    def ended(heard: Heard) -> dict[bytes, tuple[Any, ...]]:
        spans = [
            span for span in heard.spans if not any(h.delivered_again in {"elsewhere", "restarted"} for h in history)
        ]
        return {span.span_id: (span.name, span.start_time_unix_nano, span.end_time_unix_nano) for span in spans}

    assert ended(survived) == ended(whole)


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.floats(0, 0.5))
def test_records_only_make_it_truer(history: list[History], order: random.Random, loss: float) -> None:
    """Whatever is lost, with the records of all tasks at hand nothing becomes wrong, and ends are found."""
    plain = [h for h in history if not h.delivered_again]
    stages = tell(plain)
    whole = hear(stages)
    truth = {span.span_id: span for span in whole.spans if span.name.startswith("process")}
    records = _records(truth.values())
    lossy = Heard(EVERYTHING, with_repair=True)
    lossy.hear([p for p in shuffled(stages, order)[0] if order.random() >= loss])
    for index in range(2):
        boot = next((p for p in stages[0] if f'"emitter":"pod-{index}"'.encode() in p), b'"boot":"0"')
        name = boot.split(b'"boot":"')[1].split(b'"')[0].decode()
        lossy.fact(Gap("stem", f"pod-{index}", name, 1, 2, lossy.now_ns))
    for _ in range(4):
        lossy.pass_time(1).answer(*records)
    for span in lossy.spans:
        if not span.name.startswith("process"):
            continue
        told, expected = found(span), truth[span.span_id]
        if not told.get("stem.incomplete"):
            assert (span.start_time_unix_nano, span.status.code) == (
                expected.start_time_unix_nano,
                expected.status.code,
            )
        if state := told.get("stem.task.state"):
            assert state == found(expected)["stem.task.state"]
    for name, count in lossy.counts().items():
        assert count <= whole.counts().get(name, 0), name


def _records(spans: Any) -> list[TaskStatus]:
    """What the result backend holds in the end: the last attempt of each task."""
    last: dict[str, Any] = {}
    for span in spans:
        told = found(span)
        if told["stem.task.attempt"] >= found(last.get(told["stem.task.id"], span))["stem.task.attempt"]:
            last[told["stem.task.id"]] = span
    return [_record(span) for span in last.values()]


def _record(span: Any) -> TaskStatus:
    told, ended = found(span), EPOCH + timedelta(microseconds=_since_us(span.end_time_unix_nano))
    started = EPOCH + timedelta(microseconds=_since_us(span.start_time_unix_nano))
    state = TaskState(told["stem.task.state"])
    return TaskStatus(
        id=told["stem.task.id"],
        state=state,
        attempt=told["stem.task.attempt"],
        updated_at=ended,
        worker=told["stem.worker.id"],
        started_at=started if state in {TaskState.SUCCEEDED, TaskState.FAILED} else None,
        error=TaskError(message=span.status.message) if state is TaskState.FAILED else None,
    )


def _since_us(time_ns: int) -> int:
    return (time_ns - round(EPOCH.timestamp() * 1_000_000) * 1000) // 1000


def everything(heard: Heard) -> tuple[list[bytes], list[bytes], dict[str, bytes], dict[tuple[str, str], int]]:
    """Spans, log records, metrics with their start times, and what was counted; exemplars are not kept."""
    metrics = heard.metrics()
    for metric in metrics.values():
        for point in points(metric) if metric.WhichOneof("data") == "histogram" else ():
            del point.exemplars[:]
    recorder = heard.correlator.recorder
    exported = {name: metric.SerializeToString(deterministic=True) for name, metric in metrics.items()}
    return sorted(recorder.spans), sorted(recorder.log.records), exported, dict(heard.correlator.counters)


RARE = CorrelateConfig(logs=LogsConfig(min_severity="TRACE"), keep=KeepConfig(ratio=0.5, rare=2.0))


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.integers(1, 3), st.sampled_from([EVERYTHING, RARE]), st.booleans())
def test_a_restart_that_loses_nothing_changes_nothing(
    history: list[History], order: random.Random, restarts: int, config: CorrelateConfig, with_repair: bool
) -> None:
    stages = shuffled(tell(history), order, repeats=3)
    cuts = set(order.choices(range(sum(map(len, stages))), k=restarts))
    whole, cut = (Heard(config, with_repair=with_repair) for _ in range(2))
    number = 0
    for payloads in stages:
        for payload in payloads:
            seconds = order.choice((0.0, 0.0, 0.01, 0.4))
            whole.hear([payload]).pass_time(seconds)
            cut.hear([payload])
            if number in cuts:
                cut.restart()
            cut.pass_time(seconds)
            number += 1
        for heard in (whole, cut):
            heard.pass_time(1)
    if with_repair:
        records = _records([span for span in whole.spans if span.name.startswith("process")])
        for _ in range(4):
            whole.pass_time(1).answer(*records)
            cut.pass_time(1).answer(*records)
    assert everything(cut.pass_time(GONE)) == everything(whole.pass_time(GONE))


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.floats(0, 100))
def test_a_restart_is_an_outage_and_nothing_else(history: list[History], order: random.Random, away: float) -> None:
    """Whatever is lost between stop and start: what is told is what one agent would tell that was deaf for so long."""
    stages = shuffled(tell(history), order)
    payloads = [payload for stage in stages for payload in stage]
    stopped, lost = order.randrange(len(payloads)), order.randrange(5)
    whole, cut = Heard(EVERYTHING), Heard(EVERYTHING)
    for heard in (whole, cut):
        heard.hear(payloads[:stopped])
        heard.fact(Outage("stem", (), heard.now_ns, 0))
        from_ns = heard.now_ns
        if heard is cut:
            heard.restart(away).fact(Outage("stem", (), from_ns, 0))
        else:
            heard.now_ns += int(away * SECOND)
        heard.fact(Outage("stem", (), from_ns, heard.now_ns))
        heard.pass_time(0.25).hear(payloads[stopped + lost :]).pass_time(1)
    assert everything(cut.pass_time(GONE)) == everything(whole.pass_time(GONE))


@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_given_back(count: int) -> None:
    heard = Heard(CorrelateConfig(settled_ttl=1.0, task_ttl=5.0))
    for _ in range(count):
        history = History(2, "succeeded", traced=False, moves=True, early=False, again="", family="")
        heard.hear(tell([history])[0]).pass_time(1).pass_time(6)
    table = heard.correlator.tasks.attempts
    memories = (
        table._open,
        table._buried,
        table._retries,
        table._followed,
        table._given_up,
        table._withheld,
        table._due,
        table._deferred,
    )
    assert [len(memory) for memory in memories] == [0] * len(memories)
