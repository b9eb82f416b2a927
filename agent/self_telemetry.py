"""The agent's own metrics and log lines, on the road of one of its exporters."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping

from agent.configuration import SELF_TELEMETRY_CARRIERS, SELF_TELEMETRY_OFF, AgentConfig
from agent.core.ledger import Ledger
from agent.exporters.otlp.config import OtlpConfig
from agent.exporters.otlp.headers import reloading_headers
from agent.exporters.otlp_grpc.config import OtlpGrpcConfig
from agent.otlp.batch import Kind
from agent.registry import type_of
from agent.telemetry.events import FileUnusable, Telemetry, log
from agent.telemetry.self_export import SELF_TELEMETRY, Destination
from agent.telemetry.self_failures import hear_failures
from agent.telemetry.self_logs import SelfLogs
from agent.telemetry.self_metrics import SelfMetrics


class SelfTelemetry:
    """Starts and stops what the configuration asks for; a fault of it costs itself, never the main job."""

    def __init__(
        self, config: AgentConfig, telemetry: Telemetry, ledger: Ledger, attributes: Mapping[str, str]
    ) -> None:
        self._config = config
        self._telemetry = telemetry
        self._ledger = ledger
        self._attributes = attributes
        self._shutdowns: list[Callable[[float], None]] = []

    def start_logs(self) -> None:
        """Export log lines from now on."""
        self._started("log lines", self._config.service.telemetry.logs.exporter, self._logs)

    def start_metrics(self) -> None:
        """Export metrics from now on."""
        self._started(
            "metrics", self._config.service.telemetry.metrics.exporter or self._metrics_exporter(), self._metrics
        )

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the rest of the deadline
        """Export once more and stop, within `timeout` seconds."""
        if not self._shutdowns:
            return
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        shutdowns, self._shutdowns = self._shutdowns, []

        def shutdown() -> None:
            for each in reversed(shutdowns):
                each(max(0.1, timeout))
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(done.set)

        # The stock exporters block for as long as their endpoint does. A daemon thread is one that the exit of the
        # process does not wait for, as it would for an executor's.
        threading.Thread(target=shutdown, name="self telemetry: shutdown", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await done.wait()

    def _started(self, what: str, identity: str | None, start: Callable[[OtlpConfig], None]) -> None:
        config = self._config.components["exporters"].get(identity or SELF_TELEMETRY_OFF)
        if not isinstance(config, OtlpConfig):
            return
        try:
            hear_failures(self._telemetry)
            start(config)
        except Exception as error:  # noqa: BLE001 - the SDK refuses some OTEL_* variables; the main job goes on
            log(logging.ERROR, f"failed to start the export of the agent's own {what}", {"error": str(error)})

    def _logs(self, config: OtlpConfig) -> None:
        logs = SelfLogs(self._attributes, _destination(config, Kind.LOGS, self._telemetry), self._telemetry)
        self._shutdowns.append(lambda _: logs.shutdown())

    def _metrics(self, config: OtlpConfig) -> None:
        interval = self._config.service.telemetry.metrics.interval
        destination = _destination(config, Kind.METRICS, self._telemetry)
        metrics = SelfMetrics(self._telemetry, self._ledger, self._attributes, destination, interval=interval)
        self._shutdowns.append(metrics.shutdown)

    def _metrics_exporter(self) -> str | None:
        pipelines = self._config.service.pipelines.items()
        names = (name for key, p in pipelines if type_of(key) == Kind.METRICS for name in p.exporters)
        return next((name for name in names if type_of(name) in SELF_TELEMETRY_CARRIERS), None)


def _destination(config: OtlpConfig, kind: Kind, telemetry: Telemetry) -> Callable[[], Destination]:
    """Return what tells where the agent's own telemetry goes now, with the headers and files of this moment."""

    def unusable(reason: str) -> None:
        telemetry.emit(FileUnusable(SELF_TELEMETRY, reason))

    route = config.route(kind)
    tls = route.tls if config.uses_tls(kind) else None
    headers = reloading_headers(route.headers, config.reload_interval, unusable, telemetry.mask.learn)
    context = tls.reloading(tls.reload_interval, unusable) if tls else None

    def now() -> Destination:
        moment = time.monotonic()
        return Destination(
            protocol="grpc" if isinstance(config, OtlpGrpcConfig) else "http",
            endpoint=route.endpoint,
            headers=headers.get(moment),
            compressed=route.compression != "none",
            timeout=route.timeout,
            tls=tls,
            server_name=route.tls.server_name_override,
            temporality=config.temporality,
            proxy_url=config.proxy_url.get_secret_value() if config.proxy_url else None,
            version=context.get(moment) if context else None,
        )

    return now
