"""The metrics that only polling can tell (telemetry contract, section 4, source P)."""

from agent.instruments import COUNTER, GAUGE
from agent.otlp.metrics import Instrument

_QUEUE = ("queue", "namespace")


def _messages(name: str, text: str) -> Instrument:
    return Instrument(f"stem.{name}", GAUGE, "{message}", _QUEUE, text)


QUEUE_DEPTH = _messages("queue.depth", "Messages that wait and are ready, over all priorities")
QUEUE_DEPTH_KNOWN = Instrument("stem.queue.depth.known", GAUGE, "{queue}", _QUEUE, "1 if the server can tell the depth")
QUEUE_INFLIGHT = _messages("queue.inflight", "Messages delivered and not acknowledged")
QUEUE_DELAYED = _messages("queue.delayed", "Messages scheduled for later")
QUEUE_OVERDUE = _messages("queue.overdue", "Delayed messages past their time: no consumer drains them")
QUEUE_OLDEST_AGE = Instrument("stem.queue.oldest_age", GAUGE, "s", _QUEUE, "Age of the oldest message that is ready")
QUEUE_PAUSED = Instrument("stem.queue.paused", GAUGE, "{queue}", _QUEUE, "1 while the queue is paused, else 0")
QUEUE_ENQUEUED = Instrument("stem.queue.enqueued", COUNTER, "{message}", _QUEUE, "Messages added, repeats included")
QUEUE_DELIVERED = Instrument("stem.queue.delivered", COUNTER, "{message}", _QUEUE, "Messages handed to a consumer")
DLQ_DEPTH = _messages("dlq.depth", "Dead letters")
DLQ_OLDEST_AGE = Instrument("stem.dlq.oldest_age", GAUGE, "s", _QUEUE, "Age of the oldest dead letter")
SCHEDULE_OVERDUE = Instrument(
    "stem.schedule.overdue", GAUGE, "s", ("schedule", "namespace"), "For how long an entry should have been dispatched"
)
WORKFLOW_RUNS = Instrument(
    "stem.workflow.runs", GAUGE, "{run}", ("workflow", "status", "namespace"), "Workflow runs in the store"
)
