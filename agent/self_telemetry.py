"""The agent's own metrics and log lines, on the road of one of its exporters."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping

from agent.configuration import SELF_TELEMETRY_OFF, AgentConfig
from agent.core.ledger import Ledger
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.otlp.batch import Kind
from agent.registry import type_of
from agent.telemetry.destination import Destination, hear_failures
from agent.telemetry.events import Telemetry, log
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

    def _started(self, what: str, identity: str | None, start: Callable[[OtlpHttpConfig], None]) -> None:
        config = self._config.components["exporters"].get(identity or SELF_TELEMETRY_OFF)
        if not isinstance(config, OtlpHttpConfig):
            return
        try:
            hear_failures(self._telemetry)
            start(config)
        except Exception as error:  # noqa: BLE001 - the SDK refuses some OTEL_* variables; the main job goes on
            log(logging.ERROR, f"failed to start the export of the agent's own {what}", {"error": str(error)})

    def _logs(self, config: OtlpHttpConfig) -> None:
        logs = SelfLogs(self._attributes, _destination(config, Kind.LOGS), self._telemetry.mask)
        self._shutdowns.append(lambda _: logs.shutdown())

    def _metrics(self, config: OtlpHttpConfig) -> None:
        interval = self._config.service.telemetry.metrics.interval
        metrics = SelfMetrics(
            self._telemetry, self._ledger, self._attributes, _destination(config, Kind.METRICS), interval=interval
        )
        self._shutdowns.append(metrics.shutdown)

    def _metrics_exporter(self) -> str | None:
        pipelines = self._config.service.pipelines.items()
        names = (name for key, p in pipelines if type_of(key) == Kind.METRICS for name in p.exporters)
        return next((name for name in names if type_of(name) == "otlp_http"), None)


def _destination(config: OtlpHttpConfig, kind: Kind) -> Destination:
    return Destination(
        url=config.url(kind),
        headers={name: secret.get_secret_value() for name, secret in config.headers.items()},
        gzip=config.compression == "gzip",
        timeout=config.timeout,
        ca_file=config.tls.ca_file,
        cert_file=config.tls.cert_file,
        key_file=config.tls.key_file,
        insecure_skip_verify=config.tls.insecure_skip_verify,
    )
