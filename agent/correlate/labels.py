"""Attributes that many spans and log records share, encoded once per combination."""

from typing import NamedTuple

from agent.otlp.log_record import LOG_ATTRIBUTE_FIELD
from agent.otlp.span import SPAN_ATTRIBUTE_FIELD, SpanKind, encode_name
from agent.otlp.wire import Attribute

SYSTEM = "stem"
MAX_LABELS = 20_000
"""Combinations kept encoded (about 2 KiB each); beyond that they are made anew, which costs time, not truth."""


class Labels(NamedTuple):
    """Encoded attributes of one combination of task, queue, worker and namespace."""

    process: bytes
    wait: bytes
    send_name: bytes
    send: bytes
    log: bytes
    series: tuple[str, ...]


def _span(key: str, value: str) -> bytes:
    return Attribute(key, SPAN_ATTRIBUTE_FIELD).text(value) if value else b""


def _log(key: str, value: str) -> bytes:
    return Attribute(key, LOG_ATTRIBUTE_FIELD).text(value) if value else b""


class LabelCache:
    """Makes `Labels` and remembers them."""

    def __init__(self, *, semconv_names: bool, per_worker: bool) -> None:
        self._semconv_names = semconv_names
        self._per_worker = per_worker
        self._known: dict[tuple[str, str, str, str], Labels] = {}

    def get(self, task: str, queue: str, worker: str, namespace: str) -> Labels:
        """Return the labels of a combination."""
        key = (task, queue, worker, namespace)
        labels = self._known.get(key)
        if labels is None:
            if len(self._known) >= MAX_LABELS:
                self._known.clear()
            labels = self._known[key] = self._make(task, queue, worker, namespace)
        return labels

    def _make(self, task: str, queue: str, worker: str, namespace: str) -> Labels:
        series = (task, queue, namespace)
        common = _span("stem.task", task) + _span("stem.queue", queue) + _span("stem.namespace", namespace)
        return Labels(
            process=self._name("process", queue if self._semconv_names else task, SpanKind.CONSUMER)
            + self._messaging("process", queue)
            + common
            + _span("messaging.client.id", worker)
            + _span("stem.worker.id", worker),
            wait=self._name("wait", queue, SpanKind.INTERNAL) + common + _span("stem.worker.id", worker),
            send_name=self._name("send", queue, SpanKind.PRODUCER),
            send=self._messaging("send", queue) + common,
            log=_log("stem.task", task)
            + _log("stem.queue", queue)
            + _log("stem.worker.id", worker)
            + _log("stem.namespace", namespace),
            series=(*series, worker) if self._per_worker else series,
        )

    @staticmethod
    def _name(role: str, subject: str, kind: SpanKind) -> bytes:
        return encode_name(f"{role} {subject}".rstrip(), kind)

    @staticmethod
    def _messaging(operation: str, queue: str) -> bytes:
        return (
            _span("messaging.system", SYSTEM)
            + _span("messaging.operation.type", operation)
            + _span("messaging.operation.name", operation)
            + _span("messaging.destination.name", queue)
        )
