"""Our own clock from one process to the next. Pure."""

from typing import NamedTuple


class Shift(NamedTuple):
    """How a time of the process before is to be understood.

    The clock of a process is steady, that of the machine may be set in between. If it was set back (`back_ns`), no time
    has passed: all times move along, so that nothing is younger than nothing. Nobody listened for `away_ns`.
    """

    back_ns: int
    away_ns: int

    @property
    def away(self) -> bool:
        """Whether nobody listened for a while, however long."""
        return self.back_ns > 0 or self.away_ns > 0

    def __call__(self, time_ns: int) -> int:
        """Return a time by the clock of now; 0, which is none, stays 0."""
        return time_ns - self.back_ns if time_ns else 0


def shift_between(taken_ns: int, now_ns: int) -> Shift:
    """Return how the times of a state that was taken at `taken_ns` are to be understood at `now_ns`."""
    return Shift(max(0, taken_ns - now_ns), max(0, now_ns - taken_ns))
