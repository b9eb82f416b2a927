"""How commands tell of configuration errors: every one of them, a line each, on standard error, without a traceback."""

from pathlib import Path

import typer

from agent.configuration import AgentConfig, load
from agent.core.errors import ConfigError


def tell(line: str) -> None:
    """Write one line to standard error."""
    typer.echo(line, err=True)


def load_or_exit(config: Path | None) -> AgentConfig:
    """Load a configuration and tell its warnings; on errors tell them all, and exit with 78."""
    try:
        loaded = load(config)
    except ConfigError as error:
        for problem in error.problems:
            tell(f"error: {problem}")
        count = len(error.problems)
        tell(f"{count} error{'s' if count > 1 else ''} in the configuration")
        raise typer.Exit(error.exit_code) from None
    for warning in loaded.warnings:
        tell(f"warning: {warning}")
    return loaded
