"""Who is up, who is lost and with what, who came back, who shares a name, and whose clock is wrong."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent.correlate.config import CorrelateConfig
from agent.correlate.process import MAX_PROCESSES
from agent.emit import iso
from agent.stem.catalogue import SignalName
from agent.stem.heartbeat import Heartbeat, HeartbeatExtras
from agent.stem.wire import Outage, ServerClock, Shed
from tests.support import EPOCH, SECOND, Heard, Story, ToldTime, envelope, found, nanoseconds, signals_of

TIMEOUT = CorrelateConfig().heartbeat_timeout
EPOCH_NS = nanoseconds(EPOCH)


def beat(story: Story, heard: Heard) -> None:
    before = len(story.payloads)
    story.recorded.heartbeat()
    heard.hear(story.payloads[before:])


def names(heard: Heard) -> list[str]:
    return [record.event_name for record in heard.logs]


def bodies(heard: Heard, event: str) -> list[str]:
    return [record.body.string_value for record in heard.logs if record.event_name == event]


def test_a_worker_is_up_while_it_beats_and_lost_when_it_does_not() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard().hear(story.payloads)
    assert heard.metrics()["stem.worker.up"].gauge.data_points[0].as_int == 1
    heard.pass_time(30.1)
    assert heard.metrics()["stem.worker.up"].gauge.data_points[0].as_int == 0
    assert heard.metrics()["stem.worker.heartbeat.age"].gauge.data_points[0].as_double == pytest.approx(30.1)
    heard.hear(story.payloads)
    assert heard.metrics()["stem.worker.up"].gauge.data_points[0].as_int == 1
    assert [record.event_name for record in heard.logs] == ["stem.worker.lost", "stem.worker.recovered"]
    assert "stem.worker.up" not in heard.pass_time(600.1).metrics()


def test_a_graceful_stop_is_no_alarm() -> None:
    story = Story()
    story.recorded.heartbeat()
    story.recorded.worker(SignalName.WORKER_STOPPING, reason="warm")
    story.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
    heard = Heard().hear(story.payloads).pass_time(31)
    assert [record.event_name for record in heard.logs] == ["stem.worker.stopping", "stem.worker.shutdown"]
    assert "stem.worker.up" not in heard.metrics()


def test_a_process_without_a_worker_beats_and_is_not_watched() -> None:
    story = Story(worker_id="")
    story.recorded.heartbeat()
    heard = Heard().hear(story.payloads).pass_time(31)
    assert not heard.logs
    assert "stem.worker.up" not in heard.metrics()


def test_a_worker_that_never_beat_is_not_watched() -> None:
    story = Story()
    story.recorded.worker(SignalName.WORKER_READY)
    heard = Heard().hear(story.payloads).pass_time(31)
    assert [record.event_name for record in heard.logs] == ["stem.worker.ready"]


def test_a_beat_that_was_sent_before_the_goodbye_brings_nobody_back() -> None:
    story = Story()
    story.recorded.heartbeat()
    story.time.advance(1)
    story.recorded.worker(SignalName.WORKER_SHUTDOWN)
    beat, goodbye = story.payloads
    heard = Heard().hear([beat, goodbye, beat]).pass_time(31)
    assert [record.event_name for record in heard.logs] == ["stem.worker.shutdown"]


# --- lost ------------------------------------------------------------------------------------------------------------


def test_what_a_silent_worker_held_open_is_lost() -> None:
    story = Story()
    story.recorded.heartbeat()
    story.run()
    story.time.advance(5)
    story.run(task=envelope(id="task-2"))
    heard = Heard().hear(story.payloads[:-2]).pass_time(TIMEOUT - 1)
    assert "stem.task.lost" not in names(heard)
    heard.pass_time(2)
    lost = next(span for span in heard.spans if found(span).get("stem.task.state") == "lost")
    told = found(lost)
    assert told["stem.task.id"] == "task-2"
    assert told["stem.task.end_reason"] == told["error.type"] == "worker-lost"
    assert lost.status.code == Status.STATUS_CODE_ERROR
    assert lost.end_time_unix_nano == lost.start_time_unix_nano, "the last that was heard of it"
    assert names(heard)[-2:] == ["stem.task.lost", "stem.worker.lost"]
    assert heard.counts()["stem.tasks.lost"] == 1
    assert heard.counts()["stem.task.duration"] == 1, "nobody knows how long the lost one ran"


def test_a_process_that_never_beat_is_not_missed() -> None:
    heard = Heard().hear(Story().run()[:2]).pass_time(10 * TIMEOUT)
    assert names(heard) == ["stem.task.started"]


def test_an_end_that_comes_after_all_is_late_and_then_no_second_start() -> None:
    config = CorrelateConfig(settled_ttl=10.0)
    story = Story()
    story.recorded.heartbeat()
    payloads = [*story.payloads, *story.run()]
    heard = Heard(config).hear(payloads[:3]).pass_time(TIMEOUT + 1).hear(payloads[3:4])
    assert heard.correlator.counters["stem_agent.signals.late", SignalName.TASK_SUCCEEDED] == 1
    heard.pass_time(11).hear(payloads[3:])
    assert heard.counts()["stem.tasks.started"] == 1
    assert heard.counts()["stem.tasks.succeeded"] == 1
    assert len([name for name in names(heard) if name == "stem.task.started"]) == 1


def test_two_processes_that_were_replaced_while_nobody_listened_are_two_losses() -> None:
    heard = Heard()
    for _ in range(3):
        story = Story()
        beat(story, heard)
        heard.pass_time(1)
    heard.restart(5)
    beat(story, heard)
    heard.pass_time(TIMEOUT / 2)
    lost = [found(record)["log.record.uid"] for record in heard.logs if record.event_name == "stem.worker.lost"]
    assert len(set(lost)) == len(lost) == 2


def test_a_new_process_under_the_same_emitter_ends_what_the_old_one_held() -> None:
    old, new = Story(), Story()
    old.recorded.heartbeat()
    heard = Heard().hear([*old.payloads, *old.run()[:2]])
    new.recorded.worker(SignalName.WORKER_INIT)
    heard.pass_time(1).hear(new.payloads)
    heard.pass_time(TIMEOUT / 3)
    assert "stem.task.lost" not in names(heard), "an interval may pass before the next heartbeat"
    beat(new, heard)
    heard.pass_time(TIMEOUT / 10)
    assert names(heard)[-2:] == ["stem.worker.lost", "stem.task.lost"]
    (body,) = bodies(heard, "stem.worker.lost")
    assert body.endswith("another process took its place")
    assert heard.metrics()["stem.worker.up"].gauge.data_points[0].as_int == 1, "the newcomer is up"


def test_a_restart_in_order_is_no_alarm() -> None:
    old, new = Story(), Story()
    old.recorded.heartbeat()
    old.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
    heard = Heard().hear(old.payloads).pass_time(1)
    for _ in range(10):
        beat(new, heard)
        heard.pass_time(TIMEOUT / 3)
    assert names(heard) == ["stem.worker.shutdown"]


def test_what_a_worker_leaves_behind_at_its_shutdown_is_lost_there() -> None:
    story = Story()
    payloads = story.run()[:2]
    story.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="hard")
    heard = Heard().hear([*payloads, story.payloads[-1]]).pass_time(0.5)
    assert "stem.task.lost" not in names(heard), "its end may be on its way"
    heard.pass_time(0.6)
    assert names(heard)[-1] == "stem.task.lost"


def test_a_worker_that_leaves_does_not_take_its_neighbour_along() -> None:
    """Two workers may share a process, and with it emitter, boot and numbers."""
    story = Story()
    other = story.attempt(envelope(id="task-2"))
    other.received()
    other.prerun()
    story.recorded.composer.worker_id = "worker-2"
    story.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
    heard = Heard().hear(story.payloads).pass_time(5)
    assert "stem.task.lost" not in names(heard)


def test_our_own_deafness_is_not_taken_for_silence() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard().hear([*story.payloads, *story.run()[:2]])
    heard.fact(Outage("stem", (), heard.now_ns, 0)).pass_time(10 * TIMEOUT)
    heard.fact(Outage("stem", (), heard.now_ns, heard.now_ns)).pass_time(TIMEOUT - 1)
    assert names(heard) == ["stem.task.started"]
    heard.pass_time(2)
    assert set(names(heard)) == {"stem.task.started", "stem.worker.lost"}, "the task may have ended meanwhile"
    assert found(heard.span("process"))["stem.missing"] == ["end"]
    assert "stem.tasks.lost" not in heard.counts()


# --- returned, replaced, colliding -----------------------------------------------------------------------------------


def test_a_return_is_told_apart_from_a_newcomer() -> None:
    story, newcomer = Story(), Story(emitter="pod-2")
    heard = Heard()
    beat(story, heard)
    heard.pass_time(TIMEOUT + 1)
    beat(story, heard)
    assert names(heard)[-1] == "stem.worker.recovered"
    heard.pass_time(TIMEOUT + 1)
    beat(newcomer, heard)
    assert names(heard)[-1] == "stem.worker.replaced"


def test_two_processes_with_one_worker_id_are_reported_once() -> None:
    one, other = Story(emitter="pod-1"), Story(emitter="pod-2")
    heard = Heard()
    for _ in range(4):
        for story in (one, other):
            beat(story, heard)
            heard.pass_time(TIMEOUT / 3)
    (body,) = bodies(heard, "stem.worker.collision")
    assert body.startswith("worker id worker-1 is used by two processes at once: pid ")


def test_a_straggler_of_the_old_process_is_no_collision() -> None:
    old, new = Story(), Story()
    heard = Heard()
    beat(old, heard)
    old.recorded.heartbeat()
    beat(new, heard)
    heard.pass_time(0.5).hear(old.payloads[-1:])
    beat(new, heard)
    assert bodies(heard, "stem.worker.collision") == []


def test_stems_own_heartbeats_tell_colliding_processes_too() -> None:
    heard = Heard()
    for second in range(4):
        extras = HeartbeatExtras(pid=1, host=f"pod-{second % 2}")
        time = EPOCH + timedelta(seconds=3 * second)
        heard.fact(Heartbeat("stem-worker-1", time, extras=extras, namespace="stem")).pass_time(3)
    (body,) = bodies(heard, "stem.worker.collision")
    assert "pid 1 on pod-0" in body
    assert "pid 1 on pod-1" in body


def test_both_kinds_of_heartbeat_of_one_process_are_no_collision() -> None:
    story, heard = Story(), Heard()
    for second in range(6):
        beat(story, heard)
        time = EPOCH + timedelta(seconds=3 * second)
        extras = HeartbeatExtras(pid=1, host="pod-1")
        heard.fact(Heartbeat("worker-1", time, extras=extras, namespace="stem")).pass_time(3)
    assert bodies(heard, "stem.worker.collision") == []


# --- clocks ----------------------------------------------------------------------------------------------------------


def skew_of(heard: Heard) -> float:
    return float(heard.metrics()["stem.worker.clock_skew"].gauge.data_points[0].as_double)


@given(st.floats(-90, 90), st.lists(st.floats(0, 0.3), min_size=4, max_size=16), st.floats(-1, 1))
def test_the_skew_is_known_within_50_ms(skew_s: float, delays_s: list[float], redis_s: float) -> None:
    """Against the clock of Redis, which is not ours; at least one heartbeat in 16 is under way for less than 40 ms."""
    story, heard = Story(), Heard()
    heard.fact(ServerClock("stem", round(redis_s * SECOND)))
    for delay_s in [*delays_s, 0.04]:
        story.time.now = EPOCH + timedelta(seconds=skew_s, microseconds=(heard.now_ns - EPOCH_NS) // 1000)
        story.recorded.heartbeat()
        heard.pass_time(delay_s).hear(story.payloads[-1:]).pass_time(10)
    assert skew_of(heard) == pytest.approx(skew_s - redis_s, abs=0.05)


def test_a_clock_that_is_set_right_is_believed_after_a_few_beats() -> None:
    story, heard = Story(), Heard()
    for beats, skew_s in ((16, 90), (16, 0)):
        for _ in range(beats):
            story.time.now = EPOCH + timedelta(seconds=skew_s, microseconds=(heard.now_ns - EPOCH_NS) // 1000)
            beat(story, heard)
            heard.pass_time(10)
    assert skew_of(heard) == pytest.approx(0, abs=0.001)


def test_a_wait_that_two_clocks_make_negative_is_clamped_and_marked() -> None:
    task = envelope(enqueuedAt=iso(EPOCH + timedelta(seconds=90)))
    heard = Heard().hear(Story().run(task=task))
    wait = heard.span("wait")
    assert wait.start_time_unix_nano == wait.end_time_unix_nano
    assert found(wait)["stem.clock.adjusted"] is True
    assert heard.correlator.counters["stem_agent.correlate.clock_adjusted", ""] == 1


# --- who is judged, and by what --------------------------------------------------------------------------------------


def test_a_copy_that_outlives_the_memory_of_the_first_delivery_keeps_its_own_span() -> None:
    story, heard = Story(), Heard()
    first = story.run(run_s=40)
    story.time.now = EPOCH + timedelta(seconds=30)
    second = story.run(run_s=110)
    heard.hear([*first[:2], *second[:2], *first[2:]]).pass_time(100).hear(second[2:])
    ids = [span.span_id for span in heard.spans]
    assert len(ids) == len(set(ids)) == 5, "one send, two waits, two attempts"
    assert heard.counts()["stem.tasks.started"] == heard.counts()["stem.tasks.succeeded"] == 2
    assert len(heard.correlator.tasks.attempts) == 0


def test_a_process_that_is_forgotten_and_met_again_is_the_same() -> None:
    story, heard = Story(), Heard()
    payloads = story.run(run_s=1300)
    heard.hear(payloads[:2])
    for _ in range(26):
        heard.pass_time(50)
    heard.hear(payloads[2:])
    assert heard.counts()["stem.tasks.started"] == 1
    assert heard.span("process").span_id.hex() == "91c497b69b448dbc"


def test_a_flood_of_new_processes_does_not_push_out_those_that_live() -> None:
    story, heard = Story(), Heard()
    payloads = story.run()
    heard.hear(payloads[:2])
    for _ in range(MAX_PROCESSES + 10):
        beat(Story("worker-x", "pod-x"), heard)
        if heard.now_ns % 7 == 0:
            beat(story, heard)
        heard.now_ns += 1
    heard.hear(payloads[2:])
    assert heard.counts()["stem.tasks.started"] == 1


def test_a_restarted_worker_that_gets_the_lost_attempt_again_starts_it_again() -> None:
    old, new = Story(), Story()
    old.recorded.heartbeat()
    heard = Heard().hear([*old.payloads, *old.run()[:2]]).pass_time(TIMEOUT + 1).pass_time(70)
    new.time.now = EPOCH + timedelta(seconds=110)
    heard.hear(new.run())
    assert heard.counts()["stem.tasks.started"] == 2
    ids = [span.span_id for span in heard.spans]
    assert len(ids) == len(set(ids))


def test_an_agent_that_stood_still_blames_nobody() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard().hear([*story.payloads, *story.run()[:2]])
    heard.now_ns += int(10 * TIMEOUT * SECOND)
    heard.correlator.stalled(heard.now_ns)
    assert "stem.task.lost" not in names(heard.pass_time(0))


def test_neighbours_under_one_emitter_that_never_beat_are_not_each_others_followers() -> None:
    one, other = Story(), Story("worker-2")
    heard = Heard().hear(one.run()[:2]).hear(other.run()).pass_time(TIMEOUT)
    assert "stem.task.lost" not in names(heard)


def test_a_neighbour_that_goes_on_beating_is_judged_by_its_own_silence() -> None:
    one, other, heard = Story(), Story("worker-2"), Heard()
    beat(one, heard)
    heard.hear(one.run()[:2])
    for _ in range(3):
        beat(other, heard)
        beat(one, heard)
        heard.pass_time(TIMEOUT / 3)
    beat(other, heard)
    heard.pass_time(TIMEOUT / 2)
    assert "stem.task.lost" not in names(heard)


def test_a_worker_whose_own_heartbeats_go_on_is_not_lost_with_its_bridge() -> None:
    story, heard = Story(), Heard()
    beat(story, heard)
    heard.hear(story.run()[:2])
    for second in range(0, int(2 * TIMEOUT), 10):
        time = EPOCH + timedelta(seconds=second)
        heard.fact(Heartbeat("worker-1", time, extras=HeartbeatExtras(pid=1, host="h"), namespace="stem")).pass_time(10)
    assert "stem.task.lost" not in names(heard)


def test_a_process_that_returns_in_time_keeps_its_attempts() -> None:
    story = Story()
    story.recorded.heartbeat()
    payloads = story.run()
    heard = Heard(with_repair=True).hear([*story.payloads[:1], *payloads[:2]]).pass_time(TIMEOUT + 0.3)
    beat(story, heard)
    heard.answer().pass_time(100)
    assert "stem.task.lost" not in names(heard)
    heard.hear(payloads[2:])
    assert heard.counts()["stem.tasks.succeeded"] == 1


def test_a_start_that_comes_behind_its_workers_goodbye_is_concluded_too() -> None:
    story = Story()
    story.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="hard")
    heard = Heard().hear(story.payloads).pass_time(1.5).hear(story.run()[:2]).pass_time(0.5).pass_time(1)
    assert names(heard)[-1] == "stem.task.lost"


def test_the_deafness_for_one_namespace_says_nothing_about_another() -> None:
    story, other = Story(), Story(namespace="other")
    heard = Heard()
    beat(story, heard)
    other.recorded.heartbeat()
    for signal in signals_of(other.payloads, "other"):
        heard.fact(signal)
    heard.fact(Outage("other", (), heard.now_ns, 0)).pass_time(TIMEOUT + 1)
    assert names(heard) == ["stem.worker.lost"]


def test_a_goodbye_dated_in_the_future_does_not_hide_the_successor() -> None:
    ahead, successor = Story(time=ToldTime(EPOCH + timedelta(days=365))), Story()
    ahead.recorded.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
    heard = Heard().hear(ahead.payloads).pass_time(5)
    beat(successor, heard)
    assert heard.metrics()["stem.worker.up"].gauge.data_points[0].as_int == 1


def test_an_absurd_time_makes_no_endless_span() -> None:
    story = Story()
    story.recorded.heartbeat()
    payloads = [*story.payloads, *story.run()[:2]]
    story.time.now = EPOCH + timedelta(days=365 * 500)
    story.recorded.heartbeat()
    heard = Heard().hear([*payloads, story.payloads[-1]]).pass_time(TIMEOUT + 1)
    lost = next(span for span in heard.spans if found(span).get("stem.task.state") == "lost")
    assert lost.end_time_unix_nano - lost.start_time_unix_nano <= (TIMEOUT + 1) * SECOND


def test_what_was_thrown_away_unread_is_asked_for() -> None:
    story = Story()
    heard = Heard(with_repair=True).hear(story.run()[:2])
    heard.fact(Shed("stem", "pod-1", story.recorded.composer.boot)).pass_time(0.1)
    assert len(heard.correlator.repairs) == 1
    assert "stem.signals.gap" not in names(heard), "it was counted where it was thrown away"


def test_a_failure_that_nobody_finished_is_looked_up_before_it_is_believed() -> None:
    """Stem's SignalMiddleware says that a task failed which is then retried; Redis may be slow in between."""
    story = Story()
    signals = story.attempt()
    signals.received()
    signals.prerun()
    signals.failed("TimeoutException after 0:00:05.000000")
    heard = Heard(with_repair=True).hear(story.payloads).pass_time(1.2)
    assert heard.spans == []
    signals.retry("TimeoutException after 0:00:05.000000", EPOCH + timedelta(seconds=8))
    signals.postrun("retried")
    heard.hear(story.payloads[3:])
    assert found(heard.span("process"))["stem.task.state"] == "retried"


def test_unnumbered_repeats_are_told_once() -> None:
    story = Story("", "beat-1")
    story.recorded.schedule_dispatched("nightly", EPOCH, EPOCH)
    story.recorded.workflow("workflow-run-started", "wf-1", "checkout", "running")
    unnumbered = [payload.replace(b'"boot"', b'"xboot"') for payload in story.payloads]
    heard = Heard().hear(unnumbered).hear(unnumbered)
    assert heard.counts()["stem.scheduler.dispatch.success"] == 1
    assert len(heard.logs) == 2


def test_names_are_cut_before_they_are_kept() -> None:
    heard = Heard().hear(Story("w" * 1000).run(task=envelope(name="n" * 100_000, queue="q" * 1000)))
    assert len(found(heard.span("process"))["stem.task"]) == 255
    assert len(found(heard.span("process"))["stem.worker.id"]) == 255


def test_two_deliveries_that_end_long_after_each_other_have_one_root() -> None:
    story, elsewhere, heard = Story(), Story("worker-2", "pod-2"), Heard()
    payloads = story.run(run_s=110)
    heard.hear([*payloads[:2], *elsewhere.run()]).pass_time(100).hear(payloads[2:])
    assert len([span for span in heard.spans if span.name.startswith("send")]) == 1
