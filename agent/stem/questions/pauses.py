"""Paused queues: Stem keeps each pause among the revocations, under a name of its own.

Source: `control/revoke_store.dart`; the hash is `{worker namespace}:control:revokes`. A queue that is resumed has an
entry that has expired, until its next reader prunes it.
"""

from collections.abc import Sequence
from datetime import datetime, tzinfo

import msgspec
from msgspec import Struct

from agent.stem.keys import Keys
from agent.stem.lenient import mended
from agent.stem.questions.query import Query, shaped, unexpected

_PAUSE = "__stem.queue.pause__:"


class _Entry(Struct, rename="camel"):
    expires_at: datetime | None = None


_entry = msgspec.json.Decoder(_Entry)


def read_pauses(keys: Keys, queues: Sequence[str], now: datetime) -> Query[dict[str, bool]]:
    """Ask which of the queues are paused at `now`; `keys` are those of the worker namespace. One round trip.

    Raises `QueryRefusedError` if the server refuses.
    """
    if not queues:
        return {}
    (reply,) = yield [("HMGET", keys.revokes, *(f"{_PAUSE}{queue}" for queue in queues))]
    entries = shaped(reply, list[bytes | None])
    if len(entries) != len(queues):
        raise unexpected(f"expected {len(queues)} values, got {len(entries)}")
    return {queue: _in_force(entry, now) for queue, entry in zip(queues, entries, strict=True)}


def _in_force(entry: bytes | None, now: datetime) -> bool:
    if entry is None:
        return False
    try:
        expires_at = _entry.decode(mended(entry) or entry).expires_at
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # it is there, and Stem's worker stops at what it cannot read
    if expires_at is None:
        return True
    zone: tzinfo | None = now.tzinfo
    return (expires_at if expires_at.tzinfo else expires_at.replace(tzinfo=zone)) > now
