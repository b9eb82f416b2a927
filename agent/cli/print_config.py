"""`stem-agent print-config`: the configuration that counts, and where each value comes from."""

import os

import typer

from agent.cli.sources import Files, Sets, tell_problems
from agent.configuration import check, gather
from agent.core.errors import ConfigError
from agent.printing import printed


def print_config(config: Files = None, sets: Sets = None) -> None:
    """Print the configuration as it is used: merged, variables and defaults filled in, secrets hidden.

    Behind each value is where it comes from: file and line, variable, flag, or default. Exit code 0, or 78 after every
    error was told.
    """
    try:
        document = gather(config, os.environ, sets=sets or ())
        loaded = check(document, os.environ)
    except ConfigError as error:
        tell_problems(error.problems)
        raise typer.Exit(error.exit_code) from None
    typer.echo(printed(loaded, document), nl=False)
