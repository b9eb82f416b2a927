"""Stem's control protocol: the commands that ask a worker about itself, and its replies. Pure.

Sources: `control/control_messages.dart`, `worker/worker.dart` (`_startControlPlane`). Only the three commands that
change nothing exist here. A command is an ordinary entry on the stream of a control queue; the queue of its reply
follows from the request id. A worker checks neither `targets` nor `timeoutMs`: whoever reads a command obeys it, and
the broadcast queue has one consumer group for all workers, so that only one of them would answer there.
"""

from datetime import datetime
from enum import StrEnum

import msgspec
from msgspec import Raw, Struct, field

from agent.stem.heartbeat import Subscriptions
from agent.stem.lenient import Count, DecodeError, members, mended, salvage

REQUEST_NAME = "__stem.control__"
REPLY_NAME = "__stem.control.reply__"
OK = "ok"
"""`status` of a reply; the other is `error`."""


class ControlCommand(StrEnum):
    """Commands that only ask (`control_messages.dart`; the others change a worker)."""

    PING = "ping"
    STATS = "stats"
    INSPECT = "inspect"


# --- queues ----------------------------------------------------------------------------------------------------------


def worker_queue(namespace: str, worker_id: str) -> str:
    """Return the queue on which a worker of the worker namespace `namespace` takes commands."""
    return f"{namespace}.control.worker.{worker_id}"


def broadcast_queue(namespace: str) -> str:
    """Return the queue of which all workers of `namespace` are one group: one of them takes each command."""
    return f"{namespace}.control.broadcast"


def reply_queue(namespace: str, request_id: str) -> str:
    """Return the queue on which workers of `namespace` answer a request."""
    return f"{namespace}.control.reply.{request_id}"


# --- the request -----------------------------------------------------------------------------------------------------


class Request(Struct, frozen=True, rename="camel"):
    """`args` of a command. `timeout_ms` is how long the replies are waited for; no worker heeds it."""

    request_id: str
    type: ControlCommand
    targets: tuple[str, ...]
    payload: dict[str, str | bool]
    timeout_ms: int


def request(
    command: ControlCommand,
    request_id: str,
    *,
    namespace: str,
    worker_id: str,
    timeout_ms: int,
    include_revoked: bool = True,
) -> Request:
    """Return a command for one worker; `include_revoked` is for `inspect`."""
    inspects = command is ControlCommand.INSPECT
    payload: dict[str, str | bool] = {"namespace": namespace, "includeRevoked": include_revoked} if inspects else {}
    return Request(request_id, command, (worker_id,), payload, timeout_ms)


def request_fields(asked: Request, *, queue: str, now: datetime) -> dict[str, str]:
    """Return a command as a stream entry's fields, those of every envelope (`redis_broker.dart`); `now` is in UTC."""
    return {
        "id": asked.request_id,
        "name": REQUEST_NAME,
        "args": msgspec.json.encode(asked).decode(),
        "headers": '{"stem-control":"1"}',
        "enqueuedAt": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "notBefore": "",
        "priority": "0",
        "attempt": "0",
        "maxRetries": "0",
        "visibilityTimeout": "",
        "queue": queue,
        "meta": "{}",
    }


# --- the replies -----------------------------------------------------------------------------------------------------


class ActiveTask(Struct, frozen=True, rename="camel"):
    """A task that a worker runs now; `attempt` counts from 0."""

    id: str | None = None
    task: str | None = None
    queue: str | None = None
    attempt: Count | None = None
    runtime_ms: Count | None = None
    started_at: datetime | None = None


class InspectedTask(ActiveTask, frozen=True, rename="camel"):
    """The same as `inspect` tells it; `status` is `running`."""

    last_lease_renewal_ms_ago: Count | None = None
    status: str | None = None


class Revocation(Struct, frozen=True, rename="camel"):
    """A `RevokeEntry` (`control/revoke_store.dart`); `version` is in microseconds since the Unix epoch."""

    namespace: str | None = None
    task_id: str | None = None
    version: Count | None = None
    issued_at: datetime | None = None
    terminate: bool | None = None
    reason: str | None = None
    requested_by: str | None = None
    expires_at: datetime | None = None


class Ping(Struct, frozen=True, rename="camel"):
    """`payload` of the reply to `ping`; None is what a worker did not tell, or not so that it can be read."""

    timestamp: datetime | None = None
    queue: str | None = None
    inflight: Count | None = None
    subscriptions: Subscriptions | None = None


class Stats(Struct, frozen=True, rename="camel"):
    """`payload` of the reply to `stats`; `queues` are the tasks in flight by queue."""

    timestamp: datetime | None = None
    namespace: str | None = None
    queue: str | None = None
    host: str | None = None
    pid: Count | None = None
    concurrency: Count | None = None
    max_concurrency: Count | None = None
    autoscale_enabled: bool | None = None
    prefetch: Count | None = None
    inflight: Count | None = None
    queues: dict[str, Count] | None = None
    paused_queues: tuple[str, ...] | None = None
    active: tuple[ActiveTask, ...] | None = None
    subscriptions: Subscriptions | None = None
    last_lease_renewal_ms_ago: Count | None = None
    last_queue_depth: Count | None = None


class Inspection(Struct, frozen=True, rename="camel"):
    """`payload` of the reply to `inspect`; `revoked` is None where it was not asked for."""

    timestamp: datetime | None = None
    inflight: Count | None = None
    active: tuple[InspectedTask, ...] | None = None
    paused_queues: tuple[str, ...] | None = None
    revoked: tuple[Revocation, ...] | None = None


Payload = Ping | Stats | Inspection
_PAYLOADS: dict[ControlCommand, type[Ping | Stats | Inspection]] = {
    ControlCommand.PING: Ping,
    ControlCommand.STATS: Stats,
    ControlCommand.INSPECT: Inspection,
}


class ReplyError(Struct, frozen=True):
    """Why a worker could not do what it was asked."""

    message: str | None = None
    detail: str | None = None
    stack: str | None = None


class _Reply(Struct, rename="camel"):
    worker_id: str
    status: str
    payload: Raw = field(default_factory=Raw)
    error: ReplyError | None = None


class Reply(Struct, frozen=True):
    """What one worker answered; `status` is `ok`, or `error` with an `error`."""

    worker_id: str
    status: str
    payload: Payload
    error: ReplyError | None = None

    @property
    def ok(self) -> bool:
        """Whether the worker could do what it was asked."""
        return self.status == OK


def decode_reply(fields: dict[str, bytes], command: ControlCommand) -> Reply:
    """Read the entry of a reply stream; an odd field of the payload costs that field.

    Raises `DecodeError`: `not_a_reply` for another entry, `missing_<key>` and `invalid_<key>` for worker and status,
    `not_json`, `not_an_object`.
    """
    if fields.get("name") != REPLY_NAME.encode():
        raise DecodeError("not_a_reply")
    args = fields.get("args", b"")
    told = salvage(members(mended(args) or args), _Reply, required=("workerId", "status"))
    return Reply(told.worker_id, told.status, _payload(told.payload, _PAYLOADS[command]), told.error)


def _payload(raw: Raw, shape: type[Payload]) -> Payload:
    try:
        return salvage(members(raw), shape)
    except DecodeError:
        return shape()  # as good as none
