"""Questions to Redis as pure generators: each yields the commands of one round trip, and is sent their replies.

Whoever runs them (`client/reader.py`) sends the commands of all questions together, so that a hundred questions of two
steps cost two round trips. A reply that is an error is a value, because what it means is for the question to say.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

LOOK_AGAIN = 6
"""What cannot have changed unless somebody interfered, or hardly ever does, is read at every so manieth turn."""

Command = tuple[str | int, ...]
Reply = Any
"""What RESP2 knows: bytes, integers, lists of these, None; or a `ServerError`."""
Answer = TypeVar("Answer")
Shape = TypeVar("Shape")
Query = Generator[Sequence[Command], Sequence[Reply], Answer]
_FURTHEST_MS = 1 << 53
"""Scores are doubles: further away than this, milliseconds are not told apart."""
_ENTRY_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class ServerError(str):
    """An error reply, and which command it answers; `code` is its first word, such as `NOPERM`."""

    __slots__ = ()

    @property
    def code(self) -> str:
        """The kind of error."""
        return self.partition(" ")[0]


class QueryRefusedError(Exception):
    """The server refused what a question cannot do without, or answered with something that is no answer to it.

    Its text is the server's, with the command; it quotes nothing that is stored.
    """


def needed(reply: Reply) -> Reply:
    """Return a reply that is no error; raises `QueryRefusedError` for one."""
    if isinstance(reply, ServerError):
        raise QueryRefusedError(str(reply))
    return reply


def shaped(reply: Reply, shape: type[Shape]) -> Shape:
    """Return a reply that is of a shape; raises `QueryRefusedError` for every other, and for an error."""
    try:
        return msgspec.convert(needed(reply), shape)
    except msgspec.ValidationError as error:
        raise unexpected(error) from None


def unexpected(what: object) -> QueryRefusedError:
    """Return the error for a reply that no Redis gives: there is something else at the other end, or in between."""
    return QueryRefusedError(f"unexpected reply: {str(what)[:1].lower()}{str(what)[1:]}")


def count(reply: Reply) -> int:
    """Return the number that a command such as `ZCARD` answers; raises `QueryRefusedError` for anything else."""
    return shaped(reply, int)


def text(value: Reply) -> str:
    """Return a reply's text; what is not UTF-8 is replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def pairs(reply: Reply) -> Mapping[str, Reply]:
    """Return a flat list of names and values, as RESP2 has maps, as a mapping.

    Raises `QueryRefusedError` for anything else.
    """
    flat = shaped(reply, list[Any])
    if len(flat) % 2:
        raise unexpected("expected names with values, got a name without one")
    return {text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def entry_id(value: Reply) -> tuple[int, int]:
    """Return a stream entry's id as numbers, which compare as the entries follow one another.

    The first is in Unix milliseconds by Redis' clock. Raises `QueryRefusedError` for what is none.
    """
    found = _ENTRY_ID.fullmatch(text(value))
    if not found:
        raise unexpected("expected the id of a stream entry")
    return int(found[1]), int(found[2])


def milliseconds(score: Reply) -> int:
    """Return a score that is a time; what is infinitely far away is far away.

    Raises `QueryRefusedError` for what is none.
    """
    try:
        return int(min(max(float(shaped(score, bytes)), -_FURTHEST_MS), _FURTHEST_MS))
    except ValueError:
        raise unexpected("expected a score") from None


def read_clock(after: int = 0) -> Query[int]:
    """Ask for the server's clock (Unix milliseconds), with the step that comes `after` so many of other questions.

    Raises `QueryRefusedError` if the server refuses.
    """
    for _ in range(after):
        yield []
    (reply,) = yield [("TIME",)]
    return clock_ms(reply)


def clock_ms(reply: Reply) -> int:
    """Return what `TIME` answers as Unix milliseconds; raises `QueryRefusedError` for anything else."""
    seconds, microseconds = entry_id(b"-".join(shaped(reply, list[bytes])))
    return seconds * 1000 + microseconds // 1000
