"""Facts in their order; those of a worker that was just met wait until it is known who speaks for it. Pure.

A worker that sends signals does so before anything of it can be read, but to whom, and whether that agent has claimed
it, is known a moment later.
"""

from collections import deque
from collections.abc import Callable, Iterable

from agent.core.clock import NANOSECONDS
from agent.stem.wire import Tailed

ACQUAINTANCE_NS = 2 * NANOSECONDS
"""After a worker was first read of."""
MAX_WORKERS = 10_000

Made = Callable[[], Tailed]
"""Makes a fact, by what is known when it is released."""


class Hold:
    """Whoever comes after somebody that waits, waits too: facts keep their order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Made]] = deque()
        self._known: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def is_new(self, worker: str | None, now_ns: int) -> bool:
        """Whether a worker is read of for the first time; from now on it is not."""
        if worker is None or worker in self._known:
            return False
        if len(self._known) >= MAX_WORKERS:
            del self._known[next(iter(self._known))]
        self._known[worker] = now_ns + ACQUAINTANCE_NS
        return True

    def take(self, worker: str | None, made: Made, now_ns: int) -> None:
        """Take a fact about a worker, or about none."""
        since_ns = self._known.get(worker, 0) if worker is not None else 0
        behind_ns = self._waiting[-1][0] if self._waiting else 0
        self._waiting.append((max(now_ns, since_ns, behind_ns), made))

    def ready(self, now_ns: int, *, everything: bool = False) -> Iterable[Tailed]:
        """Yield what need not wait any longer."""
        while self._waiting and (everything or self._waiting[0][0] <= now_ns):
            yield self._waiting.popleft()[1]()

    def next_ns(self) -> int | None:
        """Return when the next fact is ready; None while none waits."""
        return self._waiting[0][0] if self._waiting else None
