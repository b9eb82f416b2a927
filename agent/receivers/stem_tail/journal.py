"""Notes for the next leader: written once everything that they speak of as told has found its end.

So whoever goes on from them tells again what was told and not delivered when its leader was killed, and nothing else:
but for what was delivered in the moment between that and the note.
"""

from collections import deque
from collections.abc import Mapping

from agent.core.clock import NANOSECONDS
from agent.core.ledger import Ledger, Mark
from agent.core.ownership import Notebook

MOST_CLOSED = 50
"""Notes that await their deliveries; while an endpoint is away no more are taken, and what happens is noted later."""
REFRESHED_NS = 60 * NANOSECONDS
"""Notes of a fleet in which nothing happens are written so often, so that they do not grow too old."""


class Journal:
    """Notes are closed, one after the other, then awaited, then written, as many at once as can be."""

    def __init__(self, notebook: Notebook, name: str, ledger: Ledger) -> None:
        self._notebook = notebook
        self._name = name
        self._ledger = ledger
        self._closed: deque[tuple[Mark, Mapping[str, bytes | None]]] = deque()
        self._closed_ns = 0
        self._writing = False

    def is_due(self, now_ns: int, *, news: bool) -> bool:
        """Whether notes are to be closed: of `news`, or because the last are old."""
        return len(self._closed) < MOST_CLOSED and (news or now_ns - self._closed_ns >= REFRESHED_NS)

    def close(self, notes: Mapping[str, bytes | None], now_ns: int) -> None:
        """Take notes of everything that was handed on by now."""
        self._closed.append((self._ledger.mark(), notes))
        self._closed_ns = now_ns

    async def write(self, *, everything: bool = False) -> None:
        """Write what is closed, as far as all of it arrived, or `everything`; raises what the notebook raises."""
        if self._writing:
            return
        ready, count = dict[str, bytes | None](), 0
        for mark, notes in self._closed:
            if not everything and not self._ledger.passed(mark):
                break
            ready |= notes
            count += 1
        if not count:
            return
        self._writing = True
        try:
            await self._notebook.amend(self._name, ready)
        finally:
            self._writing = False
        for _ in range(count):
            self._closed.popleft()
