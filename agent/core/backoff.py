"""Exponential back-off with full jitter, as a plain object: no sleeping here."""

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Delays that grow from `initial` to `maximum` seconds; each is drawn evenly up to a ceiling that doubles.

    Full jitter, because many agents lose the same backend at the same moment. `at_least` is what a server
    asked for (`Retry-After`, gRPC `RetryInfo`); the next delays go on growing from it (OTLP specification,
    "OTLP/HTTP Throttling").
    """

    initial: float
    maximum: float
    multiplier: float = 2.0
    source: random.Random = field(default_factory=random.Random, repr=False)
    _ceiling: float = 0.0

    def next(self, at_least: float = 0.0) -> float:
        """Return the seconds to wait before the next try, never more than `maximum`."""
        self._ceiling = min(self.maximum, max(self.initial, self._ceiling * self.multiplier))
        if at_least > 0:
            self._ceiling = min(self.maximum, max(self._ceiling, at_least))
            return min(self.maximum, at_least + self.source.uniform(0, self.initial))
        # Never zero: a server that closes each connection at once must not be met by a busy loop.
        return max(self.source.uniform(0, self._ceiling), min(self.initial, self._ceiling) * 0.1)

    def reset(self) -> None:
        """Begin anew; call it on proof of health, not on a bare connect."""
        self._ceiling = 0.0
