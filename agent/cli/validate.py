"""`stem-agent validate`: check a configuration without running it."""

import asyncio
import os
from collections.abc import Sequence

import typer

from agent.cli.report import tell
from agent.cli.sources import Files, Sets, count, named
from agent.configuration import AgentConfig, check, gather
from agent.core.errors import EXIT_CONFIG, ConfigError, Level, Problem
from agent.core.masking import Masker
from agent.settings.document import Document

_OUTSIDE = (Level.ENVIRONMENT, Level.CONNECTIVITY)


def validate(
    config: Files = None,
    sets: Sets = None,
    no_environment: bool = typer.Option(  # noqa: FBT001 - typer's form of an option
        False,  # noqa: FBT003
        "--no-environment",
        help="Look at the text alone: not at this machine, and at no server. For where it will not run.",
    ),
    deny_warnings: bool = typer.Option(  # noqa: FBT001
        False,  # noqa: FBT003
        "--deny-warnings",
        help="Take warnings for errors.",
    ),
) -> None:
    """Check a configuration, level by level, without running it; everything that is wrong is told at once.

    syntax: keys, types, values, variables. references: what names what. environment: files, directories, addresses,
    memory of this machine. connectivity: Redis to login and rights, each OTLP endpoint to an empty export.

    Exit code 0, or 78 on errors.
    """
    report = _Report(deny_warnings=deny_warnings)
    try:
        document = gather(config, os.environ, sets=sets or ())
        loaded = check(document, os.environ)
    except ConfigError as error:
        report.add((Level.SYNTAX, Level.REFERENCES), error.problems)
    else:
        report.mask = loaded.mask
        report.add((Level.SYNTAX, Level.REFERENCES), (), loaded.warnings)
        if not no_environment:
            _look_outside(loaded, document, report)
    report.end(named(config), left_out=no_environment)


def _look_outside(loaded: AgentConfig, document: Document, report: "_Report") -> None:
    from agent.checks.connectivity import check_connectivity  # noqa: PLC0415 - all there is, for those who look
    from agent.checks.environment import check_environment  # noqa: PLC0415

    here = check_environment(loaded, document, os.environ)
    report.add((here.level,), here.errors, here.warnings, here.well)
    broken = {tuple(error.path.split(".")[:2]) for error in here.errors}
    there = asyncio.run(check_connectivity(loaded, document, broken))
    report.add((there.level,), there.errors, there.warnings, there.well)


class _Report:
    """Tells problems on standard error as they come, and in the end a line a level on standard output."""

    def __init__(self, *, deny_warnings: bool) -> None:
        self.mask = Masker()
        self._deny = deny_warnings
        self._errors = 0
        self._warnings = 0
        self._lines: dict[Level, str] = {}

    def add(
        self,
        levels: Sequence[Level],
        errors: Sequence[Problem],
        warnings: Sequence[Problem] = (),
        well: Sequence[str] = (),
    ) -> None:
        """Take what was found at some levels."""
        for problems, noun in ((errors, "error"), (warnings, "warning")):
            for problem in problems:
                tell(self.mask(f"{noun}: {problem}"))
        self._errors += len(errors)
        self._warnings += len(warnings)
        for level in levels:
            counts = [
                count(number, noun)
                for problems, noun in ((errors, "error"), (warnings, "warning"))
                if (number := sum(problem.level is level for problem in problems))
            ]
            told = "" if errors else "; ".join(dict.fromkeys(well))
            self._lines[level] = ", ".join(counts or ["ok"]) + (f": {told}" if told else "")

    def end(self, name: str, *, left_out: bool) -> None:
        """Tell how it went, and exit with 78 if it did not go well."""
        for level in Level:
            outcome = self._lines.get(level, "left out" if left_out and level in _OUTSIDE else "not looked at")
            typer.echo(self.mask(f"{level:13} {outcome}"))
        if self._errors:
            tell(f"{count(self._errors, 'error')} in the configuration")
            raise typer.Exit(EXIT_CONFIG)
        if self._warnings and self._deny:
            tell(f"{count(self._warnings, 'warning')}, and --deny-warnings takes them for errors")
            raise typer.Exit(EXIT_CONFIG)
        typer.echo(f"{name}: ok")
