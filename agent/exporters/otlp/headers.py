"""Header values: plain, or `{file: PATH}`, read anew when the file changes."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, Field

from agent.core.errors import StartupError
from agent.settings.model import Config
from agent.settings.reloading import Reloading
from agent.settings.types import Secret, expected

# RFC 9110, sections 5.1 and 5.5: what a field name and a field value may consist of.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")
_FILE_VALUE = re.compile(r"[\x20-\x7e]+")  # what both transports can carry
_MAX_FILE_BYTES = 64 << 10


class SecretFile(Config):
    """A file whose content is a secret; white space at its ends does not count."""

    file: str = Field(min_length=1, description="path of the file")

    def read(self) -> str:
        """Return the content; raises `StartupError` with the path, and never with the content."""
        try:
            with Path(self.file).open("rb") as stream:
                text = stream.read(_MAX_FILE_BYTES).decode("latin-1").strip()
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
            raise StartupError(f"failed to read {self.file}: {reason.lower()}") from error
        if not _FILE_VALUE.fullmatch(text):
            found = "line breaks, control or other characters beyond ASCII in it" if text else "nothing in it"
            raise StartupError(f"failed to use {self.file}: found {found}, expected one line of printable ASCII")
        return text


HeaderValue = Secret | SecretFile


def _parse_secret(value: Any) -> Any:
    """Tell the two forms apart, so that a mistake in one is not told as two."""
    if isinstance(value, str):
        return Secret(value)
    if isinstance(value, Mapping):
        if set(value) != {"file"} or not isinstance(value["file"], str) or not value["file"]:
            raise expected("a value, or a mapping of one key: {file: PATH}")
        return SecretFile(file=value["file"])
    if not isinstance(value, Secret | SecretFile):
        raise expected("a value, or a mapping of one key: {file: PATH}")
    return value


SecretValue = Annotated[HeaderValue, BeforeValidator(_parse_secret)]
"""A secret: plain, or `{file: PATH}`."""


def parse_headers(value: Any) -> Any:
    """Turn `k=v,k2=v2` into a mapping: W3C Baggage form, percent-encoded, as `OTEL_EXPORTER_OTLP_HEADERS` has it."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise expected("pairs such as name=value,other=value")
    return {unquote(name.strip()): unquote(text.strip()) for name, _, text in pairs}


def _checked(headers: dict[str, HeaderValue]) -> dict[str, HeaderValue]:
    for name in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise expected(f"a header name in place of {name!r}")
    return headers


def _sendable(value: HeaderValue) -> HeaderValue:
    """Look at one value by itself, so that a variable without value, which it may hold, is told as one mistake."""
    if isinstance(value, Secret) and not _HEADER_VALUE.fullmatch(value.get_secret_value()):
        raise expected("a value without line breaks, control characters or white space at its ends")
    return value


Headers = Annotated[
    dict[str, Annotated[SecretValue, AfterValidator(_sendable)]],
    BeforeValidator(parse_headers),
    AfterValidator(_checked),
]


def read_headers(headers: Mapping[str, HeaderValue]) -> dict[str, str]:
    """Return names and values as they are now; raises `StartupError` for a file that cannot be used."""
    return {
        name: value.read() if isinstance(value, SecretFile) else value.get_secret_value()
        for name, value in headers.items()
    }


def reloading_headers(
    headers: Mapping[str, HeaderValue],
    interval: float,
    on_failure: Callable[[str], None],
    learn: Callable[[Iterable[str]], None],
) -> Reloading[dict[str, str]]:
    """Return names and values, made anew when a file changes; raises `StartupError` as `read_headers` does.

    Every value that was ever read is given to `learn`, so that no text shows it.
    """

    def load() -> dict[str, str]:
        values = read_headers(headers)
        learn(values.values())
        return values

    files = [value.file for value in headers.values() if isinstance(value, SecretFile)]
    return Reloading(files, load, interval=interval, on_failure=on_failure)
