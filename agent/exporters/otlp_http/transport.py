"""OTLP over HTTP: one session for all kinds."""

import asyncio
import errno
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from agent.exporters.otlp.answer import MAX_RESPONSE_BYTES, response_too_large
from agent.exporters.otlp.config import OtlpTls
from agent.exporters.otlp.exporter import USER_AGENT
from agent.exporters.otlp.headers import reloading_headers
from agent.exporters.otlp_http.answer import interpret
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.exporters.sending.outcome import Outcome, Retry
from agent.exporters.sending.sealed import BATCH_ID, GZIP, IDENTITY, ZSTD, Coding, Sealed
from agent.otlp.batch import Kind
from agent.settings.reloading import Reloading
from agent.telemetry.events import FileUnusable, Telemetry

_CODINGS = {"gzip": GZIP, "zstd": ZSTD, "none": IDENTITY}


@dataclass(frozen=True, slots=True)
class _Way:
    """What is needed for a request of one kind; headers and TLS are read anew when their files change."""

    url: str
    headers: Reloading[dict[str, str]]
    tls: Reloading[ssl.SSLContext] | None
    timeout: aiohttp.ClientTimeout


class HttpTransport:
    """Posts sealed batches with aiohttp. A changed TLS context makes new connections; those in use finish."""

    def __init__(self, identity: str, config: OtlpHttpConfig, telemetry: Telemetry) -> None:
        self._id = identity
        self._config = config
        self._telemetry = telemetry
        self._session: aiohttp.ClientSession | None = None
        self._ways: dict[Kind, _Way] = {}
        proxy = config.proxy_url
        self._proxy = proxy.get_secret_value() if proxy else None

    async def open(self) -> None:
        """Read the files and open the session."""
        tls: dict[OtlpTls, Reloading[ssl.SSLContext]] = {}  # shared, so that kinds can share connections
        self._ways = {kind: self._way(kind, tls) for kind in Kind}
        self._session = aiohttp.ClientSession(
            headers={
                "Content-Type": "application/x-protobuf",
                "User-Agent": USER_AGENT,
                "Accept-Encoding": "identity",  # answers are a few bytes
            },
            skip_auto_headers=("Accept",),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close the session."""
        session, self._session = self._session, None
        if session:
            await session.close()

    def coding(self, kind: Kind) -> Coding:
        """Return the coding of `kind`: bodies travel as they were sealed."""
        return _CODINGS[self._config.route(kind).compression]

    async def send(self, kind: Kind, sealed: Sealed) -> tuple[str, Outcome]:
        """Post a batch and read the answer."""
        if self._session is None:
            return "closed", Retry("closed", "the exporter is not started")
        way = self._ways[kind]
        now = asyncio.get_running_loop().time()
        try:
            async with self._session.post(
                way.url,
                data=sealed.body,
                headers=_about(sealed) | way.headers.get(now),
                ssl=way.tls.get(now) if way.tls else True,
                server_hostname=self._config.tls.server_name_override,
                timeout=way.timeout,
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                body = await _read(response)
                if body is None:
                    return str(response.status), response_too_large()
                headers = {name.lower(): value for name, value in response.headers.items()}
                return str(response.status), interpret(kind, response.status, headers, body, now=datetime.now(UTC))
        except TimeoutError:
            return "timeout", Retry("timeout", f"no answer within {way.timeout.total:g} s from {way.url}")
        except (aiohttp.ClientError, OSError) as error:
            return "connection", Retry("connection", f"{_plain(error)} ({way.url})")

    def _way(self, kind: Kind, known: dict[OtlpTls, Reloading[ssl.SSLContext]]) -> _Way:
        route = self._config.route(kind)
        if self._config.uses_tls(kind) and route.tls not in known:
            known[route.tls] = route.tls.reloading(route.tls.reload_interval, self._unusable)
        return _Way(
            url=route.endpoint,
            headers=reloading_headers(
                route.headers, self._config.reload_interval, self._unusable, self._telemetry.mask.learn
            ),
            tls=known[route.tls] if self._config.uses_tls(kind) else None,
            timeout=aiohttp.ClientTimeout(total=route.timeout),
        )

    def _unusable(self, reason: str) -> None:
        self._telemetry.emit(FileUnusable(self._id, reason))


def _about(sealed: Sealed) -> dict[str, str]:
    """Return the headers that a batch has. One from the disk may have been sealed under another configuration."""
    coded = {} if sealed.encoding == IDENTITY.name else {"Content-Encoding": sealed.encoding}
    return {BATCH_ID: sealed.batch_id, **coded}


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the body as it came, or None as soon as it is larger than an OTLP answer may be."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            return None
    return bytes(body)


def _plain(error: Exception) -> str:
    """Return the cause in plain words, without the library's decoration."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"certificate not trusted: {error.certificate_error}"
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):  # its number is not the system's
        return f"tls failed: {cause.reason or cause}"
    number = getattr(cause, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number).lower()
    return str(cause) or type(cause).__name__
