"""The form in which state is kept between two processes: a header, and MessagePack.

    offset 0   4 bytes   b"stem"
           4   2 bytes   version of the content, big-endian
           6   4 bytes   CRC-32 of the content
          10             the content: parts, each a length (4 bytes) and one MessagePack value

Only what was written under the very same version is read: a misread state would tell wrong things for hours, none
costs the attempts that were open.
"""

import gc
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

Shape = TypeVar("Shape", bound=msgspec.Struct)

_HEADER = struct.Struct(">4sHI")
_LENGTH = struct.Struct(">I")
_MAGIC = b"stem"


class KeptStateError(ValueError):
    """A kept state cannot be used. `reason` is one of `foreign`, `version`, `broken`, fit for a label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def encode(parts: Iterable[msgspec.Struct], version: int, replace: Callable[[Any], Any] | None = None) -> bytes:
    """Return the bytes to keep; `replace` turns what MessagePack does not know into what it does.

    Raises `OverflowError` for integers beyond 64 bits, and what `replace` raises.
    """
    # Encoded in place: there may be 100 000 attempts, and each copy of them is 16 MiB.
    encoder, buffer = msgspec.msgpack.Encoder(enc_hook=replace), bytearray(_HEADER.size)
    for part in parts:
        start = len(buffer) + _LENGTH.size
        encoder.encode_into(part, buffer, start)
        _LENGTH.pack_into(buffer, start - _LENGTH.size, len(buffer) - start)
    _HEADER.pack_into(buffer, 0, _MAGIC, version, zlib.crc32(memoryview(buffer)[_HEADER.size :]))
    return bytes(buffer)


def parts_of(kept: bytes, version: int) -> list[memoryview]:
    """Return the parts that were encoded, for `decode`; raises `KeptStateError` for everything else."""
    if len(kept) < _HEADER.size:
        raise KeptStateError("broken", f"{len(kept)} bytes are no state")
    magic, found, checksum = _HEADER.unpack_from(kept)
    if magic != _MAGIC:
        raise KeptStateError("foreign", "not written by a stem-agent")
    if found != version:
        raise KeptStateError("version", f"written in version {found}, expected {version}")
    content = memoryview(kept)[_HEADER.size :]
    if zlib.crc32(content) != checksum:
        raise KeptStateError("broken", "its checksum does not fit")
    parts = []
    while content:
        if len(content) < _LENGTH.size or len(content) < (end := _LENGTH.size + _LENGTH.unpack_from(content)[0]):
            raise KeptStateError("broken", "its last part is cut off")
        parts.append(content[_LENGTH.size : end])
        content = content[end:]
    if not parts:
        raise KeptStateError("broken", "it has no parts")
    return parts


def decode(part: memoryview, shape: type[Shape], restore: Callable[[type, Any], Any] | None = None) -> Shape:
    """Return what was encoded; raises `KeptStateError` where it has another shape.

    `restore` makes what MessagePack does not know; it may raise `ValueError`.
    """
    # Nothing of what is made here is garbage, but looking for it among 400 000 tombstones took two thirds of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return msgspec.msgpack.Decoder(shape, dec_hook=restore).decode(part)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise KeptStateError("broken", f"its content does not fit: {error}") from error
    finally:
        if collects:
            gc.enable()
