"""The command `stem-agent`: one module per sub-command."""

import typer

from agent import __version__
from agent.cli import components, config, demo, observe, print_config, queue, run, status, task, validate, worker
from agent.cli.stores import ProbeCommand

app = typer.Typer(
    name="stem-agent",
    help="OpenTelemetry sidecar for Stem job workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("validate")(validate.validate)
app.command("print-config")(print_config.print_config)
app.command("components")(components.components)
app.command("status", cls=ProbeCommand)(status.status)
app.command("demo")(demo.demo)
app.command("task", cls=ProbeCommand)(task.task)
app.add_typer(config.app, name="config")
app.add_typer(observe.app, name="observe")
app.add_typer(queue.app, name="queue")
app.add_typer(worker.app, name="worker")


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback signature
    if wanted:
        typer.echo(f"stem-agent {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),  # noqa: FBT001, FBT003 - typer's form of an option
) -> None:
    """OpenTelemetry sidecar for Stem job workers."""


def main() -> None:
    """Run the command line."""
    app()
