"""Which queues there are, found by `SCAN` within a budget. Pure.

A queue is known by its streams, its delayed set or its dead letters; Stem keeps no list of them.
"""

import re

from agent.stem.keys import Keys, glob_escaped
from agent.stem.questions.query import Query, shaped, text
from agent.stem.questions.queues import is_control

_PRIORITY = re.compile(r":p[1-9]\Z")
STEPS = 2
"""Steps of a walk in one question: a round trip each, beside those that everything else takes."""


class QueueWalk:
    """Walks through the keyspace, a stretch at a time, and begins anew at the end.

    `rounds` is how often it came to the end: from then on all queues that there were at its begin are known.
    """

    def __init__(self, keys: Keys) -> None:
        self._prefixes = keys.stream(""), keys.delayed(""), keys.dead("")
        self._pattern = f"{glob_escaped(keys.namespace)}:[sd]*:*"
        self._cursor = "0"
        self.rounds = 0

    def read(self, budget: int) -> Query[set[str]]:
        """Look at about `budget` keys, in `STEPS` round trips; return the queues that they belong to.

        Control queues are left out. Raises `QueryRefusedError` if the server refuses.
        """
        found: set[str] = set()
        cursor = self._cursor
        for _ in range(STEPS):
            (reply,) = yield [("SCAN", cursor, "MATCH", self._pattern, "COUNT", max(1, budget // STEPS))]
            after, keys = shaped(reply, tuple[bytes, list[bytes]])
            cursor = text(after)
            found |= {queue for key in keys if (queue := self._queue(text(key)))}
            if cursor == "0":
                self.rounds += 1
                break
        self._cursor = cursor  # only now: what was found before a failure is found again
        return found

    def _queue(self, key: str) -> str | None:
        for prefix in self._prefixes:
            if key.startswith(prefix) and (queue := key.removeprefix(prefix)):
                # Of `x:p3` only the groups on its stream tell whether it is a queue of its own; queue `x` looks at it.
                queue = _PRIORITY.sub("", queue) if prefix == self._prefixes[0] else queue
                return None if is_control(queue) else queue
        return None
