"""Which agent processes the signals of which emitter: claims, asked for and handed over. Pure; time is an argument.

A claim is a lease in Redis that names its owner. A sidecar claims its own emitters and goes before gateways; gateways
share the others by rendezvous hashing, which decides only who asks: the lease decides who has.

| standing | what it means | its messages are | left when |
| --- | --- | --- | --- |
| undecided | heard, and nobody looked yet | kept | somebody has it |
| wanted | asked for, a hand-over is expected | kept | it is ours, or another's for good |
| foreign | another agent has it | thrown away unread | that agent gives it up, or is gone |
| held | ours | processed | another asks who goes before us, or we stop, or the lease ends |
| lapsed | the lease ended before it was renewed | counted as lost | it is renewed, or another has it |
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from agent.core.claim_terms import NOBODY, Action, Answer, Ask, Change, Holder, Kind, Standing, What
from agent.core.ownership import Lease

SETTLE_NS = 50_000_000
"""From seeing a wish to granting it: what was published before the wish may still be in the socket."""
IDLE_ROUNDS = 720
"""Rounds without a word of it, after which a gateway gives an emitter up: an hour with the default lease."""
_FREE_LEASES = 2
"""An emitter that is free for so long is anybody's: whoever should take it does not hear it."""


@dataclass(slots=True)
class Claim:
    """One emitter, as this agent has it."""

    emitter: str
    standing: Standing
    lease: Lease
    wish: Holder = NOBODY
    wished_ns: int = 0
    mark: int | None = None  # so many messages were received when the wish was old enough
    free_ns: int = 0  # since when nobody has it, as far as we looked
    heard: bool = True
    idle: int = 0
    winner: tuple[tuple[str, ...], str] = ((), "")


@dataclass(slots=True)
class Claims:
    """All emitters that one receiver hears or is to hear; `agent` is our id, `members` the gateways that live.

    Whoever has `emitters` configured is their sidecar; whoever has none is a gateway. `again` says that something is to
    be asked at once; `valid_until_ns` is when the first of the leases that are held ends.
    """

    agent: str
    length_ns: int
    emitters: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    claims: dict[str, Claim] = field(default_factory=dict)
    again: bool = False
    leaving: bool = False
    valid_until_ns: int = 0

    def __post_init__(self) -> None:
        for emitter in self.emitters:
            self._add(emitter, Standing.WANTED)

    @property
    def gateway(self) -> bool:
        """Whether it takes what nobody else has."""
        return not self.emitters

    # --- hearing -----------------------------------------------------------------------------------------------------

    def hear(self, emitter: str) -> Standing:
        """Note that an emitter was heard that is not held, and return how it stands."""
        claim = self.claims.get(emitter)
        if claim is None:
            claim = self._add(emitter, Standing.FOREIGN if self.leaving else Standing.UNDECIDED)
            self.again = not self.leaving
        claim.heard = True
        return claim.standing

    def holds(self, emitter: str) -> bool:
        """Whether its messages are to be processed."""
        claim = self.claims.get(emitter)
        return claim is not None and claim.standing is Standing.HELD

    @property
    def held(self) -> list[str]:
        """The emitters whose messages are processed, or would be if their leases were renewed."""
        return [each.emitter for each in self.claims.values() if each.standing in {Standing.HELD, Standing.LAPSED}]

    def lapse(self, now_ns: int) -> list[str]:
        """Note that time has passed; return the emitters whose lease is over."""
        lapsed = [c for c in self.claims.values() if c.standing is Standing.HELD and not c.lease.holds(now_ns)]
        for claim in lapsed:
            claim.standing = Standing.LAPSED
        self._weigh()
        return [claim.emitter for claim in lapsed]

    def leave(self) -> None:
        """Hold on only until others have taken over; ask for nothing more."""
        self.leaving = True
        for claim in self.claims.values():
            if claim.standing in {Standing.UNDECIDED, Standing.WANTED}:
                claim.standing = Standing.FOREIGN

    # --- asking ------------------------------------------------------------------------------------------------------

    def asks(self, members: tuple[str, ...]) -> list[Ask]:
        """Return what is to be asked of the server now; forget those of others that were not heard for long."""
        self.again = False
        if members != self.members:
            self.members = members
        for claim in list(self.claims.values()):
            claim.idle = 0 if claim.heard else claim.idle + 1
            claim.heard = False
            if self._idle(claim) and claim.standing is not Standing.HELD:
                del self.claims[claim.emitter]
        return [self._ask(claim) for claim in self.claims.values() if self._concerns(claim)]

    def _idle(self, claim: Claim) -> bool:
        return self.gateway and claim.idle > IDLE_ROUNDS

    def _concerns(self, claim: Claim) -> bool:
        return not self.leaving or claim.standing in {Standing.HELD, Standing.LAPSED}

    def _ask(self, claim: Claim) -> Ask:
        if claim.standing in {Standing.HELD, Standing.LAPSED}:
            return Ask(claim.emitter, Action.KEEP, str(self._self))
        if claim.standing is Standing.WANTED or (claim.standing is Standing.UNDECIDED and self._wins(claim)):
            return Ask(claim.emitter, Action.WANT, str(self._self))
        return Ask(claim.emitter, Action.LOOK)

    @property
    def _self(self) -> Holder:
        kind = Kind.LEAVING if self.leaving else Kind.GATEWAY if self.gateway else Kind.SIDECAR
        return Holder(kind, self.agent)

    # --- answers -----------------------------------------------------------------------------------------------------

    def answered(self, ask: Ask, answer: Answer, sent_ns: int, now_ns: int) -> list[Change]:
        """Take an answer to what was asked at `sent_ns`; return what that changes.

        A claim whose answer was under way for as long as it lasts is none: another may have it by now.
        """
        claim = self.claims.get(ask.emitter)
        if claim is None:
            return []
        if answer.holder.agent == self.agent:
            changes = self._is_ours(claim, ask, answer, sent_ns, now_ns)
        elif answer.holder == NOBODY:
            changes = self._is_free(claim, sent_ns)
        else:
            changes = self._is_anothers(claim, answer.holder)
        self._weigh()
        return changes

    def _is_ours(self, claim: Claim, ask: Ask, answer: Answer, sent_ns: int, now_ns: int) -> list[Change]:
        before = claim.standing
        claim.free_ns = 0
        if ask.action is Action.LOOK:  # of a life before, or what we gave was not taken from us
            if not self.leaving:
                self._want(claim)
            return []
        claim.lease.renewed(sent_ns)
        if not claim.lease.holds(now_ns):
            self.again = True
            return []
        claim.standing = Standing.HELD
        self._court(claim, answer.wish, sent_ns)
        if before not in {Standing.HELD, Standing.LAPSED}:
            return [Change(What.ACQUIRED, claim.emitter, answer.record)]
        record = answer.record
        if answer.taken and (record.heir or record.by) not in {"", self.agent}:  # empty: the server lost it
            return [Change(What.LOST, claim.emitter), Change(What.ACQUIRED, claim.emitter, answer.record)]
        return [Change(What.RESUMED, claim.emitter)] if before is Standing.LAPSED else []

    def _is_free(self, claim: Claim, now_ns: int) -> list[Change]:
        claim.free_ns = claim.free_ns or now_ns
        if not self.leaving and (self._wins(claim) or now_ns - claim.free_ns > _FREE_LEASES * self.length_ns):
            self._want(claim)
        return []

    def _is_anothers(self, claim: Claim, holder: Holder) -> list[Change]:
        before = claim.standing
        claim.free_ns = 0
        gives_way = holder.kind in {Kind.GATEWAY, Kind.LEAVING}
        if before not in {Standing.HELD, Standing.LAPSED} and not self.leaving:
            if not self.gateway:
                return [] if gives_way else [Change(What.REFUSED, claim.emitter, holder=holder)]
            if gives_way and self._wins(claim):
                self._want(claim)
                return []
        claim.standing = Standing.FOREIGN
        claim.lease.gone()
        self._forget_wish(claim)
        if before is Standing.FOREIGN:
            return []
        if not self.gateway and not self.leaving:
            claim.standing = Standing.WANTED  # it is configured: asked for as long as we run
        return [Change(What.LOST if before in {Standing.HELD, Standing.LAPSED} else What.FOREIGN, claim.emitter)]

    def _want(self, claim: Claim) -> None:
        """Keep what is heard from now on, and ask for it after that."""
        if claim.standing is not Standing.WANTED:
            claim.standing = Standing.WANTED
            self.again = True

    # --- handing over ------------------------------------------------------------------------------------------------

    def _court(self, claim: Claim, wish: Holder, now_ns: int) -> None:
        if not self._grants(claim, wish):
            self._forget_wish(claim)
        elif claim.wish != wish:
            claim.wish, claim.wished_ns, claim.mark = wish, now_ns, None

    def _grants(self, claim: Claim, wish: Holder) -> bool:
        if wish == NOBODY or wish.agent == self.agent:
            return False
        if self.leaving or (self.gateway and wish.kind == Kind.SIDECAR):
            return True
        return self.gateway and wish.kind == Kind.GATEWAY and self._winner(claim) == wish.agent

    def _forget_wish(self, claim: Claim) -> None:
        claim.wish, claim.wished_ns, claim.mark = NOBODY, 0, None

    @property
    def courted(self) -> bool:
        """Whether somebody waits for a hand-over."""
        return any(c.wish != NOBODY and c.standing is Standing.HELD for c in self.claims.values())

    def due(self, now_ns: int, *, received: int, processed: int) -> list[tuple[str, Holder]]:
        """Return the hand-overs whose time has come: what was received before them (messages, ever) is processed.

        What was silent for long is let go of.
        """
        due = [(c.emitter, NOBODY) for c in self.claims.values() if c.standing is Standing.HELD and self._idle(c)]
        for claim in self.claims.values():
            if claim.standing is not Standing.HELD or claim.wish == NOBODY or now_ns - claim.wished_ns < SETTLE_NS:
                continue
            if claim.mark is None:
                claim.mark = received
            if processed >= claim.mark:
                due.append((claim.emitter, claim.wish))
        return due

    def given(self, emitter: str) -> None:
        """Note that an emitter is processed no more."""
        claim = self.claims[emitter]
        claim.standing = Standing.FOREIGN
        claim.lease.gone()
        self._forget_wish(claim)
        self._weigh()

    # --- who asks ----------------------------------------------------------------------------------------------------

    def _wins(self, claim: Claim) -> bool:
        return not self.gateway or self._winner(claim) == self.agent

    def _winner(self, claim: Claim) -> str:
        if claim.winner[0] is not self.members:
            claim.winner = (self.members, rendezvous(claim.emitter, self.members))
        return claim.winner[1]

    def _add(self, emitter: str, standing: Standing) -> Claim:
        claim = self.claims[emitter] = Claim(emitter, standing, Lease(self.length_ns))
        return claim

    def _weigh(self) -> None:
        held = (claim.lease for claim in self.claims.values() if claim.standing is Standing.HELD)
        self.valid_until_ns = min((lease.usable_until_ns for lease in held), default=1 << 63)


def rendezvous(emitter: str, members: Iterable[str]) -> str:
    """Return who of the members is to have an emitter: when one leaves or comes, only its own share moves."""
    return max(members, key=lambda member: (_weight(emitter, member), member), default="")


def _weight(emitter: str, member: str) -> bytes:
    return blake2b(f"{member}\0{emitter}".encode(), digest_size=8).digest()


class Party(Protocol):
    """A receiver, to whoever carries its claims to the server."""

    namespace: str
    claims: Claims
    finished: bool
    """It listens no more, and has processed all that it will."""

    def position(self) -> tuple[int, int]:
        """Return how many messages were received and how many processed, ever."""

    def records(self) -> Mapping[str, Mapping[str, int]]:
        """Return the last number processed of each boot, by emitter."""

    def changed(self, changes: Sequence[Change]) -> None:
        """Process others from now on, or no more."""

    def release(self, emitters: Sequence[str], *, others: bool) -> None:
        """Process these no more; `others`: somebody else does."""

    def left(self) -> None:
        """Take note that nobody is left to wait for before the end."""
