"""`stem-agent validate`: check a configuration without running it."""

import os

import typer

from agent.app import Agent
from agent.cli.report import tell
from agent.cli.sources import Files, Sets, load_or_exit, named
from agent.core.errors import AgentError
from agent.exporters.otlp.config import OtlpConfig
from agent.settings.tls import ClientTls


def validate(
    config: Files = None,
    sets: Sets = None,
) -> None:
    """Check a configuration: syntax, types, references, TLS and header files.

    Exit code 0, or 78 after printing every error.
    """
    loaded = load_or_exit(config, sets)
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
    typer.echo(f"{named(config)}: ok")
