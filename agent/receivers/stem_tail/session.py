"""What is known from when this agent began to lead, or from where another stopped: entries and records in, facts out.

Pure; time is an argument.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from zoneinfo import ZoneInfo

from agent.core.clock import NANOSECONDS
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.fleet import FleetWatch
from agent.receivers.stem_tail.flight import Ended, Flight, News, Open, Told
from agent.receivers.stem_tail.flights import Flights, Pace
from agent.receivers.stem_tail.hold import Hold, Made
from agent.receivers.stem_tail.notes import Notes, Standing
from agent.receivers.stem_tail.positions import Positions
from agent.stem.catalogue import UNREGISTERED, TaskState
from agent.stem.keys import Keys
from agent.stem.questions.dead_letters import DeadLetter
from agent.stem.questions.deliveries import Place
from agent.stem.questions.entries import Entry
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import DeadLettered, EndTold, Enqueued, QueueEvent, Recorded, Tailed, Unended

_MS_NS = 1_000_000


class Session:
    """Where reading stands, which tasks are under way, and who they are with."""

    def __init__(self, config: StemTailConfig, begin_ms: int, notes: Notes | None = None, now_ns: int = 0) -> None:
        self._config = config
        self._zone = ZoneInfo(config.assume_timezone)
        begin_ms = notes.standing.begin_ms if notes else begin_ms
        self.positions = Positions(Keys(config.store_namespace), config.max_queues, begin_ms)
        self.positions.follow(config.queues or (notes.standing.queues if notes else ()))
        self.flights = Flights(_pace(config), self._zone, begin_ms)
        self.fleet = FleetWatch(config, notes.standing.letters if notes else {})
        self.hold = Hold()
        self.told = False
        if notes:
            known = {stream: at for stream, at in notes.standing.at.items() if stream in self.positions.at}
            self.positions.at |= known
            self.flights.restore(notes.flights, notes.standing.since_ms, now_ns)
            for task_id, flight in notes.flights.items():
                for made in self._told_before(task_id, flight):
                    self.hold.take(None, made, now_ns)

    def entered(self, entry: Entry, now_ns: int) -> bool:
        """Take an entry of a stream; return whether it is one."""
        if entry.event is not None and entry.envelope is not None:
            self.hold.take(None, partial(self._event, entry), now_ns)
            return True
        if entry.envelope is None:
            return False
        place = Place(self.positions.queue_of(entry.stream), entry.stream, entry.entry)
        published = self.flights.entered(entry.envelope, entry.ready_ms, place, now_ns)
        self.hold.take(None, partial(self._enqueued, entry, published=published), now_ns)
        return True

    def recorded(self, record: TaskStatus, now_ns: int) -> bool:
        """Take a record; return whether it is of a worker that was never read of."""
        before = self.flights.ended(record.id)
        return self._take(self.flights.told(record, now_ns), now_ns, before)

    def acknowledged(self, done: Collection[Place], now_ns: int) -> None:
        """Take which entries were acknowledged, of those whose records say nothing."""
        self._take(self.flights.acknowledged(done, now_ns), now_ns)

    def _take(self, news: Sequence[News], now_ns: int, before: Collection[Ended] = ()) -> bool:
        new = [self.hold.is_new(_worker_of(each), now_ns) for each in news]
        for each in news:
            for end in _deliveries(before, each):  # told long ago, for whoever told it
                self.hold.take(_worker_of(each), partial(self._end_told, each.envelope.id or "", end), now_ns)
            self.hold.take(_worker_of(each), partial(self._news, each), now_ns)
        return any(new)

    def dead(self, queue: str, letter: DeadLetter, now_ns: int) -> None:
        """Take a dead letter."""
        if letter.reason == UNREGISTERED:
            self.flights.unregistered(letter.envelope.id or "")
        namespace, reason = self._config.namespace, letter.reason or ""
        fact = DeadLettered(namespace, queue, letter.envelope, reason, letter.error, letter.dead_at)
        self.hold.take(None, lambda: fact, now_ns)

    def ready(self, now_ns: int, *, everything: bool = False) -> Iterator[Tailed]:
        """Yield the facts that can be told."""
        for fact in self.hold.ready(now_ns, everything=everything):
            self.told = True
            yield fact

    def standing(self) -> Standing:
        """Return where reading stands."""
        positions = self.positions
        queues, since_ms = list(positions.queues), self.flights.since_ms
        return Standing(positions.begin_ms, since_ms, queues, dict(positions.at), self.fleet.letters())

    def changes(self, *, everything: bool = False) -> dict[str, Flight | None]:
        """Return the tasks under way, or those that changed since this was asked last."""
        self.told = False
        return dict(self.flights.all()) if everything else self.flights.changes()

    def _told_before(self, task_id: str, flight: Flight) -> list[Made]:
        """Return what is known of a task, and was told by the agent before: what began first comes first."""
        known: list[Ended | Open] = [*flight.ended, *flight.open]
        known.sort(key=lambda each: epoch_ns(each.started_at, self._zone) if each.started_at else 0)
        return [partial(self._told, task_id, each) for each in known]

    # --- facts -------------------------------------------------------------------------------------------------------

    def _told(self, task_id: str, each: Ended | Open) -> Tailed:
        return self._end_told(task_id, each) if isinstance(each, Ended) else self._start_told(task_id, each)

    def _end_told(self, task_id: str, end: Ended) -> EndTold:
        return EndTold(
            *(self.fleet.namespace_of(end.worker), task_id, end.attempt, end.worker, end.started_at),
            over_ns=end.over_ns,
            retried=end.retried,
            next_retry_ns=end.next_ns,
        )

    def _start_told(self, task_id: str, start: Open) -> Recorded:
        worker, state = start.worker, TaskState.RUNNING
        record = TaskStatus(id=task_id, state=state, attempt=start.attempt, worker=worker, started_at=start.started_at)
        namespace, claimed = self.fleet.namespace_of(worker), self.fleet.is_claimed(worker)
        return Recorded(namespace, record, start.envelope, claimed, start_told=True)

    def _enqueued(self, entry: Entry, *, published: bool) -> Enqueued:
        assert entry.envelope  # noqa: S101 - looked at before it was taken
        queue = entry.envelope.queue or self.positions.queue_of(entry.stream)
        claimed = self.fleet.is_claimed(None)
        return Enqueued(self._config.namespace, queue, entry.envelope, entry.ready_ms * _MS_NS, published, claimed)

    def _event(self, entry: Entry) -> QueueEvent:
        assert entry.envelope  # noqa: S101 - looked at before it was taken
        assert entry.event  # noqa: S101 - likewise
        told_at = entry.event.emitted_at or entry.envelope.enqueued_at
        time_ns = epoch_ns(told_at, self._zone) if told_at else entry.ready_ms * _MS_NS
        queue, name = self.positions.queue_of(entry.stream), entry.event.event_name
        return QueueEvent(self._config.namespace, queue, name, entry.entry, time_ns, entry.envelope)

    def _news(self, news: News) -> Tailed:
        worker = _worker_of(news)
        namespace, claimed = self.fleet.namespace_of(worker), self.fleet.is_claimed(worker)
        if isinstance(news, Told):
            return Recorded(namespace, news.record, news.envelope, claimed, news.start_told)
        return Unended(
            *(namespace, news.envelope, news.attempt, worker, news.started_at, news.over_ns, news.retried),
            claimed=claimed,
            start_told=news.start_told,
        )


def _deliveries(ended: Collection[Ended], news: News) -> Iterator[Ended]:
    number = news.record.attempt if isinstance(news, Told) else news.attempt
    return (end for end in ended if end.attempt == number)


def _worker_of(news: News) -> str | None:
    return news.record.worker if isinstance(news, Told) else news.worker


def _pace(config: StemTailConfig) -> Pace:
    results = config.results
    return Pace(
        young_ns=int(results.young * NANOSECONDS),
        old_ns=int(results.old * NANOSECONDS),
        most=config.max_tasks,
        ttl_ns=int(config.task_ttl * NANOSECONDS),
        claim_ns=int(config.claim_interval * NANOSECONDS),
    )
