"""What is read of a fleet, told in its name: who speaks for itself is left out, and the totals go on with the next."""

from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.core.kept import KeptStateError
from agent.core.status import StatusBoard
from agent.correlate.config import CorrelateConfig
from agent.correlate.connector import CorrelateConnector
from agent.correlate.correlator import BESIDE_NS, PARTED_NS
from agent.demo.sink import points
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.stem.wire import Enqueued, Recorded, Released, Tailed, Unended
from agent.telemetry.events import Telemetry
from tests.support import EPOCH, SECOND, UTC_ZONE, Story, nanoseconds, signals_of
from tests.tails import at, entry, running, succeeded

TAIL = "stem_tail"


class Kept:
    """A next step that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def consume(self, batch: Batch) -> None:
        self.batches.append(batch)


class Shell:
    """A connector whose time is told, and that leads."""

    def __init__(self, totals: Mapping[str, bytes] | None = None, seconds: float = 0.0) -> None:
        self.now_ns = nanoseconds(at(seconds))
        self.outputs = {kind: Kept() for kind in Kind}
        self.telemetry = Telemetry(lambda: self.now_ns)
        config = CorrelateConfig.model_validate({"results": {"enabled": False}})
        self.connector = CorrelateConnector(
            *("correlate", config, self.outputs, Resource({"service.name": "stem", "host.name": "here"})),
            *(self.telemetry, lambda: self.now_ns, StatusBoard(lambda: self.now_ns).of("connectors", "correlate")),
        )
        if totals is not None:
            self.connector.take_up(TAIL, totals)

    def read(self, *facts: Tailed) -> "Shell":
        self.connector.consume_tailed(TAIL, facts, UTC_ZONE)
        return self

    def hear(self, story: Story) -> "Shell":
        self.connector.consume_facts(signals_of(story.payloads), UTC_ZONE)
        return self

    def pass_time(self, seconds: float) -> "Shell":
        self.now_ns += round(seconds * SECOND)
        for teller in (self.connector._own, *self.connector._fleet):
            teller.correlator.tick(self.now_ns)
        self.connector._hand_on()
        return self

    def spans(self, *, of_the_fleet: bool) -> list[str]:
        return sorted(
            Span.FromString(item).name
            for batch in self.outputs[Kind.TRACES].batches
            if is_the_fleets(batch) == of_the_fleet
            for item in batch.items
        )

    def counts(self, *, of_the_fleet: bool = True) -> dict[str, float]:
        """The last totals of the counters."""
        self.connector._hand_on_metrics()
        last = [batch for batch in self.outputs[Kind.METRICS].batches if is_the_fleets(batch) == of_the_fleet]
        metrics = [Metric.FromString(item) for item in last[-1].items] if last else []
        return {
            metric.name: sum(point.as_double or point.as_int for point in points(metric))
            for metric in metrics
            if metric.WhichOneof("data") == "sum"
        }

    def totals(self) -> dict[str, bytes]:
        told = self.connector.totals(TAIL, everything=True)
        return {name: total for name, total in told.items() if total is not None}


def is_the_fleets(batch: Batch) -> bool:
    return batch.resource.encoded == Resource({"service.name": "stem", "host.name": "here"}).of_the_fleet().encoded


def end(worker: str | None = "worker-1", **changes: Any) -> Recorded:
    return Recorded("stem", succeeded(1, 2, worker or ""), entry(), **{"claimed": False, **changes})


def publish(**changes: Any) -> Enqueued:
    return Enqueued("stem", "default", entry(), nanoseconds(EPOCH), **{"published": True, "claimed": False, **changes})


def speaks(worker: str = "worker-1") -> Story:
    story = Story(worker)
    story.recorded.heartbeat()
    return story


TOLD = ["process email.send", "send default", "wait default"]


def test_what_nobody_tells_is_told_in_the_name_of_the_fleet() -> None:
    shell = Shell({}).read(publish(), end())
    assert shell.spans(of_the_fleet=True) == TOLD
    assert shell.spans(of_the_fleet=False) == []
    assert shell.counts()["stem.tasks.succeeded"] == shell.counts()["stem.tasks.published"] == 1
    assert shell.counts(of_the_fleet=False).get("stem.tasks.succeeded") is None


def test_who_does_not_lead_tells_nothing() -> None:
    assert Shell().read(publish(), end()).spans(of_the_fleet=True) == []


def test_what_another_agent_tells_is_left_to_it() -> None:
    facts = [publish(claimed=True), end(claimed=True), unended(claimed=True)]
    shell = Shell({}).read(*facts).pass_time(10)
    assert (shell.spans(of_the_fleet=True), shell.spans(of_the_fleet=False)) == ([], [])
    assert shell.counts() == {}


def unended(worker: str | None = None, *, claimed: bool) -> Unended:
    started = at(1) if worker else None
    return Unended("stem", entry(), 0, worker, started, nanoseconds(at(5)), retried=True, claimed=claimed)


def test_who_is_heard_here_is_repaired_here_if_its_signals_do_not_tell() -> None:
    shell = Shell({}, seconds=0).hear(speaks()).read(end())
    shell.pass_time(BESIDE_NS / SECOND - 0.001)
    assert (shell.spans(of_the_fleet=True), shell.spans(of_the_fleet=False)) == ([], [])
    shell.pass_time(0.001)
    assert (shell.spans(of_the_fleet=True), shell.spans(of_the_fleet=False)) == ([], TOLD)


def test_another_worker_than_the_one_that_is_heard_is_told_in_the_name_of_the_fleet() -> None:
    shell = Shell({}).hear(speaks("worker-9")).read(end()).pass_time(10)
    assert shell.spans(of_the_fleet=True) == TOLD


def test_a_worker_of_another_namespace_is_another_worker() -> None:
    other = Story(namespace="billing")
    other.recorded.heartbeat()
    shell = Shell({})
    shell.connector.consume_facts(signals_of(other.payloads, "billing"), UTC_ZONE)
    assert shell.read(end()).pass_time(10).spans(of_the_fleet=True) == TOLD


@pytest.mark.parametrize(("seconds", "told"), [(PARTED_NS / SECOND - 1, []), (PARTED_NS / SECOND + 1, TOLD)])
def test_whose_signals_just_went_to_another_agent_is_left_to_it(seconds: float, told: list[str]) -> None:
    shell = Shell({}).hear(speaks())
    shell.connector.consume_facts([Released("stem", ("pod-1",))], UTC_ZONE)
    assert shell.pass_time(seconds).read(end()).spans(of_the_fleet=True) == told


def test_what_no_record_tells_is_told_of_a_worker_that_says_nothing() -> None:
    shell = Shell({}).read(unended("worker-1", claimed=False))
    assert shell.spans(of_the_fleet=True) == TOLD


@pytest.mark.parametrize("worker", [None, "worker-1"])
def test_what_no_record_tells_of_who_is_heard_is_left_to_its_signals(worker: str | None) -> None:
    shell = Shell({}).hear(speaks()).read(unended(worker, claimed=False)).pass_time(10)
    assert (shell.spans(of_the_fleet=True), shell.spans(of_the_fleet=False)) == ([], [])


def test_where_anybody_is_heard_publishes_are_counted_when_their_task_begins_without_a_signal() -> None:
    shell = Shell({}).hear(speaks("worker-9")).read(publish())
    assert shell.counts() == {}
    shell.read(end())
    assert shell.counts()["stem.tasks.published"] == 1


# --- from one leader to the next -------------------------------------------------------------------------------------


def test_totals_go_on_with_the_next_leader() -> None:
    first = Shell({}).read(publish(), end())
    other = Recorded("stem", succeeded(3, 4, id="task-2"), entry(id="task-2"), claimed=False)
    second = Shell(first.totals(), seconds=30).read(other)
    counts = second.counts()
    assert (counts["stem.tasks.started"], counts["stem.tasks.succeeded"]) == (2, 2)
    assert counts["stem.tasks.published"] == 1


def test_totals_go_on_since_when_they_began() -> None:
    shells = [Shell({}).read(end())]
    shells.append(Shell(shells[0].totals(), seconds=30))
    begun = []
    for shell in shells:
        shell.counts()
        metrics = [Metric.FromString(item) for item in shell.outputs[Kind.METRICS].batches[-1].items]
        begun.append({m.name: [p.start_time_unix_nano for p in points(m)] for m in metrics if m.name.endswith("ed")})
    assert begun[0] == begun[1] != {}


def test_only_what_moved_since_is_told_of_the_totals_and_all_of_it_together() -> None:
    shell = Shell({}).read(publish(), end()).pass_time(1)
    noted = shell.connector.totals(TAIL)
    shell.pass_time(1)
    start = running(3, id="task-2", task="report.make")
    other = Recorded("stem", start, entry(id="task-2", name="report.make"), claimed=False)
    shell.read(other).pass_time(1)
    moved = shell.connector.totals(TAIL)
    assert {name.split("\0")[1] for name in noted} == {"email.send"}
    assert {name.split("\0")[1] for name in moved} == {"report.make"}
    shell.pass_time(1)
    assert shell.connector.totals(TAIL) == {}
    assert noted | moved == shell.connector.totals(TAIL, everything=True)


def test_totals_that_do_not_fit_are_refused() -> None:
    with pytest.raises(KeptStateError) as refused:
        Shell({"a": b"\xc1"})
    assert refused.value.reason == "broken"


def test_who_gives_up_tells_no_more_and_begins_anew_with_the_totals_that_it_takes_up() -> None:
    shell = Shell({}).read(end())
    shell.connector.give_up(TAIL, told=False)
    assert shell.outputs[Kind.METRICS].batches == []
    shell.read(Recorded("stem", succeeded(3, 4, id="task-2"), entry(id="task-2"), claimed=False))
    assert shell.spans(of_the_fleet=True) == TOLD, "nothing of the second"
    shell.connector.take_up(TAIL, {})
    assert shell.counts() == {}


def test_the_last_word_of_who_gives_up_are_its_metrics() -> None:
    shell = Shell({}).read(end())
    shell.connector.give_up(TAIL, told=True)
    batch, end_of_it = shell.outputs[Kind.METRICS].batches
    assert is_the_fleets(batch)
    assert {Metric.FromString(item).name for item in batch.items} >= {"stem.tasks.started", "stem.tasks.succeeded"}
    assert is_the_fleets(end_of_it)
    assert not end_of_it.items, "another agent goes on with them"
    assert end_of_it.source == batch.source


def test_two_receivers_tell_of_two_fleets() -> None:
    shell = Shell({})
    shell.connector.take_up("stem_tail/eu", {})
    shell.connector.consume_tailed("stem_tail/eu", [end()], UTC_ZONE)
    shell.connector.give_up(TAIL, told=False)
    assert shell.spans(of_the_fleet=True) == TOLD
    assert shell.counts()["stem.tasks.succeeded"] == 1
