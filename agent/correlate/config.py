"""What an operator writes about `correlate`."""

from typing import Literal

from pydantic import Field

from agent.correlate.results_config import ResultsConfig
from agent.settings.model import Config
from agent.settings.types import Duration, Flag


class LogsConfig(Config):
    """Log records made from signals."""

    min_severity: Literal["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "off"] = Field(
        "INFO", description="records below this severity are not made; `off`: none at all"
    )


class KeepConfig(Config):
    """Which attempts become spans; metrics count all of them."""

    ratio: float = Field(
        1.0, ge=0, le=1, description="share of the traces kept by their id; below 1 the other rules keep more"
    )
    failed: Flag = Field(default=True, description="keep attempts that failed, were retried or lost, and what followed")
    slow: float = Field(
        0.99, ge=0, lt=1, description="keep runs above this quantile of their own task's run times; 0: no such rule"
    )
    rare: Duration = Field(60.0, ge=0, description="keep one attempt of each task in such a time; 0: no such rule")


class CorrelateConfig(Config):
    """Merge the signals of each task attempt into spans, log records and metrics."""

    settle: Duration = Field(
        1.0, ge=0, description="after its first ending signal, how long an attempt waits for signals still on their way"
    )
    settled_ttl: Duration = Field(
        60.0,
        ge=0,
        description="how long a settled attempt is remembered, so that repeats and stragglers are recognised",
    )
    max_tasks: int = Field(100_000, gt=0, description="attempts held open; beyond it the oldest is dropped and counted")
    task_ttl: Duration = Field(86_400.0, gt=0, description="an attempt open for longer is dropped and counted")
    wait_spans: Flag = Field(default=True, description="make `wait` spans")
    span_name: Literal["task", "semconv"] = Field(
        "task", description="`process {task}`, or `process {queue}` as the messaging conventions have it"
    )
    exceptions: Literal["logs", "span_events"] = Field(
        "logs", description="where errors are told: in log records, or also in the older `exception` span event"
    )
    honor_sampled: Flag = Field(
        default=True,
        description="make no spans for traces that the producer's sampler rejected (metrics and logs stay)",
    )
    storage: str | None = Field(
        None,
        min_length=1,
        description="id of the extension that keeps what is known from a stop to the next start; absent: nobody does",
    )
    results: ResultsConfig = Field(
        default_factory=ResultsConfig, description="result records, from which lost signals are repaired"
    )
    keep: KeepConfig = Field(default_factory=KeepConfig, description="which attempts become spans")
    logs: LogsConfig = Field(default_factory=LogsConfig, description="log records made from signals")
    report_after: Duration = Field(
        0.0, ge=0, description="write a log record about attempts that run for longer; 0: never"
    )
    metrics_interval: Duration = Field(10.0, gt=0, description="how often metrics are exported")
    per_worker: Flag = Field(default=False, description="add the attribute `worker` to task metrics")
    cardinality_limit: int = Field(
        2000, ge=2, description="series per metric; what comes above goes to one with `otel.metric.overflow`"
    )
    series_ttl: Duration = Field(3600.0, gt=0, description="a series that nothing touches for this long ends")
    heartbeat_timeout: Duration = Field(
        30.0,
        gt=0,
        description="a worker silent for this long (three heartbeats) is lost, and its open attempts with it",
    )
    worker_ttl: Duration = Field(600.0, gt=0, description="a worker silent for this long is forgotten")
