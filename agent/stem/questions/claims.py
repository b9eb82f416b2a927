"""Which emitters agents have claimed, and whose signals they hear: they tell of these. Pure."""

from collections.abc import Sequence

from agent.stem.questions.query import Query, clock_ms, count, shaped, text

OWNER_PREFIX = "stem-agent:owner:"
"""Under which agents claim the emitters that they listen to."""
SPEAKERS_PREFIX = "stem-agent:speakers:"
"""Under which agents announce the workers whose signals they hear, by when that is to be forgotten."""


def read_speakers(namespace: str) -> Query[set[str]]:
    """Ask which workers' signals are heard by agents; an empty name says that anybody's are. One round trip.

    Raises `QueryRefusedError` if the server refuses.
    """
    (time, reply) = yield [("TIME",), ("ZRANGE", f"{SPEAKERS_PREFIX}{namespace}", 0, -1, "WITHSCORES")]
    now_ms, members = clock_ms(time), shaped(reply, list[bytes])
    return {
        text(worker) for worker, until in zip(members[::2], members[1::2], strict=False) if float(text(until)) > now_ms
    }


def read_claims(emitters: Sequence[str], namespace: str) -> Query[set[str]]:
    """Ask which of the emitters an agent has claimed, and so tells of. One round trip.

    Raises `QueryRefusedError` if the server refuses.
    """
    if not emitters:
        return set()
    replies = yield [("EXISTS", f"{OWNER_PREFIX}{namespace}:{emitter}") for emitter in emitters]
    return {emitter for emitter, reply in zip(emitters, replies, strict=True) if count(reply)}
