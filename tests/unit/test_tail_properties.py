"""Whatever becomes of a task, and whenever its record is read: nothing is told that is wrong, and nothing twice."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.otlp.metrics import AggregatorState, InstrumentState
from agent.receivers.stem_tail import notes as tail_notes
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.session import Session
from agent.stem.catalogue import TaskState
from tests.histories import Delivery, Happened, History, happen, histories, moments
from tests.support import SECOND, TASK_ID, Heard, found, nanoseconds
from tests.tails import NOW_MS, NOW_NS, at

CONFIG = CorrelateConfig(logs=LogsConfig(min_severity="TRACE"), series_ttl=1e9)
LONG = 20_000
# Seeds, not hypothesis' own randomness: it is only to choose moments.
chance = st.integers(0, 1 << 32).map(random.Random)


@dataclass
class Reader:
    """Leaders, one after the other, that read one task; and everything that they told."""

    happened: Happened
    begin: float
    spans: list[Any] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    """Records that were read."""

    def __post_init__(self) -> None:
        self.session = Session(StemTailConfig(), NOW_MS + round(self.begin * 1000), None, NOW_NS)
        self.session.positions.follow(["default"])
        self.heard = Heard(CONFIG, NOW_NS)
        self.read_to = self.idle_to = self.begin

    def turn(self, time: float, later: float) -> None:
        """Read the record, then the streams, then tell."""
        asked = TASK_ID in self.session.flights.all()
        record = self.happened.read(time) if asked else None
        now_ns = NOW_NS + round(later * SECOND)
        for ready, entry in self.happened.entries:
            if self.read_to < ready <= later:
                self.session.entered(entry, now_ns)
        self.read_to = self.idle_to = later
        if record:
            self.seen.append(record)
            self.session.recorded(record, now_ns)
        self.tell(now_ns)

    def look(self) -> None:
        """Ask whether what no record told of was acknowledged."""
        places = self.session.flights.unanswered(self.heard.now_ns, 100)
        acknowledged, now = self.happened.acknowledged, (self.heard.now_ns - NOW_NS) / SECOND
        self.session.acknowledged({place for place in places if acknowledged[place.entry] <= now}, self.heard.now_ns)

    def tell(self, now_ns: int, *, everything: bool = False) -> None:
        self.heard.now_ns = now_ns
        self.heard.read(*self.session.ready(now_ns, everything=everything))
        self.heard.correlator.tick(now_ns)

    def hand_over(self, time: float) -> None:
        """Leave everything to another agent, which takes it up then."""
        self.tell(self.heard.now_ns, everything=True)
        self.take()
        moved = self.heard.correlator.recorder.metrics.changes(0)
        totals = {name: msgspec.msgpack.encode(total) for name, total in moved if total}
        encoded = tail_notes.encode(self.session.standing(), self.session.changes(everything=True), totals)
        notes = tail_notes.unpack(tail_notes.pack(encoded))
        assert notes
        self.idle_to = time
        now_ns = NOW_NS + round(time * SECOND)
        self.session = Session(StemTailConfig(), NOW_MS, notes, now_ns)
        self.heard = Heard(CONFIG, now_ns)
        known = [msgspec.msgpack.decode(total, type=InstrumentState) for total in notes.totals.values()]
        self.heard.correlator.recorder.go_on(AggregatorState(now_ns, known), now_ns)
        self.tell(now_ns)

    def take(self) -> None:
        """Collect what was told so far."""
        self.spans += self.heard.spans
        self.logs += self.heard.logs


def read(happened: Happened, order: random.Random, *, begin: float = -1.0, handovers: int = 0) -> Reader:
    """Read at random, until there is nothing more to be read."""
    reader, over = Reader(happened, begin), happened.over
    times = sorted(moments(order, max(begin, 0.0), over + 5, 12))
    given = set(order.sample(range(len(times)), min(handovers, len(times))))
    for number, time in enumerate(times):
        if time < reader.idle_to:
            continue
        reader.turn(time, time + order.choice([0.0, 0.001, 0.02]))
        if order.random() < 0.2:
            reader.look()
        if number in given:
            reader.hand_over(reader.idle_to + order.choice([0.0, 2.0, 40.0]))
    for later in (1, 2, 70, 1000, 5000, LONG):
        time = max(over, reader.idle_to) + later
        reader.turn(time, time)
        reader.look()
    reader.tell(reader.heard.now_ns, everything=True)
    reader.take()
    return reader


# --- what must be true -----------------------------------------------------------------------------------------------


def check(reader: Reader) -> None:
    spans = [span for span in reader.spans if span.name.startswith("process ")]
    every = Counter((span.name, span.span_id) for span in reader.spans)
    assert max(every.values(), default=1) == 1, "a span was told twice"
    uids = Counter((log.event_name, found(log)["log.record.uid"]) for log in reader.logs)
    assert max(uids.values(), default=1) == 1, "a log record was told twice"
    left = list(reader.happened.deliveries)
    exact = sorted(spans, key=lambda span: "start" in found(span).get("stem.missing", []))
    for span in exact:
        left.remove(match(span, left))
    for delivery in proved(reader) if reader.begin < 0 else ():
        assert any(is_exact(span, delivery) for span in spans), f"not told exactly: {delivery}"
    check_counts(reader, spans)
    if not is_hidden(reader):
        assert len(reader.heard.correlator.tasks.attempts) == 0, "something is still awaited"
        assert not reader.session.flights.unended


def is_hidden(reader: Reader) -> bool:
    """Whether the end of what was seen to run is hidden by a late `queued`: that is awaited for as long as any task."""
    ran = any(record.state is TaskState.RUNNING for record in reader.seen)
    return ran and reader.happened.records[-1][1].state is TaskState.QUEUED


def match(span: Any, deliveries: list[Delivery]) -> Delivery:
    """The delivery that a span tells of, which may contradict it in nothing."""
    for delivery in deliveries:
        if agrees(span, delivery):
            return delivery
    raise AssertionError(f"no delivery is told by {told(span)} of {deliveries}")


def agrees(span: Any, delivery: Delivery) -> bool:
    attributes = found(span)
    missing = attributes.get("stem.missing", [])
    if attributes["stem.task.attempt"] != delivery.attempt:
        return False
    if "start" not in missing and delivery.started is not None and not starts(span, delivery):
        return False
    if "stem.task.run" in attributes and delivery.started is None:
        return False
    if (state := attributes.get("stem.task.state")) and state != delivery.state:
        return False
    if "end" in missing:
        return delivery.ended is None or span.end_time_unix_nano >= nanoseconds(at(delivery.ended))
    return delivery.ended is not None and span.end_time_unix_nano == nanoseconds(at(delivery.ended))


def starts(span: Any, delivery: Delivery) -> bool:
    assert delivery.started is not None
    began = span.start_time_unix_nano == nanoseconds(at(delivery.started))
    return began and found(span)["stem.worker.id"] == delivery.worker


def is_exact(span: Any, delivery: Delivery) -> bool:
    return agrees(span, delivery) and "stem.incomplete" not in found(span)


def proved(reader: Reader) -> list[Delivery]:
    """The deliveries of which a record was read that names both their start and their end."""
    ends = {
        (record.attempt, record.worker, record.started_at)
        for record in reader.seen
        if record.started_at and record.state.value in {"succeeded", "failed"}
    }
    return [
        delivery
        for delivery in reader.happened.deliveries
        if delivery.started is not None and (delivery.attempt, delivery.worker, at(delivery.started)) in ends
    ]


def check_counts(reader: Reader, spans: list[Any]) -> None:
    counts, deliveries = reader.heard.counts(), reader.happened.deliveries
    states = Counter(found(span).get("stem.task.state") for span in spans)
    ends = {
        "succeeded": states["succeeded"],
        "failed": states["failed"],
        "retried": states["retried"],
    }
    for name, count in ends.items():
        assert counts.get(f"stem.tasks.{name}", 0) == count, name
    cancelled = counts.get("stem.tasks.revoked", 0) + counts.get("stem.tasks.expired", 0)
    assert cancelled == states["cancelled"]
    started = sum(1 for each in deliveries if each.started is not None)
    assert sum(ends.values()) - sum(1 for each in deliveries if each.state == "failed" and each.started is None) <= (
        counts.get("stem.tasks.started", 0)
    )
    assert counts.get("stem.tasks.started", 0) <= started
    assert counts.get("stem.tasks.published", 0) == (1 if reader.begin < 0 else 0), "what was there before is not ours"


def told(span: Any) -> tuple[Any, ...]:
    attributes = found(span)
    start, end = ((time - NOW_NS) / SECOND for time in (span.start_time_unix_nano, span.end_time_unix_nano))
    keys = ("stem.task.attempt", "stem.worker.id", "stem.task.state", "stem.missing")
    return (*(attributes.get(key) for key in keys), start, end)


@settings(max_examples=1000, deadline=None)
@given(histories, chance)
def test_whenever_it_is_read_nothing_is_told_wrong_or_twice(history: History, order: random.Random) -> None:
    check(read(happen(history, order), order))


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.integers(1, 3))
def test_whoever_goes_on_tells_the_rest_and_no_more(history: History, order: random.Random, handovers: int) -> None:
    check(read(happen(history, order), order, handovers=handovers))


@settings(max_examples=1000, deadline=None)
@given(histories, chance, st.sampled_from([0.001, 0.4, 20.0]))
def test_what_was_there_before_anybody_read_is_told_as_far_as_it_is_known(
    history: History, order: random.Random, begin: float
) -> None:
    check(read(happen(history, order), order, begin=begin))
