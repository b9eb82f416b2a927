"""Where commands take the configuration from: `--config`, `--set`."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.report import tell
from agent.configuration import AgentConfig, default_file, load
from agent.core.errors import ConfigError, Problem

Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file; of several, later ones go over earlier ones. Without one, Stem's own environment variables.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Goes over the files: receivers.stem_signals.namespace=shop."),
]


def named(files: list[Path] | None) -> str:
    """Return the files for people: the default one where none is named."""
    return ", ".join(map(str, files or [default_file()]))


def count(number: int, noun: str) -> str:
    """Return `1 error`, `2 errors`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def tell_problems(problems: tuple[Problem, ...]) -> None:
    """Tell of every error, a line each, and then of how many there are."""
    for problem in problems:
        tell(f"error: {problem}")
    tell(f"{count(len(problems), 'error')} in the configuration")


def load_or_exit(files: list[Path] | None, sets: list[str] | None = None) -> AgentConfig:
    """Load a configuration and tell its warnings; on errors tell them all, and exit with 78."""
    try:
        loaded = load(files, sets=sets or ())
    except ConfigError as error:
        tell_problems(error.problems)
        raise typer.Exit(error.exit_code) from None
    for warning in loaded.warnings:
        tell(f"warning: {warning}")
    return loaded
