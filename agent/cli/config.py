"""`stem-agent config`: about configuration files in general."""

import typer

app = typer.Typer(help="About configuration files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """About configuration files."""


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema (2020-12) of a whole configuration, for editors.

    They find it by the first line of a file: `# yaml-language-server: $schema=schema.json`.
    """
    from agent.schema import text  # noqa: PLC0415 - all models, for those who ask

    typer.echo(text(), nl=False)
