"""`stem-agent worker`: asks live workers about themselves over Stem's control streams; the one probe that writes."""

import asyncio
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from agent.cli.report import tell
from agent.cli.status import EXIT_CRITICAL, EXIT_OK, EXIT_UNKNOWN
from agent.cli.stores import ProbeCommand, ProbeGroup, Stores, ask, with_stores
from agent.stem.control.protocol import ControlCommand

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient
    from agent.stem.control.inquiry import Inquiry

_ROUND_TRIP = "5s"
"""What Redis may take for an answer, however long the workers may."""

_WRITES = (
    "This writes into the fleet's Redis: a command on the control stream of each worker, and one stream for the replies"
    " (`{store namespace}:stream:{namespace}.control.worker.{id}` and `.reply.{request}`). Both are taken back before"
    " it ends. If a worker has read its command and does not answer in time, the empty stream for the replies stays,"
    " and expires by itself within the timeout and ten minutes. Rights beyond those of the other probes: MULTI, EXEC,"
    " XGROUP CREATE, PEXPIRE, XADD, XREAD, XDEL, XACK, XINFO GROUPS and DEL on these keys."
)
_EXITS = (
    "Exit codes: 0 all answered ok; 2 a worker answered with an error, or not at all; 3 a worker is unknown or dead, or"
    " no worker is live, or Redis does not answer."
)

app = typer.Typer(cls=ProbeGroup, help=f"Ask live workers about themselves. {_WRITES}", no_args_is_help=True)

Wanted = Annotated[
    list[str] | None,
    typer.Option("--worker", "-w", metavar="ID", help="Only this worker; may be repeated. Else all that are live."),
]
Revoked = Annotated[
    bool, typer.Option("--include-revoked/--no-include-revoked", help="Whether to tell of revoked tasks, too.")
]


@app.command("ping", cls=ProbeCommand, help=f"Ask whether workers answer, and how fast. {_WRITES}\n\n{_EXITS}")
@with_stores
def ping(stores: Stores, worker: Wanted = None) -> None:
    """Ask whether workers answer, and how fast."""
    _inquire(stores, ControlCommand.PING, worker)


@app.command("stats", cls=ProbeCommand, help=f"Ask workers how much they do, and what. {_WRITES}\n\n{_EXITS}")
@with_stores
def stats(stores: Stores, worker: Wanted = None) -> None:
    """Ask workers how much they do, and what."""
    _inquire(stores, ControlCommand.STATS, worker)


@app.command("inspect", cls=ProbeCommand, help=f"Ask workers what they run, and what is revoked. {_WRITES}\n\n{_EXITS}")
@with_stores
def inspect(stores: Stores, worker: Wanted = None, include_revoked: Revoked = True) -> None:  # noqa: FBT002 - typer's form
    """Ask workers what they run, and what is revoked."""
    _inquire(stores, ControlCommand.INSPECT, worker, include_revoked=include_revoked)


def _inquire(
    stores: Stores, command: ControlCommand, wanted: list[str] | None, *, include_revoked: bool = True
) -> None:
    from agent.cli.worker_view import as_json, draw  # noqa: PLC0415 - what a probe needs, `run` does not
    from agent.stem.control.addressees import NotLiveError  # noqa: PLC0415

    asking = _Asking(stores, command, wanted or [], include_revoked=include_revoked)
    try:
        inquiry = ask(replace(stores, timeout=_ROUND_TRIP, schedules=None), asking.run)
    except NotLiveError as error:
        for problem in error.problems:
            tell(f"error: {problem}")
        raise typer.Exit(EXIT_UNKNOWN) from None
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None
    for reason in inquiry.odd:
        tell(f"warning: an entry on the reply stream is no reply of a worker that was asked: {reason}")
    typer.echo(as_json(inquiry) if stores.as_json else draw(inquiry))
    raise typer.Exit(EXIT_OK if inquiry.all_well else EXIT_CRITICAL)


class _Asking:
    """One call of the command."""

    def __init__(self, stores: Stores, command: ControlCommand, wanted: list[str], *, include_revoked: bool) -> None:
        self._namespace, self._timeout_s = stores.namespace, stores.timeout_s
        self._command, self._wanted, self._include_revoked = command, wanted, include_revoked

    async def run(self, client: "StemClient") -> "Inquiry":
        """Find the live workers, ask them, and return what they said."""
        from agent.stem.client.stem_client import MAX_WORKERS  # noqa: PLC0415
        from agent.stem.control.addressees import addressees  # noqa: PLC0415 - as above
        from agent.stem.control.asking import ask_workers  # noqa: PLC0415
        from agent.stem.control.inquiry import Inquiry  # noqa: PLC0415
        from agent.stem.questions.workers import read_heartbeats  # noqa: PLC0415

        _end_in_order_on_sigterm()
        found = await client.results.answer(read_heartbeats(client.keys, MAX_WORKERS, ages=()))
        inquiry = Inquiry(
            self._command,
            addressees(found, self._namespace, self._wanted),
            keys=client.keys,
            namespace=self._namespace,
            request_id=str(uuid4()),
            timeout_ms=round(self._timeout_s * 1000),
            include_revoked=self._include_revoked,
        )
        count = len(inquiry.workers)
        written = f"a command to {count} worker{'s' if count > 1 else ''}, and the stream {inquiry.replies}"
        tell(f"note: writes into redis {client.broker.server}, and takes it back: {written}")
        try:
            await ask_workers(client.broker, inquiry, self._timeout_s)
        finally:
            for stream, entry in inquiry.left_behind:
                tell(f"warning: a command was left behind, for whoever reads it: XDEL {stream} {entry} removes it")
        return inquiry


def _end_in_order_on_sigterm() -> None:
    """Let SIGTERM, as `timeout 3 stem-agent ...` sends it, end the waiting as Ctrl-C does: all is taken back."""
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
