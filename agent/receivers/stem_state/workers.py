"""Workers, by the heartbeats that Stem keeps: who is up, since when not, and how far each clock is off. Pure."""

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import Any

from agent import instruments as of
from agent.receivers.stem_state.survey import Moment, Survey
from agent.stem.heartbeat import Heartbeat
from agent.stem.keys import Keys
from agent.stem.questions.query import LOOK_AGAIN, Query
from agent.stem.questions.workers import Heartbeats, WorkerHeartbeat, read_heartbeats
from agent.stem.timestamps import epoch_ns

_MS = 1000
_MS_NS = 1_000_000


class Watched:
    """What is known of one worker. Times are Unix milliseconds, by Redis' clock unless they are `said`."""

    __slots__ = ("beat", "said_ms", "skew_ms", "up", "written_ms")

    def __init__(self) -> None:
        self.beat: Heartbeat | None = None
        self.up = False
        self.said_ms = 0
        self.written_ms = 0
        self.skew_ms: int | None = None

    def heard(self, found: WorkerHeartbeat, redis_ms: int, zone: tzinfo) -> None:
        """Take a heartbeat, which may be the same as before; only an age tells skew and silence apart."""
        said_ms = epoch_ns(found.heartbeat.timestamp, zone) // _MS_NS
        if found.age_ms is not None:
            self.written_ms = redis_ms - found.age_ms
            self.skew_ms = said_ms - self.written_ms
        elif said_ms != self.said_ms:
            self.written_ms = min(said_ms - (self.skew_ms or 0), redis_ms)
        self.beat, self.said_ms = found.heartbeat, said_ms


class WorkerSurvey(Survey):
    """A worker is up for `timeout` seconds after a heartbeat, down until `ttl` seconds after it, and then forgotten.

    The index of workers also has those that are gone for ever: who was never heard by us is not told of.
    """

    def __init__(
        self, keys: Keys, namespace: str, zone: tzinfo, now_ns: int, *, timeout: float, ttl: float, most: int
    ) -> None:
        super().__init__(namespace, zone, now_ns)
        self._keys = keys
        self._timeout_ms, self._ttl_ms = timeout * _MS, ttl * _MS
        self._most = most
        self._workers: dict[str, Watched] = {}
        self._turn = 0
        self.late: dict[str, Heartbeat] = {}
        """Those that have been silent for half of the timeout, and are still up."""
        self.down: dict[str, Heartbeat] = {}
        """Those that were up in the turn before."""

    @property
    def heartbeats(self) -> Iterator[Heartbeat]:
        """The last heartbeat of every worker that is not forgotten."""
        return (worker.beat for worker in self._workers.values() if worker.beat)

    @property
    def queues(self) -> set[str]:
        """The queues that workers subscribe to, or hold tasks of."""
        return {
            queue
            for beat in self.heartbeats
            for queue in (*beat.extras.subscriptions.queues, *(each.name for each in beat.queues))
        }

    @property
    def namespaces(self) -> set[str]:
        """The worker namespaces that they say they are in."""
        return {beat.own_namespace for beat in self.heartbeats if beat.own_namespace}

    def ask(self, redis_ms: int) -> list[Query[Any]]:  # noqa: ARG002 - heartbeats have ages of their own
        """Ask for all heartbeats; for ages where there is no skew yet, and for every sixth worker in turn."""
        self._turn += 1
        ages = [
            worker
            for place, (worker, known) in enumerate(self._workers.items())
            if known.skew_ms is None or (place + self._turn) % LOOK_AGAIN == 0
        ]
        return [read_heartbeats(self._keys, self._most, ages if self._workers else None)]

    def take(self, answers: Sequence[Any], moment: Moment) -> None:
        """Tell who is up, and what they say of themselves."""
        (found,) = answers
        if not self.answered(found, "heartbeats"):
            return
        self._hear(found, moment)
        self.late, self.down = {}, {}
        for worker, known in list(self._workers.items()):
            if moment.redis_ms - known.written_ms > self._ttl_ms:
                del self._workers[worker]
            elif known.beat:
                self._tell(worker, known, known.beat, moment)

    def _hear(self, found: Heartbeats, moment: Moment) -> None:
        for each in found.alive:
            known = self._workers.setdefault(each.heartbeat.worker_id, Watched())
            known.heard(each, moment.redis_ms, self.zone)
        for worker, reason in list(found.unreadable.items())[:1]:
            self.troubles.append(
                f"{len(found.unreadable)} heartbeats that are none, as that of worker {worker}: {reason}"
            )
        if found.left_out:
            self.troubles.append(f"{found.left_out} workers not read: there are more than max_workers")

    def _tell(self, worker: str, known: Watched, beat: Heartbeat, moment: Moment) -> None:
        values = (worker, beat.own_namespace or self.namespace)
        age_ms = max(0, moment.redis_ms - known.written_ms)
        up = age_ms <= self._timeout_ms
        if up and age_ms > self._timeout_ms / 2:
            self.late[worker] = beat
        elif known.up and not up:
            self.down[worker] = beat
        known.up = up
        self.level(of.WORKER_UP, values, int(up))
        self.level(of.WORKER_AGE, values, age_ms / _MS)
        if known.skew_ms is not None:
            self.level(of.WORKER_SKEW, values, known.skew_ms / _MS)
        for instrument, value in (
            (of.WORKER_INFLIGHT, beat.inflight),
            (of.WORKER_CONCURRENCY, beat.extras.concurrency),
            (of.WORKER_MEMORY, beat.extras.memory_bytes),
        ):
            if value is not None and up:  # what it held when it was last heard is no news
                self.level(instrument, values, value)
