"""What a level of checks found: mistakes, warnings, and what was well."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from agent.configuration import AgentConfig
from agent.core.errors import Level, Problem
from agent.registry import SIGNALS, type_of
from agent.settings.document import Document, Path, dotted
from agent.settings.model import Config

_COMPONENT = 2
"""Parts of a component's path: its section, and its id."""


@dataclass(slots=True)
class Findings:
    """What was found at one level; `well` says in a few words each what was looked at and is as it should be."""

    level: Level
    document: Document
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    well: list[str] = field(default_factory=list)

    def error(self, path: Path, message: str) -> None:
        """Note a mistake of the option at `path`."""
        self.errors.append(self._problem(path, message))

    def warn(self, path: Path, message: str) -> None:
        """Note what costs something, and stops nothing."""
        self.warnings.append(self._problem(path, message))

    def sort(self) -> None:
        """Put everything into the order of the file: answers come in any."""
        for problems in (self.errors, self.warnings):
            problems.sort(key=lambda problem: (problem.file, problem.line, problem.column))
        self.well.sort()

    def _problem(self, path: Path, message: str) -> Problem:
        is_component = len(path) <= _COMPONENT
        return Problem(*self.document.source(path, at_key=is_component), dotted(path), message, self.level)


def running(config: AgentConfig) -> Iterator[tuple[Path, Config]]:
    """Yield the path and the configuration of each component that would run."""
    pipelines = config.service.pipelines.values()
    named = {name for each in pipelines for name in (*each.receivers, *each.processors, *each.exporters)}
    own = config.service.telemetry
    named |= {name for name in (own.logs.exporter, own.metrics.exporter) if name}
    for section, components in config.components.items():
        used = set(config.service.extensions) if section == "extensions" else named
        yield from (((section, identity), each) for identity, each in components.items() if identity in used)


def kinds_of(config: AgentConfig, exporter: str) -> list[str]:
    """Return the kinds of pipelines that an exporter ends."""
    pipelines = config.service.pipelines.items()
    return sorted({type_of(name) for name, each in pipelines if exporter in each.exporters} - {SIGNALS})


def models(config: Config, path: Path) -> Iterator[tuple[Path, Config]]:
    """Yield a configuration, and those within it."""
    yield path, config
    for name in type(config).model_fields:
        value: Any = getattr(config, name)
        if isinstance(value, BaseModel) and isinstance(value, Config):
            yield from models(value, (*path, name))
