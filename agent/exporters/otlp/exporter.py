"""The exporter: one transport for all kinds, one sender for each."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from asyncio_throttle.throttler import Throttler
from opentelemetry.exporter.otlp.proto.http.version import __version__ as otlp_version

from agent import __version__
from agent.core.ledger import Ledger
from agent.core.pressure import Pressure
from agent.core.status import Reports
from agent.exporters.otlp.answer import MAX_REQUEST_BYTES, request_too_large
from agent.exporters.sending.config import QueueConfig, RetryConfig
from agent.exporters.sending.events import SeriesTakenUp
from agent.exporters.sending.outcome import Outcome
from agent.exporters.sending.sealed import Coding, Sealed
from agent.exporters.sending.sender import Sender
from agent.otlp.batch import Batch, Kind
from agent.otlp.deltas import Deltas
from agent.storage.file_storage import FileStorage
from agent.telemetry.events import Telemetry

# OTLP exporter specification, "User Agent": the distribution's own product token comes first.
USER_AGENT = f"stem-agent/{__version__} OTel-OTLP-Exporter-Python/{otlp_version}"


class Transport(Protocol):
    """The road to a destination. Its connections are made when they are needed, and anew when they break."""

    async def open(self) -> None:
        """Get ready; connects to nothing yet. Raises `StartupError` for files that cannot be used."""

    async def close(self) -> None:
        """Close what is open; may be called twice, or without `open`."""

    def coding(self, kind: Kind) -> Coding:
        """Return how bodies of `kind` are sealed."""

    async def send(self, kind: Kind, sealed: Sealed) -> tuple[str, Outcome]:
        """Make one attempt; return the code that labels the request, and what it came to.

        Never raises for what a network or server does.
        """


class Options(Protocol):
    """What an exporter needs to know beside its transport; `auth_grace` in seconds."""

    @property
    def sending_queue(self) -> QueueConfig:
        """Batching and queueing."""

    @property
    def retry_on_failure(self) -> RetryConfig:
        """Retrying."""

    @property
    def auth_grace(self) -> float:
        """How long a destination may refuse us before its data is dropped."""

    @property
    def max_requests_per_second(self) -> int:
        """For all kinds together; 0 for as many as it takes."""


class OtlpExporter:
    """Sends batches of every kind it is given to the destination of its configuration."""

    def __init__(
        self,
        identity: str,
        config: Options,
        transport: Transport,
        ledger: Ledger,
        telemetry: Telemetry,
        reports: Reports,
        storage: FileStorage | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._id = identity
        self._config = config
        self._transport = transport
        self._ledger = ledger
        self._telemetry = telemetry
        self._reports = reports
        self._storage = storage
        self._pressure = pressure
        self.deltas: Deltas | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._senders: dict[Kind, Sender] = {}
        self._throttle = Throttler(config.max_requests_per_second) if config.max_requests_per_second else None

    def tell_differences(self, deltas: Deltas) -> None:
        """Send metrics as differences from now on: what did not change is not told, and not counted as accepted."""
        self.deltas = deltas

    def succeed(self, before: object) -> None:
        """Go on with the differences of the exporter whose place this one takes."""
        if self.deltas and isinstance(before, OtlpExporter) and before.deltas:
            self.deltas = before.deltas

    def consume(self, batch: Batch) -> None:
        """Take a batch into the queue of its kind."""
        if self.deltas and batch.kind is Kind.METRICS:
            unknown = self.deltas.unknown
            batch = self.deltas.converted(batch)
            if unknown := self.deltas.unknown - unknown:
                self._telemetry.emit(SeriesTakenUp(self._id, unknown))
        self._senders[batch.kind].consume(batch)

    async def start(self) -> None:
        """Open the transport and start the senders. Raises `StartupError` for files that cannot be used."""
        await self._transport.open()
        # Two threads: one kind's large batch must not delay the sealing of another's.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"{self._id}: seal")
        self._senders = {kind: self._sender(kind, self._executor) for kind in Kind}
        for sender in self._senders.values():
            await sender.start()

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Deliver what is queued, all kinds at once; what is left then is kept on the disk, or dropped."""
        try:
            await asyncio.gather(*(sender.stop(timeout) for sender in self._senders.values()))
        finally:
            await self._transport.close()
            if self._executor:
                self._executor.shutdown(wait=False, cancel_futures=True)
                self._executor = None

    def _sender(self, kind: Kind, executor: ThreadPoolExecutor) -> Sender:
        return Sender(
            queue=self._config.sending_queue,
            retry=self._config.retry_on_failure,
            coding=self._transport.coding(kind),
            transport=lambda sealed: self._send(kind, sealed),
            account=self._ledger.account(self._id, kind),
            telemetry=self._telemetry,
            executor=executor,
            reports=self._reports,
            auth_grace=self._config.auth_grace,
            storage=self._storage,
            pressure=self._pressure,
        )

    async def _send(self, kind: Kind, sealed: Sealed) -> Outcome:
        if sealed.size > MAX_REQUEST_BYTES:
            return request_too_large(sealed.size)
        if self._throttle:
            await self._throttle.acquire()  # type: ignore[no-untyped-call]
        code, outcome = await self._transport.send(kind, sealed)
        self._telemetry.count("stem_agent.exporter.requests", exporter=self._id, signal=kind, code=code)
        return outcome
