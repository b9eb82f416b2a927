"""What both OTLP exporters do beyond the fault matrix: keys and certificates that change, proxies, compression."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from agent.core.errors import StartupError
from agent.exporters.otlp.exporter import USER_AGENT
from agent.otlp.batch import Batch, Kind
from tests.backends import Gate, Grpc, Http, Never, Tls, backend_of, replace, write_tls
from tests.conftest import until
from tests.sending import GRPC, HTTP, RESOURCE, Sending, sending
from tests.tcp import Speak, passing_on, serving

BOTH = pytest.mark.parametrize("transport", [HTTP, GRPC])
REFUSALS = {HTTP: Http(401), GRPC: Grpc("UNAUTHENTICATED")}
SOON = "1ms"  # in place of intervals that tests would have to wait for


async def delivered(stage: Sending, count: int) -> None:
    await until(lambda: stage.account.delivered == count)


@BOTH
async def test_every_kind_has_its_service_and_the_agent_names_itself(transport: str) -> None:
    async with backend_of(transport) as backend, sending(transport, backend.port, {}) as stage:
        for kind in Kind:
            stage.exporter.consume(Batch(kind, RESOURCE, [b""], 1))
            await until(lambda kind=kind: stage.ledger.account(transport, kind).delivered == 1)  # type: ignore[misc]
    assert [request.kind for request in backend.requests] == list(Kind)
    for request in backend.requests:
        assert request.headers["user-agent"].startswith(USER_AGENT)
    ok = "200" if transport == HTTP else "ok"
    assert stage.telemetry.counted("stem_agent.exporter.requests", code=ok) == 3


@BOTH
async def test_a_rotated_key_is_used_by_the_next_request(transport: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    options = {"headers": {"Api-Key": {"file": str(key)}, "tenant": "shop"}, "reload_interval": SOON}
    async with backend_of(transport) as backend, sending(transport, backend.port, options) as stage:
        stage.consume(1)
        await delivered(stage, 1)
        replace(key, b"second")
        stage.consume(1)
        await delivered(stage, 2)
    assert [request.headers["api-key"] for request in backend.requests] == ["first", "second"]
    assert {request.headers["tenant"] for request in backend.requests} == {"shop"}


@BOTH
async def test_a_key_that_is_rotated_while_the_backend_refuses_the_old_one_costs_nothing(
    transport: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("old")
    options = {
        "headers": {"api-key": {"file": str(key)}},
        "reload_interval": SOON,
        "retry_on_failure": {"initial_interval": "5ms", "max_interval": "10ms"},
    }
    async with backend_of(transport) as backend, sending(transport, backend.port, options) as stage:
        backend.replies, backend.stays = [REFUSALS[transport]], True
        stage.consume(1)
        await until(lambda: len(backend.requests) > 2)
        replace(key, b"new")
        await until(lambda: backend.requests[-1].headers["api-key"] == "new")
        backend.replies.clear()
        await delivered(stage, 1)
    assert stage.books == (1, 0, {}, 0)


@BOTH
async def test_a_key_file_that_vanishes_is_told_once_and_the_last_key_stays(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "key"
    key.write_text("hunter2")
    options = {"headers": {"api-key": {"file": str(key)}}, "reload_interval": SOON}
    async with backend_of(transport) as backend, sending(transport, backend.port, options) as stage:
        key.unlink()
        for count in (1, 2, 3):
            stage.consume(1)
            await delivered(stage, count)
    assert [request.headers["api-key"] for request in backend.requests] == ["hunter2"] * 3
    (line,) = [record for record in caplog.records if "failed to reload" in record.getMessage()]
    assert line.fields["reason"] == f"failed to read {key}: no such file or directory"  # type: ignore[attr-defined]
    assert stage.telemetry.counted("stem_agent.reload.failures", component=transport) >= 2


@BOTH
@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "no such file"), (b" \n", "found nothing in it"), (b"hunter2\nhunter3", "found line breaks")],
)
async def test_a_key_file_that_cannot_be_used_ends_the_start(
    transport: str, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(StartupError, match=problem) as refused:
        async with sending(transport, 1, {"headers": {"api-key": {"file": str(key)}}}):
            pytest.fail("it started")
    assert str(key) in str(refused.value)
    assert "hunter" not in str(refused.value)


@BOTH
async def test_mutual_tls_and_certificates_that_are_all_replaced(transport: str, tmp_path: Path) -> None:
    """The backend's authority, and ours: everything changes, as when a mesh's root is rotated."""
    old, new = trustme.CA(), trustme.CA()
    files = write_tls(tmp_path, old, old.issue_cert("agent"))
    options = {
        "tls": {**files, "reload_interval": SOON},
        "retry_on_failure": {"initial_interval": "5ms", "max_interval": "20ms"},
    }
    async with backend_of(transport, tls=Tls(old.issue_cert("127.0.0.1"), old)) as backend:
        port = backend.port
        async with sending(transport, port, options) as stage:
            stage.consume(1)
            await delivered(stage, 1)
            await backend.stop()
            await backend.start(port, Tls(new.issue_cert("127.0.0.1"), new))
            stage.consume(1)
            await until(lambda: bool(stage.telemetry.counted("stem_agent.exporter.retries", reason="connection")))
            assert stage.account.held == 1
            write_tls(tmp_path, new, new.issue_cert("agent"))
            await delivered(stage, 2)


@BOTH
async def test_a_client_without_its_certificate_is_held(transport: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    tls = Tls(authority.issue_cert("127.0.0.1"), authority)
    async with (
        backend_of(transport, tls=tls) as backend,
        sending(transport, backend.port, {"tls": {"ca_file": files["ca_file"]}}) as stage,
    ):
        stage.consume(1)
        await stage.settled()
        assert stage.books == (0, 0, {}, 1)
        assert not backend.requests


@BOTH
async def test_requests_under_way_finish_while_new_ones_use_the_new_certificate(transport: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    options = {"tls": {**files, "reload_interval": SOON}, "sending_queue": {"num_consumers": 2}}
    options["sending_queue"]["batch"] = {"flush_timeout": "1ms"}  # type: ignore[index]
    gate = asyncio.Event()
    async with backend_of(transport, tls=Tls(authority.issue_cert("127.0.0.1"), authority)) as backend:
        backend.replies = [Gate(gate)]
        async with sending(transport, backend.port, options) as stage:
            stage.consume(1)
            await until(lambda: len(backend.requests) == 1)
            write_tls(tmp_path, authority, authority.issue_cert("agent"))
            stage.consume(1)
            await delivered(stage, 1)
            gate.set()
            await delivered(stage, 2)
            assert stage.telemetry.counted("stem_agent.exporter.retries") == 0
            peers = {request.peer for request in backend.requests}
            assert len(peers) == 2, "the new certificate has a connection of its own"


@BOTH
async def test_a_certificate_without_its_key_is_told_and_the_last_pair_stays(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    options = {"tls": {**files, "reload_interval": SOON}}
    async with (
        backend_of(transport, tls=Tls(authority.issue_cert("127.0.0.1"), authority)) as backend,
        sending(transport, backend.port, options) as stage,
    ):
        other = authority.issue_cert("agent")
        replace(tmp_path / "cert_file", other.cert_chain_pems[0].bytes())
        stage.consume(1)
        await delivered(stage, 1)
        replace(tmp_path / "key_file", other.private_key_pem.bytes())
        stage.consume(1)
        await delivered(stage, 2)
    assert len([record for record in caplog.records if "failed to reload" in record.getMessage()]) == 1


@BOTH
async def test_a_name_other_than_the_hosts_may_be_verified(transport: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    by_host = {"tls": {"ca_file": files["ca_file"]}}
    by_name = {"tls": {"ca_file": files["ca_file"], "server_name_override": "otlp.example.com"}}
    async with backend_of(transport, tls=Tls(authority.issue_cert("otlp.example.com"))) as backend:
        async with sending(transport, backend.port, by_host) as stage:
            stage.consume(1)
            await stage.settled()
            assert (stage.account.held, backend.requests) == (1, []), "the certificate is not the host's"
        async with sending(transport, backend.port, by_name) as stage:
            stage.consume(1)
            await delivered(stage, 1)
            assert len(backend.requests) == 1


@pytest.mark.parametrize(
    ("transport", "compression", "shrinks"),
    [(HTTP, "gzip", True), (HTTP, "zstd", True), (HTTP, "none", False), (GRPC, "gzip", True), (GRPC, "none", False)],
)
async def test_what_is_compressed_is_smaller_on_the_wire(transport: str, compression: str, shrinks: bool) -> None:
    counts = [0]
    async with (
        backend_of(transport) as backend,
        serving(counting(passing_on(backend.port), counts)) as port,
        sending(transport, port, {"compression": compression}) as stage,
    ):
        stage.consume(100_000)
        await delivered(stage, 1)
    assert len(backend.requests[0].names[0]) == 100_000
    assert (counts[0] < 10_000) == shrinks
    if transport == HTTP:
        assert backend.requests[0].headers.get("content-encoding", "none") == compression


@BOTH
async def test_each_signal_may_have_options_of_its_own(transport: str) -> None:
    options = {
        "headers": {"api-key": "general"},
        "timeout": "50ms",
        "traces": {"timeout": "5s", "compression": "none", "headers": {"api-key": "own"}},
    }
    async with backend_of(transport) as backend, sending(transport, backend.port, options) as stage:
        gate = asyncio.Event()
        backend.replies = [Never(), Gate(gate)]
        stage.exporter.consume(Batch(Kind.LOGS, RESOURCE, [b""], 1))
        await until(lambda: bool(stage.telemetry.counted("stem_agent.exporter.requests", code="timeout")))
        stage.consume(1)
        await until(lambda: len(backend.requests) == 2)
        gate.set()
        await delivered(stage, 1)
    assert [(request.kind, request.headers["api-key"]) for request in backend.requests[:2]] == [
        ("logs", "general"),
        ("traces", "own"),
    ]


@BOTH
@pytest.mark.parametrize("secure", [False, True])
async def test_a_proxy_is_used_where_it_is_named_and_gets_the_credentials(
    transport: str, secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    heads: list[bytes] = []
    async with (
        backend_of(transport, tls=Tls(authority.issue_cert("127.0.0.1")) if secure else None) as backend,
        serving(proxy(heads)) as port,
    ):
        options: dict[str, Any] = {"proxy_url": f"http://user:hunter2@127.0.0.1:{port}"}
        if secure:
            options["tls"] = {"ca_file": files["ca_file"]}
        async with sending(transport, backend.port, options) as stage:
            stage.consume(1)
            await delivered(stage, 1)
    assert b"proxy-authorization: basic dxnlcjpodw50zxiy" in heads[0].lower()


@BOTH
async def test_no_proxy_of_the_environment_is_used(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []
    monkeypatch.delenv("no_proxy", raising=False)
    async with serving(proxy(heads)) as port, backend_of(transport) as backend:
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        async with sending(transport, backend.port, {}) as stage:
            stage.consume(1)
            await delivered(stage, 1)
        assert len(backend.requests) == 1
    assert heads == [], "what would have passed the proxy"


@BOTH
async def test_requests_are_paced(transport: str) -> None:
    options = {"max_requests_per_second": 2, "sending_queue": {"batch": {"max_items": 1}, "num_consumers": 4}}
    async with backend_of(transport) as backend, sending(transport, backend.port, options) as stage:
        stage.consume(1, 1, 1)
        await until(lambda: len(backend.requests) == 2)
        assert stage.account.held >= 1
        await delivered(stage, 3)


async def test_a_grpc_channel_is_made_anew_for_every_attempt_to_connect_and_none_is_left(unused_tcp_port: int) -> None:
    options = {"retry_on_failure": {"initial_interval": "1ms", "max_interval": "2ms"}}
    async with sending(GRPC, unused_tcp_port, options) as stage:
        stage.consume(1)
        await until(lambda: stage.telemetry.counted("stem_agent.exporter.retries", reason="connection") > 20)
        links = stage.exporter._transport._links  # type: ignore[attr-defined]
        assert len(links) <= 1
        async with backend_of(GRPC, port=unused_tcp_port):
            await delivered(stage, 1)


async def test_a_call_whose_channel_is_closed_is_tried_again() -> None:
    async with backend_of(GRPC) as backend, sending(GRPC, backend.port, {}) as stage:
        backend.replies = [Never()]
        stage.consume(1)
        await until(lambda: bool(backend.requests))
        (link,) = stage.exporter._transport._links.values()  # type: ignore[attr-defined]
        await link.channel.close()
        await stage.settled()
        assert stage.telemetry.counted("stem_agent.exporter.retries", reason="grpc_cancelled") == 1
        assert stage.books == (0, 0, {}, 1)


def counting(speak: Speak, counts: list[int]) -> Speak:
    """Return the conversation, with the bytes from the client counted."""

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        feed = reader.feed_data

        def feed_data(data: bytes) -> None:
            counts[0] += len(data)
            feed(data)

        reader.feed_data = feed_data  # type: ignore[method-assign]
        await speak(reader, writer)

    return counted


def proxy(heads: list[bytes]) -> Speak:
    """Return a conversation as an HTTP proxy has it: `CONNECT`, or a request that names its host."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        method, target, _ = head.decode("latin-1").split(" ", 2)
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        assert url.port
        inner_reader, inner_writer = await asyncio.open_connection(url.hostname, url.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            inner_writer.write(head.replace(target.encode(), url.path.encode(), 1))
        async with _closing(inner_writer):
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    return speak


async def _pump(source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            drain.write(data)
    drain.close()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
