"""Queues: which there are, and what they hold. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from agent.receivers.stem_state import instruments as of
from agent.receivers.stem_state.notes import QueueNotes
from agent.receivers.stem_state.survey import Moment, Survey
from agent.stem.keys import Keys
from agent.stem.questions.discovery import QueueWalk
from agent.stem.questions.pauses import read_pauses
from agent.stem.questions.query import Query
from agent.stem.questions.queues import QueueState, QueueWatch, is_control

_TOTALS = (of.QUEUE_ENQUEUED, of.QUEUE_DELIVERED)
_NAMED = 10
"""So many queues are named where something is said of several."""


class QueueSurvey(Survey):
    """Reads every known queue; finds those that nobody named, a stretch of the keyspace at a time."""

    def __init__(
        self, keys: Keys, names: Sequence[str], namespace: str, zone: tzinfo, now_ns: int, *, budget: int, most: int
    ) -> None:
        super().__init__(namespace, zone, now_ns)
        self._keys = keys
        self._most = most
        self._budget = budget
        self._walk = None if names else QueueWalk(keys)
        self._complete = False
        self._watches: dict[str, QueueWatch] = {}
        self.new: set[str] = set()
        """Those that were not there when the keyspace was looked through."""
        self._named = frozenset(names)
        self._noted: frozenset[str] = frozenset()
        self._left_out: set[str] = set()
        for name in names:
            self._watch(name)

    @property
    def queues(self) -> list[str]:
        """The queues that are read."""
        return list(self._watches)

    def met(self, queues: Iterable[str]) -> None:
        """Read these queues too, of which somebody else told: unless the operator named those that count."""
        if self._walk:
            for queue in queues:
                self._watch(queue)

    def notes(self) -> QueueNotes:
        """Return what the next leader has to know."""
        return QueueNotes(self._complete, sorted({*self._watches, *self._noted}), self.totals())

    def restore(self, notes: QueueNotes) -> None:
        """Go on from the notes of the leader before: queues that are not in them have come since."""
        self._complete, self._noted = notes.complete, frozenset(notes.queues)
        self.restore_totals(notes.totals, _TOTALS)

    def ask(self, redis_ms: int) -> list[Query[Any]]:
        """Ask about the queues, and for more of them."""
        walk = [self._walk.read(self._budget)] if self._walk else []
        return [*walk, *(watch.read(redis_ms, self.zone) for watch in self._watches.values())]

    def take(self, answers: Sequence[Any], moment: Moment) -> None:
        """Tell what the queues hold; read from the next turn on what was found in this one."""
        found: set[str] = set()
        if self._walk:
            found, *answers = answers
            found = found if self.answered(found, "looking for queues") else set()
        watches = list(self._watches.values())
        unknown = []
        for watch, state in zip(watches, answers, strict=True):
            if self.answered(state, f"queue {watch.queue}"):
                if watch.exists or watch.queue in self._named:
                    self._tell(state, moment)
                found |= watch.neighbours
                unknown += [watch.queue] if state.depth is None else []
                self._keep_or_forget(watch)
        self.met(found)
        # Not before everything that was found was read once: the streams of one queue tell of others.
        looked_through = self._walk is not None and self._walk.rounds > 0
        self._complete = self._complete or (looked_through and len(self._watches) <= len(watches))
        if unknown:
            self.troubles.append(
                f"the depth of {_named(unknown)} is unknown: the server tells no lag (it needs Redis 7 or Valkey; "
                "entries that were deleted hide it too)"
            )
        if len(self._watches) < self._most:
            self._left_out.clear()  # those that there still are will be found again
        if self._left_out:
            self.troubles.append(f"{_named(sorted(self._left_out))} not read: there are more than max_queues")

    def _watch(self, queue: str) -> None:
        if queue in self._watches or is_control(queue) or not queue:
            return
        if len(self._watches) < self._most:
            self._left_out.discard(queue)
            self._watches[queue] = QueueWatch(self._keys, queue)
            if self._complete and queue not in self._noted:
                self.new.add(queue)
        elif len(self._left_out) < self._most:
            self._left_out.add(queue)

    def _keep_or_forget(self, watch: QueueWatch) -> None:
        """Forget a queue that was found and is no more, or never was; one that was named is told with zeros."""
        if watch.queue not in self._named and not watch.exists:
            del self._watches[watch.queue]
            self.new.discard(watch.queue)
            self._noted -= {watch.queue}
            self.ended(_TOTALS, (watch.queue, self.namespace))

    def _tell(self, state: QueueState, moment: Moment) -> None:
        values, new = (state.queue, self.namespace), state.queue in self.new
        if state.depth is not None:
            self.level(of.QUEUE_DEPTH, values, state.depth)
        self.level(of.QUEUE_DEPTH_KNOWN, values, int(state.depth is not None))
        self.level(of.QUEUE_INFLIGHT, values, state.inflight)
        self.level(of.QUEUE_DELAYED, values, state.delayed)
        self.level(of.QUEUE_OVERDUE, values, state.overdue)
        self.level(of.DLQ_DEPTH, values, state.dead)
        if state.oldest_ready_ms is not None:
            self.level(of.QUEUE_OLDEST_AGE, values, max(0, moment.redis_ms - state.oldest_ready_ms) / 1000)
        elif not state.depth and state.depth is not None:
            self.level(of.QUEUE_OLDEST_AGE, values, 0.0)
        dead_s = _age_s(state.oldest_dead, moment)
        if dead_s is not None or not state.dead:
            self.level(of.DLQ_OLDEST_AGE, values, dead_s or 0.0)
        self.reached(of.QUEUE_ENQUEUED, values, state.enqueued, moment, new=new)
        self.reached(of.QUEUE_DELIVERED, values, state.delivered, moment, new=new)


class PauseSurvey(Survey):
    """Which queues are paused: Stem keeps that where it keeps revocations, for each worker namespace."""

    def __init__(self, namespace: str, zone: tzinfo, now_ns: int) -> None:
        super().__init__(namespace, zone, now_ns)
        self.queues: list[str] = []
        self.namespaces: set[str] = set()
        """Those of which workers were heard, beside our own."""
        self._asked: list[str] = []

    def ask(self, redis_ms: int) -> list[Query[Any]]:
        """Ask about all queues, once for each worker namespace."""
        self._asked = list(self.queues)
        now = datetime.fromtimestamp(redis_ms / 1000, UTC)
        return [read_pauses(Keys(name), self._asked, now) for name in sorted({self.namespace, *self.namespaces})]

    def take(self, answers: Sequence[Any], moment: Moment) -> None:  # noqa: ARG002 - it has no age
        """Tell of each queue whether it is paused in any of them."""
        known = [answer for answer in answers if self.answered(answer, "paused queues")]
        for queue in self._asked if known else ():
            paused = any(answer[queue] for answer in known)
            self.level(of.QUEUE_PAUSED, (queue, self.namespace), int(paused))


def _age_s(moment_then: datetime | None, moment: Moment) -> float | None:
    return None if moment_then is None else max(0.0, moment.redis_ms / 1000 - moment_then.timestamp())


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"queue{'s' if len(names) > 1 else ''} {', '.join(names[:_NAMED])}{more}"
