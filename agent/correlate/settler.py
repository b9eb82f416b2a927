"""Closing attempts. Pure; time is an argument."""

from agent.correlate.attempt import Attempt, Ending, EndKind, Ends, Mark
from agent.correlate.attempts import AttemptTable
from agent.correlate.counters import CLOCK_ADJUSTED, EVICTED, Counters
from agent.correlate.family import Family
from agent.correlate.origin import UNKNOWN_ORIGIN
from agent.correlate.recorder import Recorder
from agent.correlate.settlement import decide


class Settler:
    """Closes attempts: what is known of them is decided, told, and remembered for a while."""

    def __init__(self, recorder: Recorder, attempts: AttemptTable, family: Family, counters: Counters) -> None:
        self._recorder = recorder
        self._attempts = attempts
        self._family = family
        self._counters = counters

    def conclude(self, attempt: Attempt, now_ns: int) -> None:
        """Settle an attempt with what is known, now that nothing more will be."""
        if attempt.end is None and attempt.marks & Mark.ABANDONED:
            process, began_ns = attempt.process, attempt.started_ns or attempt.received_ns
            # By its own clock, but never longer ago than we know of it: clocks are set, and absurd times are told.
            time_ns = min(max(process.told_ns, began_ns), began_ns + now_ns - attempt.opened_ns)
            if attempt.cut_off:
                attempt.ends(EndKind.LOST, Ending(time_ns, f"worker {attempt.worker} vanished ({process.place})"))
            else:  # it may have ended while we heard nothing
                attempt.end = Ends(over_ns=time_ns)
        elif attempt.end is None:
            later = (other for other in self._attempts.of(attempt.task_id) if other.number > attempt.number)
            known = (other.received_ns or other.started_ns for other in later)
            over_ns = min(filter(None, known), default=0) or now_ns
            attempt.end = Ends(over_ns=max(over_ns, attempt.started_ns))
        self.settle(attempt, now_ns)

    def settle(self, attempt: Attempt, now_ns: int) -> None:
        """Tell an attempt whose end is known."""
        if attempt.number:
            self._attempts.recall(attempt)
        task_id, origin = attempt.task_id, attempt.origin or UNKNOWN_ORIGIN
        ancestry = self._family.ancestry(task_id, origin)
        settled = decide(attempt, ancestry, attempt.span_id)
        given_up = settled.kind is EndKind.LOST or (settled.kind is None and bool(attempt.marks & Mark.ABANDONED))
        self._attempts.bury(attempt, settled.span_id, now_ns, may_return=given_up)
        if settled.adjusted:
            self._counters[CLOCK_ADJUSTED, ""] += 1
        # The first delivery of the first attempt brings the trace's root along; if it is not kept, the first that is.
        with_send = bool(origin.enqueued_ns) and not ancestry.traced
        if with_send:
            first = not (attempt.number or attempt.delivery or attempt.marks & Mark.ROOTED)
            with_send = (first and self._attempts.once(("send", task_id), now_ns)) or self._attempts.withheld(task_id)
            for other in self._attempts.of(task_id) if with_send else ():
                other.marks |= Mark.ROOTED
        kept = self._recorder.settled(settled, now_ns, with_send=with_send)
        if with_send and kept:
            self._attempts.release(task_id)
        elif with_send:
            self._attempts.withhold(task_id, now_ns)

    def evict(self, attempt: Attempt, reason: str, now_ns: int) -> None:
        """Close an attempt that cannot be held any longer: told if its end was heard, else dropped and counted."""
        if attempt.end is not None:  # it was only waiting for stragglers: it can be told
            self.settle(attempt, now_ns)
            return
        self._attempts.evict(attempt, now_ns)
        self._counters[EVICTED, reason] += 1
