"""The fault matrix of the OTLP specification, row by row, on both transports, against real servers.

Each row says what the backend does, once; then it is well again. What must have become of the items by then is the
row's last column, and what was held must arrive as soon as nobody waits any more: at the stop.
"""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.backends import BACKENDS, Grpc, Http, Never, Tls, backend_of, grpc_bomb, http2_status
from tests.conftest import until
from tests.sending import GRPC, HTTP, INITIAL, MAXIMUM, Sending, sending
from tests.tcp import Speak, serving

ITEMS = 4
BACK_OFF = (0.0, INITIAL)


# --- what a backend does ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says:
    """A real server answers so, in its transport's terms. A row without words for a transport is not of it."""

    http: Callable[[], Http] | Http | Never | None = None
    grpc: Grpc | Never | None = None

    def of(self, transport: str) -> Any:
        said = self.http if transport == HTTP else self.grpc
        return said() if callable(said) else said


@dataclass(frozen=True)
class Speaks:
    """A scripted conversation takes the real server's place."""

    http: Speak | None = None
    grpc: Speak | None = None
    untrusted: bool = False

    def of(self, transport: str) -> Speak | None:
        return self.http if transport == HTTP else self.grpc


class Refuses:
    """Nobody listens."""

    def of(self, _: str) -> Any:
        return self


class Unknown(Refuses):
    """The host has no address."""


Fault = Says | Speaks | Refuses


async def _closes(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()


async def _is_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


def partial(rejected: int, message: str) -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


def ok(body: bytes) -> Says:
    return Says(Http(200, {"Content-Type": "application/x-protobuf"}, body), Grpc(body=body))


def wants(seconds: float) -> tuple[tuple[str, bytes], ...]:
    """Trailers with a `RetryInfo`."""
    delay = Duration(seconds=int(seconds))
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=delay))
    return (("grpc-status-details-bin", Status(code=14, details=[detail]).SerializeToString()),)


def later(value: str | Callable[[], str], wish: float | None) -> Says:
    """A server that says later: by `Retry-After`, or by `RetryInfo`."""

    def http() -> Http:
        return Http(503, {"Retry-After": value if isinstance(value, str) else value()})

    return Says(http, Grpc("UNAVAILABLE", "busy", wants(wish) if wish is not None else ()))


def from_now(seconds: float) -> Callable[[], str]:
    return lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def status(http: int, grpc: str) -> Says:
    return Says(Http(http, body=b"no such thing"), Grpc(grpc, "no such thing"))


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row: `held` is what is held after the fault, within bounds of the announced `wait` (seconds)."""

    number: int
    backend: str
    fault: Fault
    delivered: int = 0
    rejected: int = 0
    dropped: str | tuple[str, str] = ""  # the reason; or that of each transport
    held: int = 0
    wait: tuple[float, float] = BACK_OFF
    says: str = ""  # what the log must tell
    items: tuple[int, ...] = (1,) * ITEMS  # sizes of the spans' names
    options: dict[str, Any] = field(default_factory=dict)


NO_GRACE = {"auth_grace": "0"}
HELD = {"held": ITEMS}

MATRIX = [
    Row(1, "an empty response", ok(b""), delivered=ITEMS),
    Row(1, "a response that says nothing", ok(partial(0, "")), delivered=ITEMS),
    Row(2, "some rejected", ok(partial(3, "too old")), delivered=1, rejected=3, says="too old"),
    Row(3, "none rejected, with a message", ok(partial(0, "slow down")), delivered=ITEMS, says="slow down"),
    Row(4, "an undecodable body", ok(b"\xff\xff\xff"), delivered=ITEMS, says="no OTLP response"),
    Row(5, "a bad request", status(400, "INVALID_ARGUMENT"), dropped=("http_400", "grpc_invalid_argument")),
    Row(5, "too large for the server", Says(Http(413)), dropped="http_413"),
    Row(5, "an internal error", status(500, "INTERNAL"), dropped=("http_500", "grpc_internal")),
    Row(5, "not implemented", status(501, "UNIMPLEMENTED"), dropped=("http_501", "grpc_unimplemented")),
    Row(
        5,
        "who are you, without a grace",
        status(401, "UNAUTHENTICATED"),
        dropped=("http_401", "grpc_unauthenticated"),
        options=NO_GRACE,
    ),
    Row(
        5,
        "you may not, without a grace",
        status(403, "PERMISSION_DENIED"),
        dropped=("http_403", "grpc_permission_denied"),
        options=NO_GRACE,
    ),
    Row(5, "not here, without a grace", Says(Http(404)), dropped="http_404", options=NO_GRACE),
    Row(5, "who are you", status(401, "UNAUTHENTICATED"), **HELD),
    Row(5, "you may not", status(403, "PERMISSION_DENIED"), **HELD),
    Row(5, "not here", Says(Http(404)), **HELD),
    Row(6, "too many requests", Says(Http(429)), **HELD),
    Row(6, "a bad gateway", status(502, "ABORTED"), **HELD),
    Row(6, "unavailable", status(503, "UNAVAILABLE"), **HELD),
    Row(6, "a gateway's timeout", status(504, "DEADLINE_EXCEEDED"), **HELD),
    Row(6, "cancelled by the server", Says(grpc=Grpc("CANCELLED")), **HELD),
    Row(6, "out of range", Says(grpc=Grpc("OUT_OF_RANGE")), **HELD),
    Row(6, "data loss", Says(grpc=Grpc("DATA_LOSS")), **HELD),
    Row(6, "a proxy's 503", Speaks(grpc=http2_status(503)), **HELD),
    Row(7, "later, in seconds", later("7", 7), **HELD, wait=(7, 7 + INITIAL)),
    Row(7, "later, at a date", later(from_now(90), 90), **HELD, wait=(80, 91 + INITIAL)),
    Row(7, "later, at a date that is over", later(from_now(-90), -90), **HELD),
    Row(7, "later, in garbage", later("soon", None), **HELD),
    Row(7, "later, in a lifetime", later("1000000000", 1_000_000_000), **HELD, wait=(MAXIMUM, MAXIMUM)),
    Row(8, "unavailable, with RetryInfo", later("30", 30), **HELD, wait=(30, 30 + INITIAL)),
    Row(9, "exhausted", Says(grpc=Grpc("RESOURCE_EXHAUSTED", "quota")), dropped="grpc_resource_exhausted"),
    Row(
        9,
        "exhausted, with a wish",
        Says(Http(429, {"Retry-After": "7"}), Grpc("RESOURCE_EXHAUSTED", "quota", wants(7))),
        **HELD,
        wait=(7, 7 + INITIAL),
    ),
    Row(10, "unknown", Says(grpc=Grpc("UNKNOWN", "oops")), dropped="grpc_unknown", says="oops"),
    Row(10, "not found", status(410, "NOT_FOUND"), dropped=("http_410", "grpc_not_found")),
    Row(11, "nobody listens", Refuses(), **HELD, says="connection refused"),
    Row(11, "no such host", Unknown(), **HELD, says="nobody.invalid"),
    Row(11, "a certificate that is not trusted", Speaks(_is_silent, _is_silent, untrusted=True), **HELD, says="certif"),
    Row(11, "closes without an answer", Speaks(_closes, _closes), **HELD),
    Row(11, "resets in the middle", Speaks(_resets, _resets), **HELD),
    Row(12, "accepts, and never answers", Says(Never(), Never()), **HELD, options={"timeout": "150ms"}),
    Row(12, "accepts, and never speaks", Speaks(_is_silent, _is_silent), **HELD, options={"timeout": "150ms"}),
    Row(13, "an answer without end", ok(bytes(5 << 20)), dropped="response_too_large"),
    Row(
        13,
        "a bomb",
        Says(Http(200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(64 << 20)))),
        dropped="response_too_large",
    ),
    Row(13, "a bomb over gRPC", Speaks(grpc=grpc_bomb(40 << 20)), dropped="response_too_large"),
    Row(14, "would get too much", ok(b""), dropped="request_too_large", items=(65 << 20,)),
    Row(
        15,
        "sends us elsewhere",
        Says(Http(307, {"Location": "http://127.0.0.1:1/v1/traces"})),
        dropped="redirect",
        says="set the endpoint to its target",
    ),
    Row(15, "sends us elsewhere over gRPC", Speaks(grpc=http2_status(302)), dropped="redirect"),
]
CASES = [
    pytest.param(row, transport, id=f"{row.number}: {row.backend} ({transport.removeprefix('otlp_')})")
    for row in MATRIX
    for transport in (HTTP, GRPC)
    if row.fault.of(transport) is not None
]


# --- the stage --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def acting(fault: Fault, transport: str, backend: Any, free_port: int) -> AsyncIterator[tuple[int, str]]:
    """Let the backend, or what takes its place, do what the row says; yield its port and host."""
    does = fault.of(transport)
    if isinstance(fault, Refuses):
        yield free_port, "nobody.invalid" if isinstance(fault, Unknown) else "127.0.0.1"
    elif isinstance(fault, Speaks):
        tls = Tls(trustme.CA().issue_cert("127.0.0.1")).context() if fault.untrusted else None
        async with serving(does, tls=tls) as port:
            yield port, "127.0.0.1"
    else:
        backend.replies = [does]
        await backend.start()
        yield backend.port, "127.0.0.1"


def options_of(row: Row) -> dict[str, Any]:
    untrusted = isinstance(row.fault, Speaks) and row.fault.untrusted
    return {**row.options, **({"tls": {"reload_interval": "1s"}} if untrusted else {})}


@pytest.fixture(name="backend")
async def _backend(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    backend = BACKENDS[request.getfixturevalue("transport")]()
    yield backend
    await backend.stop()


@pytest.mark.parametrize(("row", "transport"), CASES)
async def test_what_a_backend_does_and_what_becomes_of_the_items(
    row: Row, transport: str, backend: Any, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with acting(row.fault, transport, backend, unused_tcp_port) as (port, host):
        stage = Sending(transport, port, options_of(row), host=host)
        await stage.exporter.start()
        stage.consume(*row.items)
        await stage.settled()
        reason = row.dropped if isinstance(row.dropped, str) else row.dropped[transport == GRPC]
        dropped = {reason: len(row.items)} if reason else {}
        assert stage.books == (row.delivered, row.rejected, dropped, row.held)
        told = [record.fields for record in caplog.records if hasattr(record, "fields")]
        assert row.says in " ".join(str(fields) for fields in told).lower() or row.says in str(told)
        waits = [fields["retry_in"] for fields in told if "retry_in" in fields]
        assert len(waits) == bool(row.held)
        assert all(row.wait[0] <= wait <= row.wait[1] for wait in waits)
    if isinstance(row.fault, Speaks | Refuses) and not isinstance(row.fault, Unknown) and "tls" not in options_of(row):
        await backend.start(port)
    if row.held and backend.port:
        await stage.exporter.stop(10)
        assert stage.books == (row.held, 0, {}, 0)
    else:
        await stage.exporter.stop(0.05)
    if row.number == 14:
        assert backend.requests == []
    elif not row.held and isinstance(row.fault, Says):
        assert len(backend.requests) == 1, "what is not held is not sent again"


HOLDS = [
    pytest.param(case.values[0], case.values[1], id=str(case.id))
    for case in CASES
    if isinstance(case.values[0], Row) and case.values[0].number in range(6, 13) and case.values[0].held
]


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(("row", "transport"), HOLDS)
async def test_row_17_a_stop_in_any_of_6_to_12_waits_no_longer_and_keeps_its_deadline(
    row: Row, transport: str, backend: Any, unused_tcp_port: int, tmp_path: Path, *, disk: bool
) -> None:
    backend.stays = True
    async with acting(row.fault, transport, backend, unused_tcp_port) as (port, host):
        stage = Sending(transport, port, options_of(row), host=host, directory=tmp_path if disk else None)
        await stage.start()
        stage.consume(*row.items)
        await stage.settled()
        attempts = stage.telemetry.counted("stem_agent.exporter.requests")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await stage.stop(0.3)
        assert loop.time() - began < 1.0
        assert stage.books == ((0, 0, {}, ITEMS) if disk else (0, 0, {"shutdown": ITEMS}, 0))
    under_way = 1 if "timeout" in row.options else 0
    assert stage.telemetry.counted("stem_agent.exporter.requests") + under_way > attempts, "it tries once more at once"


@pytest.mark.parametrize("transport", [HTTP, GRPC])
@pytest.mark.parametrize("away", [HTTP, GRPC])
async def test_row_16_of_two_destinations_the_one_that_is_away_holds_up_nothing(
    transport: str, away: str, unused_tcp_port: int
) -> None:
    async with (
        backend_of(transport) as backend,
        sending(transport, backend.port, {}) as well,
        sending(away, unused_tcp_port, {}) as other,
    ):
        for stage in (well, other):
            stage.consume(1, 1, 1, 1)
        await well.settled()
        await other.settled()
        assert well.books == (ITEMS, 0, {}, 0)
        assert other.books == (0, 0, {}, ITEMS)


@pytest.mark.parametrize("transport", [HTTP, GRPC])
async def test_the_grace_of_a_refusal_ends_and_begins_anew_with_a_success(transport: str) -> None:
    options = {"auth_grace": "300ms", "retry_on_failure": {"initial_interval": "5ms", "max_interval": "20ms"}}
    refusal = status(401, "UNAUTHENTICATED").of(transport)
    async with backend_of(transport) as backend, sending(transport, backend.port, options) as stage:
        backend.replies = [refusal, refusal]
        stage.consume(1)
        await until(lambda: not stage.account.held)
        assert stage.books == (1, 0, {}, 0)
        backend.replies, backend.stays = [refusal], True
        stage.consume(1)
        await until(lambda: not stage.account.held)
        reason = "http_401" if transport == HTTP else "grpc_unauthenticated"
        assert stage.books == (1, 0, {reason: 1}, 0)
        assert len(backend.requests) > 5
