"""Which emitters agents have claimed: they listen to the signals of these, and tell of them. Pure."""

from collections.abc import Sequence

from agent.stem.questions.query import Query, count

OWNER_PREFIX = "stem-agent:owner:"
"""Under which agents claim the emitters that they listen to."""


def read_claims(emitters: Sequence[str], namespace: str) -> Query[set[str]]:
    """Ask which of the emitters an agent has claimed, and so tells of. One round trip.

    Raises `QueryRefusedError` if the server refuses.
    """
    if not emitters:
        return set()
    replies = yield [("EXISTS", f"{OWNER_PREFIX}{namespace}:{emitter}") for emitter in emitters]
    return {emitter for emitter, reply in zip(emitters, replies, strict=True) if count(reply)}
