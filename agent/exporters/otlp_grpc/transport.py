"""OTLP over gRPC: the sealed body is the request message, as it is."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio

from agent.exporters.otlp.answer import MAX_RESPONSE_BYTES, accepted
from agent.exporters.otlp.config import Route
from agent.exporters.otlp.exporter import USER_AGENT
from agent.exporters.otlp.headers import reloading_headers
from agent.exporters.otlp_grpc.answer import interpret, plain
from agent.exporters.otlp_grpc.config import OtlpGrpcConfig
from agent.exporters.sending.outcome import Outcome, Retry
from agent.exporters.sending.sealed import BATCH_ID, IDENTITY, Coding, Sealed
from agent.otlp.batch import Kind
from agent.settings.grpc_tls import credentials
from agent.settings.reloading import Reloading
from agent.settings.tls import ClientTls
from agent.telemetry.events import FileUnusable, Telemetry

METHODS = {
    kind: f"/opentelemetry.proto.collector.{package}.v1.{service}/Export"
    for kind, package, service in (
        (Kind.TRACES, "trace", "TraceService"),
        (Kind.METRICS, "metrics", "MetricsService"),
        (Kind.LOGS, "logs", "LogsService"),
    )
}
_COMPRESSION = {"gzip": grpc.Compression.Gzip, "none": grpc.Compression.NoCompression}
_OUR_DEADLINE = "Deadline Exceeded"  # what the library says; a server that gave up says so in its own words
_STATUS_DETAILS = "grpc-status-details-bin"
# What channels have in common.
_OPTIONS = (
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),  # after decompression too
    ("grpc.enable_retries", 0),  # the sender retries, and only it
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
    # Notices a peer that is gone while a call waits for it. Not without calls: servers take that for abuse.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
)

Call = Callable[..., Awaitable[bytes]]


@dataclass(slots=True)
class _Link:
    """A channel, with the number of calls under way on it; one that is retired is closed by the last of them."""

    channel: grpc.aio.Channel
    credentials: grpc.ChannelCredentials | None  # None: no TLS
    calls: int = 0
    retired: bool = False
    methods: dict[Kind, Call] = field(default_factory=dict)

    def method(self, kind: Kind) -> Call:
        """Return the call that takes and gives bytes."""
        if kind not in self.methods:
            self.methods[kind] = self.channel.unary_unary(METHODS[kind])
        return self.methods[kind]


@dataclass(frozen=True, slots=True)
class _Way:
    """What is needed for a request of one kind."""

    route: Route
    headers: Reloading[dict[str, str]]
    tls: Reloading[grpc.ChannelCredentials] | None
    address: tuple[str, ClientTls | None]


class GrpcTransport:
    """Sends sealed batches with grpc.aio. Kinds of the same endpoint and files share a channel.

    A channel whose connection fails would wait, by a back-off of its own, before it connects again. It is replaced
    instead, so that every attempt of the sender is an attempt to connect, and none is made in between.
    """

    def __init__(self, identity: str, config: OtlpGrpcConfig, telemetry: Telemetry) -> None:
        self._id = identity
        self._config = config
        self._telemetry = telemetry
        self._ways: dict[Kind, _Way] = {}
        self._links: dict[tuple[str, ClientTls | None], _Link] = {}

    async def open(self) -> None:
        """Read the files."""
        tls: dict[ClientTls, Reloading[grpc.ChannelCredentials]] = {}
        self._ways = {kind: self._way(kind, tls) for kind in Kind}

    async def close(self) -> None:
        """Close the channels."""
        self._ways.clear()
        links = list(self._links.values())
        self._links.clear()
        for link in links:
            link.retired = True
            await link.channel.close()

    def coding(self, kind: Kind) -> Coding:  # noqa: ARG002 - a protocol's
        """Seal bodies as they are: gRPC compresses messages itself, and takes none that are compressed."""
        return IDENTITY

    async def send(self, kind: Kind, sealed: Sealed) -> tuple[str, Outcome]:
        """Call the service of `kind`."""
        if not (way := self._ways.get(kind)):
            return "closed", Retry("closed", "the exporter is not started")
        now = asyncio.get_running_loop().time()
        link, replaced = self._take(way, now)
        try:
            if replaced and not replaced.calls:
                await replaced.channel.close()
            answer = await link.method(kind)(
                sealed.body,
                timeout=way.route.timeout,
                metadata=(
                    (BATCH_ID, sealed.batch_id),
                    *((name.lower(), value) for name, value in way.headers.get(now).items()),
                ),
                compression=_COMPRESSION[way.route.compression],
            )
            return "ok", accepted(kind, answer)
        except grpc.aio.AioRpcError as error:
            return self._failed(way, link, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not us, but the call was cancelled: its channel was closed.
            return "cancelled", Retry("grpc_cancelled", f"the connection was closed ({way.route.endpoint})")
        finally:
            link.calls -= 1
            if link.retired and not link.calls:
                await link.channel.close()

    def _failed(self, way: _Way, link: _Link, error: grpc.aio.AioRpcError) -> tuple[str, Outcome]:
        code, details, endpoint = error.code().name.lower(), error.details() or "", way.route.endpoint
        trailers = error.trailing_metadata() or ()
        status = next((value for key, value in trailers if key == _STATUS_DETAILS), b"")
        outcome = interpret(code, details, status if isinstance(status, bytes) else b"")
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and plain(details) == _OUR_DEADLINE:
            # The connection may be dead without anybody having said so.
            self._retire(way, link)
            return "timeout", Retry("timeout", f"no answer within {way.route.timeout:g} s from {endpoint}")
        if link.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._retire(way, link)
            if isinstance(outcome, Retry):
                why = outcome.detail.removeprefix(f"grpc {code}: ")
                outcome = Retry("connection", why if endpoint in why else f"{why} ({endpoint})")
                code = "connection"
        return code, outcome

    def _take(self, way: _Way, now: float) -> tuple[_Link, _Link | None]:
        """Return the channel for a call, which is counted at once, and the one that it replaces.

        It is the channel there is, unless the files of its TLS changed.
        """
        current = way.tls.get(now) if way.tls else None
        link, replaced = self._links.get(way.address), None
        if link is None or link.credentials is not current:
            if replaced := link:
                self._retire(way, replaced)
            link = self._links[way.address] = self._connect(way, current)
        link.calls += 1
        return link, replaced

    def _retire(self, way: _Way, link: _Link) -> None:
        """Let the next call connect anew; those under way on the channel go on, and the last of them closes it."""
        link.retired = True
        if self._links.get(way.address) is link:
            del self._links[way.address]

    def _connect(self, way: _Way, current: grpc.ChannelCredentials | None) -> _Link:
        options: list[tuple[str, str | int]] = list(_OPTIONS)
        if name := way.route.tls.server_name_override:
            options.append(("grpc.ssl_target_name_override", name))
        if proxy := self._config.proxy_url:
            options.append(("grpc.http_proxy", proxy.get_secret_value()))
        else:
            options.append(("grpc.enable_http_proxy", 0))  # none from the environment
        target = way.route.endpoint
        if current is None:
            return _Link(grpc.aio.insecure_channel(target, options=options), None)
        return _Link(grpc.aio.secure_channel(target, current, options=options), current)

    def _way(self, kind: Kind, known: dict[ClientTls, Reloading[grpc.ChannelCredentials]]) -> _Way:
        route, uses_tls = self._config.route(kind), self._config.uses_tls(kind)
        if uses_tls and route.tls not in known:
            tls = route.tls
            known[tls] = Reloading(
                tls.files, lambda: credentials(tls), interval=tls.reload_interval, on_failure=self._unusable
            )
        return _Way(
            route=route,
            headers=reloading_headers(
                route.headers, self._config.reload_interval, self._unusable, self._telemetry.mask.learn
            ),
            tls=known[route.tls] if uses_tls else None,
            address=(route.endpoint, route.tls if uses_tls else None),
        )

    def _unusable(self, reason: str) -> None:
        self._telemetry.emit(FileUnusable(self._id, reason))
