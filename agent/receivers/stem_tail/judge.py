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
| is of a later attempt | all before it but copies of leases | that those are over; how, no record tells any more |
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, tzinfo

from msgspec.structs import replace

from agent.core.clock import NANOSECONDS
from agent.receivers.stem_tail.flight import Ended, Flight, News, Open, Owed, Told, Unseen, lease_ns
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
    """Judges records. `counts` are `ambiguous`, `overlooked`, `hidden`.

    Another worker may take a task over after `claim_ns`. `seen`: whether every entry of an envelope's task was seen.
    """

    def __init__(self, claim_ns: int, zone: tzinfo, seen: Callable[[Envelope], bool]) -> None:
        self._claim_ns = claim_ns
        self._zone = zone
        self._seen = seen
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
        found = self._given_up(flight, record)
        self._note_ends(flight, found, now_ns)
        return found

    def hidden(self, flight: Flight, over: Collection[Owed], now_ns: int) -> list[News]:
        """Take entries that were acknowledged, so that their answers were written, and hidden; return what is over.

        Of several entries of an attempt, all but one may have been sent back.
        """
        told = {each.attempt for each in flight.ended}
        later = {*told, *(each.attempt for each in flight.owed), *(each.attempt for each in over)}
        found: list[News] = []
        for owed in {each.attempt: each for each in over if each.attempt not in told}.values():
            nameless = Open(owed.attempt, None, None, owed.envelope)
            found.append(self._unseen(nameless, now_ns, later=max(later) > owed.attempt))
        self.counts["hidden"] += len(found)
        self._note_ends(flight, found, now_ns)
        return found

    def _given_up(self, flight: Flight, record: TaskStatus) -> list[News]:
        told = {*(each.attempt for each in flight.ended), *(each.attempt for each in flight.open)}
        blank = {owed.attempt: owed for owed in flight.owed if owed.attempt < (record.attempt or 0)}
        found: list[News] = [self._unseen(each, flight.changed_ns) for each in flight.open]
        found += [self._overlooked(owed, flight.changed_ns) for number, owed in blank.items() if number not in told]
        # What was there before the last start was that delivery, or was sent back and came again.
        last_ms = self._ns(record.started_at or record.updated_at) // _MS_NS
        flight.open, flight.owed = [], [owed for owed in flight.owed if owed.ready_ms > last_ms]
        return found

    def _note_ends(self, flight: Flight, found: Iterable[News], now_ns: int) -> None:
        """Remember what was told to have ended, and whether the copy of its lease may still be delivered."""
        for each in found:
            if isinstance(each, Unseen):
                ended = Ended(each.attempt, each.worker, each.started_at, each.over_ns, each.retried)
            elif each.record.state is not TaskState.RUNNING:
                ended = self._ended(each.record)
            else:
                continue
            flight.ended.append(ended)
            renewed = ended.over_ns - self._ns(ended.started_at) >= LEAST_RENEWED_NS
            if renewed or self._may_be_copy(each.envelope):
                flight.lingers_ns = max(flight.lingers_ns, now_ns + 2 * lease_ns(each.envelope))
        del flight.ended[:-MOST_ENDED]

    def _ended(self, record: TaskStatus) -> Ended:
        over_ns, retried = self._ns(record.updated_at), record.state is TaskState.RETRIED
        delay_ms = record.retry_delay_ms
        next_ns = over_ns + delay_ms * _MS_NS if retried and over_ns and delay_ms is not None else 0
        return Ended(record.attempt or 0, record.worker, record.started_at, over_ns, retried, next_ns)

    def _ns(self, time: datetime | None) -> int:
        return epoch_ns(time, self._zone) if time else 0

    def _is_given_up(self, flight: Flight, now_ns: int) -> bool:
        """Whether a delivery beside the one that ended its task would have ended too, or will not tell.

        A copy of a lease runs beside the first delivery for as long as the task takes.
        """
        waited_ns = now_ns - flight.changed_ns
        starts = (self._ns(each.started_at) for each in flight.open if each.started_at)
        ran_ns = flight.changed_ns - min(starts, default=flight.changed_ns)
        return waited_ns >= max(_CLAIMS_AWAITED * self._claim_ns, ran_ns)

    def _passed_over(self, flight: Flight, record: TaskStatus, number: int, now_ns: int) -> list[News]:
        """Return the deliveries of attempts before the one that a record is of: it will say nothing more of them.

        Where copies of a lease are about, one of the deliveries asked for that, and the others may still run.
        """
        over_ns = min(filter(None, (self._ns(record.started_at), self._ns(record.updated_at))), default=now_ns)
        known = {*(each.attempt for each in flight.open), *(each.attempt for each in flight.owed)}
        found: list[News] = []
        for earlier in sorted(attempt for attempt in known if attempt < number):
            running = [each for each in flight.open if each.attempt == earlier]
            owed = [each for each in flight.owed if each.attempt == earlier]
            told = any(each.attempt == earlier for each in flight.ended)
            if told or len(running) > 1 or self._has_copies(running, owed):
                continue
            flight.open = [each for each in flight.open if each.attempt != earlier]
            flight.owed = [each for each in flight.owed if each.attempt != earlier]
            over = [self._unseen(each, over_ns, later=True) for each in running]
            found += over or [self._overlooked(owed[-1], over_ns)]
        return found

    def _has_copies(self, running: Collection[Open], owed: Collection[Owed]) -> bool:
        """Whether one of several may be the copy of a lease: that comes a lease after what it is a copy of began."""
        times = [self._ns(each.started_at) for each in running if each.started_at]
        times += [each.ready_ms * _MS_NS for each in owed]
        if owed and max(times) - min(times) >= min(lease_ns(each.envelope) for each in owed):
            return True
        return any(map(self._may_be_copy, [*(each.envelope for each in running), *(each.envelope for each in owed)]))

    def _may_be_copy(self, envelope: Envelope) -> bool:
        """Whether an entry may be the copy of one that was there before we looked."""
        return envelope.not_before is not None and not self._seen(envelope)

    def _overlooked(self, owed: Owed, over_ns: int) -> Unseen:
        self.counts["overlooked"] += 1
        return self._unseen(Open(owed.attempt, None, None, owed.envelope), over_ns, later=True)

    def _unseen(self, each: Open, over_ns: int, *, later: bool = False) -> Unseen:
        """Return what is known of a delivery; `later`: its attempt was followed by another one.

        It asked for that if it was allowed to, else it failed, and was replayed; and if no other worker can have taken
        it over and done so.
        """
        most = each.envelope.max_retries
        allowed = most is None or each.attempt < most
        retried = later and allowed and (each.started_at is None or self._is_soon(each, over_ns))
        return Unseen(each.envelope, each.attempt, each.worker, each.started_at, over_ns, retried, each.told)

    def _judge(self, flight: Flight, record: TaskStatus, number: int) -> list[News]:
        if record.rate_limited or record.queue_paused:
            self._sent_back(flight, record, number)
            return []
        if record.started_at is not None:
            return self._with_start(flight, record, number)
        if record.expired or record.security:
            envelope = self._answer(flight, record, number)
            return [Told(record, envelope)] if envelope else []
        return self._without_start(flight, record, number)

    def _sent_back(self, flight: Flight, record: TaskStatus, number: int) -> None:
        """Have what was sent back wait since it was due first; it may have been delivered again already."""
        envelope = self._answer(flight, record, number)
        if envelope is None:
            return
        back_ms = self._ns(record.updated_at) // _MS_NS
        again = next((each for each in flight.owed if each.attempt == number and each.ready_ms > back_ms), None)
        if again:
            again.envelope = envelope
        else:
            flight.returns = envelope

    def _with_start(self, flight: Flight, record: TaskStatus, number: int) -> list[News]:
        delivery = (number, record.worker, record.started_at)
        known = next((each for each in flight.open if (each.attempt, each.worker, each.started_at) == delivery), None)
        if known is None:
            others = [each for each in flight.open if each.attempt == number]
            envelope = self._answer(flight, record, number) or (others[-1].envelope if others else None)
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
            envelope = self._answer(flight, record, number)
            return [Told(record, envelope)] if envelope else []
        (first, *more) = running
        if more or owed or self._may_be_copy(first.envelope) or not self._is_soon(first, self._ns(record.updated_at)):
            self.counts["ambiguous"] += 1
            return []
        flight.open.remove(first)
        ended = replace(record, worker=first.worker, started_at=first.started_at)
        return [Told(ended, first.envelope, first.told)]

    def _is_soon(self, delivery: Open, ended_ns: int) -> bool:
        """Whether a delivery ended before another worker could have taken it over, and ended it unseen."""
        return delivery.started_at is not None and 0 <= ended_ns - self._ns(delivery.started_at) < self._claim_ns

    def _answer(self, flight: Flight, record: TaskStatus, number: int) -> Envelope | None:
        """Take an entry of an attempt as answered, and return its envelope.

        Where several are owed nobody knows which it was: then the newest that was there at the start, so that the wait
        is told as no longer than it was; without a start the oldest.
        """
        owed = [each for each in flight.owed if each.attempt == number and not self._came_later(each, record)]
        if not owed:
            return None
        started_ms = self._ns(record.started_at) // _MS_NS
        there = [each for each in owed if each.ready_ms <= started_ms]
        answered = there[-1] if there else owed[0]
        flight.owed.remove(answered)
        return answered.envelope

    def _came_later(self, owed: Owed, record: TaskStatus) -> bool:
        """Whether an entry is not what a record is of, but a copy of the lease of what was there before we looked.

        That comes a lease after the start, and after the end. Clocks differ, so of what was seen from its first entry
        on even an end long before that may be its own.
        """
        time, least_ns = (record.started_at, lease_ns(owed.envelope)) if record.started_at else (record.updated_at, 0)
        if time is None or not self._may_be_copy(owed.envelope):
            return False
        return owed.ready_ms * _MS_NS - self._ns(time) >= least_ns
