"""The yardsticks are fair: the least-work script makes what the agent makes."""

import json

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.demo.sink import attributes
from tests.benchmarks import report
from tests.benchmarks.least_work import LeastWork
from tests.benchmarks.signals import Story
from tests.benchmarks.soak import Memory
from tests.support import Heard


def fields(message: object, *unlike: str) -> dict[str, object]:
    """Everything a message says, whatever the order of its attributes."""
    said = {field.name: value for field, value in message.ListFields() if field.name not in {"attributes", *unlike}}  # type: ignore[attr-defined]
    return said | {"attributes": attributes(message.attributes)}  # type: ignore[attr-defined]


def test_the_least_work_emits_the_same_spans_and_logs_as_the_agent() -> None:
    payloads = [payload for _, payload in Story().tell(40)]
    heard = Heard(CorrelateConfig(logs=LogsConfig(min_severity="DEBUG")))
    heard.hear(payloads).pass_time(100 * 365 * 86_400)
    work = LeastWork()
    for payload in payloads:
        work.handle(payload)
    traces, logs = work.take()
    (resource,) = ExportTraceServiceRequest.FromString(traces).resource_spans
    spans = {span.span_id: fields(span) for span in resource.scope_spans[0].spans}
    assert spans == {span.span_id: fields(span) for span in heard.spans}
    assert len(spans) == 80
    (resource_logs,) = ExportLogsServiceRequest.FromString(logs).resource_logs
    # When it was observed is the one thing that two observers cannot agree on.
    records = [fields(record, "observed_time_unix_nano") for record in resource_logs.scope_logs[0].log_records]
    theirs = [fields(record, "observed_time_unix_nano") for record in heard.logs]
    assert len(records) == 160
    assert sorted(map(repr, records)) == sorted(map(repr, theirs))
    assert not work.spans, "taken is forgotten"


def test_the_readme_table_has_every_candidate() -> None:
    text = report.table(json.loads(report.RESULTS.read_text(encoding="utf-8")))
    assert text.count(" us |") == 3


def test_the_slope_is_of_the_second_half() -> None:
    memory = Memory()
    memory.samples = [(second, 100.0 if second < 100 else 100 + (second - 100) / 3600) for second in range(200)]
    assert memory.slope() == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [0, 5, 50, 115])
def test_a_soak_that_ends_with_the_warm_up_tells_no_slope(seconds: int) -> None:
    memory = Memory()
    memory.samples = [(float(second), 65 + second / 10) for second in range(0, seconds, 5)]
    assert memory.slope() is None
