"""The `console` exporter: one line for people per record, span and series."""

import io

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent.core.ledger import Ledger
from agent.core.status import State, StatusBoard
from agent.exporters.console import ConsoleConfig, ConsoleExporter
from agent.otlp.batch import Batch, Kind
from agent.otlp.levels import Levels
from agent.otlp.metrics import Aggregator
from tests.support import EPOCH, Heard, Story, nanoseconds
from tests.unit.test_prometheus_exposition import DEPTH, FLEET, LATENCY, POD, TASKS

NOW_NS = nanoseconds(EPOCH)


class Printed:
    """An exporter and what it printed."""

    def __init__(self, *, unchanged: bool = False) -> None:
        self.stream, self.ledger, self.board = io.StringIO(), Ledger(), StatusBoard(lambda: 0)
        reports = self.board.of("exporters", "console")
        config = ConsoleConfig(unchanged=unchanged)
        self.exporter = ConsoleExporter("console", config, self.ledger, reports, self.stream)

    def __call__(self, batch: Batch) -> list[str]:
        self.stream.truncate(0)
        self.stream.seek(0)
        self.exporter.consume(batch)
        return self.stream.getvalue().splitlines()


def metrics(aggregator: Aggregator) -> Batch:
    items, counts = aggregator.collect(NOW_NS)
    return Batch(Kind.METRICS, POD, items, sum(counts), counts=counts, source="correlate")


def test_a_log_record_is_its_sentence() -> None:
    heard = Heard().hear(Story().run("failed")).pass_time(2)
    records = [record.SerializeToString() for record in heard.logs]
    lines = Printed()(Batch(Kind.LOGS, POD, records, len(records)))
    assert len(lines) == 2
    assert lines[0].startswith("2026-04-23T10:00:00.124Z INFO   task email.send started on worker-1")
    assert "ERROR  task email.send failed on worker-1: SocketException: Connection refused" in lines[1]
    assert f"event=stem.task.failed trace={heard.logs[1].trace_id.hex()}" in lines[1]


def test_a_span_is_a_line_with_what_became_of_it() -> None:
    heard = Heard().hear(Story().run("failed")).pass_time(2)
    process = heard.span("process")
    (line,) = Printed()(Batch(Kind.TRACES, POD, [process.SerializeToString()], 1))
    assert line == (
        "2026-04-23T10:00:00.124Z SPAN   process email.send took 35.0 ms  state=failed reason=error attempt=0 "
        'queue=default worker=worker-1 error="SocketException: Connection refused" '
        f"trace={process.trace_id.hex()} span={process.span_id.hex()}"
    )


def test_series_are_printed_when_they_change() -> None:
    aggregator, printed = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=60), Printed()
    aggregator.add(TASKS, ("mail", "default"), NOW_NS, 3)
    aggregator.add(TASKS, ("other", "default"), NOW_NS, 1)
    assert printed(metrics(aggregator)) == [
        "2026-04-23T10:00:00.123Z METRIC stem.tasks.succeeded: 3 (+3)  task=mail queue=default",
        "2026-04-23T10:00:00.123Z METRIC stem.tasks.succeeded: 1 (+1)  task=other queue=default",
    ]
    aggregator.add(TASKS, ("mail", "default"), NOW_NS, 2)
    assert printed(metrics(aggregator)) == [
        "2026-04-23T10:00:00.123Z METRIC stem.tasks.succeeded: 5 (+2)  task=mail queue=default",
    ]
    assert printed(metrics(aggregator)) == []
    account = printed.ledger.account("console", "metrics")
    assert (account.accepted, account.delivered) == (6, 6)


def test_unchanged_series_are_printed_if_wanted() -> None:
    aggregator, printed = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=60), Printed(unchanged=True)
    aggregator.add(TASKS, ("mail", "default"), NOW_NS, 3)
    assert len(printed(metrics(aggregator))) == len(printed(metrics(aggregator))) == 1


def test_a_histogram_says_what_its_buckets_tell() -> None:
    aggregator = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=60)
    for value in (0.03,) * 19 + (5.5,):
        aggregator.record(LATENCY, ("mail", "default"), NOW_NS, value)
    (line,) = Printed()(metrics(aggregator))
    assert "stem.queue.latency: 20 (+20), mean 0.3035 s, 95 % within 0.05 s, at most 5.5 s  task=mail" in line


def test_a_summary_has_a_mean_and_no_more() -> None:
    points = [pb.SummaryDataPoint(count=4, sum=2, time_unix_nano=NOW_NS)]
    metric = pb.Metric(name="m", unit="s", summary=pb.Summary(data_points=points))
    assert Printed()(Batch(Kind.METRICS, POD, [metric.SerializeToString()], 1)) == [
        "2026-04-23T10:00:00.123Z METRIC m: 4 (+4), mean 0.5 s"
    ]


def test_what_is_told_of_the_fleet_says_so() -> None:
    levels = Levels(NOW_NS)
    levels.set(DEPTH, ("default",), 7)
    items, counts = levels.collect()
    (line,) = Printed()(Batch(Kind.METRICS, FLEET, items, 1, counts=counts))
    assert line.endswith("stem.queue.depth: 7  queue=default of=fleet")


def test_foreign_text_stays_on_its_line_and_moves_no_cursor() -> None:
    status = Status(code=Status.STATUS_CODE_ERROR, message="line 1\nline 2 \x1b[2J" + "x" * 600)
    (line,) = Printed()(Batch(Kind.TRACES, POD, [Span(name="a\tb", status=status).SerializeToString()], 1))
    assert "\x1b" not in line
    assert "a b took" in line
    assert 'error="line 1 line 2 �[2Jxxx' in line
    assert len(line) < 700


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_no_otlp_is_dropped_and_the_next_is_printed(kind: Kind) -> None:
    printed = Printed()
    assert printed(Batch(kind, POD, [b"\xff"], 1)) == []
    printed.board.started("exporters", "console")
    (component,) = printed.board
    assert component.state is State.DEGRADED
    assert printed.ledger.account("console", kind).dropped == {"undecodable": 1}
    item = pb.Metric(name="m", gauge=pb.Gauge(data_points=[pb.NumberDataPoint()])) if kind is Kind.METRICS else None
    printed(Batch(kind, POD, [item.SerializeToString() if item else LogRecord().SerializeToString()], 1))
    assert component.state is State.OK
