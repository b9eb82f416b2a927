"""`stem-agent validate`: check a configuration without running it."""

import os
from pathlib import Path

import typer

from agent.app import Agent
from agent.cli.report import load_or_exit, tell
from agent.configuration import default_file
from agent.core.errors import AgentError
from agent.exporters.otlp.config import OtlpConfig
from agent.settings.tls import ClientTls


def validate(
    config: Path | None = typer.Option(
        None, "--config", "-c", metavar="FILE", help="YAML file; without one, what `run` would use."
    ),
) -> None:
    """Check a configuration: syntax, types, references, TLS and header files.

    Exit code 0, or 78 after printing every error.
    """
    loaded = load_or_exit(config)
    try:
        Agent(loaded, os.environ)
        for configs in loaded.components.values():
            for component in configs.values():
                if isinstance(component, OtlpConfig):
                    component.check_files()
                elif isinstance(tls := getattr(component, "tls", None), ClientTls):
                    tls.context()
    except AgentError as error:
        tell(loaded.mask(f"error: {error}"))
        raise typer.Exit(error.exit_code) from None
    typer.echo(f"{config or default_file()}: ok")
