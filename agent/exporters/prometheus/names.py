"""Names of metrics and labels: pure.

Specification: OpenTelemetry, "Prometheus and OpenMetrics Compatibility", sections "Metric Metadata" and
"Metric Attributes".
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

_NOT_IN_A_METRIC = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-zA-Z0-9]+")
_ANNOTATION = re.compile(r"\{[^}]*\}")
_RATIO = "1"

# UCUM's abbreviations, as words.
_UNITS = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
}
_PER = {"s": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


class FamilyName(NamedTuple):
    """A family's name without the suffixes of its samples (`_total`, `_bucket`), and its unit; empty for none."""

    name: str
    unit: str


@lru_cache(4096)
def family_name(name: str, unit: str, *, counter: bool, gauge: bool) -> FamilyName:
    """Return what a metric is called: `stem.queue.latency` in `s` becomes `stem_queue_latency_seconds`."""
    words = [word for word in _NOT_IN_A_METRIC.split(name) if word]
    if counter and words[-1:] == ["total"]:
        words.pop()  # the suffix comes after the unit, and the exposition adds it
    called = unit_name(unit, ratio=gauge)
    text = "_".join(words) or "_"
    if called and f"_{called}_" not in f"_{text}_":
        text = f"{text}_{called}"
    # OpenMetrics has units at the end of names only.
    told = called if text.endswith(f"_{called}") else ""
    return FamilyName(f"_{text}" if text[0].isdigit() else text, told)


def unit_name(unit: str, *, ratio: bool) -> str:
    """Return a UCUM unit in words: `By/s` becomes `bytes_per_second`; annotations such as `{task}` are no units.

    A `1` is a `ratio` where something may be one: a gauge, not a count.
    """
    plain = _ANNOTATION.sub("", unit).strip()
    if plain == _RATIO:
        return "ratio" if ratio else ""
    main, slash, per = plain.partition("/")
    words = [_UNITS.get(main, main)] if main and main != _RATIO else []
    if slash and per:
        words += ["per", _PER.get(per, per)]
    return "_".join(filter(None, (_NOT_IN_A_LABEL.sub("_", word).strip("_") for word in words)))


@lru_cache(4096)
def label_name(key: str) -> str:
    """Return an attribute's key as a label: `error.type` becomes `error_type`."""
    name = _NOT_IN_A_LABEL.sub("_", key)
    return f"key_{name}" if not name.strip("_") else f"_{name}" if name[0].isdigit() else name


def labels_of(attributes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return attributes as labels. Where two keys become one label, their values are joined by `;`, in key order."""
    labels: dict[str, str] = {}
    for key, value in sorted(attributes):
        name = label_name(key)
        labels[name] = f"{labels[name]};{value}" if name in labels else value
    return labels


def target_of(resource: Mapping[str, object]) -> dict[str, str]:
    """Return the labels `job` and `instance` of a resource ("Resource Attributes", the Collector's exporters)."""
    name, namespace = str(resource.get("service.name", "")), str(resource.get("service.namespace", ""))
    return {
        "job": f"{namespace}/{name}" if namespace else name,
        "instance": str(resource.get("service.instance.id", "")),
    }
