"""Dead letters, decoded: why a task was given up, and the envelope without its arguments.

Written by Stem's `redis_broker.dart` (`deadLetter`) at the head of the list `{ns}:dead:{queue}`. `reason` is
`max-retries-exhausted`, `unregistered-task` or `signature-invalid`.
"""

from datetime import datetime

import msgspec
from msgspec import Raw, Struct, field

from agent.stem.envelope import Envelope, decode_envelope
from agent.stem.lenient import DecodeError, members, salvage


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
