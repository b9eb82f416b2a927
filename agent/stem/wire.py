"""The signal wire format (pub/sub), decoded, and the other facts that a receiver tells.

Two decoders for one format: the strict one, which msgspec runs in C, takes everything a bridge sends; what it
refuses is decoded again leniently, so that one odd field costs that field and not the signal. Only `eventName`,
`occurredAt` and `attributes` are required.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Annotated, Protocol

import msgspec
from msgspec import Raw, Struct, field

from agent.stem.envelope import Envelope
from agent.stem.heartbeat import Heartbeat
from agent.stem.lenient import Count, DecodeError, members, mended, salvage
from agent.stem.status import TaskStatus

Drift = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
"""Milliseconds; what is more than that is no drift."""


class Metadata(Struct, rename="camel", gc=False):
    """`metadata` of a workflow signal: why it sleeps, failed, or was cancelled. Its `result` is never decoded."""

    type: str | None = None
    topic: str | None = None
    resume_at: datetime | None = None
    error: str | None = None
    policy: str | None = None


class Attributes(Struct, rename="camel", gc=False):
    """`StemEvent.attributes`: the keys that are used of all 27 signals; the rest is skipped unread."""

    task_id: str | None = None
    task_name: str | None = None
    queue: str | None = None
    worker_id: str | None = None
    attempt: Count | None = None
    state: str | None = None
    reason: str | None = None
    error: str | None = None
    stack_trace: str | None = None
    next_retry_at: datetime | None = None
    # workflow-run-*
    run_id: str | None = None
    workflow: str | None = None
    status: str | None = None
    step: str | None = None
    metadata: Metadata | None = None
    # schedule-entry-*
    entry_id: str | None = None
    scheduled_for: datetime | None = None
    executed_at: datetime | None = None
    drift_ms: Drift | None = None
    # control-command-*
    request_id: str | None = None
    type: str | None = None


class Signal(Struct, rename="camel", gc=False):
    """One signal as it came from the wire; `namespace` and, from the channel, `emitter` are set by the receiver."""

    event_name: str
    occurred_at: datetime
    attributes: Attributes
    envelope: Raw = field(default_factory=Raw)
    attempt: Count | None = None
    worker_id: str | None = None
    received_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str | None = None
    emitter: str | None = None
    boot: str | None = None
    seq: Count | None = None
    pid: Count | None = None
    host: str | None = None
    namespace: str = field(default="", name="__namespace")


class Stamp(Struct, gc=False):
    """Just enough of a signal to account for it."""

    boot: str | None = None
    seq: int | None = None


class Gap(Struct, frozen=True, gc=False):
    """Signals of one emitter that never arrived: numbers `first` to `last`, noticed at `noticed_ns`."""

    namespace: str
    emitter: str
    boot: str
    first: int
    last: int
    noticed_ns: int

    @property
    def count(self) -> int:
        """How many signals are missing."""
        return self.last - self.first + 1


class ServerClock(Struct, frozen=True, gc=False):
    """The clock of the Redis of a namespace, minus ours (ns), as far as one answer can tell."""

    namespace: str
    offset_ns: int


class Shed(Struct, frozen=True, gc=False):
    """Signals of a process were thrown away unread, and counted where that was done."""

    namespace: str
    emitter: str
    boot: str


class Outage(Struct, frozen=True, gc=False):
    """The receiver could hear nothing from `from_ns` on (our clock): told when it begins, and again when it is over.

    `to_ns` is 0 until then. `emitters` are those concerned; none: all of the namespace.
    """

    namespace: str
    emitters: tuple[str, ...]
    from_ns: int
    to_ns: int


class Lapse(Outage, frozen=True, gc=False):
    """An outage of our own: what was said may be another agent's to tell, and nobody knows yet."""


class Released(Struct, frozen=True, gc=False):
    """Another agent processes the signals of these emitters from now on: nothing more of theirs is ours to tell."""

    namespace: str
    emitters: tuple[str, ...]


class TakenOver(Struct, frozen=True, gc=False):
    """The signals of an emitter were processed by another agent until now: what it told is not to be told again."""

    namespace: str
    emitter: str


class Enqueued(Struct, frozen=True, gc=False):
    """A task was found on a stream of its queue, ready since `ready_ns` (Unix nanoseconds by Redis' clock).

    `published`: it was never there before, so this is its publish and no retry, copy of a lease, or replay. `claimed`:
    an agent listens to somebody in its namespace, so that publishes are signalled there.
    """

    namespace: str
    queue: str
    envelope: Envelope
    ready_ns: int
    published: bool
    claimed: bool


class Recorded(Struct, frozen=True, gc=False):
    """The record of a task changed; worker and start of its delivery are in it as far as they are known.

    `envelope` is that of the delivery, without a time of enqueueing where it is not known which one it was. `claimed`:
    an agent listens to the worker's signals, and tells of it. `start_told`: another agent, whose work this one goes on
    with, told that it began.
    """

    namespace: str
    record: TaskStatus
    envelope: Envelope
    claimed: bool
    start_told: bool = False


class Unended(Struct, frozen=True, gc=False):
    """A delivery that was over by `over_ns` (Unix nanoseconds), and whose end no record tells any more.

    `retried`: it asked for the attempt whose records took its place. Worker and start as far as they are known;
    `claimed`, of an unknown worker, where an agent listens to anybody's signals.
    """

    namespace: str
    envelope: Envelope
    attempt: int
    worker: str | None
    started_at: datetime | None
    over_ns: int
    retried: bool
    claimed: bool
    start_told: bool = False


class EndTold(Struct, frozen=True, gc=False):
    """A delivery of which the end was told, long ago, or by another agent whose work this one goes on with.

    It was over by `over_ns`. `retried`: it asked for the next attempt, to begin at `next_retry_ns`, 0 where nobody
    knows when. Both are Unix nanoseconds.
    """

    namespace: str
    task_id: str
    attempt: int
    worker: str | None
    started_at: datetime | None
    over_ns: int
    retried: bool
    next_retry_ns: int


class DeadLettered(Struct, frozen=True, gc=False):
    """A task was given up, at `dead_at` by the clock of its worker; `error` is what its last attempt failed with."""

    namespace: str
    queue: str
    envelope: Envelope
    reason: str
    error: str | None
    dead_at: datetime | None


class QueueEvent(Struct, frozen=True, gc=False):
    """An application told an event of its own to whoever listens to a queue; `entry` is the id in its stream.

    `envelope` has its headers. What it tells is the application's, and never read.
    """

    namespace: str
    queue: str
    name: str
    entry: str
    time_ns: int
    envelope: Envelope


class LostAttempt(Struct, frozen=True, gc=False):
    """An attempt that ran on a worker which vanished, together with whoever listened to it.

    Found pending in Redis, under the worker's name, with a record that says it runs there since `started_ns`;
    `lost_ns` is when the worker was last heard of. Both by the worker's clock.
    """

    namespace: str
    worker: str
    attempt: int
    envelope: Envelope
    started_ns: int
    lost_ns: int


Tailed = Enqueued | Recorded | Unended | EndTold | DeadLettered | QueueEvent | LostAttempt
"""What is read of a fleet that says nothing by itself."""

Fact = Signal | Heartbeat | Gap | Shed | Outage | ServerClock | Released | TakenOver
"""What flows through the signals pipeline."""


class SignalConsumer(Protocol):
    """The next step of the signals pipeline: of what is heard, and of what is read of those who say nothing.

    What is read is told in the name of the fleet, by one agent at a time: it takes that up and gives it up again, each
    receiver for itself.
    """

    def consume_facts(self, facts: Sequence[Fact], zone: tzinfo) -> None:
        """Take decoded facts; times without an offset are in `zone`."""

    def consume_tailed(self, receiver: str, facts: Sequence[Tailed], zone: tzinfo) -> None:
        """Take what was read, in its order; times without an offset are in `zone`."""

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:
        """Begin to tell of the fleet, going on from totals that were left; raises `KeptStateError` if they are none."""

    def totals(self, receiver: str, *, everything: bool = False) -> dict[str, bytes | None]:
        """Return the totals of what was told of the fleet, by name: those that changed since this was asked last.

        None for what is told no more.
        """

    def give_up(self, receiver: str, *, told: bool) -> None:
        """Tell no more of the fleet; `told`: what is known is to be told now, since nobody else will."""


_signal = msgspec.json.Decoder(Signal)
_stamp = msgspec.json.Decoder(Stamp)


def decode_stamp(payload: bytes) -> Stamp:
    """Decode just the number of a signal; what has none, or cannot be decoded, has an empty stamp."""
    try:
        return _stamp.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Stamp()


def decode_signal(payload: bytes) -> Signal:
    """Decode one payload of a signal channel.

    Raises `DecodeError` with reason `not_json`, `not_an_object`, `missing_<key>` or `invalid_<key>`.
    """
    try:
        signal = _signal.decode(payload)
    except msgspec.ValidationError:
        return salvage(members(payload), Signal, required=("eventName", "occurredAt", "attributes"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if mended_payload := mended(payload):
            return decode_signal(mended_payload)
        raise DecodeError("not_json") from None
    if not signal.event_name:
        raise DecodeError("invalid_eventName")
    return signal
