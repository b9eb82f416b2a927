"""What flows between connectors, processors and exporters."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from agent.core.pressure import Priority
from agent.otlp.resource import Resource


class Kind(StrEnum):
    """The kinds of pipelines that carry telemetry; `signals`, the fourth, carries Stem's own."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded items of one kind under one resource.

    An item is the payload of one `Span`, `LogRecord` or `Metric` message; `count` is what the ledger and OTLP's
    partial success count: spans, log records, or data points. A metric has many: then `counts` says how many each item
    has. `since_ns` is when the oldest signal that they tell of happened (Unix nanoseconds); 0 where there is none to
    speak of. What nobody ranked has the `priority` of what is kept longest.

    `source` is the id of the component that tells. A batch of metrics is everything that its source has to tell at this
    moment under this resource: what it told before and is not in it has ended, and a batch without items says that of
    everything. Exporters that keep nothing ignore such a batch. One that `goes_on` tells nothing new: it says from
    where its source goes on with what was told before, by another process or agent.
    """

    kind: Kind
    resource: Resource
    items: Sequence[bytes]
    count: int
    since_ns: int = 0
    priority: Priority = Priority.ERRORS
    counts: Sequence[int] = ()
    source: str = ""
    goes_on: bool = False

    @property
    def size(self) -> int:
        """Bytes of the items, uncompressed, without the request around them."""
        return sum(map(len, self.items))


class Consumer(Protocol):
    """The next step of a pipeline. It takes what it is given at once: waiting is done in queues, visibly."""

    def consume(self, batch: Batch) -> None:
        """Take the batch."""


class Fanout:
    """Hands every batch to several consumers; batches are immutable, so they are shared, not copied."""

    __slots__ = ("_consumers",)

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._consumers = tuple(consumers)

    def consume(self, batch: Batch) -> None:
        """Hand the batch to each consumer in turn."""
        for consumer in self._consumers:
            consumer.consume(batch)
