"""Protocol Buffers wire format, as much of it as spans, log records and attributes need.

Specification: protobuf.dev/programming-guides/encoding. The tests decode every result with the official
`opentelemetry.proto` messages. All functions are pure; a `tag` is the encoded field number and wire type.
"""

from struct import pack
from typing import Final

_ONE_BYTE = 128
_TABLE: Final = 16384
_MAX_UINT64: Final = (1 << 64) - 1

AttributeValue = str | bool | int | float | tuple[str, ...] | list[str]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _ONE_BYTE:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# Nearly every length is small, so lengths are looked up, not computed.
_VARINTS: Final = tuple(_varint(n) for n in range(_TABLE))


def varint(value: int) -> bytes:
    """Encode an integer; negative ones as their 64-bit two's complement, as protobuf's int64 does."""
    if 0 <= value < _TABLE:
        return _VARINTS[value]
    return _varint(value & _MAX_UINT64)


def tag(field: int, wire_type: int) -> bytes:
    """Encode the key of a field: 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32."""
    return _varint(field << 3 | wire_type)


def delimited(field_tag: bytes, payload: bytes) -> bytes:
    """Encode a length-delimited field: a string, bytes, or a message."""
    return field_tag + varint(len(payload)) + payload


def utf8(text: str) -> bytes:
    """Encode text; lone surrogates, which JSON can smuggle in and protobuf forbids, become question marks."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


_KEY: Final = tag(1, 2)  # KeyValue.key
_VALUE: Final = tag(2, 2)  # KeyValue.value
_STRING: Final = tag(1, 2)  # AnyValue.string_value
_BOOL: Final = tag(2, 0)
_INT: Final = tag(3, 0)
_DOUBLE: Final = tag(4, 1)
_ARRAY: Final = tag(5, 2)
_ARRAY_VALUES: Final = tag(1, 2)  # ArrayValue.values


def any_value(value: AttributeValue) -> bytes:
    """Encode an `AnyValue`: string, bool, int, float or a list of strings."""
    if isinstance(value, str):
        return delimited(_STRING, utf8(value))
    if isinstance(value, bool):
        return _BOOL + (b"\x01" if value else b"\x00")
    if isinstance(value, int):
        return _INT + varint(value)
    if isinstance(value, float):
        return _DOUBLE + pack("<d", value)
    return delimited(_ARRAY, b"".join(delimited(_ARRAY_VALUES, any_value(item)) for item in value))


class Attribute:
    """An attribute key, encoded once, ready to take values.

    `field` is where the owning message keeps its attributes: Resource 1, Link 4, LogRecord 6, Span 9.
    """

    __slots__ = ("_head", "_tag", "key")

    def __init__(self, key: str, field: int) -> None:
        self.key = key
        self._tag = tag(field, 2)
        self._head = delimited(_KEY, utf8(key)) + _VALUE

    def __call__(self, value: AttributeValue) -> bytes:
        """Encode the key with `value` as an entry of the owner's attributes."""
        encoded = any_value(value)
        return delimited(self._tag, self._head + varint(len(encoded)) + encoded)

    def text(self, value: str) -> bytes:
        """Encode the key with a string: the hot path of `__call__`."""
        raw = utf8(value)
        encoded = _STRING + varint(len(raw)) + raw
        entry = self._head + varint(len(encoded)) + encoded
        return self._tag + varint(len(entry)) + entry
