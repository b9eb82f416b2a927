"""Gauges as they were read at one moment, encoded as they come; nothing of them is kept. Pure.

Thousands are told at once, each as a new value: filling protobuf messages would cost four times as much, measured.
"""

from struct import pack

from agent.otlp.metrics import Instrument, Values
from agent.otlp.wire import Attribute, delimited, tag, utf8

_NAME, _DESCRIPTION, _UNIT, _GAUGE = tag(1, 2), tag(2, 2), tag(3, 2), tag(5, 2)  # of Metric
_POINTS = tag(1, 2)  # Gauge.data_points
_TIME, _DOUBLE, _INT = tag(3, 1), tag(4, 1), tag(6, 1)  # of NumberDataPoint
_ATTRIBUTES_FIELD = 7

_attributes: dict[str, Attribute] = {}


class Levels:
    """Takes values and gives back `Metric` messages; `time_ns` is when all of them were true (Unix nanoseconds)."""

    def __init__(self, time_ns: int) -> None:
        self._time = _TIME + pack("<Q", time_ns)
        self._points: dict[Instrument, list[bytes]] = {}
        self._last: tuple[tuple[str, ...], Values, bytes] = ((), (), b"")

    def set(self, instrument: Instrument, values: Values, value: float) -> None:
        """Tell a value; of a series that is told twice both are."""
        number = _INT + pack("<q", value) if isinstance(value, int) else _DOUBLE + pack("<d", value)
        point = delimited(_POINTS, self._encoded(instrument.keys, values) + self._time + number)
        self._points.setdefault(instrument, []).append(point)

    def collect(self) -> tuple[list[bytes], list[int]]:
        """Return the encoded `Metric` messages, and how many data points each has."""
        metrics = [
            delimited(_NAME, utf8(instrument.name))
            + delimited(_DESCRIPTION, utf8(instrument.description))
            + delimited(_UNIT, utf8(instrument.unit))
            + delimited(_GAUGE, b"".join(points))
            for instrument, points in self._points.items()
        ]
        return metrics, list(map(len, self._points.values()))

    def _encoded(self, keys: tuple[str, ...], values: Values) -> bytes:
        """Return the attributes; several instruments in turn are told of the same thing."""
        if (keys, values) != self._last[:2]:
            encoded = b"".join(_attribute(key).text(value) for key, value in zip(keys, values, strict=True) if value)
            self._last = (keys, values, encoded)
        return self._last[2]


def _attribute(key: str) -> Attribute:
    if key not in _attributes:
        _attributes[key] = Attribute(key, _ATTRIBUTES_FIELD)
    return _attributes[key]
