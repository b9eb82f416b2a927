"""How a probe runs: once, or again and again; as tables, or as JSON; with an exit code for monitoring systems."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from agent.cli.drawing import console
from agent.cli.report import tell
from agent.cli.status import EXIT_UNKNOWN
from agent.cli.stores import Stores, duration_of
from agent.cli.verdict import Verdict
from agent.stem.client.errors import StemError

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

Answer = TypeVar("Answer")
Watch = Annotated[
    str | None, typer.Option("--watch", metavar="DURATION", help="Ask again after each so long, until Ctrl-C.")
]
Queues = Annotated[
    list[str] | None, typer.Option("--queue", "-q", metavar="NAME", help="This queue only; may be repeated.")
]


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer as it is shown: `values` as JSON, or what `draw` returns for rich; `notes` and verdict beside it.

    Where there is no answer, `values` is None, and the verdict says why.
    """

    values: Any
    draw: Callable[[], Sequence[Any]]
    verdict: Verdict = field(default_factory=Verdict)
    notes: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """What belongs on standard error."""
        return [*self.verdict.lines, *self.notes]


def probe(
    stores: Stores,
    watch: str | None,
    question: "Callable[[StemClient], Awaitable[Answer]]",
    show: Callable[[Answer], Shown],
) -> None:
    """Ask, show the answer, and exit with its verdict; with `watch`, until a signal, and with the last verdict.

    Raises `BadOption`, and without `watch` an `AgentError` for a question that has no answer.
    """
    pause = None if watch is None else duration_of("--watch", watch)

    async def answered(client: "StemClient") -> Shown:
        return show(await question(client))

    raise typer.Exit(asyncio.run(_once(stores, answered) if pause is None else _again(stores, answered, pause)))


async def _once(stores: Stores, answered: "Callable[[StemClient], Awaitable[Shown]]") -> int:
    async with stores.client() as client:
        shown = await answered(client)
    _print(stores, shown)
    return shown.verdict.exit_code


async def _again(stores: Stores, answered: "Callable[[StemClient], Awaitable[Shown]]", pause: float) -> int:
    code = EXIT_UNKNOWN
    client = stores.client()
    with _redrawn() as redraw:
        try:
            async with _until_signal():
                async for _ in _ticks(pause):
                    try:
                        shown = await answered(client)
                    except StemError as error:
                        shown = Shown(None, list, Verdict(unknowns=[str(error)]))
                    code = shown.verdict.exit_code
                    _show(stores, shown, redraw)
        finally:
            await client.close()
    return code


async def _ticks(pause: float) -> AsyncIterator[None]:
    """Yield at once, and after each pause."""
    while True:
        yield
        await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def _until_signal() -> AsyncIterator[None]:
    """Run what is inside until SIGINT or SIGTERM, which also end the waiting for an answer that may never come."""
    loop = asyncio.get_running_loop()
    life = asyncio.timeout(None)
    try:
        async with life:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, lambda: None if life.expired() else life.reschedule(loop.time()))
            yield
    except TimeoutError:
        if not life.expired():
            raise


@contextlib.contextmanager
def _redrawn() -> Iterator[Callable[[Any], None] | None]:
    """Give what draws in place of what it drew before; None where there is no terminal."""
    terminal = console(width=None)  # what is redrawn must know how many lines it takes
    if not terminal.is_terminal:
        yield None
        return
    from rich.live import Live  # noqa: PLC0415 - it costs 0.1 s

    with Live(console=terminal, auto_refresh=False) as live:
        yield lambda drawn: live.update(drawn, refresh=True)


def _show(stores: Stores, shown: Shown, redraw: Callable[[Any], None] | None) -> None:
    if redraw is None or stores.as_json:
        _print(stores, shown)
        return
    from rich.console import Group  # noqa: PLC0415 - see above
    from rich.text import Text  # noqa: PLC0415

    lines = [Text.from_ansi(line) for line in (*_text(stores, shown).splitlines(), *shown.lines)]
    for line in lines:  # wrapped, it would take more lines than are taken back to draw anew
        line.no_wrap, line.overflow = True, "ellipsis"
    redraw(Group(*lines))


def _print(stores: Stores, shown: Shown) -> None:
    if text := _text(stores, shown):
        typer.echo(text)
    for line in shown.lines:
        tell(line)


def _text(stores: Stores, shown: Shown) -> str:
    """Return an answer as text, without a line's end; in colour where there is a terminal."""
    if stores.as_json:
        if shown.values is None:
            return ""
        return msgspec.json.encode(shown.values).decode()
    drawn = console()
    with drawn.capture() as capture:
        for part in shown.draw():
            drawn.print(part)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").splitlines())
