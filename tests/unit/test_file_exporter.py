"""The `file` exporter: OTLP as JSON lines, whole lines only, files that end and begin anew."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from agent.core.errors import StartupError
from agent.core.ledger import Ledger
from agent.core.status import StatusBoard
from agent.exporters.file.config import FileConfig
from agent.exporters.file.lines import line_of
from agent.exporters.file.rotating import LockedError, RotatingFile
from agent.exporters.file.transport import FileTransport
from agent.exporters.otlp.exporter import OtlpExporter
from agent.otlp.batch import Batch, Kind
from agent.otlp.metrics import Aggregator
from agent.otlp.request import encode_request
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.support import Heard, Story
from tests.unit.test_prometheus_exposition import LATENCY, NOW_NS, POD, SPAN

TRACE_ID, SPAN_ID = bytes(range(16)), bytes(range(8))


def line(kind: Kind, *items: bytes) -> Any:
    return json.loads(line_of(kind, encode_request([(POD, items)])))


def test_a_request_is_a_line_of_otlp_json() -> None:
    span = Heard().hear(Story().run("failed")).pass_time(2).span("process")
    told = line(Kind.TRACES, span.SerializeToString())
    (entry,) = told["resourceSpans"]
    assert {"key": "service.name", "value": {"stringValue": "shop"}} in entry["resource"]["attributes"]
    (scope,) = entry["scopeSpans"]
    (found,) = scope["spans"]
    assert found["traceId"] == span.trace_id.hex()
    assert found["spanId"] == span.span_id.hex()
    assert found["kind"] == 5
    assert found["status"]["code"] == 2
    assert found["startTimeUnixNano"] == str(span.start_time_unix_nano)


def test_links_log_records_and_exemplars_have_hexadecimal_ids_and_bytes_stay_bytes() -> None:
    value = AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="traceId", value=AnyValue(string_value="AAAA"))]))
    listed = AnyValue(array_value=ArrayValue(values=[value, AnyValue(bytes_value=b"\x00\x01\x02")]))
    link = Span.Link(trace_id=TRACE_ID, span_id=SPAN_ID)
    span = Span(parent_span_id=SPAN_ID, links=[link], attributes=[KeyValue(key="spanId", value=listed)])
    (found,) = line(Kind.TRACES, span.SerializeToString())["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (found["parentSpanId"], found["links"][0]["traceId"]) == (SPAN_ID.hex(), TRACE_ID.hex())
    (attribute,) = found["attributes"]
    assert attribute["value"]["arrayValue"]["values"] == [
        {"kvlistValue": {"values": [{"key": "traceId", "value": {"stringValue": "AAAA"}}]}},
        {"bytesValue": "AAEC"},
    ]
    record = LogRecord(trace_id=TRACE_ID, span_id=SPAN_ID, severity_number=9)  # type: ignore[arg-type]
    (found,) = line(Kind.LOGS, record.SerializeToString())["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert found == {"traceId": TRACE_ID.hex(), "spanId": SPAN_ID.hex(), "severityNumber": 9}
    aggregator = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=60)
    aggregator.record(LATENCY, ("mail", "default"), NOW_NS, 0.3, SPAN)
    (metric,) = line(Kind.METRICS, *aggregator.collect(NOW_NS)[0])["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    (point,) = metric["histogram"]["dataPoints"]
    assert metric["histogram"]["aggregationTemporality"] == 2
    assert (point["count"], point["exemplars"][0]["traceId"]) == ("1", SPAN.trace_id.hex())


@given(st.binary(min_size=16, max_size=16), st.text())
def test_every_line_is_one_line_and_tells_the_same(trace_id: bytes, name: str) -> None:
    span = Span(trace_id=trace_id, name=name.encode("utf-8", "replace").decode())
    written = line_of(Kind.TRACES, encode_request([(POD, [span.SerializeToString()])]))
    assert written.endswith(b"\n")
    assert written.count(b"\n") == 1
    told = json.loads(written)
    told["resourceSpans"][0]["scopeSpans"][0]["spans"][0].pop("traceId")
    (read,) = ParseDict(told, TracesData()).resource_spans[0].scope_spans[0].spans
    assert read.name == span.name


# --- the file --------------------------------------------------------------------------------------------------------


def moments() -> Any:
    begin, steps = datetime(2026, 4, 23, 10, tzinfo=UTC), count()
    return lambda: begin + timedelta(seconds=next(steps))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "traces.jsonl"


@pytest.fixture
def file(path: Path) -> Iterator[RotatingFile]:
    file = RotatingFile(path, max_size=10, max_backups=2, now=moments())
    yield file
    file.close()
    file.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(directory.iterdir())}


def test_a_full_file_gets_another_name_and_the_oldest_go(file: RotatingFile, path: Path) -> None:
    for each in (b"aaaa\n", b"bbbb\n", b"cccc\n", b"longer than a file\n", b"dddd\n", b"e\n"):
        file.append(each)
        file.sync()
    assert contents(path.parent) == {
        "traces-20260423T100001.000000Z.jsonl": b"cccc\n",
        "traces-20260423T100002.000000Z.jsonl": b"longer than a file\n",
        "traces.jsonl": b"dddd\ne\n",
    }


def test_a_disk_that_is_made_to_write_has_the_names_of_new_files_too(
    file: RotatingFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for each in (b"aaaa\n", b"b\n"):
        file.append(each)
        file.sync()
    assert synced == ["file", "directory", "file"]
    file.append(b"longer\n")
    file.sync()
    assert synced[3:] == ["file", "file", "directory"], "the full one before it is renamed, then the new one"


def test_without_a_limit_a_file_grows_and_one_that_was_moved_away_begins_anew(path: Path) -> None:
    file = RotatingFile(path, max_size=0, max_backups=0)
    file.append(b"a" * 1000 + b"\n")
    path.rename(path.with_suffix(".old"))
    file.append(b"b\n")
    path.unlink()
    file.append(b"c\n")
    assert contents(path.parent) == {"traces.jsonl": b"c\n", "traces.old": b"a" * 1000 + b"\n"}
    file.close()


def test_a_process_goes_on_in_the_file_of_the_one_before(path: Path) -> None:
    for each in (b"aaaa\n", b"bbbb\n", b"cccc\n"):
        file = RotatingFile(path, max_size=10, max_backups=0, now=moments())
        file.append(each)
        file.close()
    assert contents(path.parent) == {"traces.jsonl": b"cccc\n"}


@pytest.mark.parametrize("torn", [b"{", b"x" * (70 << 10), b""])
def test_a_line_that_a_killed_process_did_not_finish_is_taken_off(path: Path, torn: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(b"whole\n" + torn)
    file = RotatingFile(path, max_size=0, max_backups=0)
    file.append(b"next\n")
    assert path.read_bytes() == b"whole\nnext\n"
    file.close()


def test_a_file_of_nothing_but_a_torn_line_begins_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"x" * (70 << 10))
    file = RotatingFile(path, max_size=0, max_backups=0)
    file.append(b"next\n")
    assert path.read_bytes() == b"next\n"
    file.close()


def test_two_do_not_write_one_file(file: RotatingFile, path: Path) -> None:
    file.append(b"a\n")
    other = RotatingFile(path, max_size=10, max_backups=0)
    with pytest.raises(LockedError, match="another process writes to it"):
        other.append(b"b\n")
    file.close()
    other.append(b"b\n")
    assert path.read_bytes() == b"a\nb\n"
    other.close()


def test_of_a_line_that_did_not_fit_on_the_disk_nothing_stays(
    file: RotatingFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.append(b"a\n")
    real, calls = os.write, iter([3])

    def short(descriptor: int, data: Any) -> int:
        if size := next(calls, 0):
            return real(descriptor, bytes(data)[:size])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"bbbbb\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"a\n"
    file.append(b"c\n")
    assert path.read_bytes() == b"a\nc\n"


# --- the exporter ----------------------------------------------------------------------------------------------------


class Written:
    """An exporter of files, its books, and how it is."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.ledger, self.telemetry, self.board = Ledger(), Telemetry(), StatusBoard(lambda: 1)
        queue = {"batch": {"flush_timeout": 0.01}}
        retry = {"initial_interval": 0.01, "max_interval": 0.02}
        config = FileConfig(directory=str(directory), **{"sending_queue": queue, "retry_on_failure": retry, **options})
        self.exporter = OtlpExporter(
            *("file", config, FileTransport("file", config), self.ledger, self.telemetry),
            self.board.of("exporters", "file"),
        )

    def books(self, kind: str = "traces") -> tuple[int, int, int, int]:
        account = self.ledger.account("file", kind)
        return account.accepted, account.delivered, account.lost, account.held


def spans(*names: str) -> Batch:
    return Batch(Kind.TRACES, POD, [Span(name=name).SerializeToString() for name in names], len(names))


def names_in(path: Path) -> list[str]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [span["name"] for told in lines for span in told["resourceSpans"][0]["scopeSpans"][0]["spans"]]


@pytest.mark.parametrize("sync", ["batch", "interval", "off"])
async def test_each_kind_has_a_file_and_everything_written_is_delivered(tmp_path: Path, sync: str) -> None:
    written = Written(tmp_path / "new", sync=sync, sync_interval=0.001)
    await written.exporter.start()
    written.exporter.consume(spans("a", "b"))
    written.exporter.consume(Batch(Kind.LOGS, POD, [LogRecord().SerializeToString()], 1))
    await until(lambda: written.books()[1] == 2 and written.books("logs")[1] == 1)
    written.exporter.consume(spans("c"))
    await written.exporter.stop(5)
    assert written.books() == (3, 3, 0, 0)
    assert sorted(contents(tmp_path / "new")) == ["logs.jsonl", "traces.jsonl"]
    assert names_in(tmp_path / "new" / "traces.jsonl") == ["a", "b", "c"]


async def test_a_disk_that_takes_nothing_holds_the_data_until_it_does(tmp_path: Path) -> None:
    blocked = tmp_path / "traces.jsonl"
    blocked.mkdir()
    written = Written(tmp_path)
    await written.exporter.start()
    written.exporter.consume(spans("a"))
    retried = "stem_agent.exporter.retries"
    await until(lambda: bool(written.telemetry.counted(retried, reason="output_failed")))
    assert written.books() == (1, 0, 0, 1)
    blocked.rmdir()
    await until(lambda: written.books()[1] == 1)
    assert names_in(blocked) == ["a"]
    await written.exporter.stop(5)


async def test_a_file_that_another_agent_writes_to_is_waited_for(tmp_path: Path) -> None:
    first, second = Written(tmp_path), Written(tmp_path)
    for each in (first, second):
        await each.exporter.start()
    first.exporter.consume(spans("a"))
    await until(lambda: first.books()[1] == 1)
    second.exporter.consume(spans("b"))
    await until(lambda: bool(second.telemetry.counted("stem_agent.exporter.retries", reason="locked")))
    await first.exporter.stop(5)
    await until(lambda: second.books()[1] == 1)
    await second.exporter.stop(5)
    assert names_in(tmp_path / "traces.jsonl") == ["a", "b"]


async def test_a_directory_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StartupError, match=r"file: failed to use directory .*/file: file exists; choose another one \(exporters.file"
    ):
        await Written(tmp_path / "file").exporter.start()
