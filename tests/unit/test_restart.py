"""What one process knows, the next one goes on from: one span, one start, one count; and nothing is ever misread."""

import enum
import hashlib
import random
import typing
import zlib
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.kept import KeptStateError
from agent.correlate import state as correlator_state
from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.correlate.correlator import Correlator
from agent.correlate.process import Process
from agent.demo.sink import points
from agent.emit import iso
from agent.otlp.metrics import InstrumentState
from agent.receivers.stem_signals import state as receiver_state
from agent.receivers.stem_signals.sequence import MAX_BOOTS, SequenceTracker
from agent.receivers.stem_tail import notes as tail_notes
from agent.stem.catalogue import SignalName, TaskState
from agent.stem.heartbeat import Heartbeat, HeartbeatExtras
from agent.stem.status import TaskStatus
from agent.stem.wire import Outage, ServerClock
from tests.support import EPOCH, SECOND, TASK_ID, Heard, Story, envelope, found, nanoseconds

EVERYTHING = CorrelateConfig(logs=LogsConfig(min_severity="TRACE"))
NOW = nanoseconds(EPOCH)
RESOURCE, OTHER = b"instance-1", b"instance-2"


def events(heard: Heard) -> list[str]:
    return [record.event_name for record in heard.logs]


def started(story: Story, **changes: Any) -> tuple[list[bytes], list[bytes]]:
    """What is told of an attempt up to its start, and after that."""
    payloads = story.run("succeeded", envelope(**changes))
    return payloads[:2], payloads[2:]


# --- one life --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [0.0, 0.5, 3600.0])
def test_a_task_that_spans_a_restart_is_one_span_and_one_start(away: float) -> None:
    before, after = started(Story())
    heard = Heard().hear(before).restart(away).hear(after)
    span = heard.span("process")
    assert "stem.incomplete" not in found(span)
    assert span.start_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=1))
    assert span.end_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=36))
    assert events(heard) == ["stem.task.started", "stem.task.succeeded"]
    assert heard.counts()["stem.tasks.started"] == heard.counts()["stem.tasks.succeeded"] == 1
    assert not len(heard.correlator.tasks.attempts)


def test_what_was_settled_before_is_not_settled_again() -> None:
    payloads = Story().run()
    heard = Heard().hear(payloads).restart(1).hear(payloads)
    assert len(heard.spans) == 3
    assert heard.correlator.counters["stem_agent.signals.late", "task-succeeded"] == 1


def test_an_end_that_only_the_record_tells_is_read_after_the_restart() -> None:
    before, _ = started(Story())
    heard = Heard(with_repair=True).hear(before).restart(5)
    ended = EPOCH + timedelta(seconds=2)
    record = TaskStatus(
        id=TASK_ID, state=TaskState.SUCCEEDED, attempt=0, worker="worker-1", updated_at=ended, completed_at=ended
    )
    heard.pass_time(0.25).answer(record)
    span = heard.span("process")
    assert found(span)["stem.task.state"] == "succeeded"
    assert found(span)["stem.source"] == "repair"
    assert span.end_time_unix_nano == nanoseconds(ended)


def test_a_retry_is_linked_across_a_restart() -> None:
    story = Story()
    first = story.run("retry")
    again = story.run("succeeded", envelope(attempt=1, notBefore=iso(story.time.now + timedelta(seconds=7))))
    heard = Heard().hear(first).restart(1).hear(again)
    one, two = (span for span in heard.spans if span.name.startswith("process"))
    assert one.span_id in {link.span_id for link in two.links}
    assert "stem.task.wait.lower_bound" not in found(two)


def test_a_publish_before_and_its_task_after_are_counted_once() -> None:
    story = Story()
    story.recorded.after_publish(envelope())
    published = story.payloads[:]
    heard = Heard(EVERYTHING).hear(published).restart(1).hear(published).hear(story.run())
    assert heard.counts()["stem.tasks.published"] == 1
    assert events(heard).count("stem.task.published") == 1


@pytest.mark.parametrize("away", [5, 3600])
def test_a_task_that_was_published_before_and_lived_while_nobody_listened_is_read_from_its_record(away: int) -> None:
    story = Story()
    story.recorded.heartbeat()
    story.recorded.after_publish(envelope())
    heard = Heard(with_repair=True).hear(story.payloads).restart(away)
    times = {"updated_at": EPOCH + timedelta(seconds=2), "completed_at": EPOCH + timedelta(seconds=2)}
    started_at = EPOCH + timedelta(seconds=1)
    record = TaskStatus(
        id=TASK_ID, state=TaskState.SUCCEEDED, attempt=0, worker="worker-1", started_at=started_at, **times
    )
    heard.pass_time(0.25).answer(record)
    span = heard.span("process")
    assert "stem.incomplete" not in found(span)
    assert (span.start_time_unix_nano, found(span)["stem.source"]) == (nanoseconds(started_at), "repair")


def test_a_workflow_run_that_spans_a_restart_is_one_span() -> None:
    story = Story()

    def tell(verb: str) -> None:
        story.recorded.workflow(f"workflow-run-{verb}", "wf-1", "checkout", "running")
        story.time.advance(1)

    tell("started")
    story.run(task=envelope(name="stem.workflow.run", meta={"stem.workflow.runId": "wf-1"}))
    heard = Heard().hear(story.payloads).restart(2)
    story.payloads.clear()
    tell("completed")
    span = heard.hear(story.payloads).pass_time(1).span("workflow")
    assert span.start_time_unix_nano == nanoseconds(EPOCH)
    assert "stem.incomplete" not in found(span)


def test_a_run_that_ended_before_the_restart_is_told_after_it_and_not_again() -> None:
    story = Story()
    for verb in ("started", "completed"):
        story.recorded.workflow(f"workflow-run-{verb}", "wf-1", "checkout", "running")
    heard = Heard().hear(story.payloads).restart(2).pass_time(0)
    assert heard.span("workflow")
    heard.restart(1).hear(story.payloads).pass_time(1)
    assert heard.span("workflow")


# --- workers ---------------------------------------------------------------------------------------------------------


def test_nobody_was_silent_while_we_were_away() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard().hear(story.payloads).hear(started(story)[0]).restart(300).pass_time(1)
    assert events(heard) == ["stem.task.started"]
    assert heard.metrics()["stem.worker.up"].gauge.data_points[0].as_int == 1


def test_who_does_not_come_back_after_a_restart_is_lost_and_what_it_held_may_have_ended_meanwhile() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard().hear(story.payloads).hear(started(story)[0]).restart(300)
    heard.pass_time(EVERYTHING.heartbeat_timeout + 1).pass_time(1)
    assert found(heard.span("process"))["stem.missing"] == ["end"]
    assert "stem.worker.lost" in events(heard)


def test_what_was_given_up_before_a_restart_and_ends_after_it_does_not_start_twice() -> None:
    story = Story()
    story.recorded.heartbeat()
    before, after = started(story)
    heard = Heard().hear([*story.payloads[:1], *before]).pass_time(EVERYTHING.heartbeat_timeout + 1).pass_time(61)
    assert found(heard.span("process"))["stem.task.state"] == "lost"
    heard.restart(1).hear(after)
    assert events(heard).count("stem.task.started") == 1
    assert heard.counts()["stem.tasks.started"] == heard.counts()["stem.tasks.succeeded"] == 1


@pytest.mark.parametrize("ticked", [True, False])
def test_what_a_worker_left_open_when_it_said_goodbye_is_concluded_after_a_restart(ticked: bool) -> None:
    story = Story()
    before, _ = started(story)
    story.payloads.clear()
    story.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
    farewell = story.payloads
    # Whether it is heard before the farewell, or as a straggler after it, which is noted until the next tick.
    heard = Heard().hear([*before, *farewell] if ticked else [*farewell, *before])
    heard.restart(0.1).pass_time(0.9).pass_time(0.9)
    assert found(heard.span("process"))["stem.task.state"] == "lost"


def test_what_was_known_of_workers_is_still_known() -> None:
    config = CorrelateConfig()
    whole, cut = Heard(config), Heard(config)
    for heard in (whole, cut):
        heard.fact(ServerClock("stem", 5_000_000))
        for number in range(3):
            extras = HeartbeatExtras(concurrency=4, memory_bytes=1 << 20, pid=number, host="node")
            heard.fact(Heartbeat("worker-1", EPOCH + timedelta(seconds=number), 2, extras, "stem")).pass_time(3)
        story = Story("worker-2", "pod-2")
        story.recorded.heartbeat()
        story.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
        heard.hear(story.payloads)
    cut.restart()
    for heard in (whole, cut):
        heard.fact(Heartbeat("worker-2", EPOCH, 2, HeartbeatExtras(), "stem")).pass_time(31)
    exported = [
        {name: metric.SerializeToString() for name, metric in heard.metrics().items()} for heard in (whole, cut)
    ]
    assert exported[0] == exported[1]
    assert events(whole) == events(cut)


# --- metrics ---------------------------------------------------------------------------------------------------------


def counter(heard: Heard, name: str = "stem.tasks.succeeded") -> Any:
    return points(heard.metrics()[name])[0]


def test_counters_go_on_from_their_own_start_time() -> None:
    story = Story()
    heard = Heard().hear(story.run()).pass_time(1)
    before = counter(heard)
    after = counter(heard.restart(60).hear(story.run(task=envelope(id="other"))).pass_time(1))
    assert (before.as_int, after.as_int) == (1, 2)
    assert after.start_time_unix_nano == before.start_time_unix_nano
    assert after.time_unix_nano > before.time_unix_nano


def test_histograms_go_on_and_exemplars_are_not_told_twice() -> None:
    story = Story()
    heard = Heard().hear(story.run()).restart(60).hear(story.run(task=envelope(id="other")))
    point = counter(heard, "stem.task.duration")
    assert (point.count, point.sum, sum(point.bucket_counts)) == (2, pytest.approx(0.07), 2)
    assert len(point.exemplars) == 1


def test_under_another_resource_counting_begins_anew() -> None:
    story, heard = Story(), Heard()
    heard.hear(story.run())
    kept = heard.correlator.snapshot(heard.now_ns, RESOURCE)
    later = Correlator(heard.config, NOW + SECOND)
    assert not later.restore(kept, NOW + SECOND, OTHER).metrics
    heard.correlator, heard.now_ns = later, NOW + SECOND
    point = counter(heard.hear(story.run(task=envelope(id="other"))).pass_time(1))
    assert (point.as_int, point.start_time_unix_nano) == (1, NOW + SECOND)


def test_a_series_under_other_attributes_begins_anew() -> None:
    heard = Heard().hear(Story().run())
    kept = heard.correlator.snapshot(NOW)
    later = Correlator(CorrelateConfig(per_worker=True), NOW + SECOND)
    assert later.restore(kept, NOW + SECOND).metrics
    heard.correlator = later
    assert "stem.tasks.succeeded" not in heard.metrics()


def test_a_queue_in_which_nothing_runs_any_more_still_says_so_after_a_restart() -> None:
    before, after = started(Story())
    heard = Heard().hear(before)
    assert counter(heard, "stem.tasks.active").as_int == 1
    assert counter(heard.restart(1).hear(after), "stem.tasks.active").as_int == 0


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_state_older_than_task_ttl_is_forgotten_and_counted() -> None:
    config = CorrelateConfig(task_ttl=60.0)
    before, after = started(Story())
    heard = Heard(config).hear(before).restart(61)
    assert not len(heard.correlator.tasks.attempts)
    assert heard.correlator.counters["stem_agent.correlate.evicted", "task_ttl"] == 1
    heard.hear(after)
    assert heard.span("process")


def test_nobody_is_too_old_before_its_record_can_be_read() -> None:
    heard = Heard(CorrelateConfig(task_ttl=600.0)).hear(started(Story())[0]).pass_time(300).restart(599).pass_time(1)
    assert not heard.correlator.counters
    assert heard.pass_time(60).correlator.counters["stem_agent.correlate.evicted", "task_ttl"] == 1


@pytest.mark.parametrize("back", [1, 3600, 86_400 * 30])
def test_a_clock_that_was_set_back_ages_nobody_and_rejuvenates_nobody(back: int) -> None:
    config = CorrelateConfig(task_ttl=600.0)
    story = Story()
    story.recorded.after_publish(envelope(id="waits"))
    heard = Heard(config).hear(story.payloads).hear(story.run(task=envelope(id="told")))
    heard.hear(started(story)[0]).pass_time(500)
    heard.restart(at_ns=heard.now_ns - back * SECOND)
    later = heard.correlator
    assert [heard.now_ns - attempt.opened_ns for attempt in later.tasks.attempts] == [500 * SECOND]
    assert all(process.heard_ns == heard.now_ns for process in later._processes.speaking())
    ages = heard.metrics()["stem.tasks.active.oldest_age"].gauge.data_points
    assert all(point.as_double >= 0 for point in ages)
    heard.pass_time(99)
    assert not later.counters
    assert heard.pass_time(2).correlator.counters["stem_agent.correlate.evicted", "task_ttl"] == 1
    heard.pass_time(600)
    assert not later.tasks.attempts._buried
    assert not len(later.tasks.publishes)


def test_a_series_that_began_in_what_is_now_the_future_begins_anew() -> None:
    story = Story()
    heard = Heard().hear(story.run()).pass_time(10)
    heard.restart(at_ns=NOW - 3600 * SECOND).hear(story.run(task=envelope(id="other"))).pass_time(1)
    point = counter(heard)
    assert point.as_int == 1
    assert point.start_time_unix_nano <= point.time_unix_nano


def test_times_that_no_clock_should_have_are_kept_all_the_same() -> None:
    story = Story()
    never = {"notBefore": "9999-12-31T23:59:59.999Z"}
    story.recorded.after_publish(envelope(**never))
    running = TaskStatus(
        id="read", state=TaskState.RUNNING, attempt=0, worker="worker-1", started_at=EPOCH.replace(year=9999)
    )
    heard = Heard(with_repair=True).hear(story.payloads).hear(story.run("retry", envelope(id="retried", **never)))
    received = story.attempt(envelope(id="read"))
    received.succeeded()
    heard.hear(story.payloads[-1:]).pass_time(1).answer(running)
    assert len(heard.restart(1).correlator.tasks.publishes) == 1


# --- what is kept at a stop ------------------------------------------------------------------------------------------


def test_a_stop_tells_what_is_whole_and_keeps_what_may_still_become_so() -> None:
    story = Story()
    whole = story.run(task=envelope(id="whole"))[:-1]  # but for its postrun
    open_, _ = started(story, id="open")
    failed = story.run("failed", envelope(id="failed"))[:-1]  # Stem's own middleware calls so what is then retried
    alone = story.run(task=envelope(id="second", attempt=1))
    heard = Heard().hear([*whole, *open_, *failed, *alone])
    heard.correlator.close(heard.now_ns, keep=True)
    assert {found(span)["stem.task.id"] for span in heard.spans if span.name.startswith("process")} == {"whole"}
    assert {attempt.task_id for attempt in heard.correlator.tasks.attempts} == {"open", "failed", "second"}
    assert not heard.correlator.counters
    heard.restart(2).pass_time(0)
    told = [found(span)["stem.task.id"] for span in heard.spans if span.name.startswith("process")]
    assert sorted(told) == ["failed", "second", "whole"]


# --- nothing is misread ----------------------------------------------------------------------------------------------


def kept_state() -> bytes:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(EVERYTHING).hear(story.payloads).hear(story.run()).hear(started(story, id="open")[0])
    return heard.correlator.snapshot(NOW)


KEPT = kept_state()


def refused(state: bytes) -> str:
    with pytest.raises(KeptStateError) as info:
        Correlator(EVERYTHING, NOW).restore(state, NOW)
    return info.value.reason


def test_only_the_same_version_is_read() -> None:
    assert refused(KEPT[:4] + (999).to_bytes(2, "big") + KEPT[6:]) == "version"
    assert refused(b"PK\x03\x04" + KEPT[4:]) == "foreign"
    assert refused(b"") == "broken"


@given(st.data())
def test_whatever_is_broken_is_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(6, len(KEPT) - 1))
    if data.draw(st.booleans()):
        assert refused(KEPT[:place]) == "broken"
    else:
        flipped = KEPT[place] ^ data.draw(st.integers(1, 255))
        assert refused(KEPT[:place] + bytes([flipped]) + KEPT[place + 1 :]) == "broken"


@settings(max_examples=300)
@given(st.binary(max_size=30), st.integers(0, 400), st.randoms(use_true_random=False))
def test_content_of_another_shape_is_refused_or_harmless(noise: bytes, at: int, chance: random.Random) -> None:
    """A checksum that fits says only that these bytes were written, not that they mean anything."""
    content = bytearray(KEPT[10:])
    place = min(at, len(content))
    content[place : place + chance.randrange(3)] = noise
    sealed = KEPT[:6] + zlib.crc32(content).to_bytes(4, "big") + bytes(content)
    correlator = Correlator(EVERYTHING, NOW)
    try:
        correlator.restore(sealed, NOW)
    except KeptStateError as error:
        assert error.reason == "broken"


def shape(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Every struct, tuple and enumeration that is reached from a type, with its fields."""
    for part in typing.get_args(kind):
        shape(part, known)
    name = getattr(kind, "__qualname__", "")
    if name in known or not isinstance(kind, type):
        return known
    if issubclass(kind, enum.Enum):
        known[name] = [(member.name, member.value) for member in kind]
    elif issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        fields = kind._fields if hasattr(kind, "_fields") else kind.__struct_fields__
        known[name] = [(field, str(hints[field])) for field in fields]
        for field in fields:
            shape(hints[field], known)
    return known


class TailState(NamedTuple):
    """What `stem_tail` leaves: its notes, and among them the totals of whoever tells."""

    notes: tail_notes.Notes
    totals: InstrumentState


@pytest.mark.parametrize(
    ("module", "root", "version", "fingerprint"),
    [
        (correlator_state, correlator_state.State, 4, "8f2335211ee2704f"),
        (receiver_state, receiver_state.State, 1, "41037fe77c0d2fc3"),
        (tail_notes, TailState, 1, "7fdec7e88764b804"),
    ],
)
def test_another_shape_needs_another_version(module: Any, root: Any, version: int, fingerprint: str) -> None:
    """Fails when a struct that is kept has changed: raise `VERSION` there, and set both here."""
    known = shape(root, {})
    assert len(known) > 1
    digest = hashlib.blake2b(repr(sorted(known.items())).encode(), digest_size=8).hexdigest()
    assert (module.VERSION, digest) == (version, fingerprint)


def test_a_process_that_nobody_knows_any_more_is_still_that_of_its_attempts() -> None:
    heard = Heard(CorrelateConfig(worker_ttl=10.0)).hear(started(Story())[0]).pass_time(30)
    assert not list(heard.correlator._processes.speaking())
    heard.restart(1)
    [attempt] = heard.correlator.tasks.attempts
    assert isinstance(attempt.process, Process)
    assert attempt.process.emitter == "pod-1"


# --- numbering -------------------------------------------------------------------------------------------------------


def observe(tracker: SequenceTracker, *numbers: int, now: int = 0) -> list[bool]:
    return [tracker.observe("stem", "pod-1", "boot", number, now) for number in numbers]


def next_tracker(tracker: SequenceTracker, *, taken: int = 0, now: int = 0) -> SequenceTracker:
    later = SequenceTracker()
    assert receiver_state.restore(receiver_state.snapshot(tracker, taken, None), later, now) == min(taken, now)
    return later


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(0, 60))
def test_a_numbering_goes_on_as_if_nobody_had_stopped(numbers: list[int], cut: int) -> None:
    whole, first = SequenceTracker(), SequenceTracker()
    seen = observe(first, *numbers[:cut])
    second = next_tracker(first)
    assert seen + observe(second, *numbers[cut:]) == observe(whole, *numbers)
    assert list(second.tick(SECOND)) == list(whole.tick(SECOND))


def test_what_was_sent_while_nobody_listened_is_a_gap() -> None:
    tracker = SequenceTracker()
    observe(tracker, 1, 2, 3)
    later = next_tracker(tracker, taken=SECOND, now=5 * SECOND)
    assert observe(later, 10, 3, now=5 * SECOND) == [True, False]
    assert [(gap.first, gap.last) for gap in later.tick(7 * SECOND)] == [(4, 9)]


def test_a_hole_is_waited_for_no_longer_because_a_clock_was_set_back() -> None:
    tracker = SequenceTracker()
    observe(tracker, 1, 3, now=100 * SECOND)
    later = next_tracker(tracker, taken=100 * SECOND, now=10 * SECOND)
    assert [(gap.first, gap.last) for gap in later.tick(11 * SECOND)] == [(2, 2)]


def test_no_more_boots_are_restored_than_are_remembered() -> None:
    tracker = SequenceTracker()
    for number in range(MAX_BOOTS + 1):
        tracker.observe("stem", "pod-1", str(number), 1, 0)
    assert len(next_tracker(tracker).state()) == MAX_BOOTS


def test_an_outage_after_a_restart_asks_for_what_was_open() -> None:
    heard = Heard(with_repair=True).hear(started(Story())[0]).restart(5)
    heard.fact(Outage("stem", (), NOW, 0)).pass_time(0.25).answer()
    heard.fact(Outage("stem", (), NOW, heard.now_ns)).pass_time(1)
    assert heard.correlator.repairs.take(10) == [TASK_ID]
