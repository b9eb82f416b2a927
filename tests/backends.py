"""Real OTLP endpoints on both transports that can be told what to answer; both speak of a request in the same way."""

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import trustme
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent.exporters.otlp_grpc.transport import METHODS
from tests.tcp import Speak


@dataclass(frozen=True)
class Http:
    """An answer over HTTP."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Grpc:
    """An answer over gRPC: a message, or a status with its trailers."""

    code: str = "OK"
    details: str = ""
    trailers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""


class Never:
    """No answer at all."""


class Gate:
    """A good answer, as soon as an event allows it."""

    def __init__(self, event: asyncio.Event) -> None:
        self.event = event


@dataclass(frozen=True)
class Request:
    """What arrived: `kind` as the path or method says, `names` of spans, `headers` in lower case, `peer` with port."""

    kind: str
    peer: str
    names: tuple[str, ...]
    headers: dict[str, str]
    body: bytes


class Backend(Protocol):
    """An endpoint: answers with `replies` one after the other, with the last of them for ever if `stays`, then well."""

    requests: list[Request]
    replies: list[Any]
    stays: bool
    port: int

    async def start(self, port: int = 0, tls: "Tls | None" = None) -> None: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True)
class Tls:
    """A server's certificate, and the authority whose clients it lets in."""

    certificate: trustme.LeafCert
    clients: trustme.CA | None = None

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.certificate.configure_cert(context)
        if self.clients:
            self.clients.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def credentials(self) -> grpc.ServerCredentials:
        key = self.certificate.private_key_pem.bytes()
        chain = b"".join(pem.bytes() for pem in self.certificate.cert_chain_pems)
        clients = self.clients.cert_pem.bytes() if self.clients else None
        return grpc.ssl_server_credentials([(key, chain)], clients, require_client_auth=clients is not None)


class _Scripted:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.replies: list[Any] = []
        self.stays = False
        self.port = 0

    def _take(self, kind: str, peer: str, headers: dict[str, str], body: bytes) -> Any:
        plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        spans = ExportTraceServiceRequest.FromString(plain).resource_spans if kind == "traces" else ()
        names = tuple(span.name for entry in spans for scope in entry.scope_spans for span in scope.spans)
        self.requests.append(Request(kind, peer, names, {name.lower(): value for name, value in headers.items()}, body))
        if not self.replies:
            return None
        return self.replies[0] if self.stays and len(self.replies) == 1 else self.replies.pop(0)


class HttpBackend(_Scripted):
    """OTLP over HTTP, by aiohttp."""

    _runner: web.AppRunner | None = None

    async def start(self, port: int = 0, tls: Tls | None = None) -> None:
        app = web.Application(client_max_size=80 << 20)
        app.router.add_post("/v1/{kind}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = tls.context() if tls else None
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        # aiohttp's server inflates bodies itself where the header says so.
        reply = self._take(request.match_info["kind"], _peer(request), dict(request.headers), await request.read())
        if isinstance(reply, Never):
            await asyncio.Event().wait()
        if isinstance(reply, Gate):
            await reply.event.wait()
            reply = None
        reply = reply or Http()
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def _peer(request: web.Request) -> str:
    return str(request.transport.get_extra_info("peername")) if request.transport else ""


class GrpcBackend(_Scripted, grpc.GenericRpcHandler):
    """OTLP over gRPC, by grpc.aio; messages stay bytes."""

    _server: grpc.aio.Server | None = None

    async def start(self, port: int = 0, tls: Tls | None = None) -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self,))
        address = f"127.0.0.1:{port}"
        self.port = server.add_secure_port(address, tls.credentials()) if tls else server.add_insecure_port(address)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(None)
            self._server = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        kind = next((str(kind) for kind, method in METHODS.items() if method == handler_call_details.method), None)
        if kind is None:
            return None

        async def receive(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            reply = self._take(kind, context.peer(), dict(context.invocation_metadata() or ()), body)
            if isinstance(reply, Never):
                await asyncio.Event().wait()
            if isinstance(reply, Gate):
                await reply.event.wait()
                reply = None
            reply = reply or Grpc()
            if reply.code != "OK":
                await context.abort(grpc.StatusCode[reply.code], reply.details, reply.trailers)
            return bytes(reply.body)

        return grpc.unary_unary_rpc_method_handler(receive)


BACKENDS: dict[str, type[HttpBackend | GrpcBackend]] = {"otlp_http": HttpBackend, "otlp_grpc": GrpcBackend}


@asynccontextmanager
async def backend_of(transport: str, *, port: int = 0, tls: Tls | None = None) -> AsyncIterator[Any]:
    """Run a backend of a transport."""
    backend = BACKENDS[transport]()
    await backend.start(port, tls)
    try:
        yield backend
    finally:
        await backend.stop()


def write_tls(directory: Path, authority: trustme.CA, certificate: trustme.LeafCert) -> dict[str, str]:
    """Write what a client needs, each file by a rename, and return the options."""
    contents = {
        "ca_file": authority.cert_pem.bytes(),
        "key_file": certificate.private_key_pem.bytes(),
        "cert_file": b"".join(pem.bytes() for pem in certificate.cert_chain_pems),
    }
    for name, content in contents.items():
        replace(directory / name, content)
    return {name: str(directory / name) for name in contents}


def replace(file: Path, content: bytes) -> None:
    """Write a file as whoever rotates secrets does: there is no moment at which it is half there."""
    fresh = file.with_suffix(".fresh")
    fresh.write_bytes(content)
    fresh.replace(file)


# --- what no real gRPC server can be made to say: HTTP/2 frames by hand (RFC 9113) ------------------------------------

_PREFACE_BYTES = 24
_HEADERS, _DATA, _SETTINGS = 1, 0, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_MAX_FRAME = 16384


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _field(name: bytes, value: bytes) -> bytes:
    """A header field as a literal without indexing (RFC 7541, section 6.2.2)."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def http2(*frames: tuple[int, int, bytes]) -> Speak:
    """Return a conversation that answers every request with frames: kind, flags, payload."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(_PREFACE_BYTES)
            writer.write(_frame(_SETTINGS, 0, 0) + _frame(_SETTINGS, _ACK, 0))
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == _HEADERS:
                    stream = int.from_bytes(head[5:], "big")
                    writer.writelines(_frame(kind, flags, stream, payload) for kind, flags, payload in frames)
                    await writer.drain()

    return speak


def http2_status(status: int, **headers: str) -> Speak:
    """Return a conversation that answers with an HTTP status, as a proxy does."""
    fields = [_field(b":status", str(status).encode())]
    fields += [_field(name.encode(), value.encode()) for name, value in headers.items()]
    return http2((_HEADERS, _END_HEADERS | _END_STREAM, b"".join(fields)))


def grpc_bomb(size: int) -> Speak:
    """Return a conversation that answers with a gRPC message of `size` zeros, in a few compressed bytes."""
    body = gzip.compress(bytes(size))
    message = b"\x01" + len(body).to_bytes(4, "big") + body
    head = _field(b":status", b"200") + _field(b"content-type", b"application/grpc")
    pieces = [message[at : at + _MAX_FRAME] for at in range(0, len(message), _MAX_FRAME)]
    return http2(
        (_HEADERS, _END_HEADERS, head + _field(b"grpc-encoding", b"gzip")),
        *((_DATA, 0, piece) for piece in pieces),
        (_HEADERS, _END_HEADERS | _END_STREAM, _field(b"grpc-status", b"0")),
    )
