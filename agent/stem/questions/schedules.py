"""Entries of the schedule store, and the runs in their histories. Pure.

Source: Stem's `redis_schedule_store.dart` and `schedule_spec.dart`. Of an entry's hash `args`, `kwargs` and `meta` are
never read. An entry that is disabled or has expired stays in the index, overdue by its score.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo
from typing import Any

import msgspec
from msgspec import Struct

from agent.stem.keys import Keys
from agent.stem.lenient import Count
from agent.stem.questions.query import (
    Query,
    Reply,
    ServerError,
    entry_id,
    milliseconds,
    pairs,
    shaped,
    text,
    unexpected,
)
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import Drift

_MILLISECOND_NS = 1_000_000


class ScheduleEntry(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the store says of an entry; `next_run_ms` is its score: epoch milliseconds, without jitter.

    `spec` is Stem's JSON (`{"kind":"interval","everyMs":60000}`) or a legacy line such as `every:1m`.
    """

    id: str
    next_run_ms: int
    task_name: str | None = None
    queue: str | None = None
    spec: str | None = None
    enabled: bool = True
    timezone: str | None = None
    next_run_at: datetime | None = None
    last_run_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error_at: datetime | None = None
    last_error: str | None = None
    total_run_count: Count | None = None
    drift_ms: Drift | None = None
    jitter_ms: Count | None = None
    expire_at: datetime | None = None

    def overdue_ms(self, now_ms: int, zone: tzinfo) -> int:
        """Return for how long it should have been dispatched; 0 when it is on time. Jitter is allowed for.

        What is not to be dispatched is never late: disabled, expired, or in the index only, with nothing to dispatch.
        """
        expires = self.expire_at
        expired = expires is not None and epoch_ns(expires, zone) <= now_ms * _MILLISECOND_NS
        if not self.enabled or expired or not (self.task_name or self.spec):
            return 0
        return max(0, now_ms - self.next_run_ms - (self.jitter_ms or 0))


_KEYS = {spec.encode_name: spec for spec in msgspec.structs.fields(ScheduleEntry)[2:]}


class ScheduleRun(Struct, frozen=True):
    """One run in an entry's history: where it stands there, whether it succeeded, and by how much it was late.

    `late_s` is `executedAt` minus `scheduledAt` (seconds, jitter included), None where one of them is not told.
    """

    position: str
    success: bool
    late_s: float | None


def read_schedules(keys: Keys, most: int) -> Query[list[ScheduleEntry]]:
    """Ask for the entries that are due first, `most` of them. Two round trips.

    Raises `QueryRefusedError` if the server refuses.
    """
    if most <= 0:
        return []
    (reply,) = yield [("ZRANGE", keys.schedules, 0, most - 1, "WITHSCORES")]
    scores = {entry: milliseconds(score) for entry, score in pairs(reply).items()}
    if not scores:
        return []
    hashes = yield [("HMGET", keys.schedule(entry), *_KEYS) for entry in scores]
    return [_entry(entry, score, _fields(reply)) for (entry, score), reply in zip(scores.items(), hashes, strict=True)]


def _fields(reply: Reply) -> Sequence[Reply]:
    """Return an entry's values, all None where something else than a hash is in its place."""
    if isinstance(reply, ServerError) and reply.code == "WRONGTYPE":
        return [None] * len(_KEYS)
    values = shaped(reply, list[Any])
    if len(values) != len(_KEYS):
        raise unexpected(f"expected {len(_KEYS)} values, got {len(values)}")
    return values


def _entry(entry: str, score: int, values: Sequence[Reply]) -> ScheduleEntry:
    texts = [(spec, text(value)) for spec, value in zip(_KEYS.values(), values, strict=True) if value]
    found = {spec.name: value for spec, said in texts for value in _fit(said, spec.type)}
    return ScheduleEntry(id=entry, next_run_ms=score, **found)


def _fit(value: str, wanted: Any) -> Iterator[Any]:
    """Yield the value as its field has it; nothing if it is none, which costs that field only."""
    try:
        yield msgspec.convert(value, wanted, strict=False)
    except (msgspec.ValidationError, ValueError, OverflowError):
        return


_FIRST = "0-0"


class HistoryWatch:
    """Reads what was added to an entry's history since it was read last.

    What was there before is not ours to tell; of a `new` entry, which was not there when we looked before, all is.
    `position` is up to where it was read, empty before the first reading.
    """

    def __init__(self, keys: Keys, entry: str, *, new: bool = False) -> None:
        self._key = keys.schedule_history(entry)
        self.position = _FIRST if new else ""

    def read(self, most: int) -> Query[list[ScheduleRun]]:
        """Ask for new runs, oldest first, `most` of them. One round trip.

        Raises `QueryRefusedError` if the server refuses.
        """
        if not self.position:
            (reply,) = yield [("XREVRANGE", self._key, "+", "-", "COUNT", 1)]
            entries = shaped(reply, list[tuple[bytes, Any]])
            self.position = _position(entries[0][0]) if entries else _FIRST
            return []
        (reply,) = yield [("XRANGE", self._key, f"({self.position}", "+", "COUNT", most)]
        runs = [_run(*entry) for entry in shaped(reply, list[tuple[bytes, Any]])]
        self.position = runs[-1].position if runs else self.position
        return runs


def _position(entry: bytes) -> str:
    entry_id(entry)
    return text(entry)


def _run(entry: bytes, said: Reply) -> ScheduleRun:
    position, fields = _position(entry), pairs(said)
    times = [next(_fit(text(fields.get(key, b"")), datetime), None) for key in ("scheduledAt", "executedAt")]
    scheduled, executed = times
    known = scheduled is not None and executed is not None and (scheduled.tzinfo is None) == (executed.tzinfo is None)
    late_s = (executed - scheduled).total_seconds() if known and scheduled and executed else None
    return ScheduleRun(position, text(fields.get("success", b"")) == "true", late_s)
