"""A sealed batch: serialised and compressed once, it is the unit of queueing, retry and accounting."""

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from agent.core.pressure import Priority
from agent.exporters.sending.batcher import AGE_GRAIN_NS, Ages, Pending
from agent.otlp.request import encode_request
from agent.storage.rows import Row

GZIP_LEVEL = 1  # measured: level 6 costs twice the CPU for a tenth fewer bytes
ZSTD_LEVEL = 1
_GZIP = 16 + zlib.MAX_WBITS

BATCH_ID = "stem-batch-id"
"""Header, or metadata, that carries the id of a batch."""


class Coding(NamedTuple):
    """How bodies are compressed; `name` is that of the content coding (RFC 9110)."""

    name: str
    compress: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Sealed:
    """The body of one request; `count` items, `size` bytes before compression.

    `begun_ns` is when the first item came (Unix nanoseconds, 0 unknown), `ages` how old the signals behind them are.
    `encoding` is the content coding of the body (RFC 9110). `batch_id` stays with it through every repetition and
    restart, so that a destination can recognise what it has. `priority` is the highest of its items; it is not known of
    what was read from a disk, and not needed there.
    """

    body: bytes
    count: int
    size: int
    begun_ns: int = 0
    ages: Ages = ()
    encoding: str = "identity"
    batch_id: str = field(default_factory=lambda: uuid4().hex)
    priority: Priority = Priority.ERRORS


def gzip(data: bytes) -> bytes:
    """Compress as gzip (RFC 1952), without a timestamp. Releases the interpreter lock while it works."""
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(data) + compressor.flush()


def zstd(data: bytes) -> bytes:
    """Compress as zstd (RFC 8878). Releases the interpreter lock while it works."""
    if sys.version_info >= (3, 14):  # imported where it is used: few use it
        from compression.zstd import compress  # noqa: PLC0415
    else:
        from backports.zstd import compress  # noqa: PLC0415
    return compress(data, ZSTD_LEVEL)


def uncompressed(data: bytes) -> bytes:
    """Return the data as it is."""
    return data


GZIP, ZSTD, IDENTITY = Coding("gzip", gzip), Coding("zstd", zstd), Coding("identity", uncompressed)


def seal(pending: Pending, coding: Coding) -> Sealed:
    """Encode the request and compress it; runs in a thread."""
    request = encode_request(pending.parts)
    ages = tuple((grain * AGE_GRAIN_NS, count) for grain, count in pending.ages.items())
    return Sealed(
        coding.compress(request),
        pending.count,
        len(request),
        begun_ns=pending.begun_ns,
        ages=ages,
        encoding=coding.name,
        priority=pending.priority,
    )


def row_of(sealed: Sealed, now_ns: int) -> Row:
    """Return a batch as a storage keeps it; `now_ns` stands for its beginning where that is unknown."""
    return Row(
        batch_id=sealed.batch_id,
        count=sealed.count,
        size=sealed.size,
        encoding=sealed.encoding,
        created_ns=sealed.begun_ns or now_ns,
        since_ns=min((since_ns for since_ns, _ in sealed.ages), default=0),
        body=sealed.body,
    )


def sealed_of(row: Row) -> Sealed:
    """Return a batch as it was stored."""
    ages = ((row.since_ns, row.count),) if row.since_ns else ()
    return Sealed(
        row.body,
        row.count,
        row.size,
        begun_ns=row.created_ns,
        ages=ages,
        encoding=row.encoding,
        batch_id=row.batch_id,
    )
