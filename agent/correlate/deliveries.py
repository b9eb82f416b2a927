"""Which delivery of an attempt a fact is about: the same attempt may be delivered more than once. Pure."""

from agent.core.clock import NANOSECONDS
from agent.correlate.attempt import NEVER_STARTED, Attempt, chain
from agent.correlate.process import Process

REPEAT_NS = NANOSECONDS // 2
"""Stem's own SignalMiddleware sends a second `task-prerun` within moments. A bridge tells of each signal to which start
it belongs; from others, and beside a start that was read from a record, this is how far apart two deliveries start."""


def another_delivery(
    known_start_ns: int, known: Process | None, process: Process, started_ns: int, never_started_ns: int
) -> bool:
    """Whether a fact is about another delivery than the known one."""
    if known and process.boot and known.boot and not known.same(process):
        return True
    if started_ns and known_start_ns:
        return _apart(known_start_ns, started_ns, process)
    return bool(never_started_ns and known_start_ns not in {0, NEVER_STARTED})


def further_delivery(first: Attempt, new: Attempt, mark: int) -> Attempt | None:
    """Return the open further delivery that a start, or an end without one, belongs to."""
    for attempt in chain(first):
        if (
            attempt.delivery
            and attempt.number == new.number
            and attempt.worker == new.worker
            and attempt.process.same(new.process)
            and not _apart(int(attempt.delivery), mark, new.process)
        ):
            return attempt
    return None


def _apart(known_start_ns: int, started_ns: int, process: Process) -> bool:
    """Whether two starts are those of two deliveries; a negative one is only about right."""
    exact = process.boot and known_start_ns > 0
    return abs(started_ns - abs(known_start_ns)) >= (1 if exact else REPEAT_NS)
