"""Where one task has left traces: on the streams, among the delayed ones, among the dead letters. Pure.

Streams and lists know no search, so each question looks at a budget of entries: a stream's newest first, and those that
followed the time that a UUID of version 7 tells; the dead letters newest first. `complete` says whether all was seen
that could have been of the task.
"""

import re
from collections.abc import Sequence
from uuid import UUID

import msgspec
from msgspec import Struct

from agent.stem.envelope import Envelope, envelope_of
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.questions.dead_letters import DeadLetter, decode_dead_letter
from agent.stem.questions.deliveries import Delayed, Pending, delayed_of, pending_of
from agent.stem.questions.query import Query, Reply, needed, pairs, text
from agent.stem.questions.streams import GroupState, read_groups

PAGE = 200
"""Entries in one reply: one has about 1 kB, and its arguments."""
SKEW_MS = 600_000
"""By how much a producer's clock may be ahead of Redis'; how far back the newest entries are looked at."""
BEFORE_MS = 5_000
"""How long before an id's time is looked, where the newest entries are too many to look at all."""
_GLOB = str.maketrans({char: f"\\{char}" for char in "\\*?[]"})
_VERSION_7 = 7
_ENTRY = re.compile(r"(\d+)-(\d+)")


class Delivery(Struct, frozen=True):
    """The task on a stream, ready since `entry` says (Redis' milliseconds). `delivered`: a worker was given it.

    `pending` is set while that worker has not acknowledged it.
    """

    queue: str
    stream: str
    entry: str
    envelope: Envelope
    delivered: bool
    pending: Pending | None


class Found(Struct, frozen=True):
    """What was found of a task in one queue."""

    queue: str
    deliveries: list[Delivery]
    delayed: list[Delayed]
    dead: list[DeadLetter]
    complete: bool


def born_ms(task_id: str) -> int | None:
    """Return when an id was made (Unix milliseconds by its producer's clock); None unless it is a UUID of version 7."""
    try:
        made = UUID(task_id)
    except ValueError:
        return None
    return made.int >> 80 if made.version == _VERSION_7 else None


def find_task(keys: Keys, queue: str, task_id: str, budget: int) -> Query[Found]:
    """Look for a task in one queue: at most `budget` entries of each stream and list.

    Raises `QueryRefusedError` if the server refuses.
    """
    deliveries: list[Delivery] = []
    complete = True
    for stream in keys.streams(queue):
        found, whole = yield from _on_stream(keys, queue, stream, task_id, budget)
        deliveries += found
        complete = complete and whole
    delayed, all_delayed = yield from _delayed(keys, queue, task_id, budget)
    dead, all_dead = yield from _dead(keys, queue, task_id, budget)
    return Found(queue, deliveries, delayed, dead, complete and all_delayed and all_dead)


# --- streams ---------------------------------------------------------------------------------------------------------

_Entries = list[Sequence[Reply]]


def _on_stream(keys: Keys, queue: str, stream: str, task_id: str, budget: int) -> Query[tuple[list[Delivery], bool]]:
    (reply,) = yield [("XINFO", "GROUPS", stream)]
    groups = read_groups(reply)
    group = next((group for group in groups or () if group.name == keys.group(queue)), None)
    if groups is None or (groups and group is None):
        return [], True  # there is none, or it is another queue's
    born = born_ms(task_id)
    since = "-" if born is None else str(max(0, born - SKEW_MS))
    half = 0 if born is None else budget // 2
    entries, complete = yield from _newest(stream, since, task_id, budget - half)
    if not complete and born is not None:
        more = yield from _following(stream, born, task_id, half)
        entries += [entry for entry in more if entry not in entries]
    replies = yield [("XPENDING", stream, keys.group(queue), entry[0], entry[0], 1) for entry in entries]
    found = [_delivery(queue, stream, entry, group, reply) for entry, reply in zip(entries, replies, strict=True)]
    return found, complete


def _newest(stream: str, since: str, task_id: str, budget: int) -> Query[tuple[_Entries, bool]]:
    """Look at the newest entries, page by page back to `since`."""
    found: _Entries = []
    looked_at, end = 0, "+"
    while looked_at < budget:
        count = min(PAGE, budget - looked_at)
        (reply,) = yield [("XREVRANGE", stream, end, since, "COUNT", count)]
        entries = needed(reply)
        looked_at += len(entries)
        found += [entry for entry in entries if _is_of(entry, task_id)]
        if len(entries) < count:
            return found, True
        end = f"({text(entries[-1][0])}"
    return found, False


def _following(stream: str, born: int, task_id: str, budget: int) -> Query[_Entries]:
    """Look at the entries that became ready when the task was made, and soon after: its retries are among them."""
    found: _Entries = []
    looked_at, start = 0, str(max(0, born - BEFORE_MS))
    while looked_at < budget:
        count = min(PAGE, budget - looked_at)
        (reply,) = yield [("XRANGE", stream, start, "+", "COUNT", count)]
        entries = needed(reply)
        looked_at += len(entries)
        found += [entry for entry in entries if _is_of(entry, task_id)]
        if len(entries) < count:
            break
        start = f"({text(entries[-1][0])}"
    return found


def _is_of(entry: Sequence[Reply], task_id: str) -> bool:
    fields = entry[1]
    return any(key == b"id" and value == task_id.encode() for key, value in zip(fields[::2], fields[1::2], strict=True))


def _delivery(queue: str, stream: str, entry: Sequence[Reply], group: GroupState | None, reply: Reply) -> Delivery:
    position = text(entry[0])
    pending = next(pending_of(stream, reply), None)
    delivered = group is not None and _order(position) <= _order(group.last_delivered)
    return Delivery(queue, stream, position, envelope_of(pairs(entry[1])), delivered, pending)


def _order(entry: str) -> tuple[int, int]:
    found = _ENTRY.fullmatch(entry)
    return (int(found[1]), int(found[2])) if found else (0, 0)


# --- delayed and dead ------------------------------------------------------------------------------------------------


def _delayed(keys: Keys, queue: str, task_id: str, budget: int) -> Query[tuple[list[Delayed], bool]]:
    """Let the server look through the delayed set for members that have the id in them."""
    pattern = f"*{_in_json(task_id).decode().translate(_GLOB)}*"
    found: list[Delayed] = []
    cursor, looked_at = "0", 0
    while looked_at < budget:
        (reply,) = yield [("ZSCAN", keys.delayed(queue), cursor, "MATCH", pattern, "COUNT", PAGE)]
        position, members = needed(reply)
        found += [delayed for delayed in delayed_of(members) if delayed.envelope.id == task_id]
        cursor, looked_at = text(position), looked_at + PAGE
        if cursor == "0":
            return found, True
    return found, False


def _dead(keys: Keys, queue: str, task_id: str, budget: int) -> Query[tuple[list[DeadLetter], bool]]:
    """Look at the newest dead letters; what lacks the id's bytes is not decoded."""
    found: list[DeadLetter] = []
    looked_at = 0
    while looked_at < budget:
        (reply,) = yield [("LRANGE", keys.dead(queue), looked_at, looked_at + PAGE - 1)]
        letters = needed(reply)
        looked_at += len(letters)
        found += [letter for payload in letters if (letter := _letter_of(payload, task_id))]
        if len(letters) < PAGE:
            return found, True
    return found, False


def _in_json(task_id: str) -> bytes:
    return msgspec.json.encode(task_id)


def _letter_of(payload: bytes, task_id: str) -> DeadLetter | None:
    if _in_json(task_id) not in payload:
        return None
    try:
        letter = decode_dead_letter(payload)
    except DecodeError:
        return None
    return letter if letter.envelope.id == task_id else None
