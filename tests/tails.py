"""What is on the streams and in the records of a fleet that says nothing, for the tests of those that read it."""

from datetime import datetime, timedelta
from typing import Any

from agent.receivers.stem_tail.flight import News
from agent.receivers.stem_tail.flights import Flights, Pace
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.keys import Keys
from agent.stem.questions.deliveries import Place
from agent.stem.questions.entries import Entry
from agent.stem.status import TaskStatus
from tests.support import EPOCH, SECOND, TASK_ID, UTC_ZONE, nanoseconds

NOW_NS = nanoseconds(EPOCH)
NOW_MS = NOW_NS // 1_000_000
PACE = Pace(young_ns=SECOND // 20, old_ns=5 * SECOND, most=3, ttl_ns=600 * SECOND, claim_ns=30 * SECOND)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def entry(number: int = 0, *, not_before: datetime | None = None, **changes: Any) -> Envelope:
    """The envelope on a stream."""
    told = {"id": TASK_ID, "name": "email.send", "queue": "default", "enqueued_at": at(0), "max_retries": 3}
    return Envelope(**{**told, **changes}, attempt=number, not_before=not_before)


def on_stream(envelope: Envelope, *, ready: float = 0.0, stream: str = "stem:stream:default") -> Entry:
    ready_ms = NOW_MS + round(ready * 1000)
    return Entry(stream, f"{ready_ms}-0", ready_ms, envelope)


def record(state: TaskState, number: int = 0, **changes: Any) -> TaskStatus:
    told = {"id": TASK_ID, "updated_at": at(0.5), "task": "email.send", "queue": "default", **changes}
    return TaskStatus(**told, state=state, attempt=number)


def running(started: float = 0.0, worker: str = "worker-1", number: int = 0, **changes: Any) -> TaskStatus:
    told = {"worker": worker, "started_at": at(started), "updated_at": at(started), **changes}
    return record(TaskState.RUNNING, number, **told)


def succeeded(
    started: float = 0.0, ended: float = 0.5, worker: str = "worker-1", number: int = 0, **changes: Any
) -> TaskStatus:
    told = {"worker": worker, "started_at": at(started), "completed_at": at(ended), "updated_at": at(ended), **changes}
    return record(TaskState.SUCCEEDED, number, **told)


def failed(
    started: float = 0.0, ended: float = 0.5, worker: str = "worker-1", number: int = 3, **changes: Any
) -> TaskStatus:
    told = {"worker": worker, "started_at": at(started), "failed_at": at(ended), "updated_at": at(ended), **changes}
    return record(TaskState.FAILED, number, **told)


def retried(ended: float = 0.5, number: int = 0, **changes: Any) -> TaskStatus:
    return record(TaskState.RETRIED, number, **{"updated_at": at(ended), "retry_delay_ms": 300, **changes})


def sent_back(ended: float = 1.0, number: int = 0) -> TaskStatus:
    """A record of a rate limit: no attempt was made."""
    return record(TaskState.RETRIED, number, updated_at=at(ended), retry_after_ms=300, rate_limited=True)


def queued(written: float = 0.4) -> TaskStatus:
    """What a publisher writes, late."""
    return record(TaskState.QUEUED, updated_at=at(written), task=None)


def place_of(envelope: Envelope, ready_ms: int) -> Place:
    queue = envelope.queue or "default"
    return Place(queue, Keys().stream(queue), f"{ready_ms}-{envelope.attempt or 0}")


class Tail:
    """Flights, and the seconds that have passed."""

    def __init__(self, pace: Pace = PACE, seconds: float = 0.0) -> None:
        self.flights = Flights(pace, UTC_ZONE, NOW_MS)
        self.seconds = seconds

    @property
    def now_ns(self) -> int:
        return NOW_NS + round(self.seconds * SECOND)

    def entered(self, *entries: Envelope, seconds: float | None = None) -> list[bool]:
        """Take entries that are ready now; return which are publishes."""
        self.seconds = self.seconds if seconds is None else seconds
        ms = NOW_MS + round(self.seconds * 1000)
        return [self.flights.entered(each, ms, place_of(each, ms), self.now_ns) for each in entries]

    def told(self, *records: TaskStatus, seconds: float | None = None) -> list[News]:
        """Take records; return all news together."""
        self.seconds = self.seconds if seconds is None else seconds
        return [news for each in records for news in self.flights.told(each, self.now_ns)]

    def handed_over(self) -> "Tail":
        """Return another's, that goes on from what this one leaves."""
        other = Tail(seconds=self.seconds)
        flights = {task_id: flight for task_id, flight in self.flights.all().items() if flight}
        other.flights.restore(flights, self.flights.since_ms, other.now_ns)
        return other
