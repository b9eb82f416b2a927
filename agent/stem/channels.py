"""Names of Redis pub/sub channels."""

from agent.stem.keys import glob_escaped

SIGNALS_PREFIX = "stem:signals:"
# Literally `stem:` whatever the store's prefix (Stem: `redis_heartbeat_transport.dart`).
HEARTBEAT_PREFIX = "stem:heartbeat:"


def signal_channel(namespace: str, emitter: str) -> str:
    """Return the channel on which `emitter` speaks.

    Raises `ValueError` for an emitter that contains a colon: its channel would read as another namespace's.
    """
    if ":" in emitter or not emitter:
        raise ValueError(f"emitter {emitter!r} must not be empty or contain a colon")
    return f"{SIGNALS_PREFIX}{namespace}:{emitter}"


def signal_pattern(namespace: str) -> str:
    """Return the glob that matches every emitter of `namespace`, and perhaps more: check with `emitter_of`."""
    return f"{SIGNALS_PREFIX}{glob_escaped(namespace)}:*"


def emitter_of(channel: str, namespace: str) -> str | None:
    """Return the emitter that a channel names, or None if the channel belongs to another namespace.

    `*` also matches colons, so the pattern of namespace `a` hears the emitters of `a:b` too.
    """
    prefix = f"{SIGNALS_PREFIX}{namespace}:"
    emitter = channel.removeprefix(prefix)
    return emitter if emitter != channel and emitter and ":" not in emitter else None


def heartbeat_channel(namespace: str) -> str:
    """Return Stem's own heartbeat channel, shared by all workers of `namespace`."""
    return f"{HEARTBEAT_PREFIX}{namespace}"


HEARTBEATS = ":heartbeats"
"""Stands for that channel where emitters are told apart: no emitter has a colon in its name."""
