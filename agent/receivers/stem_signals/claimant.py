"""A receiver among other agents: which emitters it processes, which it only keeps an ear on, and what that means.

The receiver asks about a channel once and remembers the answer, so an owner pays nothing per message.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from agent.core.claim_terms import Change, Record, Standing, What
from agent.core.claims import Claims
from agent.core.clock import Clock
from agent.core.ownership import Ownership
from agent.core.pressure import Pressure
from agent.core.status import Reporter
from agent.receivers.stem_signals import events
from agent.receivers.stem_signals.backlog import Message
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.kept import Kept
from agent.receivers.stem_signals.sequence import SequenceTracker
from agent.stem.channels import HEARTBEATS
from agent.stem.wire import Fact, Gap, Lapse, Released, TakenOver, decode_stamp
from agent.telemetry.events import Telemetry

KEPT_SHARE = 4
"""What is kept for hand-overs may take this part of what the backlog may."""
LEAVE_SECONDS = 3.0
"""The longest that a stop waits for others to take over: three hand-overs with the default lease."""
LOOK_AGAIN_TICKS = 240
_NOT_YET = 1 << 63


class Ear(Protocol):
    """The receiver, as its claimant needs it."""

    def replay(self, messages: Sequence[Message]) -> None:
        """Process messages that were kept."""

    def hand_on(self, facts: Sequence[Fact]) -> None:
        """Hand facts to the next step."""

    def report(self, gaps: Iterable[Gap]) -> None:
        """Count and hand on gaps."""

    def not_owned(self, emitter: str, payload: bytes) -> None:
        """Account for a message that may have been ours."""

    def forget_channels(self, emitters: Iterable[str]) -> None:
        """Ask anew about the channels of these emitters."""

    def position(self) -> tuple[int, int]:
        """Return how many messages were received and how many processed, ever."""

    def ping(self, answered: Callable[[], None]) -> None:
        """Have `answered` called when everything that was published until now has been received."""


class Claimant:
    """Takes part in the claims; `valid_until_ns` is when the first lease that is relied on ends."""

    def __init__(
        self,
        identity: str,
        config: StemSignalsConfig,
        ownership: Ownership,
        ear: Ear,
        sequence: SequenceTracker,
        telemetry: Telemetry,
        clock: Clock,
        status: Reporter,
    ) -> None:
        self._id = identity
        self.namespace = config.namespace
        self.claims = Claims(ownership.agent, ownership.lease.length_ns, config.emitters)
        self.finished = False
        self._ownership = ownership
        self._ear = ear
        self._sequence = sequence
        self._telemetry = telemetry
        self._clock = clock
        self._status = status
        self._kept = Kept(config.backlog // KEPT_SHARE, self._on_shed)
        self._lapsed_ns = 0
        self._restored: set[str] = set()
        self._ticks = 0
        self._stale: dict[str, int] = {}
        self._alone = asyncio.Event()
        telemetry.gauge("stem_agent.ownership.emitters", lambda: float(len(self.claims.held)), receiver=identity)
        ownership.join(self)

    def watched_by(self, pressure: Pressure) -> None:
        """Give up what is kept when memory is short."""
        pressure.join(self._kept)

    def unwatched_by(self, pressure: Pressure) -> None:
        """Keep nothing any more."""
        pressure.leave(self._kept)

    # --- for the receiver --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what was restored of the numbering: whoever has those emitters now is to be found out."""
        self._restored = set(self._sequence.processed(self.namespace))
        for emitter in self._restored if self.claims.gateway else ():
            self.claims.hear(emitter)

    def owns(self, emitter: str) -> bool:
        """Whether messages of an emitter are to be processed; the answer holds until `forget_channels`."""
        if not self.claims.holds(emitter) or emitter in self._stale:
            return False
        self.claims.claims[emitter].heard = True
        return True

    def hear(self, emitter: str, channel: bytes, payload: bytes) -> None:
        """Take a message of an emitter that is not processed."""
        standing = self.claims.hear(emitter)
        if self.claims.again:
            self._ownership.wake()
        if standing in {Standing.FOREIGN, Standing.HELD} or emitter == HEARTBEATS:
            return  # held, and heard before it was: see `_stale`
        if standing is Standing.LAPSED:
            self._ear.not_owned(emitter, payload)
        else:
            self._kept.push(emitter, channel, payload)

    def tick(self) -> None:
        """Have the channels asked about again now and then: that shows who still speaks."""
        self._ticks += 1
        if self._ticks % LOOK_AGAIN_TICKS == 0:
            self._ear.forget_channels(self.claims.held)

    def look(self, now_ns: int) -> None:
        """Look at the time, and at what has been processed, before more is."""
        if now_ns >= self.claims.valid_until_ns:
            self.lapse(now_ns)
        if self._stale:
            _, processed = self._ear.position()
            fresh = [emitter for emitter, received in self._stale.items() if processed >= received]
            for emitter in fresh:
                del self._stale[emitter]
            self._ear.forget_channels(fresh)

    def received(self, emitters: Iterable[str] | None = None) -> None:
        """Take note that what was published before these (or all) were taken over was received, or never will be."""
        now, _ = self._ear.position()
        for emitter in self._stale.keys() & (self._stale.keys() if emitters is None else set(emitters)):
            self._stale[emitter] = min(self._stale[emitter], now)

    def lapse(self, now_ns: int) -> None:
        """Take note that leases are over."""
        lapsed = self.claims.lapse(now_ns)
        if not lapsed:
            return
        self._ear.forget_channels(lapsed)
        self._telemetry.emit(events.LeasesLapsed(self._id, len(lapsed), lapsed[0]))
        self._status.recovering(f"the leases on {len(lapsed)} emitters ended before they could be renewed")
        if not self._lapsed_ns:
            self._lapsed_ns = now_ns
            self._ear.hand_on([Lapse(self.namespace, self.claims.emitters, now_ns, 0)])

    async def leave(self, timeout: float) -> None:  # noqa: ASYNC109 - a part of the receiver's own
        """Let others take over while we still listen."""
        self.claims.leave()
        self._ownership.wake()
        if self.claims.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(timeout, LEAVE_SECONDS)):
                    await self._alone.wait()

    def finish(self) -> None:
        """Let go of what nobody took over: nothing more will be processed."""
        self.finished = True
        self._ownership.wake()

    # --- for whoever keeps the claims --------------------------------------------------------------------------------

    def position(self) -> tuple[int, int]:
        """Return how many messages were received and how many processed, ever."""
        return self._ear.position()

    def records(self) -> Mapping[str, Mapping[str, int]]:
        """Return the last number processed of each boot, by emitter."""
        return self._sequence.processed(self.namespace)

    def left(self) -> None:
        """Take note that nobody is left to wait for."""
        self._alone.set()

    def changed(self, changes: Sequence[Change]) -> None:
        """Process others from now on, or no more."""
        lost = [change.emitter for change in changes if change.what is What.LOST]
        if lost:
            self._telemetry.emit(events.EmittersLost(self._id, len(lost), lost[0]))
            self._part(lost)
        foreign = [change.emitter for change in changes if change.what is What.FOREIGN]
        for emitter in foreign:
            self._kept.take(emitter)
        if stale := self._restored.intersection(foreign):
            self._part(sorted(stale))
        acquired = [change for change in changes if change.what is What.ACQUIRED]
        for change in acquired:
            self._acquire(change.emitter, change.record)
        if acquired:
            self._telemetry.emit(events.EmittersTaken(self._id, len(acquired), acquired[0].emitter))
        self._ear.forget_channels(change.emitter for change in changes if change.what is What.RESUMED)
        self._judge([change for change in changes if change.what is What.REFUSED])

    def release(self, emitters: Sequence[str], *, others: bool) -> None:
        """Process these no more; `others`: somebody else does."""
        for emitter in emitters:
            self.claims.given(emitter)
        if others:
            self._telemetry.emit(events.EmittersReleased(self._id, len(emitters), emitters[0]))
            self._part(emitters)
        self._ear.forget_channels(emitters)

    def _judge(self, refused: Sequence[Change]) -> None:
        if refused:
            first = refused[0]
            self._status.degraded(
                f"emitter {first.emitter} is processed by agent {first.holder.agent}, not by this one"
            )
        elif not any(claim.standing is Standing.LAPSED for claim in self.claims.claims.values()):
            self._status.ok(f"processes {len(self.claims.held)} emitters")
            if self._lapsed_ns:
                since_ns, self._lapsed_ns = self._lapsed_ns, 0
                self._ear.hand_on([Lapse(self.namespace, self.claims.emitters, since_ns, self._clock())])

    def _part(self, emitters: Sequence[str]) -> None:
        """Leave to others what is theirs."""
        self._restored.difference_update(emitters)
        for emitter in emitters:
            self._stale.pop(emitter, None)
        self._ear.report(self._sequence.part(self.namespace, set(emitters)))
        self._ear.hand_on([Released(self.namespace, tuple(emitters))])
        self._ear.forget_channels(emitters)

    def _acquire(self, emitter: str, record: Record) -> None:
        """Go on where the owner before stopped.

        One that gave the claim up processed nothing after its record, nor did our own life before. One that was killed
        may have: of that nothing is processed again, and everything after its record counts as a gap.
        """
        if record.heir and record.heir != self.claims.agent:
            record = record._replace(by=record.heir, clean=False)
        if record.by:
            if not self._goes_on(emitter, record):
                self._ear.hand_on([TakenOver(self.namespace, emitter)])
            self._sequence.follow(self.namespace, emitter, record.seen, self._clock())
        self._restored.discard(emitter)
        self._ear.forget_channels([emitter])
        messages = self._kept.take(emitter)
        if record.by:
            sure = record.clean or record.by == self.claims.agent
            if not sure:  # what was received before now may have been processed by the one that was killed
                self._stale[emitter] = _NOT_YET
                self._ear.ping(lambda: self.received([emitter]))
            messages = [each for each in messages if self._is_new(emitter, each, record, sure=sure)]
        self._ear.replay(messages)

    def _goes_on(self, emitter: str, record: Record) -> bool:
        """Whether what was restored is still how things are: nobody has processed more since; else it is let go."""
        if emitter not in self._restored:
            return False
        known = self._sequence.processed(self.namespace).get(emitter, {})
        if all(known.get(boot, 0) >= seq for boot, seq in record.seen.items()):
            return True
        self._part([emitter])
        return False

    def _is_new(self, emitter: str, message: Message, record: Record, *, sure: bool) -> bool:
        """Whether nobody processed a kept message; what nobody numbered is lost, because it cannot be known."""
        stamp = decode_stamp(message[1])
        if stamp.boot is None or stamp.seq is None:
            self._ear.not_owned(emitter, message[1])
            return False
        return sure and stamp.seq > record.seen.get(stamp.boot, 0)

    def _on_shed(self, count: int) -> None:
        self._telemetry.emit(events.KeptShed(self._id, count, self._kept.limit))
