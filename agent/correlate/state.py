"""Everything that a correlator knows, as bytes that the next process goes on from. Pure.

Attempts, origins and runs are encoded as they are, fields in the order of their declaration, so a change of any struct
that is reached from `State` needs another `VERSION` (a test holds the shapes against it).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from agent.core import kept
from agent.correlate.attempt import Attempt, chain
from agent.correlate.process import Process, ProcessesState, ProcessState
from agent.correlate.recorder import RecorderState
from agent.correlate.shift import Shift, shift_between
from agent.correlate.tasks import TasksState
from agent.correlate.workers import WorkersState
from agent.correlate.workflows import WorkflowsState

if TYPE_CHECKING:
    from agent.correlate.origin import Kin

VERSION = 4


CHUNK = 1000
"""Tasks read at once: each attempt comes with copies of what it shares with others, which are then let go."""


class Chunk(Struct, array_like=True):
    """Some of the open attempts: the first ones of their tasks."""

    heads: list[Attempt]


class State(Struct, array_like=True):
    """What is kept, but for the open attempts, which stand before it.

    Wherever a `Process` stands there is a number instead: its place in the `roll`, which comes last. `leaving` are the
    workers that said goodbye, and when what they hold open is concluded.
    """

    taken_ns: int
    tasks: TasksState
    workflows: WorkflowsState
    workers: WorkersState
    recorder: RecorderState
    processes: ProcessesState
    leaving: list[tuple[int, Process, str]]
    roll: list[ProcessState]


def encode(state: State) -> bytes:
    """Return the bytes; fills the `roll`. Raises `OverflowError` for integers beyond 64 bits."""
    places: dict[Process, int] = {}

    def place(process: Any) -> int:
        if process not in places:
            places[process] = len(places)
            state.roll.append(process.state())  # the encoder comes to the roll when all others have been met
        return places[process]

    heads, state.tasks.attempts.heads = state.tasks.attempts.heads, []
    chunks = (Chunk(heads[start : start + CHUNK]) for start in range(0, len(heads), CHUNK))
    return kept.encode((*chunks, state), VERSION, place)


def decode(state: bytes, now_ns: int) -> tuple[State, Shift]:
    """Return the state, its processes restored, and how its other times are to be understood.

    Raises `KeptStateError`.
    """
    processes: list[Process] = []
    restore = _processes(processes)
    *chunks, rest = kept.parts_of(state, VERSION)
    heads: list[Attempt] = []
    kins: dict[Kin, Kin] = {}
    for chunk in chunks:
        some = kept.decode(chunk, Chunk, restore).heads
        for attempt in (attempt for head in some for attempt in chain(head)):
            attempt.share(kins)
        heads += some
    known = kept.decode(rest, State, restore)
    known.tasks.attempts.heads = heads
    if len(processes) > len(known.roll):
        raise kept.KeptStateError("broken", f"process {len(processes) - 1} is not among the {len(known.roll)}")
    shift = shift_between(known.taken_ns, now_ns)
    for process, found in zip(processes, known.roll, strict=False):
        process.restore(found, shift)
    return known, shift


def _processes(met: list[Process]) -> Callable[[type, Any], Process]:
    """Return what makes a process of its place: the same for the same, to be filled in later."""

    def process_at(_: type, place: Any) -> Process:
        if type(place) is not int or not 0 <= place <= len(met):
            raise ValueError(f"{place!r} is no place of a process")
        if place == len(met):  # places are given in the order of their first use
            met.append(Process("", "", "", 0))
        return met[place]

    return process_at
