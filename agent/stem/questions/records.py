"""Tasks' records in the result backend, by id. Pure."""

from collections.abc import Sequence

from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.questions.query import Query, Reply, ServerError, needed
from agent.stem.status import TaskStatus, decode_status

MAX_BYTES = 1 << 20
"""A record holds what its task returned, which may be large; what is larger than this is not fetched at all.

Asking for the length first costs little, and a batch of large results can never fill anybody's memory.
"""
TOO_LARGE = f"larger than {MAX_BYTES >> 20} MiB"
_WRONG_TYPE = "WRONGTYPE"


def read_records(keys: Keys, task_ids: Sequence[str]) -> Query[dict[str, TaskStatus | str]]:
    """Ask for the records of tasks; those without one are left out, a text says why one cannot be read.

    Two round trips. Raises `QueryRefusedError` if the server refuses.
    """
    names = {task_id: keys.result(task_id) for task_id in task_ids}
    found: dict[str, TaskStatus | str] = {}
    sizes = yield [("STRLEN", name) for name in names.values()]
    small = [task_id for task_id, size in zip(names, sizes, strict=True) if _fits(task_id, size, found)]
    replies = yield ([("MGET", *(names[task_id] for task_id in small))] if small else [])
    for task_id, record in zip(small, needed(replies[0]) if small else (), strict=True):
        if record is not None:
            found[task_id] = _decoded(record)
    return found


def _fits(task_id: str, size: Reply, found: dict[str, TaskStatus | str]) -> bool:
    """Whether a record is to be fetched; notes those that cannot be."""
    if isinstance(size, ServerError) and size.code == _WRONG_TYPE:
        found[task_id] = "not a string"
        return False
    if needed(size) > MAX_BYTES:
        found[task_id] = TOO_LARGE
        return False
    return bool(size)


def _decoded(record: bytes) -> TaskStatus | str:
    try:
        return decode_status(record)
    except DecodeError as error:
        return error.reason
