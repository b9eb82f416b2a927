"""`stem-agent components`: what can be configured."""

import typer

from agent.configuration import PIPELINE_KINDS
from agent.registry import SECTIONS


def components() -> None:
    """List what can be configured, by section.

    Each is used as `type`, or as `type/name` where there are several. Its options are in the README, under "Options".
    """
    width = max(len(name) for types in SECTIONS.values() for name in types)
    for section, types in SECTIONS.items():
        typer.echo(f"{section}:")
        for name, component in types.items():
            purpose = (component.config.__doc__ or "").splitlines()[0]
            typer.echo(f"  {name:{width}}  {purpose}")
    typer.echo(f"pipelines: {', '.join(PIPELINE_KINDS)}")
