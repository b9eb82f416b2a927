"""Time for a process that must not be confused by clock steps."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns nanoseconds since the Unix epoch; tests pass their own."""

NANOSECONDS = 1_000_000_000


class SteadyClock:
    """Wall-clock nanoseconds that never run backwards: the wall at construction plus monotonic time since.

    NTP slews the monotonic clock too, so only a *step* makes this clock differ from the wall; telling
    deadlines and observed times by one steady clock keeps a step from stalling or rushing a settlement.
    """

    __slots__ = ("_offset_ns",)

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return time.monotonic_ns() + self._offset_ns
