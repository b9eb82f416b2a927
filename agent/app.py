"""The agent as a process: load, build, supervise, drain.

Stopping is a sequence under one deadline (`service.shutdown_timeout`): receivers stop and hand on what they heard,
the connector settles what it can, exporters seal and drain, then the books are closed and told.
"""

import asyncio
import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Mapping

from agent import __version__
from agent.configuration import SELF_METRICS_OFF, AgentConfig
from agent.core.clock import SteadyClock
from agent.core.errors import EXIT_HELD, EXIT_LOST, EXIT_OK
from agent.core.ledger import Ledger
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.otlp.batch import Kind
from agent.otlp.resource import Resource
from agent.pipeline import Graph
from agent.registry import Host, type_of
from agent.settings.resource import detect_resource
from agent.telemetry.events import Telemetry, log
from agent.telemetry.self_metrics import Destination, SelfMetrics

# Waiting for the network is most of stopping; this share of the deadline is kept for closing the books.
_DRAIN_SHARE = 0.9
# The agent's last word about itself is worth one attempt, not the deadline.
_SELF_METRICS_SECONDS = 1.0
_LOST_COUNTERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("stem_agent.correlate.evicted", {}),
    ("stem_agent.signals.lost", {"reason": "shed"}),
    ("stem_agent.signals.lost", {"reason": "shutdown"}),
    ("stem_agent.signals.lost", {"reason": "internal_error"}),
)


class Agent:
    """One running agent. `run` returns the exit code."""

    def __init__(self, config: AgentConfig, environ: Mapping[str, str]) -> None:
        self._config = config
        attributes = _resource(config, environ)
        self.telemetry = Telemetry()
        self.ledger = Ledger()
        self.graph = Graph(config, Host(self.telemetry, self.ledger, SteadyClock(), Resource(attributes)))
        self._attributes = attributes
        self._self_metrics: SelfMetrics | None = None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask the agent to drain and end; a second time, to end without draining."""
        self._stop.set()

    async def run(self) -> int:
        """Run until stopped; raises `StartupError` if a component cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        log(logging.INFO, "stem-agent starting", {"version": __version__, **_shape(self._config)})
        if not await self._started():
            return self._close_books()
        self._start_self_metrics()
        log(logging.INFO, "stem-agent running", {})
        await self._stop.wait()
        return await self._drain()

    async def _started(self) -> bool:
        """Start everything; return False if asked to stop before that was done (Redis may take its time)."""
        starting = asyncio.create_task(self.graph.start())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            await starting  # raises what it raised
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False

    async def _drain(self) -> int:
        timeout = self._config.service.shutdown_timeout
        log(logging.INFO, "stopping: draining what is held", {"shutdown_timeout": timeout})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        drain = asyncio.create_task(self.graph.stop(timeout * _DRAIN_SHARE))
        self._stop.clear()
        second = asyncio.create_task(self._stop.wait())
        await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
        if cut := not drain.done():
            log(logging.WARNING, "asked to stop again: not draining any further", {})
        second.cancel()
        drain.cancel()
        await asyncio.gather(drain, second, return_exceptions=True)
        await self.graph.stop(0)  # what a cancelled drain did not come to
        if not cut:
            await self._stop_self_metrics(min(_SELF_METRICS_SECONDS, max(0.0, deadline - loop.time())))
        return self._close_books()

    def _close_books(self) -> int:
        for account in self.ledger.accounts.values():
            if not account.accepted:
                continue
            fields = {
                "exporter": account.exporter,
                "signal": account.kind,
                "accepted": account.accepted,
                "delivered": account.delivered,
                "rejected": _by_reason(account.rejected),
                "dropped": _by_reason(account.dropped),
                "held": account.held,
            }
            log(logging.ERROR if account.lost else logging.INFO, "ledger", fields)
        held = sum(account.held for account in self.ledger.accounts.values())
        lost = self.ledger.lost + sum(self.telemetry.counted(name, **labels) for name, labels in _LOST_COUNTERS)
        # Exporters drop and count what they cannot keep: what is still held is on a disk, and the next start sends it.
        log(logging.ERROR if lost else logging.INFO, "stem-agent stopped", {"lost": lost, "held": held})
        return EXIT_LOST if lost else EXIT_HELD if held else EXIT_OK

    # --- self metrics ------------------------------------------------------------------------------------------------

    def _start_self_metrics(self) -> None:
        settings = self._config.service.telemetry.metrics
        identity = settings.exporter or self._metrics_exporter()
        config = self._config.components["exporters"].get(identity or SELF_METRICS_OFF)
        if isinstance(config, OtlpHttpConfig):
            destination = _destination(config)
            try:
                self._self_metrics = SelfMetrics(
                    self.telemetry, self.ledger, self._attributes, destination, interval=settings.interval
                )
            except Exception as error:  # noqa: BLE001 - the SDK refuses some OTEL_* variables; the main job goes on
                log(logging.ERROR, "failed to start the agent's own metrics", {"error": str(error)})

    def _metrics_exporter(self) -> str | None:
        pipelines = self._config.service.pipelines.items()
        names = (name for key, p in pipelines if type_of(key) == Kind.METRICS for name in p.exporters)
        return next((name for name in names if type_of(name) == "otlp_http"), None)

    async def _stop_self_metrics(self, timeout: float) -> None:  # noqa: ASYNC109 - the rest of the deadline
        if not self._self_metrics:
            return
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        self_metrics = self._self_metrics

        def shutdown() -> None:
            self_metrics.shutdown(max(0.1, timeout))
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(done.set)

        # The stock exporter blocks for as long as its endpoint does. A daemon thread is one that the exit of the
        # process does not wait for, as it would for an executor's.
        threading.Thread(target=shutdown, name="self metrics: shutdown", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await done.wait()


def _by_reason(counts: Counter[str]) -> str:
    return ",".join(f"{reason}:{count}" for reason, count in sorted(counts.items())) or "0"


def _resource(config: AgentConfig, environ: Mapping[str, str]) -> dict[str, str]:
    namespaces = {getattr(receiver, "namespace", "stem") for receiver in config.components["receivers"].values()}
    return detect_resource(environ, namespaces.pop() if len(namespaces) == 1 else "stem")


def _destination(config: OtlpHttpConfig) -> Destination:
    return Destination(
        url=config.url(Kind.METRICS),
        headers={name: secret.get_secret_value() for name, secret in config.headers.items()},
        gzip=config.compression == "gzip",
        timeout=config.timeout,
        ca_file=config.tls.ca_file,
        cert_file=config.tls.cert_file,
        key_file=config.tls.key_file,
        insecure_skip_verify=config.tls.insecure_skip_verify,
    )


def _shape(config: AgentConfig) -> dict[str, str]:
    return {
        name: f"{','.join(pipeline.receivers)} -> {','.join((*pipeline.processors, *pipeline.exporters))}"
        for name, pipeline in config.service.pipelines.items()
    }
