"""`stem-agent run`: the agent itself."""

import asyncio
import os
from pathlib import Path

import typer
import uvloop

from agent.app import Agent
from agent.cli.report import tell
from agent.cli.sources import Files, Sets, load_or_exit
from agent.configuration import AgentConfig, check, gather
from agent.core.errors import AgentError, ConfigError
from agent.telemetry import logs


def run(
    config: Files = None,
    sets: Sets = None,
    watch_config: bool = typer.Option(  # noqa: FBT001 - typer's form of an option
        False,  # noqa: FBT003
        "--watch-config",
        help="Reload the configuration when one of its files changed, as SIGHUP does.",
    ),
) -> None:
    """Run the agent until SIGTERM or SIGINT; SIGHUP has it read its configuration anew.

    Exit codes: 0 everything that was accepted was delivered; 3 something is left on the disk, for the next start to
    deliver; 4 something was lost; 78 configuration, or a peer that refused for a reason that will not heal.
    """
    loaded = load_or_exit(config, sets)
    settings = loaded.service.telemetry.logs
    logs.configure(settings.level, settings.format, mask=loaded.mask)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exit_code = runner.run(_main(loaded, config, sets or [], watched=config or [] if watch_config else []))
    except AgentError as error:
        tell(loaded.mask(f"error: {error}"))
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(exit_code)


async def _main(loaded: AgentConfig, files: list[Path] | None, sets: list[str], *, watched: list[Path]) -> int:
    def load() -> AgentConfig:
        """Read and check everything anew, this machine included: what is wrong is to be known before anything stops."""
        from agent.checks.environment import check_environment  # noqa: PLC0415 - for those who reload

        document = gather(files, os.environ, sets=sets)
        config = check(document, os.environ)
        if errors := check_environment(config, document, os.environ).errors:
            raise ConfigError(errors)
        return config

    return await Agent(loaded, os.environ, load, watched).run()
