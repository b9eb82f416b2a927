"""What ran on workers that vanished, node and all, so that nobody beside them can tell. Pure.

A worker that is late is looked at while its tasks are still pending under its name: soon another worker claims them.
Pending alone proves nothing, because prefetched work is pending too; a record does that says it runs there. When the
worker is given up, the records are read once more: what ended after all is not lost.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import tzinfo

from msgspec import Struct

from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.heartbeat import Heartbeat
from agent.stem.questions.deliveries import Pending
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import LostAttempt

MOST_PENDING = 100
"""Tasks of one worker looked at, of each priority of each queue."""

Records = Mapping[str, TaskStatus | str]


class Held(Struct, frozen=True):
    """An attempt that was seen to run on a worker."""

    envelope: Envelope
    attempt: int
    started_ns: int


class Vanishing:
    """The workers that are late, and what was seen to run on each."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._held: dict[str, dict[str, Held]] = {}

    def only(self, workers: Collection[str]) -> None:
        """Forget what was seen on all others: they are heard again, or were given up."""
        self._held = {worker: held for worker, held in self._held.items() if worker in workers}

    def saw(self, worker: str, pending: Iterable[Pending], records: Records) -> None:
        """Note what is pending under a worker's name, and what the records of these tasks say."""
        held = self._held.setdefault(worker, {})
        for envelope in (each.envelope for each in pending):
            record = records.get(envelope.id) if envelope and envelope.id else None
            if envelope and isinstance(record, TaskStatus) and self._runs(record, worker, envelope.attempt or 0):
                started_ns = epoch_ns(record.started_at, self._zone) if record.started_at else 0
                held[record.id] = Held(envelope, envelope.attempt or 0, started_ns)

    def wanted(self, worker: str) -> list[str]:
        """Return the tasks whose records decide, when a worker is given up."""
        return list(self._held.get(worker, ()))

    def gone(self, worker: str, beat: Heartbeat, namespace: str, records: Records) -> Iterator[LostAttempt]:
        """Give a worker up: yield what was lost with it, `namespace` being that of one that names none."""
        lost_ns = epoch_ns(beat.timestamp, self._zone)
        for task_id, held in self._held.pop(worker, {}).items():
            record = records.get(task_id)
            if isinstance(record, TaskStatus) and not self._ended(record, worker, held.attempt):
                where = beat.own_namespace or namespace
                yield LostAttempt(where, worker, held.attempt, held.envelope, held.started_ns, lost_ns)

    @staticmethod
    def _runs(record: TaskStatus, worker: str, attempt: int) -> bool:
        is_there = record.worker == worker and record.attempt == attempt
        return record.state is TaskState.RUNNING and is_there and record.started_at is not None

    @staticmethod
    def _ended(record: TaskStatus, worker: str, attempt: int) -> bool:
        """Whether an attempt may have come to an end on this worker: a record of a retry names no worker."""
        if record.attempt != attempt or record.state in {TaskState.RUNNING, TaskState.QUEUED}:
            return False
        return record.worker in {worker, None}
