"""The value types of configuration: each knows how it is written, and says so when it is not.

They are pydantic annotations: the attribute of a validated model is a plain `float` (seconds), `int` (bytes) and so on.
"""

import re
from collections.abc import Set as AbstractSet
from ipaddress import ip_address
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BeforeValidator, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError

EXPECTED = "expected"
"""Type of our own validation errors; the message is what was expected instead."""

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_SECONDS = 10 * 366 * 86_400
_SIZE = re.compile(r"([0-9]+)\s*(|B|KiB|MiB|GiB|kB|KB|MB|GB)")
_BYTES = {
    "": 1,
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
}


def expected(what: str) -> PydanticCustomError:
    """Return the error that says what should have been written."""
    return PydanticCustomError(EXPECTED, "{what}", {"what": what})


_NO_DURATION = expected("a duration such as 250ms, 10s, 5m or 1h30m")


def parse_duration(value: Any) -> Any:
    """Turn `250ms`, `10s`, `1h30m` or `0` into seconds."""
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise _NO_DURATION
    if value == "0":
        return 0.0
    parts = _DURATION.findall(value)
    if value.isascii() and value.isdigit():
        raise expected("a duration with its unit, such as 10s or 500ms")
    if not parts or "".join(n + u for n, u in parts) != value:
        raise _NO_DURATION
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _MAX_SECONDS:
        raise expected("a duration of at most ten years")
    return seconds


def parse_size(value: Any) -> Any:
    """Turn `64KiB`, `512MiB` or `4096` into bytes."""
    if isinstance(value, int):
        return value
    if not isinstance(value, str) or not (match := _SIZE.fullmatch(value)):
        raise expected("a size such as 65536, 64KiB or 512MiB")
    return int(match[1]) * _BYTES[match[2]]


def parse_bool(value: Any) -> Any:
    """Accept `true` and `false` only: YAML 1.1's yes, on and 1 have burnt too many people."""
    if isinstance(value, str):
        if value.lower() not in {"true", "false"}:
            raise expected("true or false")
        return value.lower() == "true"
    return value


def split_url(text: str, schemes: AbstractSet[str], wanted: PydanticCustomError) -> SplitResult:
    """Return the parts of a URL with a host and a scheme out of `schemes`; raises `wanted` for everything else."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise wanted from None
    if url.scheme not in schemes or not url.hostname or port == 0 or any(c.isspace() for c in text):
        raise wanted
    return url


def refuse_credentials(url: SplitResult) -> None:
    """Raise what says where credentials belong, if the URL of a destination has any."""
    if url.username or url.password:
        raise expected("a URL without credentials (they go into `headers`)")


def is_host_alone(url: SplitResult) -> bool:
    """Whether a URL says no more than where to connect."""
    return not (url.path.strip("/") or url.query or url.fragment)


def _is_address(text: str) -> bool:
    """Whether a text is what a URL has behind its scheme: a host, perhaps with a port."""
    return bool(re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", text))


def parse_endpoint(value: Any) -> Any:
    """Check an HTTP URL: scheme, host, port; credentials belong in headers."""
    wanted = expected("a URL such as http://localhost:4318 or https://otlp.example.com")
    if not isinstance(value, str):
        raise wanted
    if _is_address(value):
        raise expected("a URL with its scheme, such as http://localhost:4318")
    url = split_url(value, {"http", "https"}, wanted)
    refuse_credentials(url)
    return value.rstrip("/") if url.path == "/" else value


class RedisUrl:
    """`redis://[user[:password]@]host[:port][/database]`, or `rediss://` for TLS; never shows its password."""

    __slots__ = ("database", "host", "password", "port", "tls", "username")

    def __init__(self, text: str) -> None:
        url = urlsplit(text)
        self.tls = url.scheme == "rediss"
        self.host = url.hostname or "localhost"
        self.port = url.port or 6379
        username, password = unquote(url.username or ""), url.password and unquote(url.password)
        # Stem takes a lone userinfo for the password (`redis://secret@host`); so must whoever shares its URL.
        if username and password is None:
            username, password = "", username
        self.username = username or None
        self.password = password or None
        self.database = int(url.path.strip("/") or 0)

    def __repr__(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://{self.address}/{self.database}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisUrl) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[object, ...]:
        return self.tls, self.host, self.port, self.username, self.password, self.database

    @property
    def address(self) -> str:
        """`host:port`, for messages."""
        return f"{self.host}:{self.port}"


class HostPort(NamedTuple):
    """An address to listen on; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_MAX_PORT = 65_535


def parse_listen_address(value: Any) -> Any:
    """Turn `127.0.0.1:13133`, `[::1]:13133` or `localhost:13133` into host and port.

    An IPv6 address needs no brackets: `${env:POD_IP}:13133` is what people write.
    """
    if isinstance(value, HostPort):
        return value
    wanted = expected("an address to listen on such as 127.0.0.1:13133 or [::1]:13133")
    if not isinstance(value, str):
        raise wanted
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not (port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise wanted
    try:
        ip_address(host)
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise wanted from None
    return HostPort(host, int(port))


def _has_space(text: str) -> bool:
    return any(char.isspace() or not char.isprintable() for char in text)


def parse_redis_url(value: Any) -> Any:
    """Turn a Redis URL into its parts."""
    if isinstance(value, RedisUrl):
        return value
    wanted = expected("a URL such as redis://localhost:6379/0 or rediss://user:password@host:6380/0")
    if not isinstance(value, str):
        raise wanted
    if _is_address(value):
        raise expected("a URL with its scheme, such as redis://localhost:6379/0")
    try:
        url = urlsplit(value)
        value.encode()  # half a surrogate pair can be neither a password nor a host
        database = url.path.strip("/")
        if url.scheme not in {"redis", "rediss"} or url.query or url.fragment or url.port == 0:
            raise wanted
        if _has_space(url.hostname or ""):
            raise wanted
        if database and not (database.isascii() and database.isdigit()):
            wanted = expected("a URL that ends with the number of a database, such as redis://localhost:6379/0")
            raise wanted
        return RedisUrl(value)
    except ValueError:
        raise wanted from None


def parse_time_zone(value: Any) -> Any:
    """Check the name of a time zone."""
    wanted = expected("a time zone name such as UTC or Europe/Berlin")
    if not isinstance(value, str):
        raise wanted
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - needed when configured only

    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise wanted from None
    return value


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "string",
                    "pattern": r"^(0|([0-9]+(\.[0-9]+)?(us|ms|s|m|h))+)$",
                    "examples": ["250ms", "10s", "5m"],
                },
                {"const": 0},
            ]
        }
    ),
]
"""Seconds."""
ByteSize = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_SIZE.pattern}$", "examples": ["64KiB", "512MiB"]},
                {"type": "integer", "minimum": 0},
            ]
        }
    ),
]
"""Bytes."""
Flag = Annotated[bool, BeforeValidator(parse_bool)]
HttpUrl = Annotated[
    str,
    BeforeValidator(parse_endpoint),
    WithJsonSchema({"type": "string", "pattern": "^https?://", "examples": ["http://localhost:4318"]}),
]
ListenAddress = Annotated[
    HostPort,
    BeforeValidator(parse_listen_address),
    WithJsonSchema({"type": "string", "pattern": ":[0-9]+$", "examples": ["127.0.0.1:13133"]}),
]
RedisAddress = Annotated[
    RedisUrl,
    BeforeValidator(parse_redis_url),
    WithJsonSchema({"type": "string", "pattern": "^rediss?://", "examples": ["redis://localhost:6379/0"]}),
]
TimeZone = Annotated[str, BeforeValidator(parse_time_zone)]
Secret = SecretStr
