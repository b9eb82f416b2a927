"""What a gRPC status means, without gRPC."""

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from agent.exporters.otlp_grpc.answer import interpret, plain, retry_delay
from agent.exporters.sending.outcome import Drop, Refused, Retry


def wish(seconds: int, nanos: int = 0) -> bytes:
    other, info = AnyMessage(), AnyMessage()
    other.Pack(ErrorInfo(reason="QUOTA"))
    info.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    return Status(details=[other, info]).SerializeToString()


# OTLP specification, "Failures", the whole table.
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("cancelled", Retry),
        ("unknown", Drop),
        ("invalid_argument", Drop),
        ("deadline_exceeded", Retry),
        ("not_found", Drop),
        ("already_exists", Drop),
        ("permission_denied", Refused),
        ("resource_exhausted", Drop),
        ("failed_precondition", Drop),
        ("aborted", Retry),
        ("out_of_range", Retry),
        ("unimplemented", Drop),
        ("internal", Drop),
        ("unavailable", Retry),
        ("data_loss", Retry),
        ("unauthenticated", Refused),
    ],
)
def test_every_code_has_its_meaning(code: str, outcome: type) -> None:
    assert interpret(code, "so be it", b"") == outcome(f"grpc_{code}", f"grpc {code}: so be it")


def test_a_wish_makes_an_exhausted_resource_retryable() -> None:
    assert interpret("resource_exhausted", "", wish(7)) == Retry(
        "grpc_resource_exhausted", "grpc resource_exhausted", 7.0
    )
    assert interpret("resource_exhausted", "", wish(0)) == Retry("grpc_resource_exhausted", "grpc resource_exhausted")


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        (wish(7), 7.0),
        (wish(0, 500_000_000), 0.5),
        (wish(-3), 0.0),
        (b"", None),
        (b"\xff\xff", None),
        (b"\x08\x0e", None),
    ],
)
def test_retry_info_is_read(status: bytes, seconds: float | None) -> None:
    assert retry_delay(status) == seconds


@pytest.mark.parametrize(
    ("code", "details", "reason"),
    [
        ("resource_exhausted", "CLIENT: Received message larger than max (5 vs. 4)", "response_too_large"),
        ("resource_exhausted", "Decompressed message larger than max", "response_too_large"),
        ("resource_exhausted", "grpc: received message larger than max (5 vs. 4)", "grpc_resource_exhausted"),
        ("resource_exhausted", "SERVER: Received message larger than max (5 vs. 4)", "grpc_resource_exhausted"),
        ("unknown", "Received http2 header with status: 307", "redirect"),
        ("unknown", "Received http2 header with status: 418", "grpc_unknown"),
    ],
)
def test_what_the_library_says_in_words_is_told_apart(code: str, details: str, reason: str) -> None:
    outcome = interpret(code, details, b"")
    assert isinstance(outcome, Drop)
    assert outcome.reason == reason


@pytest.mark.parametrize(
    ("details", "text"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
            "Failed to connect to remote host: Connection refused",
            "connection refused (127.0.0.1:1)",
        ),
        (
            "errors resolving nosuch.invalid:1: [field:hostname lookup error:address lookup failed for "
            "nosuch.invalid:1: Domain name not found]",
            "domain name not found (nosuch.invalid:1)",
        ),
        ("Stream removed (sendmsg: Broken pipe (32))", "sendmsg: Broken pipe (32)"),
        ("quota\nexceeded", "quota exceeded"),
        ("", ""),
    ],
)
def test_what_went_wrong_is_told_in_plain_words(details: str, text: str) -> None:
    assert plain(details) == text


@given(st.text(max_size=10), st.text(max_size=500), st.binary(max_size=100))
def test_no_status_ever_raises(code: str, details: str, status: bytes) -> None:
    outcome = interpret(code, details, status)
    assert isinstance(outcome, Retry | Refused | Drop)
    assert len(outcome.detail) < 400
