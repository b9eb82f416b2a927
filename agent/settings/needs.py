"""What a component needs of a Redis: where it is, and what its user must be allowed to do there. Pure.

Each right is stated as a command that the component sends, in a form that does nothing: on a key that nobody has, with
a condition that never holds. The server checks rights before it looks at either (Redis and Valkey, `src/server.c`,
`processCommand`), so its answer tells whether the command, the key and the channel are allowed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.settings.redis_tls import RedisTls
from agent.settings.types import RedisUrl

_CONTAINERS = frozenset({"XINFO", "SCRIPT", "CLIENT", "CONFIG"})
_REFUSED = "NOPERM"
_TROUBLES = {
    "READONLY": "it is a replica; `url` has to name the primary",
    "LOADING": "it is still reading its data; try again",
    "MASTERDOWN": "it is a replica without a primary",
    "CLUSTERDOWN": "its cluster is down",
    "MISCONF": "it takes no writes, because it cannot keep them",
    "ERR unknown command": "it is not all of a redis",
}
VERSION_PROBE = ("CLIENT", "NOPE")
"""What `is_older` has to be told the answer to. From Redis 7 on subcommands are commands, looked up before rights."""


class Right(NamedTuple):
    """A command that does nothing, and the rule for the key or channel in it, as `ACL SETUSER` takes it.

    `gives` is what is had by it, in plain words, where the component does without; empty where it does not.
    """

    command: tuple[str, ...]
    rule: str = ""
    gives: str = ""

    @property
    def grant(self) -> str:
        """The rule for the command."""
        words = self.command[: 2 if self.command[0] in _CONTAINERS else 1]
        return f"+{'|'.join(words).lower()}"


@dataclass(frozen=True, slots=True)
class RedisUse:
    """A Redis that a component uses, and the path of the options that say where, below the component's own."""

    url: RedisUrl
    tls: RedisTls
    timeout: float
    rights: tuple[Right, ...] = ()
    option: tuple[str, ...] = ()


def on_key(key: str, rule: str, *commands: str, gives: str = "") -> Iterator[Right]:
    """Yield the rights to run commands on a key; `{}` in a command stands for it."""
    for command in commands:
        words = tuple(key if word == "{}" else word for word in command.split(" "))
        yield Right(words, rule, gives)


def trouble(refusals: Iterable[str | None]) -> str | None:
    """Return what is wrong with a server as a whole, by its errors: the error, and what it means."""
    for answer in filter(None, refusals):
        if meaning := next((text for code, text in _TROUBLES.items() if answer.startswith(code)), None):
            return f"{answer}: {meaning}"
    return None


def is_older(answer: str) -> bool:
    """Tell from the answer to `VERSION_PROBE` whether a server is older than Redis 7: it knows no `%R~`."""
    return not answer.startswith("ERR unknown subcommand")


def missing(rights: Sequence[Right], refusals: Iterable[str | None], *, older: bool) -> dict[str, list[str]]:
    """Return the rules that would allow what was refused, by what they give.

    `refusals` has for each right the server's error, or None; `older` is what `is_older` says. Where a command is
    refused nobody knows about its key: that is granted with it, unless another command has shown that it is.
    """
    answers = list(zip(rights, (answer or "" for answer in refusals), strict=True))
    shown = {right.rule for right, answer in answers if not answer.startswith(_REFUSED)}
    lacking: dict[str, list[str]] = {}
    for right, answer in answers:
        if not answer.startswith(_REFUSED):
            continue
        about_command = "permissions to run" in answer
        rules = [right.rule] if right.rule and (not about_command or right.rule not in shown) else []
        rules += [right.grant] if about_command else []
        known = lacking.setdefault(right.gives, [])
        known += [rule for rule in (_older(rules) if older else rules) if rule not in known]
    return {gives: sorted(rules, key=_order) for gives, rules in lacking.items()}


def _older(rules: Iterable[str]) -> list[str]:
    return [rule.replace("%R~", "~") for rule in rules]


def _order(rule: str) -> bool:
    """Channels and keys first, then commands, as the README writes it."""
    return rule.startswith("+")
