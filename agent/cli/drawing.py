"""Tables and durations for people. rich is imported where it draws: it costs 0.1 s."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNCUT_WIDTH = 1000
"""Wider than any table, so that nothing is cut: a narrower terminal wraps lines, and ids can still be copied."""
_HEIGHT = 100
UNKNOWN = "?"
NONE = "-"
_MAX_TEXT = 100
_RIGHT = ">"


def console(width: int | None = UNCUT_WIDTH) -> "Console":
    """Return where to draw; None: as wide as the terminal."""
    from rich.console import Console  # noqa: PLC0415 - see above

    # With a height, too: rich takes a dumb terminal for 80 columns wide, whatever width it is given alone.
    return Console(highlight=False, markup=False, width=width, height=width and _HEIGHT)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """Return a table; a heading that begins with `>` is that of a column of numbers. Cells are drawn as they are."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - see above
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in headings:
        justify: Any = "right" if heading.startswith(_RIGHT) else "left"
        drawn.add_column(heading.removeprefix(_RIGHT), justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    return drawn


def number(value: int | None) -> str:
    """Return a count, `?` for one that is not known."""
    return UNKNOWN if value is None else f"{value:,}"


def milliseconds(value: int | None, absent: str = NONE) -> str:
    """Return a duration such as `850 ms`, `3.2 s` or `4 m 10 s`; one that lies ahead is negative."""
    if value is None:
        return absent
    sign, value = ("-" if value < 0 else ""), abs(value)
    if value < 1000:  # noqa: PLR2004 - milliseconds
        return f"{sign}{value} ms"
    return sign + (f"{value / 1000:.1f} s" if value < 60_000 else duration(value / 1000))  # noqa: PLR2004


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as `2 h 5 m`."""
    whole = max(0, int(seconds))
    for size, unit, smaller, name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {name}"
    return f"{whole} s"


def utc(time: datetime | None, precision: str = "seconds") -> str:
    """Return a time in UTC, as `2026-04-23 10:00:00Z`; one without an offset is taken to be in UTC."""
    if time is None:
        return NONE
    time = time.astimezone(UTC) if time.tzinfo else time
    return f"{time.replace(tzinfo=None).isoformat(' ', precision)}Z"


def size(value: int | None) -> str:
    """Return bytes in MiB."""
    return NONE if value is None else f"{value / (1 << 20):.0f} MiB"


def short(text: str | None) -> str:
    """Return a text in one line, cut to what a table can hold."""
    line = " ".join((text or NONE).split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"
