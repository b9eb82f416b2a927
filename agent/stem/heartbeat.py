"""A worker's heartbeat, decoded.

Composed by `packages/stem/lib/src/worker/worker.dart` (`_buildHeartbeat`), published by
`redis_heartbeat_transport.dart` and stored, for 60 s, by `redis_backend.dart`.
"""

from datetime import datetime

import msgspec
from msgspec import Struct, field

from agent.stem.lenient import Count, DecodeError, members, mended, salvage

TTL_MS = 60_000
"""How long Stem keeps a heartbeat under its key (`heartbeatTtl`); what is left of it tells when it was written."""


class Subscriptions(Struct, gc=False):
    """Queues and broadcast channels that a worker reads."""

    queues: tuple[str, ...] = ()
    broadcasts: tuple[str, ...] = ()


class QueueInflight(Struct, gc=False):
    """How many tasks of one queue a worker holds."""

    name: str = ""
    inflight: Count | None = None


class HeartbeatExtras(Struct, rename="camel", gc=False):
    """`extras` of a heartbeat, as far as anybody asks for it; `started`, `completed`, `failed` since `started_at`."""

    concurrency: Count | None = None
    max_concurrency: Count | None = None
    prefetch: Count | None = None
    memory_bytes: Count | None = None
    pid: Count | None = None
    host: str | None = None
    started_at: datetime | None = None
    started: Count | None = None
    completed: Count | None = None
    failed: Count | None = None
    subscriptions: Subscriptions = field(default_factory=Subscriptions)


class Heartbeat(Struct, rename="camel", gc=False):
    """Stem's heartbeat JSON, the same on the channel and under the key.

    `queues` has only those of which the worker holds a task. `namespace` is set by whoever heard it: the channel's;
    `own_namespace` is what the heartbeat says.
    """

    worker_id: str
    timestamp: datetime
    inflight: Count | None = None
    isolate_count: Count | None = None
    queues: tuple[QueueInflight, ...] = ()
    own_namespace: str | None = field(default=None, name="namespace")
    extras: HeartbeatExtras = field(default_factory=HeartbeatExtras)
    namespace: str = field(default="", name="__namespace")


_heartbeat = msgspec.json.Decoder(Heartbeat)


def decode_heartbeat(payload: bytes) -> Heartbeat:
    """Decode one payload of Stem's heartbeat channel; raises `DecodeError` as `decode_signal` does."""
    try:
        return _heartbeat.decode(payload)
    except msgspec.ValidationError:
        return salvage(members(payload), Heartbeat, required=("workerId", "timestamp"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if whole := mended(payload):
            return decode_heartbeat(whole)
        raise DecodeError("not_json") from None
