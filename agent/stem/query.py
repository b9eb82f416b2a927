"""Questions to Redis as pure generators: each yields the commands of one round trip, and is sent their replies.

Whoever runs them (`agent/stem/client.py`) sends the commands of all questions together, so that a hundred questions of
two steps cost two round trips. A reply that is an error is a value, because what it means is for the question to say.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar

LOOK_AGAIN = 6
"""What cannot have changed unless somebody interfered, or hardly ever does, is read at every so manieth turn."""

Command = tuple[str | int, ...]
Reply = Any
"""What RESP2 knows: bytes, integers, lists of these, None; or a `ServerError`."""
Answer = TypeVar("Answer")
Query = Generator[Sequence[Command], Sequence[Reply], Answer]


class ServerError(str):
    """An error reply; `code` is its first word, such as `NOPERM`."""

    __slots__ = ()

    @property
    def code(self) -> str:
        """The kind of error."""
        return self.partition(" ")[0]


class QueryRefusedError(Exception):
    """The server refused a question for a reason that the question cannot do without; its text is the server's."""


def needed(reply: Reply) -> Reply:
    """Return a reply that is no error; raises `QueryRefusedError` for one."""
    if isinstance(reply, ServerError):
        raise QueryRefusedError(str(reply))
    return reply


def count(reply: Reply) -> int:
    """Return the number that a command such as `ZCARD` answers; raises `QueryRefusedError` for an error."""
    return int(needed(reply))


def text(value: Reply) -> str:
    """Return a reply's text; what is not UTF-8 is replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def pairs(reply: Sequence[Reply]) -> Mapping[str, Reply]:
    """Return a flat list of names and values, as RESP2 has maps, as a mapping."""
    return {text(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def read_time() -> Query[int]:
    """Ask for the server's clock (Unix nanoseconds), in one round trip; raises `QueryRefusedError`."""
    (reply,) = yield [("TIME",)]
    seconds, microseconds = map(int, needed(reply))
    return (seconds * 1_000_000 + microseconds) * 1000
