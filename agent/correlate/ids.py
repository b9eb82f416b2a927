"""Identities, derived from the facts they name: the same fact always gets the same id, whoever reports it.

telemetry contract, section 1; its test vectors are tests here.
"""

from hashlib import blake2b
from uuid import UUID

_SEPARATOR = "\0"
_UUID_LENGTH = 36


def trace_id(subject: str) -> bytes:
    """Return the 16-byte trace id of a task or run: a UUID's own bytes, so that operators can paste a task id."""
    try:
        identity = UUID(subject).bytes if len(subject) == _UUID_LENGTH else b""
    except ValueError:
        identity = b""
    return identity if any(identity) else blake2b(_utf8(subject), digest_size=16).digest()


def span_id(*parts: str) -> bytes:
    """Return the 8-byte span id of the parts: (`send`, task id), (`process`, task id, attempt, worker id), ..."""
    digest = blake2b(_utf8(_SEPARATOR.join(parts)), digest_size=8).digest()
    return digest if any(digest) else b"\0\0\0\0\0\0\0\1"


def log_uid(*parts: str) -> str:
    """Return `log.record.uid` of the fact that the parts name: 32 hex digits."""
    return blake2b(_utf8(_SEPARATOR.join(parts)), digest_size=16).hexdigest()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
