"""A histogram in plain Python, for what is measured beside the hot path and exported with the agent's own metrics."""

import math
from bisect import bisect_left

# telemetry contract, section 4: from 5 ms to 4 h, because jobs are slower than requests.
DURATION_BOUNDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0),
)


class Histogram:
    """Counts seconds in buckets; `counts` has one more than there are bounds, which are inclusive (OTLP)."""

    __slots__ = ("counts", "least", "most", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.total = 0.0
        self.least = math.inf
        self.most = -math.inf

    def observe(self, seconds: float, count: int = 1) -> None:
        """Take a value, `count` times."""
        self.counts[bisect_left(DURATION_BOUNDS, seconds)] += count
        self.total += seconds * count
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)
