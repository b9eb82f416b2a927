"""The server that Prometheus scrapes."""

import asyncio
import gzip
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from agent.core.clock import NANOSECONDS
from agent.core.errors import fault
from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.exporters.otlp.headers import reloading_headers
from agent.exporters.prometheus.accept import Format, accepts_gzip, chosen
from agent.exporters.prometheus.config import PrometheusConfig
from agent.exporters.prometheus.events import ScrapeFailed, SeriesShadowed
from agent.exporters.prometheus.exposition import SCOPE_LABELS, Exposition
from agent.exporters.prometheus.snapshots import Family, Snapshot, Snapshots, family_of
from agent.exporters.sending.events import ItemsDropped
from agent.http_server import listen, port_of, renewed
from agent.otlp.batch import Batch
from agent.telemetry.events import FileUnusable, Telemetry, log
from agent.telemetry.self_scrape import SelfScrape

if TYPE_CHECKING:
    from aiohttp import web

    from agent.settings.reloading import Reloading

METRICS, AGENT = "/metrics", "/metrics/agent"
_GOODBYE_SECONDS = 1.0
_MAX_WAITING = 8
"""Scrapes that may wait for one another: each costs CPU, and one at a time is made."""
_PASSWORD = "password"  # noqa: S105 - the name of an option


class PrometheusExporter:
    """Keeps what every source told last, and shows it to whoever asks.

    What is shown counts as delivered, whether anybody asks or not: nothing is kept for a scraper that is away.
    `attributes` are those of the agent's resource.
    """

    def __init__(
        self,
        identity: str,
        config: PrometheusConfig,
        attributes: Mapping[str, str],
        ledger: Ledger,
        telemetry: Telemetry,
        reports: Reports,
    ) -> None:
        self._id = identity
        self._config = config
        self._attributes = attributes
        self._ledger = ledger
        self._telemetry = telemetry
        self._report = reports.part("exposition")
        self._snapshots = Snapshots(int(config.metric_expiration * NANOSECONDS))
        self._constant = SCOPE_LABELS if config.scope_labels else {}
        self._waiting = 0
        self._own: SelfScrape | None = None
        self._password: Reloading[dict[str, str]] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the start."""
        return port_of(self._runner)

    def consume(self, batch: Batch) -> None:
        """Show what is in the batch, in place of what its source told before."""
        account = self._ledger.account(self._id, batch.kind)
        account.accepted += batch.count
        dropped = self._snapshots.tell(batch, self._telemetry.clock())
        account.dropped.update(dropped)
        account.delivered += batch.count - dropped.total()
        for reason, count in dropped.items():
            detail = "Prometheus has no place for it, or another metric has its name"
            self._telemetry.emit(ItemsDropped(self._id, batch.kind, reason, count, detail))
        if dropped:
            self._report.degraded(f"some metrics cannot be shown: {', '.join(dropped)}")
        elif batch.items:
            self._report.ok()
        account.ended()

    async def start(self) -> None:
        """Listen; raises `StartupError` if the address cannot be had, or a file cannot be used."""
        from aiohttp import web  # noqa: PLC0415 - see agent.http_server

        password, tls = self._config.basic_auth.password, None
        if password:
            self._password = reloading_headers(
                {_PASSWORD: password}, self._config.reload_interval, self._unusable, self._telemetry.mask.learn
            )
        if self._config.tls.cert_file:
            tls = renewed(self._config.tls.reloading(self._unusable))
        app = web.Application()
        app.router.add_get(METRICS, self._metrics)
        app.router.add_get(AGENT, self._metrics_of_the_agent)
        self._runner = await listen(
            *(app, self._config.endpoint),
            identity=self._id,
            options=f"exporters.{self._id}.endpoint, or STEM_PROMETHEUS_ENDPOINT",
            tls=tls,
            goodbye_seconds=_GOODBYE_SECONDS,
        )
        self._own = self._scrape_of_the_agent()
        # One thread: whatever is asked for at once is made one after the other, beside the event loop.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{self._id}: exposition")

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109, ARG002 - see Component; it takes a second
        """Stop listening."""
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()
        own, self._own = self._own, None
        if own:
            own.close()
        if self._executor:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _scrape_of_the_agent(self) -> SelfScrape | None:
        """Return what reads the agent's own metrics; its fault costs these, never the others."""
        try:
            return SelfScrape(self._attributes, self._telemetry, self._ledger)
        except Exception as error:  # noqa: BLE001 - the SDK refuses some OTEL_* variables
            log(logging.ERROR, f"failed to start {AGENT}", {"exporter": self._id, "error": str(error)})
            return None

    def _unusable(self, reason: str) -> None:
        self._telemetry.emit(FileUnusable(self._id, reason))

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _metrics(self, request: "web.Request") -> "web.StreamResponse":
        told = self._snapshots.at(self._telemetry.clock())
        return await self._answered(request, lambda: told)

    async def _metrics_of_the_agent(self, request: "web.Request") -> "web.StreamResponse":
        return await self._answered(request, self._of_the_agent)

    async def _answered(self, request: "web.Request", told: Callable[[], list[Snapshot]]) -> "web.StreamResponse":
        response = await self._response(request, told)
        self._telemetry.count(
            "stem_agent.exporter.requests", exporter=self._id, signal=request.path[1:], code=str(response.status)
        )
        return response

    async def _response(self, request: "web.Request", told: Callable[[], list[Snapshot]]) -> "web.StreamResponse":
        from aiohttp import web  # noqa: PLC0415 - see agent.http_server

        if not self._lets_in(request.headers.get("Authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="stem-agent", charset="UTF-8"'}
            return web.Response(status=401, text="username and password, please\n", headers=challenge)
        if self._executor is None or self._waiting >= _MAX_WAITING:
            return web.Response(status=503, text="too many scrapes at once\n", headers={"Retry-After": "1"})
        wanted = chosen(request.headers.get("Accept", ""))
        zipped = accepts_gzip(request.headers.get("Accept-Encoding", ""))
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            body, shadowed = await loop.run_in_executor(self._executor, self._made, told, wanted, zipped)
        except Exception as error:  # noqa: BLE001 - a fault of ours costs this scrape
            self._telemetry.emit(ScrapeFailed(self._id, request.path, fault(error)))
            return web.Response(status=500, text="failed to make the exposition; the agent's log says where\n")
        finally:
            self._waiting -= 1
        if shadowed:
            self._telemetry.emit(SeriesShadowed(self._id, shadowed))
        headers = {"Content-Type": wanted.value, "Vary": "Accept, Accept-Encoding"}
        return web.Response(body=body, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    def _made(self, told: Callable[[], list[Snapshot]], wanted: Format, zipped: bool) -> tuple[bytes, int]:  # noqa: FBT001 - run_in_executor passes no keywords
        exposition = Exposition(wanted, told(), self._constant, created=self._config.created_series)
        body = exposition.encode()
        return gzip.compress(body, 1) if zipped else body, exposition.shadowed

    def _of_the_agent(self) -> list[Snapshot]:
        if self._own is None:
            return []
        families = [found for metric in self._own.read() if isinstance(found := family_of(metric), Family)]
        return [Snapshot(self._own.resource, self._telemetry.clock(), families=families)]

    def _lets_in(self, authorization: str) -> bool:
        """Check a name and a password, in a time that tells nothing of either."""
        from aiohttp import BasicAuth  # noqa: PLC0415 - see agent.http_server

        username = self._config.basic_auth.username
        if username is None or self._password is None:
            return True
        try:
            given = BasicAuth.decode(authorization, encoding="utf-8")
        except ValueError:
            return False
        password = self._password.get(time.monotonic())[_PASSWORD]
        is_name = hmac.compare_digest(given.login.encode(), username.encode())
        return hmac.compare_digest(given.password.encode(), password.encode()) and is_name
