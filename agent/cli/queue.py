"""`stem-agent queue`: what waits on the disk: look at it, send it, or give it up."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
import uvloop

from agent.cli.report import tell
from agent.cli.sources import Files, Sets, load_or_exit
from agent.configuration import AgentConfig
from agent.core.errors import EXIT_HELD, EXIT_LOST, EXIT_OK, AgentError
from agent.replay import replay as replay_all
from agent.settings.types import parse_duration
from agent.storage.config import FileStorageConfig
from agent.storage.database import Database
from agent.storage.disk import AWAY, FILE, Disk, Kept
from agent.storage.rows import Books, Gone, QueueName, Stock
from agent.telemetry import logs
from agent.telemetry.events import Event

DROPPED = "dropped_by_operator"

app = typer.Typer(help="What waits on the disk.", no_args_is_help=True)

_DIRECTORY = typer.Option(None, "--directory", "-d", metavar="DIR", help="Of the storage, instead of a configuration.")


def _storages(
    config: list[Path] | None, sets: list[str] | None, directory: Path | None
) -> dict[str, FileStorageConfig]:
    """Return the storages that are meant, by id; exits where there is none."""
    if directory:
        return {"--directory": FileStorageConfig(directory=str(directory))}
    loaded = load_or_exit(config, sets)
    found = {
        identity: extension
        for identity, extension in loaded.components["extensions"].items()
        if isinstance(extension, FileStorageConfig) and identity in loaded.service.extensions
    }
    if not found:
        tell("error: the configuration has no file_storage that runs; name a --directory")
        raise typer.Exit(AgentError.exit_code)
    return found


# --- inspect ---------------------------------------------------------------------------------------------------------


@app.command("inspect")
def inspect(
    config: Files = None,
    sets: Sets = None,
    directory: Path | None = _DIRECTORY,
    as_json: bool = typer.Option(False, "--json", help="One JSON object a storage."),  # noqa: FBT001, FBT003 - typer's form
) -> None:
    """Show what waits, how old it is, and what became of the rest. The agent may run meanwhile."""
    failed = False
    for identity, storage in _storages(config, sets, directory).items():
        place = Path(storage.directory)
        try:
            stock, books = _read(place / FILE)
        except (sqlite3.Error, OSError) as error:
            tell(f"error: {identity}: {place / FILE}: {error}")
            failed = True
            continue
        aside = sorted(path.name for path in place.glob("*.set-aside-*Z"))
        if as_json:
            typer.echo(json.dumps(_as_json(identity, place, stock, books, aside)))
        else:
            _print(identity, place, stock, books, aside)
    if failed:
        raise typer.Exit(AgentError.exit_code)


def _read(file: Path) -> tuple[dict[QueueName, Stock], dict[QueueName, Books]]:
    if not file.exists():
        return {}, {}
    database = Database(file, read_only=True)
    try:
        return database.stock(), database.books()
    finally:
        database.close()


def _as_json(
    identity: str, place: Path, stock: dict[QueueName, Stock], books: dict[QueueName, Books], aside: Sequence[str]
) -> dict[str, Any]:
    queues = [
        {
            "exporter": queue.exporter,
            "signal": queue.kind,
            "batches": (waiting := stock.get(queue, Stock())).batches,
            "bytes": waiting.cost,
            "oldest": _time(waiting.oldest_ns),
            **each._asdict(),
        }
        for queue, each in sorted(books.items())
    ]
    return {"storage": identity, "directory": str(place), "queues": queues, "set_aside": list(aside)}


def _print(
    identity: str, place: Path, stock: dict[QueueName, Stock], books: dict[QueueName, Books], aside: Sequence[str]
) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - `run` does not draw
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    console.print(f"{identity}: {place}", highlight=False, markup=False)
    if not books:
        console.print("nothing was ever stored here", highlight=False)
        return
    waits = _table(Table, SIMPLE_HEAD, "what waits", ("items", "batches", "bytes", "oldest"))
    ends = _table(Table, SIMPLE_HEAD, "all that was stored, in items", ("stored", "delivered", "rejected", "dropped"))
    for queue, each in sorted(books.items()):
        waiting = stock.get(queue, Stock())
        counts = (each.held, waiting.batches, waiting.cost)
        waits.add_row(*queue, *(f"{count:,}" for count in counts), _age(waiting.oldest_ns))
        dropped = ", ".join(f"{reason} {items:,}" for reason, items in sorted(each.dropped.items()))
        counts = (each.accepted, each.delivered, each.rejected)
        ends.add_row(*queue, *(f"{count:,}" for count in counts), dropped or "0")
    console.print(waits)
    console.print(ends)
    for name in aside:
        console.print(f"set aside: {name}", highlight=False, markup=False)


def _table(table: Any, box: Any, title: str, headings: Sequence[str]) -> Any:
    drawn = table(title=title, title_justify="left", box=box, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("exporter", "signal"):
        drawn.add_column(heading, no_wrap=True)
    for heading in headings:
        drawn.add_column(heading, justify="right", overflow="fold")
    return drawn


def _time(unix_ns: int) -> str | None:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="seconds") if unix_ns else None


def _age(unix_ns: int) -> str:
    if not unix_ns:
        return "-"
    seconds = max(0, int(datetime.now(UTC).timestamp() - unix_ns / 1e9))
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


# --- replay ----------------------------------------------------------------------------------------------------------


def _timeout(value: str) -> float:
    try:
        return float(parse_duration(value))
    except ValueError:
        raise typer.BadParameter("expected a duration such as 30s or 5m") from None


@app.command("replay")
def replay(
    config: Files = None,
    sets: Sets = None,
    timeout: str = typer.Option("60s", help="How long to try."),
) -> None:
    """Send what waits, without receiving anything. The agent must not run: it sends it by itself.

    Exit codes: 0 all of it was delivered; 3 something still waits; 4 something was refused.
    """
    seconds = _timeout(timeout)
    loaded = load_or_exit(config, sets)
    settings = loaded.service.telemetry.logs
    logs.configure(settings.level, settings.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise typer.Exit(runner.run(_replay(loaded, seconds)))


async def _replay(config: AgentConfig, seconds: float) -> int:
    try:
        accounts = await replay_all(config, os.environ, seconds)
    except AgentError as error:
        tell(f"error: {error}")
        return error.exit_code
    if not any(account.restored for account in accounts):
        typer.echo("nothing waits")
    for account in accounts:
        if account.restored:
            typer.echo(
                f"{account.exporter}: {account.kind}: {account.restored} items: {account.delivered} delivered, "
                f"{account.rejected.total()} rejected, {account.dropped.total()} dropped, {account.held} still held"
            )
    if any(account.lost for account in accounts):
        return EXIT_LOST
    return EXIT_HELD if any(account.held for account in accounts) else EXIT_OK


# --- drop ------------------------------------------------------------------------------------------------------------


class _Teller:
    """Says on standard error what happens on the disk."""

    def tell(self, event: Event) -> None:
        tell(f"warning: {event.phrase}: {event}")

    def gone(self, gone: Sequence[Gone]) -> None:
        """Do nothing: nothing goes by itself here."""

    def replaced(self, kept: Kept) -> None:
        """Do nothing: it was told already."""

    def recovered(self) -> None:
        """Do nothing: nobody waits for it."""


@app.command("drop")
def drop(
    config: Files = None,
    sets: Sets = None,
    directory: Path | None = _DIRECTORY,
    exporter: str | None = typer.Option(None, help="Only what waits for this exporter."),
    signal: str | None = typer.Option(None, help="Only traces, metrics or logs."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),  # noqa: FBT001, FBT003 - typer's form of an option
) -> None:
    """Give up what waits. It is counted as dropped. The agent must not run."""
    for identity, storage in _storages(config, sets, directory).items():
        disk = Disk(identity, storage, _Teller())
        try:
            disk.take_lock()
            stock = disk.use(lambda database: database.stock())
            if stock is AWAY:
                tell(f"error: {identity}: {storage.directory}: {disk.failure}")
                raise typer.Exit(AgentError.exit_code)
            for queue, waiting in sorted(stock.items()):
                if queue.exporter != (exporter or queue.exporter) or queue.kind != (signal or queue.kind):
                    continue
                batches = f"{waiting.batches} batch{'es' if waiting.batches != 1 else ''}"
                what = f"{waiting.items} items in {batches} of {queue.exporter}: {queue.kind}"
                if yes or typer.confirm(f"drop {what}?"):
                    disk.use(lambda database, queue=queue: database.drop(queue, DROPPED))  # type: ignore[misc]
                    typer.echo(f"dropped {what}")
        except AgentError as error:
            tell(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        finally:
            disk.close()
