"""`stem-agent status`: what `/status` of a running agent says, for people and for monitoring systems."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import typer

from agent.cli.drawing import UNCUT_WIDTH, duration
from agent.cli.report import tell

# The convention of monitoring plugins (monitoring-plugins.org, "Plugin Return Codes").
EXIT_OK, EXIT_WARNING, EXIT_CRITICAL, EXIT_UNKNOWN = 0, 1, 2, 3
_DEFAULT = "http://127.0.0.1:13133"
_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 4 << 20
_COLOURS = {"ok": "green", "degraded": "yellow", "recovering": "red", "failed": "red"}


def status(
    url: str = typer.Option(_DEFAULT, "--url", "-u", metavar="URL", help="Where `extensions: health` listens."),
    as_json: bool = typer.Option(False, "--json", help="Print the JSON as it is."),  # noqa: FBT001, FBT003 - typer's form of an option
) -> None:
    """Show how a running agent and its components are.

    Exit codes: 0 all well; 1 something is degraded, or the agent starts or drains; 2 a component is unhealthy;
    3 no answer.
    """
    address = url if "://" in url else f"http://{url}"
    text = _ask(f"{address.rstrip('/').removesuffix('/status')}/status")
    try:
        report = json.loads(text)
        lines = None if as_json else _draw(report)
        code = exit_code(report)
    except (ValueError, KeyError, TypeError, AttributeError):
        tell(f"error: what answers at {address} is no stem-agent")
        raise typer.Exit(EXIT_UNKNOWN) from None
    typer.echo(text if lines is None else lines, nl=lines is None)
    raise typer.Exit(code)


def exit_code(report: Mapping[str, Any]) -> int:
    """Return how bad a status is, as monitoring plugins say it."""
    if not report["healthy"]:
        return EXIT_CRITICAL
    fine = all(told["state"] == "ok" for _, _, told in _components(report))
    return EXIT_OK if report["ready"] and fine else EXIT_WARNING


def _ask(url: str) -> str:
    try:
        # Not through a proxy: it is asked where it runs.
        with build_opener(ProxyHandler({})).open(url, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read(_MAX_BYTES).decode())
    except HTTPError as error:
        reason = f"http {error.code}"
        error.close()
    except URLError as error:
        reason = str(getattr(error.reason, "strerror", None) or error.reason).lower()
    except (OSError, ValueError) as error:
        reason = str(error)
    tell(f"error: no status from {url}: {reason} (is `extensions: health` in the agent's configuration?)")
    raise typer.Exit(EXIT_UNKNOWN)


def _components(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for section, components in report["components"].items():
        for identity, told in components.items():
            yield section, identity, told


def _draw(report: Mapping[str, Any]) -> str:
    """Return the status as text; in colour, and as wide as the terminal, where there is one."""
    # rich is imported where it draws: it costs 0.1 s.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=UNCUT_WIDTH)
    now = datetime.fromisoformat(report["at"])
    states = Table("component", "state", "for", "why", box=SIMPLE_HEAD)
    for section, identity, told in _components(report):
        state = Text(told["state"], _COLOURS.get(told["state"], ""))
        states.add_row(Text(f"{section}: {identity}"), state, _lasts(now, told["since"]), Text(told["reason"] or ""))
    books = Table("ledger", box=SIMPLE_HEAD)
    for column in ("accepted", "delivered", "rejected", "dropped", "held"):
        books.add_column(column, justify="right")
    for exporter, kinds in report["ledger"].items():
        for kind, told in kinds.items():
            lost = (sum(told[column].values()) for column in ("rejected", "dropped"))
            books.add_row(f"{exporter}: {kind}", *map(str, (told["accepted"], told["delivered"], *lost, told["held"])))
    with console.capture() as capture:
        ready = "ready" if report["ready"] else f"not ready: {report['not_ready_because']}"
        who = f"stem-agent {report['version']}, agent {report['agent']}"
        console.print(Text(f"{who}, up for {duration(report['uptime_seconds'])}, {ready}"))
        console.print(states)
        console.print(books)
    return capture.get()


def _lasts(now: datetime, since: str | None) -> str:
    return duration((now - datetime.fromisoformat(since)).total_seconds()) if since else ""
