"""The exporter: one HTTP session for all kinds, one sender for each."""

import asyncio
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import aiohttp
from asyncio_throttle.throttler import Throttler
from opentelemetry.exporter.otlp.proto.http.version import __version__ as otlp_version

from agent import __version__
from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.exporters.otlp_http.answer import MAX_RESPONSE_BYTES, interpret
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.exporters.sending.outcome import Drop, Outcome, Retry
from agent.exporters.sending.sealed import Sealed, gzip, uncompressed
from agent.exporters.sending.sender import Sender
from agent.otlp.batch import Batch, Kind
from agent.storage.file_storage import FileStorage
from agent.telemetry.events import Telemetry

# OTLP exporter specification, "User Agent": the distribution's own product token comes first.
USER_AGENT = f"stem-agent/{__version__} OTel-OTLP-Exporter-Python/{otlp_version}"


class OtlpHttpExporter:
    """Sends batches of every kind it is given to the destination of its configuration."""

    def __init__(
        self,
        identity: str,
        config: OtlpHttpConfig,
        ledger: Ledger,
        telemetry: Telemetry,
        reports: Reports,
        storage: FileStorage | None = None,
    ) -> None:
        self._id = identity
        self._config = config
        self._ledger = ledger
        self._telemetry = telemetry
        self._storage = storage
        self._reports = reports
        self._executor: ThreadPoolExecutor | None = None
        self._session: aiohttp.ClientSession | None = None
        self._senders: dict[Kind, Sender] = {}
        self._throttle = Throttler(config.max_requests_per_second) if config.max_requests_per_second else None

    def consume(self, batch: Batch) -> None:
        """Take a batch into the queue of its kind."""
        self._senders[batch.kind].consume(batch)

    async def start(self) -> None:
        """Open the session and start the senders; connects to nothing yet. Raises `StartupError` for TLS files."""
        config = self._config
        tls = config.tls.context() if any(config.url(kind).startswith("https:") for kind in Kind) else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            timeout=aiohttp.ClientTimeout(total=config.timeout),
            headers=self._headers(),
            skip_auto_headers=("Accept",),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # Two threads: one kind's large batch must not delay the sealing of another's.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"{self._id}: seal")
        self._senders = {kind: self._sender(kind, self._executor) for kind in Kind}
        for sender in self._senders.values():
            await sender.start()

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - see Component
        """Deliver what is queued, all kinds at once; what is left after `timeout` seconds is counted as dropped."""
        try:
            await asyncio.gather(*(sender.stop(timeout) for sender in self._senders.values()))
        finally:
            session, self._session = self._session, None
            if session:
                await session.close()
            if self._executor:
                self._executor.shutdown(wait=False, cancel_futures=True)
                self._executor = None

    def _sender(self, kind: Kind, executor: ThreadPoolExecutor) -> Sender:
        config = self._config
        return Sender(
            queue=config.sending_queue,
            retry=config.retry_on_failure,
            compress=gzip if config.compression == "gzip" else uncompressed,
            transport=lambda sealed: self._post(kind, sealed),
            account=self._ledger.account(self._id, kind),
            telemetry=self._telemetry,
            executor=executor,
            storage=self._storage,
            reports=self._reports,
        )

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": USER_AGENT,
            # Answers are a few bytes: not offering compression spares us decompression bombs.
            "Accept-Encoding": "identity",
        }
        if self._config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        return headers | {name: secret.get_secret_value() for name, secret in self._config.headers.items()}

    async def _post(self, kind: Kind, sealed: Sealed) -> Outcome:
        if self._session is None:
            return Retry("not_started", "the exporter is not started")
        if self._throttle:
            await self._throttle.acquire()  # type: ignore[no-untyped-call]
        url = self._config.url(kind)
        try:
            async with self._session.post(
                url,
                data=sealed.body,
                allow_redirects=False,
                server_hostname=self._config.tls.server_name_override,
            ) as response:
                body = await self._read(response)
                if body is None:
                    outcome: Outcome = Drop("response_too_large", f"answer above {MAX_RESPONSE_BYTES} bytes")
                else:
                    headers = {name.lower(): value for name, value in response.headers.items()}
                    outcome = interpret(kind, response.status, headers, body, now=datetime.now(UTC))
                code = str(response.status)
        except TimeoutError:
            code, outcome = "timeout", Retry("timeout", f"no answer within {self._config.timeout:g} s from {url}")
        except (aiohttp.ClientError, OSError) as error:
            code, outcome = "connection", Retry("connection", f"{_plain(error)} ({url})")
        self._telemetry.count("stem_agent.exporter.requests", exporter=self._id, signal=kind, code=code)
        return outcome

    @staticmethod
    async def _read(response: aiohttp.ClientResponse) -> bytes | None:
        """Return the body, or None as soon as it is larger than an OTLP answer may be."""
        body = bytearray()
        async for chunk in response.content.iter_chunked(65536):
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                return None
        return bytes(body)


def _plain(error: Exception) -> str:
    """Return the cause in plain words, without the library's decoration."""
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number).lower()
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"certificate not trusted: {error.certificate_error}"
    return str(cause) or type(cause).__name__
