"""Dart's timestamps, as integers.

Dart writes ISO-8601 with 0, 3 or 6 fraction digits. With `Z` it is UTC; without, it is the writer's local time
(Stem before 0.2.0, and `DateTime`s that an application made itself).
"""

from datetime import UTC, datetime, tzinfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECONDS = 1_000_000
MAX_NS = (1 << 64) - 1


def epoch_ns(time: datetime, assume: tzinfo) -> int:
    """Return nanoseconds since the Unix epoch; a time without an offset is taken to be in the zone `assume`."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=assume)
    since = time - EPOCH
    exact = ((since.days * 86_400 + since.seconds) * MICROSECONDS + since.microseconds) * 1000
    # Before 1970 and after 2554 OTLP has no time: such a clock is shown at the edge, not refused.
    return min(max(exact, 0), MAX_NS)
