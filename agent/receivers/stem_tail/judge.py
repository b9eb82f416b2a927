"""What a record means for the deliveries of its task. Pure.

A task is under way from an entry on a stream of its queue on: each entry is a delivery that is owed an answer by the
task's record. What begins there is open until the record tells of its end.

| a record that | answers an entry of its attempt | what it proves |
| --- | --- | --- |
| is `queued` | no: a publisher writes it late, also over an end | nothing |
| names a start that is open | no | that delivery's state |
| names another start | the newest before it | another delivery: a copy of a lease, or taken over |
| was sent back (rate limit, pause) | the oldest | no attempt; another entry will come |
| names no start, and never had one (expired, signature) | the oldest | that delivery's end |
| names no start, though it ran | the oldest, if nothing is open | that of the open one, if no other can be it |
| is of a later attempt | all before it | that those are over; how, no record tells any more |
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, tzinfo

from msgspec.structs import replace

from agent.core.clock import NANOSECONDS
from agent.receivers.stem_tail.flight import Ended, Flight, News, Open, Told, Unseen, lease_ns
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns

MOST_ENDED = 20
LEAST_RENEWED_NS = NANOSECONDS
"""Of a task that runs for so long Stem may renew the lease (at half of it), which leaves a copy of it that is delivered
up to a lease after its end."""
_CLAIMS_AWAITED = 2
_MS_NS = 1_000_000
_FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class Judge:
    """Judges records; another worker may take a task over after `claim_ns`. `counts` are `ambiguous`, `overlooked`."""

    def __init__(self, claim_ns: int, zone: tzinfo) -> None:
        self._claim_ns = claim_ns
        self._zone = zone
        self.counts: Counter[str] = Counter()

    def changed(self, flight: Flight, record: TaskStatus, number: int, now_ns: int) -> list[News]:
        """Take a record of an attempt that is not `queued`, and differs from the one before; return what is new."""
        flight.over = record.state in _FINAL
        found: list[News] = [*self._passed_over(flight, record, number, now_ns), *self._judge(flight, record, number)]
        self._note_ends(flight, found, now_ns)
        return found

    def unchanged(self, flight: Flight, record: TaskStatus, now_ns: int) -> list[News]:
        """Take a record that says the same for a while; return the deliveries that are given up for that."""
        if not (flight.over and self._is_given_up(flight, now_ns)):
            return []
        found: list[News] = [self._unseen(each, flight.changed_ns) for each in flight.open]
        # What was there before the last start was that delivery, or was sent back and came again.
        last = record.started_at or record.updated_at
        last_ms = epoch_ns(last, self._zone) // _MS_NS if last else 0
        flight.open, flight.owed = [], [owed for owed in flight.owed if owed.ready_ms > last_ms]
        return found

    def _note_ends(self, flight: Flight, found: Iterable[News], now_ns: int) -> None:
        """Remember what was told to have ended, and whether the copy of its lease may still be delivered."""
        for each in found:
            if isinstance(each, Unseen):
                flight.ended.append(Ended(each.attempt, each.worker, each.started_at, each.retried))
            elif each.record.state is not TaskState.RUNNING:
                record = each.record
                ended_ns = epoch_ns(record.updated_at, self._zone) if record.updated_at else 0
                delay_ms, retried = record.retry_delay_ms, record.state is TaskState.RETRIED
                next_ns = ended_ns + delay_ms * _MS_NS if retried and ended_ns and delay_ms is not None else 0
                flight.ended.append(Ended(record.attempt or 0, record.worker, record.started_at, retried, next_ns))
                started_ns = epoch_ns(record.started_at, self._zone) if record.started_at else 0
                if ended_ns - started_ns >= LEAST_RENEWED_NS:
                    flight.lingers_ns = now_ns + 2 * lease_ns(each.envelope)
        del flight.ended[:-MOST_ENDED]

    def _is_given_up(self, flight: Flight, now_ns: int) -> bool:
        """Whether a delivery beside the one that ended its task would have ended too, or will not tell.

        A copy of a lease runs beside the first delivery for as long as the task takes.
        """
        waited_ns = now_ns - flight.changed_ns
        starts = (epoch_ns(each.started_at, self._zone) for each in flight.open if each.started_at)
        ran_ns = flight.changed_ns - min(starts, default=flight.changed_ns)
        return waited_ns >= max(_CLAIMS_AWAITED * self._claim_ns, ran_ns)

    def _passed_over(self, flight: Flight, record: TaskStatus, number: int, now_ns: int) -> list[Unseen]:
        """Return the deliveries of attempts before the one that a record is of: it will say nothing more of them."""
        over_ns = min(
            (epoch_ns(time, self._zone) for time in (record.started_at, record.updated_at) if time), default=0
        )
        over_ns = over_ns or now_ns
        passed = [each for each in flight.open if each.attempt < number]
        seen = {each.attempt for each in passed}
        blank = {owed.attempt: owed for owed in flight.owed if owed.attempt < number and owed.attempt not in seen}
        self.counts["overlooked"] += len(blank)
        flight.owed = [owed for owed in flight.owed if owed.attempt >= number]
        flight.open = [each for each in flight.open if each.attempt >= number]
        passed += [Open(owed.attempt, None, None, owed.envelope) for owed in blank.values()]
        deliveries = Counter([each.attempt for each in passed] + [each.attempt for each in flight.ended])
        return [self._unseen(each, over_ns, retried=self._asked(each, deliveries)) for each in passed]

    @staticmethod
    def _asked(each: Open, deliveries: Counter[int]) -> bool:
        """Whether a delivery asked for the next attempt: the only one of its attempt, which was allowed to.

        Of several only one need have; and what was not allowed to failed, and was replayed.
        """
        most = each.envelope.max_retries
        return deliveries[each.attempt] == 1 and (most is None or each.attempt < most)

    @staticmethod
    def _unseen(each: Open, over_ns: int, *, retried: bool = False) -> Unseen:
        return Unseen(each.envelope, each.attempt, each.worker, each.started_at, over_ns, retried, each.told)

    def _judge(self, flight: Flight, record: TaskStatus, number: int) -> list[News]:
        if record.rate_limited or record.queue_paused:
            flight.returns = self._answer(flight, number) or flight.returns
            return []
        if record.started_at is not None:
            return self._with_start(flight, record, number)
        if record.expired or record.security:
            envelope = self._answer(flight, number)
            return [Told(record, envelope)] if envelope else []
        return self._without_start(flight, record, number)

    def _with_start(self, flight: Flight, record: TaskStatus, number: int) -> list[News]:
        delivery = (number, record.worker, record.started_at)
        known = next((each for each in flight.open if (each.attempt, each.worker, each.started_at) == delivery), None)
        if known is None:
            others = [each for each in flight.open if each.attempt == number]
            envelope = self._answer(flight, number, record.started_at) or (others[-1].envelope if others else None)
            if envelope is None:
                return []  # read before: nothing of this attempt is awaited
            known = Open(number, record.worker, record.started_at, envelope)
            flight.open.append(known)
        if record.state is not TaskState.RUNNING:
            flight.open.remove(known)
        return [Told(record, known.envelope, known.told)]

    def _without_start(self, flight: Flight, record: TaskStatus, number: int) -> list[News]:
        """Find the delivery that ended: a record of a retry names neither start nor worker."""
        running = [each for each in flight.open if each.attempt == number]
        if record.worker is not None:
            running = [each for each in running if each.worker == record.worker]
        owed = any(each.attempt == number for each in flight.owed)
        if not running:
            envelope = self._answer(flight, number)
            return [Told(record, envelope)] if envelope else []
        (first, *more) = running
        if more or owed or not self._is_soon(first, record):
            self.counts["ambiguous"] += 1
            return []
        flight.open.remove(first)
        ended = replace(record, worker=first.worker, started_at=first.started_at)
        return [Told(ended, first.envelope, first.told)]

    def _is_soon(self, delivery: Open, record: TaskStatus) -> bool:
        """Whether a delivery ended before another worker could have taken it over, and ended it unseen."""
        if record.updated_at is None or delivery.started_at is None:
            return False
        run_ns = epoch_ns(record.updated_at, self._zone) - epoch_ns(delivery.started_at, self._zone)
        return 0 <= run_ns < self._claim_ns

    def _answer(self, flight: Flight, number: int, started_at: datetime | None = None) -> Envelope | None:
        """Take an entry of an attempt as answered, and return its envelope.

        Where several are owed nobody knows which it was: then the newest that was there at the start, so that the wait
        is told as no longer than it was; without a start the oldest.
        """
        owed = [each for each in flight.owed if each.attempt == number]
        if not owed:
            return None
        started_ms = epoch_ns(started_at, self._zone) // _MS_NS if started_at else 0
        there = [each for each in owed if each.ready_ms <= started_ms]
        answered = there[-1] if there else owed[0]
        flight.owed.remove(answered)
        return answered.envelope
