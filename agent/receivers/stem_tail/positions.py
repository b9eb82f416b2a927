"""How far each stream was read. Pure.

A stream that was never read is read from when this began: so what was there before is not told, and a queue that comes
later is told from its first entry on, whenever it is found.
"""

from collections.abc import Iterable

from agent.stem.keys import Keys
from agent.stem.questions.entries import Entries
from agent.stem.questions.queues import is_control


class Positions:
    """The streams of the followed queues, at most `most` of these; `left_out` are the queues beyond."""

    def __init__(self, keys: Keys, most: int, begin_ms: int) -> None:
        self._keys = keys
        self._most = most
        self.begin_ms = begin_ms
        self.queues: dict[str, None] = {}
        self.left_out: set[str] = set()
        self.at: dict[str, str] = {}
        self._queue_of: dict[str, str] = {}

    def follow(self, queues: Iterable[str]) -> None:
        """Follow these queues, too; control queues carry commands and are none."""
        for queue in queues:
            if queue in self.queues or is_control(queue) or not queue:
                continue
            if len(self.queues) >= self._most:
                self.left_out.add(queue)
                continue
            self.queues[queue] = None
            for stream in (*self._keys.streams(queue), self._keys.events(queue)):
                self._queue_of.setdefault(stream, queue)
                self.at.setdefault(stream, f"{self.begin_ms}-0")

    def queue_of(self, stream: str) -> str:
        """Return the queue that a stream was first known to belong to."""
        return self._queue_of[stream]

    def passed(self, entries: Entries) -> None:
        """Note what was read."""
        for entry in entries.found:
            self.at[entry.stream] = entry.entry

    def behind(self, entries: Entries) -> dict[str, str]:
        """Return the positions in the streams of which there may be more."""
        return {stream: self.at[stream] for stream in entries.more}
