"""What was heard of an attempt, turned into what is told: its times, its end, and what is missing. Pure."""

from typing import NamedTuple

from agent.correlate.attempt import ERRORS, Attempt, Ending, EndKind, Mark, Ready, ready_time
from agent.correlate.family import Ancestry
from agent.correlate.origin import UNKNOWN_ORIGIN, Origin
from agent.stem.error_text import OTHER, error_type

WORKER_LOST = "worker-lost"
EXPIRED = "TaskExpired"
"""What Stem's own record says of an expired task."""


class Settled(NamedTuple):
    """An attempt with everything that was decided about it.

    Times are Unix nanoseconds with start <= end; `ready_ns` (0 when unknown) is when it could have started.
    `adjusted` says that a clock had to be corrected for that, `wait_at_least` that the wait may have been longer.
    """

    attempt: Attempt
    span_id: bytes
    trace_id: bytes
    origin: Origin
    ancestry: Ancestry
    kind: EndKind | None
    ending: Ending
    start_ns: int
    end_ns: int
    ready_ns: int
    wait_at_least: bool
    adjusted: bool
    missing: tuple[str, ...]
    end_reason: str

    @property
    def failed(self) -> bool:
        """Whether the span's status is Error."""
        return self.kind in ERRORS

    @property
    def error_type(self) -> str:
        """`error.type`, equal on span and metric; empty where there was no error."""
        if self.kind is EndKind.LOST:
            return WORKER_LOST
        if self.kind is EndKind.EXPIRED:
            return EXPIRED
        if not self.failed:
            return ""
        # From the text, as far as it tells: so signals and records agree on it.
        told = error_type(self.ending.error)
        return self.ending.error_type if told == OTHER and self.ending.error_type else told

    @property
    def ended_unseen(self) -> bool:
        """Whether it is known that it was over, and by when, and not when it ended."""
        end = self.attempt.end
        return end is not None and bool(end.over_ns) and not end.kinds and not end.finished_ns

    @property
    def repaired(self) -> bool:
        """Whether some of it was read from the result record."""
        return bool(self.attempt.marks & Mark.REPAIRED)


def decide(attempt: Attempt, ancestry: Ancestry, span_id: bytes) -> Settled:
    """Decide everything about an attempt that has an end."""
    origin = attempt.origin or UNKNOWN_ORIGIN
    kind, ending, told = attempt.outcome()
    missing = []
    if attempt.missing_start:
        missing.append("start")
    if kind is None or not told:
        missing.append("end")
    if not origin.enqueued_ns:
        missing.append("enqueued")
    start_ns = attempt.started_ns or min(attempt.received_ns or ending.time_ns, ending.time_ns)
    ready = ready_time(attempt, origin) if attempt.started_ns else Ready(0)
    return Settled(
        attempt=attempt,
        span_id=span_id,
        trace_id=origin.trace_id(attempt.task_id),
        origin=origin,
        ancestry=ancestry if attempt.origin else Ancestry(b"", traced=False, send_parent_id=b""),
        kind=kind,
        ending=ending,
        start_ns=start_ns,
        end_ns=max(ending.time_ns, start_ns),
        ready_ns=ready.time_ns,
        wait_at_least=ready.at_latest,
        adjusted=ready.clamped or ending.time_ns < start_ns,
        missing=tuple(missing),
        end_reason=ending.reason or _end_reason(kind, attempt, origin),
    )


_END_REASONS: dict[EndKind | None, str] = {
    EndKind.SUCCEEDED: "success",
    EndKind.RETRIED: "retry",
    EndKind.REVOKED: "revoked",
    EndKind.EXPIRED: "expired",
    EndKind.LOST: WORKER_LOST,
    None: "unknown",
}


def _end_reason(kind: EndKind | None, attempt: Attempt, origin: Origin) -> str:
    if kind is not EndKind.FAILED:
        return _END_REASONS[kind]
    if not (attempt.started_ns or attempt.missing_start):
        return "signature-invalid"  # the one failure that Stem signals of a task it did not run
    # Stem gives the dead letter the same reason, also where no retries were allowed.
    exhausted = origin.max_retries is not None and attempt.number >= origin.max_retries
    return "max-retries-exhausted" if exhausted else "error"
