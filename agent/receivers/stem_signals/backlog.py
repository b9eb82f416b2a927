"""Raw messages between the socket and the decoder, bounded in bytes.

Redis disconnects a subscriber that falls behind (32 MB at once, or 8 MB for 60 s, by default), and everything it
had for us is lost. So reading never waits for the rest of the agent: what cannot be processed yet waits here, and
when here is full the *oldest* is shed, because every later signal of an attempt repeats what the earlier ones said.
"""

from collections import deque
from collections.abc import Callable

from agent.core.pressure import Priority
from agent.stem.wire import Outage

Message = tuple[bytes, bytes]
"""Channel and payload."""

MESSAGE_OVERHEAD = 200
"""Bytes that a message costs beside its payload and channel: two bytes objects and a tuple in CPython."""


class Backlog:
    """A FIFO of raw messages that holds at most `limit` bytes; `on_shed` hears of each that had to go.

    Outages stand between the messages before and after them, and are never shed.
    """

    spillable_bytes = 0

    __slots__ = ("_messages", "_on_shed", "_outages", "_taken", "bytes", "limit")

    def __init__(self, limit: int, on_shed: Callable[[bytes, bytes], None]) -> None:
        self._messages: deque[Message] = deque()
        self._outages: deque[tuple[int, Outage]] = deque()  # with the count of messages before it
        self._taken = 0
        self._on_shed = on_shed
        self.limit = limit
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def __bool__(self) -> bool:
        return bool(self._messages or self._outages)

    @property
    def pushed(self) -> int:
        """How many messages were ever appended."""
        return self._taken + len(self._messages)

    @property
    def taken(self) -> int:
        """How many of them have left again."""
        return self._taken

    def mark(self, outage: Outage) -> None:
        """Append an outage."""
        self._outages.append((self.pushed, outage))

    def outages(self) -> list[Outage]:
        """Remove and return the outages that stand before the next message."""
        due = []
        while self._outages and self._outages[0][0] <= self._taken:
            due.append(self._outages.popleft()[1])
        return due

    def push(self, channel: bytes, payload: bytes) -> None:
        """Append a message, shedding the oldest while there is no room."""
        self._messages.append((channel, payload))
        self.bytes += len(channel) + len(payload) + MESSAGE_OVERHEAD
        while self.bytes > self.limit and len(self._messages) > 1:
            self._on_shed(*self._pop(1)[0])

    @property
    def held_bytes(self) -> int:
        """The same as `bytes`: all of it may be given up (see `Holder`)."""
        return self.bytes

    def spill(self) -> None:
        """Do nothing: nothing of it is on a disk."""

    def shed(self, priority: Priority, size: int) -> int:
        """Give up the oldest messages when it is their turn, until they are `size` bytes; return their bytes."""
        before = self.bytes
        while priority >= Priority.SIGNALS and self._messages and before - self.bytes < size:
            self._on_shed(*self._pop(1)[0])
        return before - self.bytes

    def take(self, most: int) -> list[Message]:
        """Remove and return up to `most` messages, oldest first, and none from beyond an outage."""
        if self._outages:
            most = max(0, min(most, self._outages[0][0] - self._taken))
        return self._pop(most)

    def _pop(self, most: int) -> list[Message]:
        messages = self._messages
        if len(messages) <= most:
            taken = list(messages)
            messages.clear()
            self.bytes = 0
        else:
            taken = [messages.popleft() for _ in range(most)]
            self.bytes -= sum(len(channel) + len(payload) + MESSAGE_OVERHEAD for channel, payload in taken)
        self._taken += len(taken)
        return taken
