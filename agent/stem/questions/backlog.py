"""What else there is to ask about a queue: when its next task is due, and why its depth is not known. Pure."""

from agent.stem.keys import Keys
from agent.stem.questions.query import Query, Reply, ServerError, milliseconds, pairs, shaped, text

TOO_OLD = "the server does not tell lag: it is older than redis 7"
NO_GROUP = "entries wait on a stream that no worker ever read"
NO_LAG = "the server has lost count: entries were deleted, or the consumer group began in the middle"


def read_next_due(keys: Keys, queue: str) -> Query[int | None]:
    """Ask when the first of a queue's delayed tasks is due (Unix milliseconds); None if there is none.

    Redis gives no score without its member, which is an envelope: it is never decoded. Raises `QueryRefusedError`.
    """
    (reply,) = yield [("ZRANGE", keys.delayed(queue), 0, 0, "WITHSCORES")]
    found = shaped(reply, list[bytes])
    return milliseconds(found[1]) if len(found) > 1 else None


def explain_depth(keys: Keys, queue: str) -> Query[str]:
    """Ask why a queue's depth is unknown."""
    replies = yield [("XINFO", "GROUPS", stream) for stream in keys.streams(queue)]
    streams = [list(map(pairs, reply)) for reply in replies if not isinstance(reply, ServerError)]
    groups = [group for found in streams for group in found if text(group["name"]) == keys.group(queue)]
    if any("lag" not in group for group in groups):
        return TOO_OLD
    return NO_LAG if any(_is_lost(group) for group in groups) else NO_GROUP


def _is_lost(group: Reply) -> bool:
    return group["lag"] is None
