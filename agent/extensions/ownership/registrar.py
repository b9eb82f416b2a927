"""What a receiver claims, carried to Redis and back: one script call for hundreds of emitters."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent.core.claim_terms import NO_RECORD, Action, Answer, Ask, Holder, Record
from agent.core.claims import Party
from agent.core.clock import Clock
from agent.extensions.ownership.scripts import CLAIM, MEMBERS

if TYPE_CHECKING:
    from redis.asyncio import Redis

OWNER_PREFIX, WISH_PREFIX = "stem-agent:owner:", "stem-agent:wish:"
RECORD_PREFIX, GATEWAYS_PREFIX = "stem-agent:seen:", "stem-agent:gateways:"
BATCH = 500
"""Emitters a call: about a millisecond of the server's time."""
RECORD_SECONDS = 3600
"""What an owner left is of use for as long as a boot is remembered, or until the next owner has read it."""
MAX_BOOTS = 32
"""Boots in a record: the emitter's last ones."""
_BY, _CLEAN, _HEIR, _BOOT = ":by", ":clean", ":heir", "="


class Registrar:
    """Keeps the claims of one receiver; methods raise what redis-py raises.

    `news`: others should look, because something is theirs to take, or wished for.
    """

    def __init__(self, client: "Redis", party: Party, clock: Clock, *, lease: float) -> None:
        self._redis = client
        self._party = party
        self._clock = clock
        self._lease_ms = int(lease * 1000)
        self._life_ms = int(max(RECORD_SECONDS, 4 * lease) * 1000)
        self._claim = client.register_script(CLAIM)
        self._meet = client.register_script(MEMBERS)
        self._members: tuple[str, ...] = ()
        self._registered = False
        self._written: dict[str, Mapping[str, int]] = {}
        self._wished: set[str] = set()
        self._left = False
        self.news = False

    @property
    def delay(self) -> float | None:
        """Seconds after which another round is due, if that is soon."""
        if self._party.claims.again:
            return 0.0
        # A little more than the time after which a wish is granted.
        return 0.055 if self._party.claims.courted else None

    async def round(self) -> None:
        """Ask about everything once, and hand over what is due."""
        party, claims = self._party, self._party.claims
        self._members = await self._gateways()
        asks = claims.asks(self._members)
        records = party.records() if any(ask.action is Action.KEEP for ask in asks) else {}
        for start in range(0, len(asks), BATCH):
            await self._renew([self._with_record(ask, records) for ask in asks[start : start + BATCH]])
        received, processed = party.position()
        due = claims.due(self._clock(), received=received, processed=processed)
        if party.finished:
            due = [(emitter, claims.claims[emitter].wish) for emitter in claims.held]
        await self._give(due)
        if claims.leaving:
            self.news = self.news or not self._left
            self._left = True
            if not claims.held or not any(member != claims.agent for member in self._members):
                party.left()

    async def close(self) -> None:
        """Let go of everything."""
        claims = self._party.claims
        claims.leave()
        if self._registered:
            await self._gateways()
        await self._give([(emitter, claims.claims[emitter].wish) for emitter in claims.held])

    async def _gateways(self) -> tuple[str, ...]:
        claims = self._party.claims
        if not claims.gateway and not claims.leaving:
            return ()
        me = claims.agent if claims.gateway else ""
        leaving = claims.gateway and claims.leaving
        members: list[bytes] = await self._meet(
            keys=[f"{GATEWAYS_PREFIX}{self._party.namespace}"], args=[me, self._lease_ms, int(leaving)]
        )
        self._registered = bool(me) and not leaving
        return tuple(sorted(member.decode("utf-8", "replace") for member in members))

    def _with_record(self, ask: Ask, records: Mapping[str, Mapping[str, int]]) -> Ask:
        seen = records.get(ask.emitter, {})
        if ask.action is not Action.KEEP or not seen or self._written.get(ask.emitter) == seen:
            return ask
        self._written[ask.emitter] = seen
        return ask._replace(record=Record(self._party.claims.agent, clean=False, seen=seen))

    async def _renew(self, asks: Sequence[Ask]) -> None:
        sent_ns = self._clock()
        changes = []
        for ask, answer in zip(asks, await self._asked(asks), strict=True):
            if answer.taken or answer.holder.agent != self._party.claims.agent:
                self._written.pop(ask.emitter, None)
            if ask.action is Action.WANT and answer.holder.agent != self._party.claims.agent:
                self.news = self.news or ask.emitter not in self._wished
                self._wished.add(ask.emitter)
            else:
                self._wished.discard(ask.emitter)
            changes += self._party.claims.answered(ask, answer, sent_ns, self._clock())
        if changes:
            self._party.changed(changes)

    async def _give(self, due: Sequence[tuple[str, Holder]]) -> None:
        """Stop processing, and then tell who may begin, and from where."""
        if not due:
            return
        party = self._party
        records = party.records()
        for others in (True, False):
            if some := [emitter for emitter, to in due if bool(to.agent) is others]:
                party.release(some, others=others)
        asks = []
        for emitter, to in due:
            record = Record(party.claims.agent, clean=True, seen=records.get(emitter, {}))
            asks.append(Ask(emitter, Action.GIVE, str(to) if to.agent else "", record))
            self._written.pop(emitter, None)
        self.news = True
        for start in range(0, len(asks), BATCH):
            await self._asked(asks[start : start + BATCH])

    async def _asked(self, asks: Sequence[Ask]) -> list[Answer]:
        namespace = self._party.namespace
        keys = [
            f"{prefix}{namespace}:{ask.emitter}"
            for ask in asks
            for prefix in (OWNER_PREFIX, WISH_PREFIX, RECORD_PREFIX)
        ]
        questions = json.dumps([[ask.action, ask.value, _fields(ask.record)] for ask in asks])
        answers = await self._claim(
            keys=keys, args=[self._party.claims.agent, self._lease_ms, self._life_ms, questions]
        )
        return [_answer(answer) for answer in answers]


def _fields(record: Record | None) -> list[str]:
    if record is None:
        return []
    fields = [_BY, record.by, *([_CLEAN, "1"] if record.clean else [])]
    for boot, seq in list(record.seen.items())[-MAX_BOOTS:]:
        fields += (f"{_BOOT}{boot}", str(seq))
    return fields


def _answer(told: Sequence[Any]) -> Answer:
    holder, wish, taken, fields = told
    return Answer(Holder.read(_text(holder)), Holder.read(_text(wish)), _record(fields), taken=bool(taken))


def _record(fields: Sequence[bytes]) -> Record:
    if not fields:
        return NO_RECORD
    texts = [_text(field) for field in fields]
    found = dict(zip(texts[::2], texts[1::2], strict=True))
    seen = {
        field.removeprefix(_BOOT): int(seq)
        for field, seq in found.items()
        if field.startswith(_BOOT) and seq.isascii() and seq.isdigit()
    }
    return Record(found.get(_BY, ""), clean=_CLEAN in found, seen=seen, heir=found.get(_HEIR, ""))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
