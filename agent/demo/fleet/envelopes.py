"""Envelopes as Stem writes them: flat text fields on a stream, JSON in the delayed set and among the dead letters."""

import json
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agent.emit import iso, utc_now

Envelope = dict[str, Any]
"""`Envelope.toJson`."""

MILLISECOND = timedelta(milliseconds=1)
_JSON_FIELDS = ("args", "headers", "meta")
_INT_FIELDS = ("priority", "attempt", "maxRetries")
_OPTIONAL_FIELDS = ("notBefore", "visibilityTimeout")


def uuid7(now: datetime) -> str:
    """Return a UUID of version 7 (RFC 9562): time-ordered, as Stem's ids are."""
    milliseconds = int(now.timestamp() * 1000)
    return str(
        uuid.UUID(int=milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62))
    )


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a task inherits, or is told: headers and meta beside its own."""

    headers: dict[str, str]
    meta: dict[str, Any]


def new_envelope(  # noqa: PLR0913 - so many fields has an envelope
    name: str,
    queue: str,
    *,
    args: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    priority: int = 0,
    delay_s: float = 0.0,
    max_retries: int = 3,
    now: datetime | None = None,
) -> Envelope:
    """Return the envelope of a new task, made `now` by its publisher's clock."""
    now = now or utc_now()
    return {
        "id": uuid7(now),
        "name": name,
        "args": args or {},
        "headers": headers or {},
        "enqueuedAt": iso(now),
        "notBefore": iso(now + timedelta(seconds=delay_s)) if delay_s else None,
        "priority": priority,
        "attempt": 0,
        "maxRetries": max_retries,
        "visibilityTimeout": None,
        "queue": queue,
        "meta": {"stem.task": name, **(meta or {})},
    }


def lineage_of(parent: Envelope) -> Lineage:
    """Return what Stem's `TaskContext.enqueue` hands on: all headers and all meta, and who the parent is."""
    meta = {
        **parent["meta"],
        "stem.parentTaskId": parent["id"],
        "stem.parentAttempt": parent["attempt"],
        "stem.rootTaskId": parent["meta"].get("stem.rootTaskId", parent["id"]),
    }
    meta.pop("stem.task")
    return Lineage(dict(parent["headers"]), meta)


def traceparent(trace_id: str | None = None) -> str:
    """Return the context of a new span, in a new trace or in `trace_id`."""
    return f"00-{trace_id or secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_of(envelope: Envelope) -> str | None:
    """Return the trace id in an envelope's headers."""
    header: str | None = envelope["headers"].get("traceparent")
    return header.split("-")[1] if header else None


def span_of(envelope: Envelope) -> str:
    """Return the span id in an envelope's headers, empty without one."""
    header: str = envelope["headers"].get("traceparent", "")
    return header.split("-")[2] if header else ""


def due_at(envelope: Envelope) -> datetime:
    """Return when an attempt may start: when it was enqueued, or later if it has a `notBefore`."""
    enqueued = datetime.fromisoformat(envelope["enqueuedAt"])
    not_before = envelope["notBefore"]
    return max(enqueued, datetime.fromisoformat(not_before)) if not_before else enqueued


def epoch_ms(moment: datetime) -> int:
    """Return milliseconds since the Unix epoch, as scores are."""
    return int(moment.timestamp() * 1000)


def epoch_us(moment: datetime | None) -> int:
    """Return microseconds since the Unix epoch, as the truth has them; 0 for no time."""
    return round(moment.timestamp() * 1e6) if moment else 0


def to_json(value: Any) -> str:
    """Return JSON as Dart writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def to_fields(envelope: Envelope) -> dict[str, str]:
    """Return a stream entry's fields: every value is text, an absent one is empty."""
    fields = {key: "" if value is None else str(value) for key, value in envelope.items() if key not in _JSON_FIELDS}
    return fields | {key: to_json(envelope[key]) for key in _JSON_FIELDS}


def from_fields(fields: dict[str, str]) -> Envelope:
    """Return the envelope of a stream entry."""
    envelope: Envelope = dict(fields)
    envelope |= {key: json.loads(fields[key]) for key in _JSON_FIELDS}
    envelope |= {key: int(fields[key]) for key in _INT_FIELDS}
    envelope |= {key: fields[key] or None for key in _OPTIONAL_FIELDS}
    if envelope["visibilityTimeout"]:
        envelope["visibilityTimeout"] = int(envelope["visibilityTimeout"])
    return envelope
