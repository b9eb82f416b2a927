"""Dead letters, decoded: why a task was given up, and the envelope without its arguments.

Written by Stem's `redis_broker.dart` (`deadLetter`) at the head of the list `{ns}:dead:{queue}`. `reason` is
`max-retries-exhausted`, `unregistered-task` or `signature-invalid`.
"""

from datetime import datetime
from itertools import takewhile

import msgspec
from msgspec import Raw, Struct, field

from agent.stem.envelope import Envelope, decode_envelope
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError, members, salvage
from agent.stem.query import LOOK_AGAIN, Query, count, needed

_BESIDE = 10
"""Letters read beside those that must be new: some of these may have taken the place of others."""
_MOST = 200


class _Meta(Struct, gc=False):
    error: str | None = None


class _Letter(Struct, rename="camel", gc=False):
    envelope: Raw = field(default_factory=Raw)
    reason: str | None = None
    meta: _Meta | None = None
    dead_at: datetime | None = None


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A task that was given up at `dead_at`; `error` is what its last attempt failed with, where that is known."""

    envelope: Envelope
    reason: str | None = None
    error: str | None = None
    dead_at: datetime | None = None


_letter = msgspec.json.Decoder(_Letter)


def decode_dead_letter(payload: bytes) -> DeadLetter:
    """Decode an element of the list; raises `DecodeError` (`not_json`, `not_an_object`)."""
    try:
        letter = _letter.decode(payload)
    except msgspec.ValidationError:
        letter = salvage(members(payload), _Letter)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("not_json") from None
    return DeadLetter(
        envelope=decode_envelope(letter.envelope) or Envelope(),
        reason=letter.reason,
        error=letter.meta.error if letter.meta else None,
        dead_at=letter.dead_at,
    )


class LetterWatch:
    """Reads the letters that were added to the dead of a queue since they were read last, newest first.

    A replay takes letters out anywhere, so what was seen is told by the letters themselves, not by their number. What
    was there before the first reading is not ours to tell, but for a `new` queue, which did not exist before.
    `overrun` says that there may have been more than could be read at once.
    """

    def __init__(self, keys: Keys, queue: str, *, new: bool = False) -> None:
        self._key = keys.dead(queue)
        self._seen: set[int] = set()
        self._length: int | None = 0 if new else None
        self._readings = 0
        self.overrun = False

    def read(self) -> Query[list[DeadLetter]]:
        """Ask for new letters, two round trips at most.

        Raises `QueryRefusedError` if the server refuses.
        """
        (reply,) = yield [("LLEN", self._key)]
        before, self._length = self._length, count(reply)
        self._readings += 1
        self.overrun = False
        if before == self._length and self._readings % LOOK_AGAIN:
            return []
        if not self._length:
            self._seen = set()
            return []
        most = min(max(self._length - (before or 0), 0) + _BESIDE, _MOST)
        (reply,) = yield [("LRANGE", self._key, 0, most - 1)]
        letters = needed(reply)
        new = list(takewhile(lambda letter: hash(letter) not in self._seen, letters))
        self.overrun = before is not None and len(new) == _MOST
        self._seen = {hash(letter) for letter in letters}
        return [] if before is None else [_decoded(letter) for letter in new]


def _decoded(letter: bytes) -> DeadLetter:
    """Return the letter; of one that is no such JSON nothing but that it is there."""
    try:
        return decode_dead_letter(letter)
    except DecodeError:
        return DeadLetter(envelope=Envelope())


def read_dead_letters(keys: Keys, queue: str, most: int) -> Query[list[DeadLetter | str]]:
    """Ask for a queue's newest dead letters, newest first; a text says why one could not be read. One round trip.

    Raises `QueryRefusedError` if the server refuses.
    """
    (reply,) = yield [("LRANGE", keys.dead(queue), 0, most - 1)]
    return [_letter_or_reason(letter) for letter in needed(reply)]


def _letter_or_reason(payload: bytes) -> DeadLetter | str:
    try:
        return decode_dead_letter(payload)
    except DecodeError as error:
        return error.reason
