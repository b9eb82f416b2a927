"""How commands tell of what went wrong: a line on standard error, without a traceback."""

import typer


def tell(line: str) -> None:
    """Write one line to standard error."""
    typer.echo(line, err=True)
