"""What thresholds come to: lines for people, an exit code for monitoring systems. Pure."""

from dataclasses import dataclass, field

from agent.cli.status import EXIT_CRITICAL, EXIT_OK, EXIT_UNKNOWN
from agent.cli.stores import duration_of


@dataclass(frozen=True, slots=True)
class Limit:
    """A threshold as it was written: the option and its text; `value` is in the unit of what is held against it."""

    option: str
    text: str
    value: float


def limit(option: str, value: int | None) -> Limit | None:
    """Return the threshold of a count, None where there is none."""
    return None if value is None else Limit(option, str(value), value)


def age_limit(option: str, text: str | None) -> Limit | None:
    """Return the threshold of an age such as `5m`, in milliseconds; raises `BadOption`."""
    return None if text is None else Limit(option, text, duration_of(option, text) * 1000)


@dataclass(slots=True)
class Verdict:
    """Collects what is beyond a threshold, and what nobody can tell."""

    breaches: list[str] = field(default_factory=list)
    unknowns: list[str] = field(default_factory=list)

    def at_most(
        self, what: str, value: float | None, most: Limit | None, *, shown: str = "", why: str | None = ""
    ) -> None:
        """Hold a value against a threshold: above it is critical; `why` it is not known, where it is not."""
        if most is None:
            return
        if value is None:
            self.unknowns.append(f"{what} is not known{f': {why}' if why else ''}")
        elif value > most.value:
            self.breaches.append(f"{what} {shown or value} is above {most.option} {most.text}")

    def at_least(self, what: str, value: int, least: Limit | None) -> None:
        """Hold a count against a threshold: below it is critical."""
        if least is not None and value < least.value:
            self.breaches.append(f"{what} {value} is below {least.option} {least.text}")

    def unknown(self, line: str) -> None:
        """Note that something that was asked for cannot be told."""
        self.unknowns.append(line)

    @property
    def lines(self) -> list[str]:
        """What there is to say."""
        return [*(f"critical: {line}" for line in self.breaches), *(f"unknown: {line}" for line in self.unknowns)]

    @property
    def exit_code(self) -> int:
        """What is critical is so, whatever else is unknown."""
        return EXIT_CRITICAL if self.breaches else EXIT_UNKNOWN if self.unknowns else EXIT_OK
