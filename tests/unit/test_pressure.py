"""What is decided when memory gets short: for any sequence of looks, and for what really holds telemetry."""

from collections import deque
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.core.pressure import HIGHEST_FLOOR, LOWEST, Level, Limits, Pressure, Priority, Step, decide
from agent.receivers.stem_signals.backlog import Backlog

LIMITS = Limits(hard=1000, soft=800)
TELEMETRY = [priority for priority in Priority if priority is not Priority.SIGNALS]
floors = st.sampled_from(TELEMETRY)


class Queue:
    """A holder of batches, each a priority, a size and a number; some of its memory is on a disk, too."""

    def __init__(self) -> None:
        self.line: deque[tuple[Priority, int]] = deque()
        self.spillable_bytes = 0
        self.gone: list[tuple[Priority, int]] = []

    @property
    def held_bytes(self) -> int:
        return sum(size for _, size in self.line)

    def spill(self) -> None:
        self.spillable_bytes = 0

    def shed(self, priority: Priority, size: int) -> int:
        freed = 0
        for batch in list(self.line):
            if freed < size and batch[0] <= priority:
                self.line.remove(batch)
                self.gone.append(batch)
                freed += batch[1]
        return freed


class Process:
    """Its memory is what the queues hold, and the rest."""

    def __init__(self, rest: int, queues: int = 1) -> None:
        self.rest = rest
        self.before = rest
        self.pressure = Pressure()
        self.queues = [Queue() for _ in range(queues)]
        for queue in self.queues:
            self.pressure.join(queue)

    @property
    def used(self) -> int:
        return self.rest + self.pressure.held_bytes + self.pressure.spillable_bytes

    def hear(self, priority: Priority, size: int, queue: int = 0) -> bool:
        taken = priority >= self.pressure.floor
        if taken:
            self.queues[queue % len(self.queues)].line.append((priority, size))
        return taken

    def look(self) -> Step:
        pressure = self.pressure
        step = decide(
            LIMITS,
            floor=pressure.floor,
            used=self.used,
            rise=max(0, self.used - self.before),
            spillable=pressure.spillable_bytes,
            held=pressure.held_bytes,
        )
        self.before = self.used
        pressure.follow(step)
        return step


@given(floors, st.integers(0, 2000), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2000))
def test_every_decision_is_within_its_rules(floor: Priority, used: int, rise: int, spillable: int, held: int) -> None:
    step = decide(LIMITS, floor=floor, used=used, rise=rise, spillable=spillable, held=held)
    assert LOWEST <= step.floor <= HIGHEST_FLOOR
    assert abs(step.floor - floor) <= 1
    assert 0 <= step.shed <= max(0, held - LIMITS.least), "something may always be held"
    assert step.shed <= max(0, used - spillable - LIMITS.soft), "no more than is needed, and spilling comes first"
    assert step.spill is (used >= LIMITS.soft)
    if used < LIMITS.soft:
        assert (step.level, step.floor) == (Level.CALM, max(LOWEST, floor - 1))
    if step.floor > floor:
        assert step.level is Level.SHEDDING
        assert step.shed
    if used >= LIMITS.hard and used - spillable >= LIMITS.hard and held > LIMITS.least:
        assert step.shed, "at the limit, what can go goes"


batches = st.lists(st.tuples(floors, st.integers(1, LIMITS.least), st.integers(0, 2)), max_size=80)


@given(batches, st.integers(0, LIMITS.soft - LIMITS.least), st.integers(1, 3))
def test_memory_stays_below_the_limit(told: list[tuple[Priority, int, int]], rest: int, queues: int) -> None:
    """Where no more comes between two looks than the spike allows, and the rest of the process has room."""
    process = Process(rest, queues)
    for priority, size, queue in told:
        process.hear(priority, size, queue)
        assert process.used < LIMITS.hard
        step = process.look()
        assert process.used <= LIMITS.soft or not step.shed


@given(batches, st.integers(0, 900), st.integers(1, 1000))
def test_nothing_is_taken_while_something_worth_more_has_to_go(
    told: list[tuple[Priority, int, int]], rest: int, shed: int
) -> None:
    process = Process(rest, 2)
    for priority, size, queue in told:
        process.hear(priority, size, queue)
    before = [batch for queue in process.queues for batch in queue.line]
    process.pressure.follow(Step(Level.SHEDDING, LOWEST, spill=True, shed=shed))
    gone = [batch for queue in process.queues for batch in queue.gone]
    left = [batch for queue in process.queues for batch in queue.line]
    assert sorted(gone + left) == sorted(before)
    if gone:
        highest = max(priority for priority, _ in gone)
        assert process.pressure.floor == highest
        assert all(priority >= highest for priority, _ in left), "what is worth less went before"
        assert sum(size for _, size in gone) - max(size for _, size in gone) < shed, "and no more than asked"
    assert sum(size for _, size in gone) >= min(shed, sum(size for _, size in before))


@given(floors)
def test_all_is_taken_again_step_by_step(floor: Priority) -> None:
    process = Process(LIMITS.soft - 1)
    process.pressure.floor = floor
    seen = [floor]
    while process.pressure.floor > LOWEST:
        process.look()
        seen.append(process.pressure.floor)
    assert all(later == earlier - 1 for earlier, later in pairwise(seen))


@given(st.integers(LIMITS.soft, 2000), st.lists(st.tuples(floors, st.integers(1, 60)), max_size=40), floors)
def test_a_limit_too_small_for_the_rest_does_not_cost_everything_for_ever(
    rest: int, told: list[tuple[Priority, int]], floor: Priority
) -> None:
    process = Process(rest)
    for priority, size in told:
        process.hear(priority, size)
    process.pressure.floor = floor
    for _ in range(10):
        process.look()
    gone = len(process.queues[0].gone)
    level = process.look().level
    assert len(process.queues[0].gone) == gone, "nothing more goes"
    assert (level is Level.CRAMPED) is (process.used >= LIMITS.hard)
    if process.pressure.held_bytes <= LIMITS.least:
        assert process.pressure.floor == LOWEST, "and everything is taken"


def test_spilling_comes_before_anything_is_dropped() -> None:
    process = Process(700)
    process.queues[0].spillable_bytes = 350
    process.hear(Priority.DEBUG_LOGS, 60)
    assert process.look() == Step(Level.SPILLING, LOWEST, spill=True)
    assert process.queues[0].gone == []
    assert process.look().level is Level.CALM


def test_shedding_begins_before_another_such_rise_would_pass_the_limit() -> None:
    process = Process(700)
    process.hear(Priority.DEBUG_LOGS, 160)
    process.before = 860
    assert process.look().level is Level.SPILLING, "it does not rise"
    process.before = 700
    assert process.look().level is Level.SHEDDING, "860 + 160 would be above it"


def test_signals_that_nobody_has_read_go_last_and_the_oldest_first() -> None:
    shed: list[bytes] = []
    backlog, pressure, queue = Backlog(1 << 20, lambda _, payload: shed.append(payload)), Pressure(), Queue()
    for number in range(10):
        backlog.push(b"channel", b"%d" % number)
    queue.line.append((Priority.ERRORS, 500))
    pressure.join(backlog)
    pressure.join(queue)
    one = backlog.bytes // 10
    assert pressure.held_bytes == 500 + 10 * one
    assert pressure.follow(Step(Level.SHEDDING, LOWEST, spill=True, shed=500)) == 500
    assert shed == []
    assert pressure.follow(Step(Level.SHEDDING, LOWEST, spill=True, shed=2 * one)) == 2 * one
    assert shed == [b"0", b"1"]
    assert pressure.floor is HIGHEST_FLOOR, "errors are taken, always"
    assert backlog.spillable_bytes == 0
    pressure.leave(queue)
    pressure.leave(queue)
    assert pressure.held_bytes == backlog.bytes
