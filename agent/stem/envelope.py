"""A task's envelope, decoded; its `args` never are.

It is JSON in the delayed set, in dead letters and beside signals (Stem: `core/envelope.dart`), and flat text fields on
a stream (`redis_broker.dart`).
"""

from collections.abc import Mapping
from datetime import datetime

import msgspec
from msgspec import Raw, Struct, field

from agent.stem.lenient import Count, DecodeError, members, salvage


class Meta(Struct, gc=False):
    """`Envelope.meta`: lineage keys only; the others may hold personal data and are never decoded."""

    parent_task_id: str | None = field(default=None, name="stem.parentTaskId")
    root_task_id: str | None = field(default=None, name="stem.rootTaskId")
    group_id: str | None = field(default=None, name="groupId")
    chord_id: str | None = field(default=None, name="chordId")
    chain_id: str | None = field(default=None, name="chainId")
    workflow_run_id: str | None = field(default=None, name="stem.workflow.runId")
    workflow_name: str | None = field(default=None, name="stem.workflow.name")
    workflow_step: str | None = field(default=None, name="stem.workflow.step")
    continuation: bool | None = field(default=None, name="stem.workflow.continuation")


class Headers(Struct, gc=False):
    """`Envelope.headers`: trace context and lineage."""

    traceparent: str | None = None
    tracestate: str | None = None
    group_id: str | None = field(default=None, name="stem-group-id")
    chord_id: str | None = field(default=None, name="stem-chord-id")
    chain_id: str | None = field(default=None, name="stem-chain-id")
    chain_index: str | None = field(default=None, name="stem-chain-index")
    schedule_id: str | None = field(default=None, name="schedule-id")


class Envelope(Struct, rename="camel", gc=False):
    """`Envelope.toJson` of a task, without `args`. Times are as the producer wrote them."""

    id: str | None = None
    name: str | None = None
    queue: str | None = None
    enqueued_at: datetime | None = None
    not_before: datetime | None = None
    priority: Count | None = None
    attempt: Count | None = None
    max_retries: Count | None = None
    visibility_timeout: Count | None = None
    headers: Headers = field(default_factory=Headers)
    meta: Meta = field(default_factory=Meta)


_envelope = msgspec.json.Decoder(Envelope)
_JSON_FIELDS = frozenset({"headers", "meta"})
_KEYS = {spec.encode_name: spec.name for spec in msgspec.structs.fields(Envelope)}


def decode_envelope(raw: Raw) -> Envelope | None:
    """Decode the envelope that travelled with a signal; None if there is none or it is no object."""
    payload = bytes(raw)
    if not payload:
        return None
    try:
        return _envelope.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return salvage(members(payload), Envelope)
        except DecodeError:
            return None


def envelope_of(fields: Mapping[str, bytes]) -> Envelope:
    """Return the envelope that a stream entry's fields hold; one odd field costs that field, an empty one is absent."""
    texts = {key: value for key, value in fields.items() if value and key in _KEYS}
    return salvage(
        {
            key: Raw(value) if key in _JSON_FIELDS else Raw(msgspec.json.encode(value.decode(errors="replace")))
            for key, value in texts.items()
        },
        Envelope,
    )
