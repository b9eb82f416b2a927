"""The metrics that more than one component can tell (telemetry contract, section 4): one owner at a time does."""

from agent.otlp.metrics import Instrument, InstrumentKind

COUNTER, GAUGE, HISTOGRAM = InstrumentKind.COUNTER, InstrumentKind.GAUGE, InstrumentKind.HISTOGRAM

_WORKER = ("worker", "namespace")

WORKER_UP = Instrument("stem.worker.up", GAUGE, "{worker}", _WORKER, "1 while heartbeats are fresh, else 0")
WORKER_AGE = Instrument("stem.worker.heartbeat.age", GAUGE, "s", _WORKER, "Time since the last heartbeat")
WORKER_INFLIGHT = Instrument("stem.worker.inflight", GAUGE, "{task}", _WORKER, "Tasks the worker holds")
WORKER_CONCURRENCY = Instrument("stem.worker.concurrency", GAUGE, "{isolate}", _WORKER, "Tasks it can run at once")
WORKER_MEMORY = Instrument("stem.worker.memory", GAUGE, "By", _WORKER, "Resident memory")
WORKER_SKEW = Instrument("stem.worker.clock_skew", GAUGE, "s", _WORKER, "The worker's clock minus that of Redis")

_SCHEDULE = ("schedule", "namespace")

SCHEDULER_DRIFT = Instrument("stem.scheduler.drift", HISTOGRAM, "s", _SCHEDULE, "Absolute drift of dispatches")
DISPATCH_SUCCESS = Instrument("stem.scheduler.dispatch.success", COUNTER, "{dispatch}", _SCHEDULE, "Dispatches")
DISPATCH_FAILED = Instrument("stem.scheduler.dispatch.failed", COUNTER, "{dispatch}", _SCHEDULE, "Failed dispatches")

DEAD_LETTERED = Instrument(
    "stem.tasks.dead_lettered", COUNTER, "{task}", ("task", "queue", "namespace", "reason"), "Tasks given up"
)
