"""Base of every configuration model, and the mark that names a field's environment variables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from agent.settings.needs import RedisUse


class Config(BaseModel):
    """What an operator writes about one thing: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    def missing_here(self) -> Iterator[str]:
        """Yield what this machine lacks for it, a message each; `validate` asks, and changes nothing."""
        yield from ()

    def redis_uses(self) -> Iterator["RedisUse"]:
        """Yield the servers that it uses, and what it must be allowed to do there; `validate` asks."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Env:
    """Marks a field: when the YAML leaves it out, the first of these variables that is set and not empty fills it.

    That gives the precedence: explicit YAML, then `STEM_*`, then `OTEL_*`, then the default. Lists are
    comma-separated in a variable. `unless` is the dotted path of an option of the same component that, given explicitly
    or by a `STEM_*` variable, also settles this one: a signal's own `OTEL_*` endpoint must not win over a general one
    of higher precedence. `unit` is what a bare number in the variable means (`ms`). `{}` in a name stands for the first
    key of the option, in capitals: `OTEL_EXPORTER_OTLP_{}_TIMEOUT` for `traces.timeout`.
    """

    names: tuple[str, ...]
    unless: str | None
    unit: str

    def __init__(self, *names: str, unless: str | None = None, unit: str = "") -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "unless", unless)
        object.__setattr__(self, "unit", unit)

    def find(self, environ: Mapping[str, str], key: str = "") -> tuple[str, str] | None:
        """Return the variable that applies and its value."""
        names = (name.format(key.upper()) for name in self.names)
        name = next((name for name in names if environ.get(name)), None)
        if name is None:
            return None
        text = environ[name]
        return name, f"{text}{self.unit}" if text.isascii() and text.isdigit() else text
