"""Which format an answer has: pure (RFC 9110, section 12.5.1)."""

from enum import Enum


class Format(Enum):
    """The text formats that Prometheus reads; the value is the content type."""

    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    TEXT = "text/plain; version=0.0.4; charset=utf-8"


_OPENMETRICS = "application/openmetrics-text"
_VERSIONS = {"", "1.0.0"}
"""Scrapers that name no version take any."""


def chosen(accept: str) -> Format:
    """Return the format for an `Accept` header: OpenMetrics where it is wanted as much as any other, else text.

    What is told nothing, or something that nobody writes, reads text: every scraper can.
    """
    openmetrics = text = 0.0
    for media_type, parameters in map(_parsed, accept.split(",")):
        quality = _quality(parameters.get("q", "1"))
        if media_type == _OPENMETRICS and parameters.get("version", "") in _VERSIONS:
            openmetrics = max(openmetrics, quality)
        elif media_type == "text/plain":
            text = max(text, quality)
    return Format.OPENMETRICS if openmetrics and openmetrics >= text else Format.TEXT


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether an `Accept-Encoding` header wants gzip."""
    codings = map(_parsed, accept_encoding.split(","))
    return any(name in {"gzip", "x-gzip"} and _quality(each.get("q", "1")) > 0 for name, each in codings)


def _parsed(entry: str) -> tuple[str, dict[str, str]]:
    name, *parameters = entry.split(";")
    pairs = (parameter.partition("=") for parameter in parameters)
    return name.strip().lower(), {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
