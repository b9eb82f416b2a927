"""Export requests: the envelope around encoded items (`opentelemetry.proto.collector.*.v1`).

All three requests have the same shape on the wire: a list of resource entries (field 1), each with the resource
(1), scope entries (2) and a schema URL (3); a scope entry has the scope (1), the items (2) and a schema URL (3).
So one encoder serves traces, metrics and logs.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

from agent.otlp.resource import SCHEMA_URL, SCOPE, Resource
from agent.otlp.wire import delimited, tag, utf8, varint

_ENTRIES = tag(1, 2)
_RESOURCE = tag(1, 2)
_SCOPES = tag(2, 2)
_SCOPE = tag(1, 2)
_ITEMS = tag(2, 2)
_SCHEMA = delimited(tag(3, 2), utf8(SCHEMA_URL))

ITEM_OVERHEAD = 5
"""Bytes that an item costs beside its own: the tag and the longest length of a 64 MiB request."""


def encode_request(parts: Iterable[tuple[Resource, Sequence[bytes]]]) -> bytes:
    """Encode an export request of items grouped by resource; each item is a `Span`, `LogRecord` or `Metric`."""
    return b"".join(_entry(resource, items) for resource, items in parts)


def _entry(resource: Resource, items: Sequence[bytes]) -> bytes:
    scope = [delimited(_SCOPE, SCOPE)]
    scope.extend(chain.from_iterable((_ITEMS, varint(len(item)), item) for item in items))
    scope.append(_SCHEMA)
    entry = delimited(_RESOURCE, resource.encoded) + delimited(_SCOPES, b"".join(scope)) + _SCHEMA
    return delimited(_ENTRIES, entry)
