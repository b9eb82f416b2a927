"""Errors of asking Stem's Redis, typed by what the caller should do.

The tree:

    AgentError
    ├── StartupError               a TLS file cannot be used
    └── StemError                  a question without an answer
        ├── AddressError           what was given is no address of a Redis, or there is none: a mistake of the caller
        ├── UnreachableError       nobody answered in time: try again
        └── RefusedError           the server answered, and will refuse again until somebody grants `missing`
"""

import re

from agent.core.errors import AgentError

_COMMAND = re.compile(r"'([a-z|]+)' command")
_NO_KEY = re.compile(r"no permissions to access (a|one of the) keys?", re.IGNORECASE)


class StemError(AgentError):
    """A question that has no answer; the text says which store was asked, where it is, and why there is none."""


class AddressError(StemError, ValueError):
    """A URL is none, or the store that a question is about was never named."""


class UnreachableError(StemError):
    """The store at `server` (`host:port`) cannot be connected to, or did not answer in time."""

    def __init__(self, store: str, server: str, reason: str) -> None:
        super().__init__(f"failed to ask the {store} at redis {server}: {reason}")
        self.store, self.server, self.reason = store, server, reason


class RefusedError(StemError):
    """The store at `server` (`host:port`) answered with an error, `reason`.

    `missing` is the right that would mend it, as `ACL SETUSER` takes it: `+xpending`, `%R~stem:*`; None where it is
    something else: a wrong password, a database that is not there, a key of another type.
    """

    def __init__(self, store: str, server: str, reason: str, missing: str | None) -> None:
        grant = f"; its user lacks {missing}" if missing else ""
        super().__init__(f"the {store} at redis {server} refused: {reason}{grant}")
        self.store, self.server, self.reason, self.missing = store, server, reason, missing


def missing_right(reason: str, namespace: str) -> str | None:
    """Return the right that a refusal is about; pure. Redis 6.2, Redis 7 and Valkey word it differently."""
    if "permission" not in reason.lower():
        return None
    if _NO_KEY.search(reason):
        return f"%R~{namespace}:*"
    found = _COMMAND.search(reason)
    return f"+{found[1]}" if found else None
