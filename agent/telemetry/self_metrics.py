"""The agent's own metrics, through the OpenTelemetry SDK and its stock OTLP exporters.

Their volume is small and fixed, so the SDK is the right tool: every instrument is observed from the plain counters
and gauges that the components keep. A thread of the SDK exports them; nothing here touches the hot path.
"""

import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)

from agent import __version__
from agent.core.histogram import DURATION_BOUNDS
from agent.core.ledger import Account, Ledger
from agent.telemetry.events import LabelSet, Telemetry
from agent.telemetry.memory import resident_bytes
from agent.telemetry.self_export import Destination, Renewed, metric_exporter
from agent.telemetry.self_failures import own_resource

COUNTERS = {
    "stem_agent.signals.received": ("{signal}", "Signals heard, by event"),
    "stem_agent.signals.lost": (
        "{signal}",
        "Signals lost: gap, shed, decode, oversize, shutdown, not_owned, internal_error",
    ),
    "stem_agent.signals.gaps": ("{gap}", "Holes in an emitter's numbering"),
    "stem_agent.signals.duplicates": ("{signal}", "Signals heard again, by number"),
    "stem_agent.signals.late": ("{signal}", "Facts that came after their attempt was settled, repeats included"),
    "stem_agent.signals.unattributed": ("{signal}", "Task signals that name no task or no attempt"),
    "stem_agent.receiver.reconnects": ("{reconnect}", "Subscriptions that ended and were made anew"),
    "stem_agent.receiver.connect_failures": ("{attempt}", "Attempts to connect that failed"),
    "stem_agent.canary.missed": ("{message}", "Canaries published but not heard: the session was ended"),
    "stem_agent.canary.failures": ("{message}", "Canaries that could not be published"),
    "stem_agent.repairs": ("{task}", "Result records asked for in repair, by result"),
    "stem_agent.polls.failed": ("{poll}", "Times a store could not be read, by subjects"),
    "stem_agent.polls.incomplete": ("{poll}", "Times a part of the fleet's state could not be told, by subject"),
    "stem_agent.polls.interrupted": ("{gap}", "Times the totals of the fleet could not go on where a leader stopped"),
    "stem_agent.polls.late": ("{poll}", "Times reading the fleet's state took longer than the interval"),
    "stem_agent.tail.failures": ("{read}", "Times streams or records could not be read"),
    "stem_agent.tail.unreadable": ("{item}", "Entries and records that are none"),
    "stem_agent.tail.ambiguous": ("{record}", "Records that may be about several deliveries"),
    "stem_agent.tail.dropped": ("{task}", "Tasks given up before their record told an end, by reason"),
    "stem_agent.tail.hidden": ("{task}", "Tasks done whose record says queued, written late over how they ended"),
    "stem_agent.tail.overlooked": ("{attempt}", "Attempts whose record was overwritten before it was read"),
    "stem_agent.correlate.evicted": ("{attempt}", "Open attempts dropped, by reason"),
    "stem_agent.state.refused": ("{state}", "States of the process before that could not be used, by reason"),
    "stem_agent.state.not_kept": ("{state}", "States that could not be handed to the storage"),
    "stem_agent.correlate.clock_adjusted": ("{attempt}", "Attempts whose times had to be clamped"),
    "stem_agent.self_metrics.failures": ("{failure}", "Failed exports of these metrics, retries included"),
    "stem_agent.self_logs.failures": ("{failure}", "Failed exports of the agent's log lines, retries included"),
    "stem_agent.correlate.handed_over": ("{attempt}", "Open attempts left to the agent that goes on with them"),
    "stem_agent.ownership.shed": ("{signal}", "Signals kept for a hand-over that had to go before it"),
    "stem_agent.ownership.failures": ("{failure}", "Times Redis did not take or answer what agents agree on"),
    "stem_agent.storage.failures": ("{failure}", "Times the disk did not take or give what it should"),
    "stem_agent.storage.quarantined": ("{item}", "What could not be read and was set aside: file, batch, state"),
    "stem_agent.config.reloads": (
        "{reload}",
        "Times the configuration was read anew, by result: applied, unchanged, rejected, rolled_back",
    ),
    "stem_agent.reload.failures": ("{failure}", "Secret or certificate files that changed and could not be used"),
    "stem_agent.exporter.requests": ("{request}", "Requests, by status code"),
    "stem_agent.exporter.series_shadowed": ("{series}", "Series that another source tells, too: one of both is shown"),
    "stem_agent.exporter.scrape_failures": ("{request}", "Scrapes that a fault of ours could not answer, by path"),
    "stem_agent.exporter.series_taken_up": (
        "{series}",
        "Series whose differences are told from now on: another process told what they had counted",
    ),
    "stem_agent.exporter.retries": ("{request}", "Requests that will be repeated, by reason"),
}
GAUGES = {
    "stem_agent.receiver.connected": ("{connection}", "1 while the subscription stands"),
    "stem_agent.canary.round_trip": ("s", "Last time from publishing a canary to hearing it"),
    "stem_agent.receiver.backlog": ("By", "Raw signals waiting to be decoded"),
    "stem_agent.tail.lag": ("s", "Age of the oldest stream entry that is still to be read"),
    "stem_agent.tail.tasks": ("{task}", "Tasks under way, whose records are read"),
    "stem_agent.correlate.open_attempts": ("{attempt}", "Attempts whose end has not been heard"),
    "stem_agent.ownership.emitters": ("{emitter}", "Emitters whose signals this agent processes, by agreement"),
    "stem_agent.leader": ("{agent}", "1 while this agent speaks for the fleet"),
    "stem_agent.memory.limit": ("By", "Resident memory at which telemetry is dropped"),
    "stem_agent.memory.soft_limit": ("By", "Resident memory from which on queues spill to disk"),
    "stem_agent.memory.floor": (
        "{priority}",
        "Lowest priority that is taken: 0 all, 1 no debug logs, 2 metrics, 3 spans, 4 errors",
    ),
    "stem_agent.storage.bytes": ("By", "Batches in the file storage"),
    "stem_agent.storage.rows": ("{batch}", "Batches in the file storage"),
    "stem_agent.exporter.queue.size": ("By", "Closed batches waiting"),
    "stem_agent.exporter.queue.capacity": ("By", "What the queue holds before the oldest batch is dropped"),
    "stem_agent.exporter.queue.oldest_age": ("s", "Age of the oldest batch that waits or is under way"),
}
HISTOGRAMS = {
    "stem_agent.exporter.duration": ("s", "One attempt to deliver, waiting for max_requests_per_second included"),
    "stem_agent.pipeline.latency": ("s", "From the signal's own time to the acceptance of what tells of it"),
}


ToldHistograms = dict[tuple[str, LabelSet], tuple[tuple[int, ...], float, int]]
"""Counts, sum and moment (Unix nanoseconds) of what was told last, by name and labels."""


class _Exporter(MetricExporter):
    """The destination's stock exporter, with the histograms that the agent keeps in plain Python.

    The SDK observes counters and gauges that others keep, but no histograms, and Python's has no `MetricProducer`.
    """

    def __init__(self, telemetry: Telemetry, destination: Callable[[], Destination]) -> None:
        self._stock = Renewed(destination, metric_exporter, telemetry)
        stock = self._stock.get()
        # The reader asks its exporter for these, and the stock one knows what the environment says about them.
        super().__init__(stock._preferred_temporality, stock._preferred_aggregation)  # noqa: SLF001
        self._telemetry = telemetry
        # What was told of each histogram last, where differences are told.
        self._told: ToldHistograms | None = {} if destination().temporality == "delta" else None

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export what the SDK collected, and ours beside it."""
        completed = with_histograms(metrics_data, self._telemetry, self._told)
        return self._stock.get().export(completed, timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Do nothing: nothing is buffered."""
        return self._stock.get().force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Close the connection."""
        self._stock.get().shutdown(timeout_millis, **kwargs)


def with_histograms(metrics_data: MetricsData, telemetry: Telemetry, told: ToldHistograms | None = None) -> MetricsData:
    """Return what the SDK collected, and the histograms that the agent keeps beside it.

    With `told`, which is brought up to date, they are differences from what was told last.
    """
    temporality = AggregationTemporality.CUMULATIVE if told is None else AggregationTemporality.DELTA
    histograms = [
        Metric(name, text, unit, Histogram(points, temporality))
        for name, (unit, text) in HISTOGRAMS.items()
        if (points := list(_points(name, telemetry, told)))
    ]
    for own in metrics_data.resource_metrics if histograms else ():  # there is one: a provider has one resource
        scope = own.scope_metrics[0]
        completed = ScopeMetrics(scope.scope, [*scope.metrics, *histograms], scope.schema_url)
        scopes = [completed, *own.scope_metrics[1:]]
        metrics_data = MetricsData([ResourceMetrics(own.resource, scopes, own.schema_url)])
    return metrics_data


def _points(wanted: str, telemetry: Telemetry, told: ToldHistograms | None) -> Iterator[HistogramDataPoint]:
    now_ns, nothing = telemetry.clock(), ((0,) * (len(DURATION_BOUNDS) + 1), 0.0, telemetry.began_ns)
    for (name, labels), histogram in list(telemetry.histograms.items()):
        if name != wanted:
            continue
        key, counts, total = (name, labels), tuple(histogram.counts), histogram.total
        before, before_total, start_ns = nothing if told is None else told.get(key, nothing)
        if told is not None:
            told[key] = (counts, total, now_ns)
        came = [now - then for now, then in zip(counts, before, strict=True)]
        if not any(came):
            continue
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=sum(came),
            sum=total - before_total,
            bucket_counts=came,
            explicit_bounds=DURATION_BOUNDS,
            # The extremes are those since the beginning, and nothing else is known: no difference has any.
            min=histogram.least if told is None else None,  # type: ignore[arg-type]
            max=histogram.most if told is None else None,  # type: ignore[arg-type]
        )


def own_provider(
    reader: MetricReader, attributes: Mapping[str, str], telemetry: Telemetry, ledger: Ledger
) -> MeterProvider:
    """Return a provider whose instruments are observed from the agent's counters, gauges and ledger."""
    provider = MeterProvider(metric_readers=[reader], resource=own_resource(attributes), shutdown_on_exit=False)
    _Instruments(telemetry, ledger).declare(provider)
    return provider


class SelfMetrics:
    """Exports the agent's counters, gauges and ledger every `interval` seconds."""

    def __init__(
        self,
        telemetry: Telemetry,
        ledger: Ledger,
        attributes: Mapping[str, str],
        destination: Callable[[], Destination],
        *,
        interval: float,
    ) -> None:
        exporter = _Exporter(telemetry, destination)
        timeout = destination().timeout
        reader = PeriodicExportingMetricReader(
            exporter, export_interval_millis=interval * 1000, export_timeout_millis=timeout * 1000
        )
        self._provider = own_provider(reader, attributes, telemetry, ledger)

    def shutdown(self, timeout: float) -> None:
        """Export once more and stop; blocks for `timeout` seconds at the most."""
        self._provider.shutdown(timeout_millis=timeout * 1000)


class _Instruments:
    """The instruments of the SDK, and what each observes."""

    def __init__(self, telemetry: Telemetry, ledger: Ledger) -> None:
        self._telemetry = telemetry
        self._ledger = ledger

    def declare(self, provider: MeterProvider) -> None:
        """Create all of them."""
        meter = provider.get_meter("stem-agent", __version__)
        for name, (unit, text) in COUNTERS.items():
            meter.create_observable_counter(name, [self._counter(name)], unit, text)
        for name, (unit, text) in GAUGES.items():
            meter.create_observable_gauge(name, [self._gauge(name)], unit, text)
        for name, read in _LEDGER.items():
            create = meter.create_observable_gauge if name == "held" else meter.create_observable_counter
            create(f"stem_agent.items.{name}", [self._items(read)], "{item}", f"Telemetry items {name}")
        meter.create_observable_counter("stem_agent.process.cpu.time", [_cpu_time], "s", "CPU used by the agent")
        meter.create_observable_gauge("stem_agent.process.memory.usage", [_memory], "By", "Resident memory")

    def _counter(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            # Collected in the SDK's thread: list() takes the counters at one moment, under the interpreter's lock.
            for (key, labels), value in list(self._telemetry.counters.items()):
                if key == name:
                    yield Observation(value, dict(labels))

        return read

    def _gauge(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            for (key, labels), value in list(self._telemetry.gauges.items()):
                if key == name:
                    yield Observation(value(), dict(labels))

        return read

    def _items(self, read: "ReadAccount") -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for account in list(self._ledger.accounts.values()):
                labels = {"exporter": account.exporter, "signal": account.kind}
                for reason, value in read(account):
                    yield Observation(value, {**labels, "reason": reason} if reason else labels)

        return observe


ReadAccount = Callable[[Account], Iterable[tuple[str, int]]]

_LEDGER: dict[str, ReadAccount] = {
    "accepted": lambda account: [("", account.accepted)],
    "restored": lambda account: [("", account.restored)],
    "delivered": lambda account: [("", account.delivered)],
    "rejected": lambda account: list(account.rejected.items()),
    "dropped": lambda account: list(account.dropped.items()),
    "held": lambda account: [("", account.held)],
}


def _cpu_time(_: CallbackOptions) -> Iterator[Observation]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield Observation(usage.ru_utime, {"cpu.mode": "user"})
    yield Observation(usage.ru_stime, {"cpu.mode": "system"})


def _memory(_: CallbackOptions) -> Iterator[Observation]:
    if (resident := resident_bytes()) is not None:
        yield Observation(resident)
