"""Typed values as an operator would write them in YAML, without their secrets."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from agent.core.masking import MASK
from agent.settings.types import HostPort, RedisUrl, parse_duration, parse_size

_DURATIONS = (("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def written(info: FieldInfo, value: Any) -> Any:
    """Return the value of an option in plain types: text, numbers, true and false, lists, mappings, None."""
    parser = _parser(info)
    if isinstance(value, float) and parser is parse_duration:
        return duration(value)
    if isinstance(value, int) and parser is parse_size:
        return size(value)
    return plain(value)


def duration(seconds: float) -> str:
    """Return seconds in the largest unit of which they are a whole number: `90s`, `24h`."""
    if not seconds:
        return "0"
    for name, unit in _DURATIONS:
        number = round(seconds / unit)
        if number and abs(number * unit - seconds) < seconds * 1e-12:
            return f"{number}{name}"
    return f"{seconds!r}s"


def size(count: int) -> str:
    """Return bytes in the largest unit of which they are a whole number."""
    return next((f"{count // unit}{name}" for name, unit in _SIZES if count and not count % unit), str(count))


def _parser(info: FieldInfo) -> Any:
    found = (getattr(mark, "func", None) for mark in [*info.metadata, *_inner(info.annotation)])
    return next((each for each in found if each in (parse_duration, parse_size)), None)


def _inner(annotation: Any) -> list[Any]:
    """Return the marks within `Annotated[...] | None`."""
    parts = getattr(annotation, "__args__", ())
    return [mark for part in parts for mark in getattr(part, "__metadata__", ())]


def plain(value: Any) -> Any:
    """Return a value of which nothing is known but its type in plain types."""
    if isinstance(value, BaseModel):
        return {name: written(info, getattr(value, name)) for name, info in type(value).model_fields.items()}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, HostPort):
        return [plain(each) for each in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, RedisUrl):
        return _redis(value)
    if isinstance(value, HostPort):
        return str(value)
    return _without_credentials(value) if isinstance(value, str) and "://" in value else value


def _redis(url: RedisUrl) -> str:
    user = f"{quote(url.username or '', safe='')}{f':{MASK}' if url.password is not None else ''}"
    host = f"[{url.host}]" if ":" in url.host else url.host
    scheme = "rediss" if url.tls else "redis"
    return f"{scheme}://{user and f'{user}@'}{host}:{url.port}/{url.database}"


def _without_credentials(text: str) -> str:
    """Hide what in a URL may be a key: who logs in, and the query."""
    url = urlsplit(text)
    user, at, host = url.netloc.rpartition("@")
    netloc = f"{MASK}@{host}" if user and at else url.netloc
    return urlunsplit(url._replace(netloc=netloc, query=MASK if url.query else ""))
