"""What a message is: whose, the fact that it tells, or a loss that is counted and named."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.core.clock import Clock
from agent.receivers.stem_signals import events
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.sequence import SequenceTracker
from agent.stem.catalogue import SignalName
from agent.stem.channels import HEARTBEAT_PREFIX, HEARTBEATS, emitter_of, heartbeat_channel, signal_channel
from agent.stem.heartbeat import decode_heartbeat
from agent.stem.lenient import DecodeError
from agent.stem.wire import Fact, Shed, decode_signal, decode_stamp
from agent.telemetry.events import Event, Telemetry

if TYPE_CHECKING:
    from agent.receivers.stem_signals.claimant import Claimant

_UNKNOWN = "unknown"
_HEARTBEAT = "heartbeat"
_HEARTBEATS = HEARTBEAT_PREFIX.encode()
_MOST_CHANNELS = 100_000  # pods come and go for months


class Decoder:
    """Decodes the messages of one receiver; `claimant`, if there is one, says which are not ours to process."""

    def __init__(
        self, identity: str, config: StemSignalsConfig, sequence: SequenceTracker, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._id = identity
        self._config = config
        self._sequence = sequence
        self._telemetry = telemetry
        self._clock = clock
        self.claimant: Claimant | None = None
        self._emitters: dict[bytes, str | None] = {}
        self._others: dict[bytes, str] = {}
        self._shed_by: set[tuple[str, str]] = set()
        # Counted per signal, so the labels are put together here and not there.
        self._received = {
            event: ("stem_agent.signals.received", (("event", event), ("receiver", identity)))
            for event in (*SignalName, _HEARTBEAT, _UNKNOWN)
        }

    def decode(self, channel: bytes, payload: bytes, now_ns: int) -> Fact | None:
        """Return what a message says; None for what is not ours, was heard before, or is lost and counted."""
        emitter = self._emitter(channel)
        if emitter is None:
            self._heard_others(channel, payload)
            return None
        if len(payload) > self._config.max_payload:
            size, limit = len(payload), self._config.max_payload
            self.account(channel, payload, events.SignalOversize(self._id, emitter, size, limit))
            return None
        try:
            if channel.startswith(_HEARTBEATS):
                return self._heartbeat(payload)
            return self._signal(payload, emitter, now_ns)
        except DecodeError as error:
            self.account(channel, payload, events.SignalUndecodable(self._id, emitter, error.reason))
            return None

    def _heartbeat(self, payload: bytes) -> Fact:
        heartbeat = decode_heartbeat(payload)
        heartbeat.namespace = self._config.namespace
        self._telemetry.counters[self._received[_HEARTBEAT]] += 1
        return heartbeat

    def _signal(self, payload: bytes, emitter: str, now_ns: int) -> Fact | None:
        signal = decode_signal(payload)
        signal.namespace = namespace = self._config.namespace
        signal.emitter = emitter
        name = signal.event_name
        self._telemetry.counters[self._received.get(name) or self._received[_UNKNOWN]] += 1
        if (
            signal.boot is not None
            and signal.seq is not None
            and not self._sequence.observe(
                namespace, emitter, signal.boot, signal.seq, now_ns, beat=name == SignalName.WORKER_HEARTBEAT
            )
        ):
            self._telemetry.count("stem_agent.signals.duplicates", receiver=self._id)
            return None
        return signal

    def _emitter(self, channel: bytes) -> str | None:
        """Return who speaks on a channel; None for what is not ours to process. Remembered: channels are few."""
        if channel not in self._emitters:
            name = channel.decode("utf-8", "replace")
            if len(self._emitters) >= _MOST_CHANNELS:
                self._emitters.clear()
                self._others.clear()
            is_heartbeat = name == heartbeat_channel(self._config.namespace)
            emitter = _HEARTBEAT if is_heartbeat else emitter_of(name, self._config.namespace)
            claimed = HEARTBEATS if is_heartbeat else emitter
            if claimed and self.claimant and not self.claimant.owns(claimed):
                self._others[channel], emitter = claimed, None
            self._emitters[channel] = emitter
        return self._emitters[channel]

    def _heard_others(self, channel: bytes, payload: bytes) -> None:
        if self.claimant and (emitter := self._others.get(channel)):
            self.claimant.hear(emitter, channel, payload)

    def not_owned(self, emitter: str, payload: bytes) -> None:
        """Account for a message that may have been ours; whether it was is known later, and its record read then."""
        self._telemetry.emit(events.SignalNotOwned(self._id))
        if (stamp := decode_stamp(payload)).boot is not None and stamp.seq is not None:
            self._sequence.observe(self._config.namespace, emitter, stamp.boot, stamp.seq, self._clock())

    def forget_channels(self, emitters: Iterable[str]) -> None:
        """Ask anew about the channels of these emitters."""
        namespace = self._config.namespace
        for emitter in emitters:
            name = heartbeat_channel(namespace) if emitter == HEARTBEATS else signal_channel(namespace, emitter)
            self._emitters.pop(name.encode(), None)
            self._others.pop(name.encode(), None)

    def account(self, channel: bytes, payload: bytes, loss: Event) -> None:
        """Account for a message that is lost, if it was ours."""
        emitter = self._emitter(channel)
        if emitter is None:  # another namespace's, or another agent's: not ours to lose
            self._heard_others(channel, payload)
            return
        self._telemetry.emit(loss)
        stamp = decode_stamp(payload)
        if stamp.boot is not None and stamp.seq is not None:
            # Lost, and counted so already: its number must not be counted again as a gap.
            self._sequence.observe(self._config.namespace, emitter, stamp.boot, stamp.seq, self._clock())
            self._shed_by.add((emitter, stamp.boot))

    def take_shed(self) -> list[Shed]:
        """Return whose messages were lost here since this was asked last."""
        shed, self._shed_by = self._shed_by, set()
        return [Shed(self._config.namespace, emitter, boot) for emitter, boot in shed]
