"""What an HTTP answer means (OTLP specification, "OTLP/HTTP Response"): pure."""

import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from agent.exporters.otlp.answer import (
    MAX_RESPONSE_BYTES,
    UNREADABLE,
    accepted,
    printable,
    response_too_large,
    status_of,
)
from agent.exporters.sending.outcome import Delivered, Drop, Outcome, Refused, Retry
from agent.otlp.batch import Kind

RETRYABLE = frozenset({429, 502, 503, 504})
REFUSALS = frozenset({401, 403, 404})
"""They tell of a key, a right or a path, which people mend, and nothing of the batch: `auth_grace`."""

_OK, _REDIRECT, _CLIENT_ERROR = 200, 300, 400
_ANY_ZLIB = 32 + zlib.MAX_WBITS  # gzip, or zlib's own format, which `deflate` means


def interpret(kind: Kind, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Outcome:
    """Decide what becomes of a batch.

    `headers` keys in lower case, `body` as it came, `now` for dates in `Retry-After`.
    """
    plain = decoded(headers.get("content-encoding", ""), body)
    if plain is not None and len(plain) > MAX_RESPONSE_BYTES:
        return response_too_large()
    if _OK <= status < _REDIRECT:
        return _accepted(kind, headers, plain)
    text = _text(headers, plain or b"")
    detail = f"http {status}" + (f": {text}" if text else "")
    if status in RETRYABLE:
        return Retry(f"http_{status}", detail, retry_after(headers.get("retry-after"), now))
    if status in REFUSALS:
        return Refused(f"http_{status}", detail)
    if _REDIRECT <= status < _CLIENT_ERROR:
        # Following one could carry secret headers to another host.
        return Drop("redirect", f"{detail}; redirects are not followed: set the endpoint to its target")
    return Drop(f"http_{status}", detail)


def retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds a server asked to wait: `7`, or an HTTP-date; 0 for the past and for nonsense."""
    if not value:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def decoded(encoding: str, body: bytes) -> bytes | None:
    """Undo a content encoding, up to one byte more than an answer may have; None for what cannot be undone.

    We ask for `identity`, so this is for servers that do not listen; a bomb among them costs 4 MiB.
    """
    if encoding.strip().lower() in {"", "identity"} or not body:
        return body
    if encoding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return None
    try:
        return zlib.decompressobj(_ANY_ZLIB).decompress(body, MAX_RESPONSE_BYTES + 1)
    except zlib.error:
        return None


def _accepted(kind: Kind, headers: Mapping[str, str], body: bytes | None) -> Delivered:
    if body is None:
        return UNREADABLE
    if not body or "json" in headers.get("content-type", ""):
        return Delivered()
    return accepted(kind, body)


def _text(headers: Mapping[str, str], body: bytes) -> str:
    """Return what a server says about an error, in one printable line."""
    if "protobuf" in headers.get("content-type", ""):
        return printable(status_of(body).message)
    return printable(body[:MAX_RESPONSE_BYTES].decode("utf-8", "replace"))
