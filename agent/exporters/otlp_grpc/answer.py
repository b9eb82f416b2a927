"""What a gRPC status means (OTLP specification, "OTLP/gRPC Response", and "Throttling"): pure, without grpc itself.

`code` is the name of a status code in lower case: `unavailable`.
"""

import re

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo

from agent.exporters.otlp.answer import printable, response_too_large, status_of
from agent.exporters.sending.outcome import Drop, Outcome, Refused, Retry

RETRYABLE = frozenset({"cancelled", "deadline_exceeded", "aborted", "out_of_range", "unavailable", "data_loss"})
REFUSALS = frozenset({"unauthenticated", "permission_denied"})
"""They tell of a key or a right, which people mend, and nothing of the batch: `auth_grace`."""
RETRYABLE_IF_TOLD = "resource_exhausted"

# What the C core says: it has no codes of its own for these.
_TOO_LARGE = re.compile(r"CLIENT: Received message larger than max|Decompressed message larger than max")
_REDIRECT = re.compile(r"Received http2 header with status: 3\d\d")
_REMOVED = re.compile(r"Stream removed \((.*)\)", re.DOTALL)
_CAUSE = re.compile(r"failed to connect to all addresses; last error: \w+: (?:\w+:)?(\S+): (.*)", re.DOTALL)
_LOOKUP = re.compile(r"address lookup failed for (\S+?): ([^\]]*)")


def interpret(code: str, details: str, status: bytes) -> Outcome:
    """Decide what becomes of a batch; `status` is the `grpc-status-details-bin` of the trailers, or nothing."""
    if code == RETRYABLE_IF_TOLD and _TOO_LARGE.search(details):
        return response_too_large()
    reason = f"grpc_{code}"
    text = plain(details)
    detail = f"grpc {code}" + (f": {text}" if text else "")
    asked = retry_delay(status)
    if code in RETRYABLE or (code == RETRYABLE_IF_TOLD and asked is not None):
        return Retry(reason, detail, asked or 0.0)
    if code in REFUSALS:
        return Refused(reason, detail)
    if _REDIRECT.search(details):
        return Drop("redirect", f"{detail}; redirects are not followed: set the endpoint to its target")
    return Drop(reason, detail)


def retry_delay(status: bytes) -> float | None:
    """Return the seconds that a `RetryInfo` among the details asks for; None where there is none, 0 for nonsense."""
    for detail in status_of(status).details:
        if detail.Is(RetryInfo.DESCRIPTOR):
            try:
                delay = RetryInfo.FromString(detail.value).retry_delay
            except DecodeError:
                return None
            return max(0.0, float(delay.seconds + delay.nanos / 1e9))
    return None


def plain(details: str) -> str:
    """Return what a server said, or what went wrong below it, without the library's decoration."""
    if removed := _REMOVED.fullmatch(details):
        details = removed[1]
    if cause := _CAUSE.match(details):
        details = f"{cause[2].removeprefix('Failed to connect to remote host: ').lower()} ({cause[1]})"
    elif lookup := _LOOKUP.search(details):
        details = f"{lookup[2].lower()} ({lookup[1]})"
    return printable(details)
