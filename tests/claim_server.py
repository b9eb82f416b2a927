"""What the scripts of `ownership` do, in Python and by a told clock: a server whose leases end when a test says so."""

import json
from collections.abc import Sequence
from typing import Any


class ClaimServer:
    """Runs the scripts CLAIM and MEMBERS as Redis does; `now_ms` is its clock."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._values: dict[str, tuple[Any, int]] = {}  # by key, and when each ends

    def get(self, key: str) -> Any:
        value, ends_ms = self._values.get(key, (None, 0))
        return value if ends_ms > self.now_ms else None

    def _set(self, key: str, value: Any, life_ms: int) -> None:
        self._values[key] = (value, self.now_ms + life_ms)

    def _delete(self, key: str) -> None:
        self._values.pop(key, None)

    def members(self, keys: Sequence[str], args: Sequence[Any]) -> list[bytes]:
        key, (me, lease, leaves) = keys[0], args
        found: dict[str, int] = dict(self.get(key) or {})
        if leaves:
            found.pop(me, None)
        elif me:
            found[me] = self.now_ms + lease
        found = {member: ends_ms for member, ends_ms in found.items() if ends_ms >= self.now_ms}
        self._set(key, found, lease if me and not leaves else 1 << 40)
        return [member.encode() for member in found]

    def claim(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        me, lease, life, questions = args
        asks = json.loads(questions)
        triples = zip(keys[::3], keys[1::3], keys[2::3], strict=True)
        return [self._one(me, lease, life, ask, *triple) for ask, triple in zip(asks, triples, strict=True)]

    def _one(self, me: str, lease: int, life: int, ask: Any, owner: str, wish: str, record: str) -> list[Any]:
        action, value, fields = ask
        holder = self.get(owner) or ""
        mine = _agent(holder) == me
        wished, taken, found = "", 0, {}
        if action == "give":
            holder = self._given(ask, lease, life, owner, wish, record) if mine else holder
        elif action != "look" and (mine or not holder):
            if action == "want" or not mine:
                found = dict(self.get(record) or {})
                self._set(record, {**found, ":heir": me}, life)
                taken = int(not mine)
            elif fields:
                self._set(record, _pairs(fields), life)
            elif kept := self.get(record):
                self._set(record, kept, life)
            self._set(owner, value, lease)
            holder, wished = value, self.get(wish) or ""
            if _agent(wished) == me:
                self._delete(wish)
                wished = ""
        elif action == "want":
            wished = self.get(wish) or ""
            if value.startswith("sidecar ") or not (holder.startswith("sidecar ") or wished.startswith("sidecar ")):
                self._set(wish, value, lease)
        return [holder.encode(), wished.encode(), taken, [part.encode() for pair in found.items() for part in pair]]

    def _given(self, ask: Any, lease: int, life: int, owner: str, wish: str, record: str) -> str:
        _, value, fields = ask
        if fields:
            self._set(record, _pairs(fields), life)
        if value:
            self._set(owner, value, lease)
        else:
            self._delete(owner)
        self._delete(wish)
        return str(value)


def _pairs(fields: Sequence[str]) -> dict[str, str]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _agent(holder: str) -> str:
    return holder.partition(" ")[2]
