"""States of components, hysteresis, and what `/status` says: pure, so time is told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.histogram import DURATION_BOUNDS, Histogram
from agent.core.ledger import Ledger
from agent.core.status import UNHEALTHY, Phase, State, StatusBoard
from agent.exporters.sending.outcome import Delivered, Drop, Outcome, Retry
from agent.exporters.sending.sealed import Sealed
from agent.exporters.sending.watch import STALE_NS, Watch
from agent.extensions.health.judge import Hysteresis, Judge, Watchdog
from agent.extensions.health.report import status_report
from agent.telemetry.events import Telemetry
from tests.support import SECOND

START = 1_777_000_000 * SECOND


class Board(StatusBoard):
    """A board with a clock that says what it is told."""

    def __init__(self) -> None:
        self.now_ns = START
        super().__init__(lambda: self.now_ns)

    def pass_time(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)


def test_a_component_is_as_bad_as_its_worst_part_and_for_as_long() -> None:
    board = Board()
    reports = board.of("receivers", "stem_signals")
    (component,) = board
    subscription, canary = reports.part("subscription"), reports.part("canary")
    assert component.state is State.STARTING
    board.started("receivers", "stem_signals")
    assert component.state is State.OK
    board.pass_time(1)
    canary.degraded("failed to publish")
    board.pass_time(1)
    subscription.recovering("connection refused")
    board.pass_time(1)
    subscription.recovering("no answer within 5 s")
    assert (component.state, component.since_ns) == (State.RECOVERING, START + 2 * SECOND)
    assert component.reason == "no answer within 5 s"
    assert component.last_error == ("no answer within 5 s", START + 3 * SECOND)
    subscription.ok("subscribed")
    assert (component.state, component.reason) == (State.DEGRADED, "failed to publish")
    board.pass_time(1)
    canary.ok()
    assert (component.state, component.since_ns) == (State.OK, START + 4 * SECOND)
    assert component.last_error[0] == "no answer within 5 s"
    board.stopped("receivers", "stem_signals")
    assert component.state is State.STOPPED
    assert not component.unhealthy


def test_watchers_hear_of_changes_and_of_nothing_else() -> None:
    board, heard = Board(), []
    board.watchers.append(lambda component, _: heard.append(component.state))
    part = board.of("exporters", "otlp_http").part("traces")
    board.started("exporters", "otlp_http")
    for _ in range(3):
        part.recovering("http 503")
    part.ok()
    part.ok()
    assert heard == [State.OK, State.RECOVERING, State.OK]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=40),
    st.integers(0, 10),
    st.integers(0, 10),
    st.integers(0, 12),
)
def test_a_judgement_changes_only_after_the_facts_stayed(
    steps: list[tuple[int, bool]], unhealthy_after: int, healthy_after: int, rest: int
) -> None:
    """Held against the definition: looking at every second, however long ago anybody asked."""
    told = Hysteresis(unhealthy_after, healthy_after)
    expected, spell, bad, now = True, 0, False, 0

    def live(seconds: int) -> None:
        nonlocal expected, spell, now
        for _ in range(seconds):
            now, spell = now + 1, spell + 1
            if expected is bad and spell >= (unhealthy_after if bad else healthy_after):
                expected = not bad

    for seconds, fact in steps:
        live(seconds)
        told.observe(bad=fact, now_ns=now)
        if fact is not bad:
            bad, spell = fact, 0
            if expected is bad and (unhealthy_after if bad else healthy_after) == 0:
                expected = not bad
    live(rest)
    assert told.judge(now) is expected


def test_a_blip_does_not_flap_and_a_dead_component_shows() -> None:
    board, judge = Board(), Judge(unhealthy_after_ns=15 * SECOND, healthy_after_ns=5 * SECOND)
    board.watchers.append(judge.observe)
    part = board.of("receivers", "stem_signals").part("subscription")
    board.started("receivers", "stem_signals")
    (component,) = board
    part.recovering("connection closed")
    board.pass_time(14)
    part.ok()
    part.recovering("connection closed")
    board.pass_time(14)
    assert component.state is State.RECOVERING, "the truth is told at once"
    assert judge.healthy(component, board.now_ns), "and judged later"
    board.pass_time(1)
    assert not judge.healthy(component, board.now_ns)
    part.ok()
    board.pass_time(4)
    assert not judge.healthy(component, board.now_ns)
    board.pass_time(1)
    assert judge.healthy(component, board.now_ns)


def test_a_watchdog_tells_for_how_long_nothing_turned() -> None:
    dog = Watchdog(10.0, 100.0)
    assert dog.still(110.0) == 0
    assert dog.still(112.5) == 12.5
    dog.beat(112.5)
    assert dog.still(113.0) == 0


class Watched:
    """A watch on a script, with the time it takes."""

    def __init__(self, *script: Outcome | Exception, takes: float = 0.0) -> None:
        self.board = Board()
        reports = self.board.of("exporters", "otlp_http")
        self.board.started("exporters", "otlp_http")
        (self.component,) = self.board
        self.script = list(script)
        self.duration, self.latency = Histogram(), Histogram()
        self.takes = takes
        self.watch = Watch(
            self.transport,
            clock=self.board.clock,
            delivery=reports.part("traces"),
            queue=reports.part("traces.queue"),
            queue_size=1000,
            unit="bytes",
            duration=self.duration,
            latency=self.latency,
        )

    async def transport(self, _: Sealed) -> Outcome:
        self.board.pass_time(self.takes)
        outcome = self.script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def send(self, *ages: tuple[int, int]) -> tuple[State, str]:
        await self.watch(Sealed(b"", 1, 1, START, ages))
        return self.component.state, self.component.reason


async def test_an_exporter_is_as_well_as_its_last_answer() -> None:
    watched = Watched(
        Retry("http_503", "http 503: busy"),
        Delivered(),
        Drop("http_401", "http 401: no"),
        Delivered(2, "too old"),
        Delivered(),
    )
    assert await watched.send() == (State.RECOVERING, "http 503: busy")
    assert await watched.send() == (State.OK, "")
    assert await watched.send() == (State.FAILED, "http 401: no")
    assert await watched.send() == (State.DEGRADED, "the destination rejected 2 items: too old")
    assert await watched.send() == (State.OK, "")


async def test_a_fault_of_the_agent_shows_too() -> None:
    watched = Watched(KeyError("x"))
    with pytest.raises(KeyError):
        await watched.send()
    assert watched.component.state is State.FAILED
    assert watched.component.reason.startswith("a fault of the agent: KeyError at test_status.py:")


async def test_latency_is_told_for_every_item_and_only_when_accepted() -> None:
    watched = Watched(Retry("timeout", ""), Delivered(), takes=2.0)
    ages = ((START - 3 * SECOND, 5), (START + 60 * SECOND, 2))
    await watched.send(*ages)
    assert sum(watched.latency.counts) == 0
    await watched.send(*ages)
    counts = dict(zip((*DURATION_BOUNDS, None), watched.latency.counts, strict=True))
    assert counts[10.0] == 5, "7 s from the signal to the second attempt's end"
    assert counts[0.005] == 2, "what a clock ahead of ours tells is no negative time"
    assert watched.latency.total == 35.0
    assert (sum(watched.duration.counts), watched.duration.total) == (2, 4.0)


async def test_an_exporter_that_gets_no_answer_at_all_shows() -> None:
    watched = Watched(Delivered())
    await watched.send()
    watched.watch.look(0, START + 2 * STALE_NS)
    assert watched.component.state is State.OK, "nothing waits"
    watched.watch.look(START, START + STALE_NS)
    assert watched.component.state is State.OK
    watched.watch.look(START, START + STALE_NS + 1)
    assert (watched.component.state, watched.component.reason) == (
        State.RECOVERING,
        "no answer for 60 s, though telemetry waits",
    )


def test_a_queue_at_the_edge_does_not_flap() -> None:
    watched = Watched()
    seen = []
    for size in (799, 800, 799, 801, 501, 500, 700, 799):
        watched.watch.filled(size)
        seen.append(watched.component.state)
    assert seen == [State.OK, *[State.DEGRADED] * 4, *[State.OK] * 3]
    watched.watch.overflowed()
    watched.watch.filled(900)
    assert watched.component.reason == "full: more than 1000 bytes waited, and the oldest were dropped"


def test_the_status_tells_states_ledger_and_counters() -> None:
    board, ledger, telemetry = Board(), Ledger(), Telemetry()
    board.of("receivers", "stem_signals").part("subscription").recovering("connection refused")
    board.of("processors", "traces: resource")
    for section, identity in list(board.components):
        board.started(section, identity)
    board.phase = Phase.RUNNING
    account = ledger.account("otlp_http", "traces")
    account.accepted, account.delivered = 10, 7
    account.dropped["queue_overflow"] = 1
    telemetry.count("stem_agent.signals.lost", 3, reason="gap", receiver="stem_signals")
    telemetry.count("stem_agent.signals.lost", 2, reason="gap", receiver="other")
    gauges = {
        ("stem_agent.correlate.open_attempts", (("connector", "correlate"),)): 4.0,
        ("stem_agent.exporter.queue.size", (("exporter", "otlp_http"), ("signal", "traces"))): 99.0,
    }
    board.pass_time(2.5)
    report: dict[str, Any] = status_report(
        board, ledger, telemetry.counters, gauges, healthy=lambda c: not c.unhealthy, ready="", now_ns=board.now_ns
    )
    assert report["uptime_seconds"] == 2.5
    assert (report["phase"], report["ready"], report["healthy"]) == ("running", True, False)
    told = report["components"]["receivers"]["stem_signals"]
    assert (told["state"], told["since"]) == ("recovering", "2026-04-24T03:06:40.000Z")
    assert told["last_error"] == {"at": "2026-04-24T03:06:40.000Z", "text": "connection refused"}
    assert told["parts"]["subscription"]["last_ok"] is None
    assert report["components"]["processors"]["traces: resource"]["state"] == "ok"
    assert report["ledger"]["otlp_http"]["traces"] == {
        "accepted": 10,
        "delivered": 7,
        "rejected": {},
        "dropped": {"queue_overflow": 1},
        "held": 2,
        "queue": {"size": 99.0},
    }
    assert report["signals_lost"] == {"gap": 5}
    assert report["gauges"] == {"stem_agent.correlate.open_attempts{connector=correlate}": 4.0}


def test_only_what_cannot_do_its_job_is_unhealthy() -> None:
    assert {State.RECOVERING, State.FAILED} == UNHEALTHY
