"""Raw messages of emitters that may be handed over to us, each emitter's apart, bounded in bytes. Pure."""

from collections import deque
from collections.abc import Callable

from agent.core.pressure import Priority
from agent.receivers.stem_signals.backlog import MESSAGE_OVERHEAD, Message


class Kept:
    """What was heard and is not ours yet: at most `limit` bytes altogether, of which the oldest go, emitter by emitter.

    `on_shed` hears how many had to go.
    """

    spillable_bytes = 0

    def __init__(self, limit: int, on_shed: Callable[[int], None]) -> None:
        self._emitters: dict[str, deque[Message]] = {}
        self._on_shed = on_shed
        self.limit = limit
        self.held_bytes = 0

    def push(self, emitter: str, channel: bytes, payload: bytes) -> None:
        """Keep a message."""
        self._emitters.setdefault(emitter, deque()).append((channel, payload))
        self.held_bytes += _size(channel, payload)
        if self.held_bytes > self.limit:
            self._shed(self.held_bytes - self.limit)

    def take(self, emitter: str) -> list[Message]:
        """Remove and return what was kept of an emitter, oldest first."""
        messages = self._emitters.pop(emitter, ())
        self.held_bytes -= sum(_size(*message) for message in messages)
        return list(messages)

    def spill(self) -> None:
        """Do nothing: nothing of it is on a disk."""

    def shed(self, priority: Priority, size: int) -> int:
        """Give up the oldest when it is their turn, until they are `size` bytes; return their bytes."""
        return self._shed(size) if priority >= Priority.SIGNALS else 0

    def _shed(self, size: int) -> int:
        before, count = self.held_bytes, 0
        while self._emitters and before - self.held_bytes < size:
            emitter = max(self._emitters, key=lambda name: len(self._emitters[name]))
            messages = self._emitters[emitter]
            self.held_bytes -= _size(*messages.popleft())
            count += 1
            if not messages:
                del self._emitters[emitter]
        if count:
            self._on_shed(count)
        return before - self.held_bytes


def _size(channel: bytes, payload: bytes) -> int:
    return len(channel) + len(payload) + MESSAGE_OVERHEAD
