"""Reading JSON that others write: one odd field costs that field, only what is no such thing at all is refused.

Every reader decodes strictly first, which msgspec does in C; what that refuses is salvaged here, field by field.
Fields that nobody asked for stay undecoded bytes, however large they are and whatever they hold.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

Shape = TypeVar("Shape", bound=Struct)
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""What OTLP's integers can hold; anything else is no count."""

# Half a surrogate pair, escaped: what Dart writes for text that was cut in the middle of an emoji.
_HALVES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)

_members = msgspec.json.Decoder(dict[str, Raw])
_elements = msgspec.json.Decoder(tuple[Raw, ...])


class DecodeError(ValueError):
    """A payload is not what it should be. `reason` is one of few words, fit for a label; it quotes no payload."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def mended(payload: bytes) -> bytes | None:
    """Return a payload with its halves of surrogate pairs replaced; None if there were none.

    JSON's grammar allows them, its decoders refuse the whole text for one.
    """
    text, count = _HALVES.subn(rb"\\ufffd", payload)
    return text if count else None


def members(payload: bytes | Raw) -> dict[str, Raw]:
    """Return an object's values by key, undecoded; raises `DecodeError` (`not_json`, `not_an_object`)."""
    try:
        try:
            return _members.decode(payload)
        except msgspec.ValidationError:
            msgspec.json.decode(payload)  # the first bracket refused it; only the whole of it tells whether it is JSON
            raise DecodeError("not_an_object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if whole := mended(bytes(payload)):
            return members(whole)
        raise DecodeError("not_json") from None


def salvage(found: Mapping[str, Raw], shape: type[Shape], required: tuple[str, ...] = ()) -> Shape:
    """Keep every field that fits, drop those that do not.

    Raises `DecodeError` (`missing_<key>`, `invalid_<key>`) for the `required` ones, which are named as in the JSON.
    """
    kept: dict[str, Any] = {}
    for spec in msgspec.structs.fields(shape):
        key = spec.encode_name
        if key not in found:
            if key in required:
                raise DecodeError(f"missing_{key}")
            continue
        try:
            kept[spec.name] = _fit(found[key], spec.type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DecodeError):
            if key in required:
                raise DecodeError(f"invalid_{key}") from None
    return shape(**kept)


def _fit(value: Raw, wanted: Any) -> Any:
    if wanted is Raw:
        return value
    kinds = (wanted, *get_args(wanted))
    structs = [kind for kind in kinds if _is_struct(kind)]
    lists = [kind for kind in kinds if get_origin(kind) is tuple and _is_struct(get_args(kind)[0])]
    if bytes(value) != b"null":
        if lists:
            return tuple(salvage(members(each), get_args(lists[0])[0]) for each in _elements.decode(value))
        if structs:
            return salvage(members(value), structs[0])
    # A number written as text is still that number; a number where a time belongs is not a time.
    is_time = wanted is datetime or datetime in get_args(wanted)
    return msgspec.convert(msgspec.json.decode(value), wanted, strict=is_time)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)
