"""The agent's own log lines over OTLP, through the OpenTelemetry SDK and its stock exporter.

A handler of our own: the SDK's is deprecated, and what takes its place patches the logging of the whole process.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult

from agent import __version__
from agent.telemetry.events import Telemetry
from agent.telemetry.self_export import Destination, Renewed, log_exporter
from agent.telemetry.self_failures import own_resource

# The road that the lines take must not be told on that road.
_ROAD = ("opentelemetry", "requests", "urllib3")
_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL, "FATAL"),
    (logging.ERROR, SeverityNumber.ERROR, "ERROR"),
    (logging.WARNING, SeverityNumber.WARN, "WARN"),
    (logging.INFO, SeverityNumber.INFO, "INFO"),
    (logging.NOTSET, SeverityNumber.DEBUG, "DEBUG"),
)


class _Exporter(LogRecordExporter):
    """The destination's stock exporter."""

    def __init__(self, telemetry: Telemetry, destination: Callable[[], Destination]) -> None:
        self._stock = Renewed(destination, log_exporter, telemetry)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Export records."""
        return self._stock.get().export(batch)

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        """Do nothing: nothing is buffered."""
        return self._stock.get().force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Close the connection."""
        self._stock.get().shutdown()  # type: ignore[no-untyped-call]


class SelfLogs(logging.Handler):
    """Exports every line that is written, beside where it is written: the phrase is the body, fields are attributes.

    A thread of the SDK exports them; what its queue cannot hold is dropped, and standard error still has it.
    """

    def __init__(
        self, attributes: Mapping[str, str], destination: Callable[[], Destination], telemetry: Telemetry
    ) -> None:
        super().__init__()
        self._mask = telemetry.mask
        self._formatter = logging.Formatter()
        self._provider = LoggerProvider(resource=own_resource(attributes), shutdown_on_exit=False)
        self._provider.add_log_record_processor(BatchLogRecordProcessor(_Exporter(telemetry, destination)))
        self._logger = self._provider.get_logger("stem-agent", __version__)
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one line to the SDK."""
        if record.name.partition(".")[0] in _ROAD:
            return
        number, text = next((number, text) for level, number, text in _SEVERITIES if record.levelno >= level)
        self._logger.emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                severity_number=number,
                severity_text=text,
                body=self._mask(record.getMessage()),
                attributes=self._attributes(record),
            )
        )

    def shutdown(self) -> None:
        """Export what is left and stop; blocks for as long as the destination does."""
        logging.getLogger().removeHandler(self)
        self._provider.shutdown()

    def _attributes(self, record: logging.LogRecord) -> dict[str, str | int | float | bool]:
        fields = getattr(record, "fields", {})
        attributes = {key: self._plain(value) for key, value in fields.items() if value is not None}
        attributes["logger"] = record.name
        if record.exc_info and record.exc_info[0]:
            attributes["exception.type"] = record.exc_info[0].__name__
            attributes["exception.stacktrace"] = self._mask(self._formatter.formatException(record.exc_info))
        return attributes

    def _plain(self, value: object) -> str | int | float | bool:
        return value if isinstance(value, bool | int | float) else self._mask(str(value))
