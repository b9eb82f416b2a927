"""The agent's own log lines: a fixed phrase plus fields, as text for people or JSON for machines."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

from agent.core.masking import Masker

Format = Literal["console", "json"]


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class ConsoleFormatter(logging.Formatter):
    """`2026-04-23T10:00:00.000Z WARN  signal could not be decoded  emitter=pod-1 reason=not_json`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, with a traceback below it if it carries one."""
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        pairs = " ".join(f"{key}={self._value(value)}" for key, value in _fields(record).items() if value is not None)
        line = f"{_time(record)} {level:<5} {record.getMessage()}" + (f"  {pairs}" if pairs else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    @staticmethod
    def _value(value: object) -> str:
        text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n\r\t') else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, `logger`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
        }
        line |= {key: value for key, value in _fields(record).items() if value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Masking(logging.Formatter):
    """What another formatter makes, without secrets: whole lines, tracebacks and other libraries' included."""

    def __init__(self, formatter: logging.Formatter, mask: Masker) -> None:
        super().__init__()
        self._formatter = formatter
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text without secrets."""
        return self._mask(self._formatter.format(record))


def configure(level: str, style: Format, stream: TextIO | None = None, mask: Masker | None = None) -> None:
    """Send the agent's lines, and the warnings of the libraries it uses, to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = JsonFormatter() if style == "json" else ConsoleFormatter()
    handler.setFormatter(Masking(formatter, mask) if mask else formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("agent").setLevel(level)
