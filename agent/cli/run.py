"""`stem-agent run`: the agent itself."""

import asyncio
import os

import typer
import uvloop

from agent.app import Agent
from agent.cli.report import tell
from agent.cli.sources import Files, Sets, load_or_exit
from agent.configuration import AgentConfig
from agent.core.errors import AgentError
from agent.telemetry import logs


def run(
    config: Files = None,
    sets: Sets = None,
) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Exit codes: 0 everything that was accepted was delivered; 3 something is left on the disk, for the next start to
    deliver; 4 something was lost; 78 configuration, or a peer that refused for a reason that will not heal.
    """
    loaded = load_or_exit(config, sets)
    settings = loaded.service.telemetry.logs
    logs.configure(settings.level, settings.format, mask=loaded.mask)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exit_code = runner.run(_main(loaded))
    except AgentError as error:
        tell(loaded.mask(f"error: {error}"))
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(exit_code)


async def _main(config: AgentConfig) -> int:
    return await Agent(config, os.environ).run()
