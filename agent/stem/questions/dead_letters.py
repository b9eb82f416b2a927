"""Dead letters, decoded: why a task was given up, and the envelope without its arguments.

Written by Stem's `redis_broker.dart` (`deadLetter`) at the head of the list `{ns}:dead:{queue}`. `reason` is
`max-retries-exhausted`, `unregistered-task` or `signature-invalid`.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import takewhile

import msgspec
from msgspec import Raw, Struct, field

from agent.stem.envelope import Envelope, decode_envelope
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError, members, mended, salvage
from agent.stem.questions.query import LOOK_AGAIN, Query, count, shaped

_BESIDE = 10
"""Letters read beside those that must be new: some of these may have taken the place of others."""
_MOST = 200
_FEW = 2 * _BESIDE
_NOTED = 50
"""Letters of which a state has the marks."""
_REMEMBERED = 1000
_MOST_BYTES = 4 << 20
"""Of letters in one reply, as far as those seen before tell: a letter has its task's arguments in it."""


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
        if whole := mended(payload):
            return decode_dead_letter(whole)
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
    `overrun` says that there may have been more than were read. Of large letters fewer are read, and remembered.
    """

    def __init__(self, keys: Keys, queue: str, *, new: bool = False) -> None:
        self._key = keys.dead(queue)
        self._seen: dict[bytes, None] = {}
        self._length: int | None = 0 if new else None
        self._readings = 0
        self._largest = 1
        self.overrun = False

    def read(self) -> Query[list[DeadLetter]]:
        """Ask for new letters, two round trips; three where there may be many, of which the size is not known.

        Raises `QueryRefusedError` if the server refuses.
        """
        self.overrun = False
        (reply,) = yield [("LLEN", self._key)]
        length, before = count(reply), self._length
        self._readings += 1
        letters: list[bytes] = []
        if length and (length != before or self._readings % LOOK_AGAIN == 0):
            most = min(max(length - (before or 0), 0) + _BESIDE, _MOST)
            if most > _FEW:
                (reply,) = yield [("LRANGE", self._key, 0, 0)]
                self._largest = max([self._largest, *map(len, shaped(reply, list[bytes]))])
            most = min(most, max(1, _MOST_BYTES // self._largest))
            (reply,) = yield [("LRANGE", self._key, 0, most - 1)]
            letters = shaped(reply, list[bytes])
            self._largest = max(map(len, letters), default=1) or 1
        new = list(takewhile(lambda letter: _mark(letter) not in self._seen, letters))
        self._length = length  # only now: what came before a failure is still new
        self._remember(letters if length else None)
        self.overrun = before is not None and bool(new) and len(new) == len(letters) < length
        return [] if before is None else [_decoded(letter) for letter in new]

    @property
    def state(self) -> tuple[int, list[bytes]] | None:
        """How many letters there were, and the marks of the newest, oldest first; None before the first reading."""
        return None if self._length is None else (self._length, list(self._seen)[-_NOTED:])

    def restore(self, state: tuple[int, list[bytes]]) -> None:
        """Go on from a state."""
        self._length, self._seen = state[0], dict.fromkeys(state[1])

    def _remember(self, letters: Sequence[bytes] | None) -> None:
        """Keep those seen last, also where others stand now; none of a list that is empty."""
        if letters is None:
            self._seen.clear()
            return
        for letter in reversed(letters):
            self._seen.pop(_mark(letter), None)
            self._seen[_mark(letter)] = None
        for oldest in list(self._seen)[: max(0, len(self._seen) - _REMEMBERED)]:
            del self._seen[oldest]


def _mark(letter: bytes) -> bytes:
    return blake2b(letter, digest_size=8).digest()


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
    return [_letter_or_reason(letter) for letter in shaped(reply, list[bytes])]


def _letter_or_reason(payload: bytes) -> DeadLetter | str:
    try:
        return decode_dead_letter(payload)
    except DecodeError as error:
        return error.reason
