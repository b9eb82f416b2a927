"""Which attempts become spans where not all of them are wanted. Pure, and decided when an attempt settles.

Failures, retries, what is slow for its task and what is rare are kept; of the rest a share, by trace id, so that agents
agree without asking each other. Spans carry the threshold of OpenTelemetry's consistent probability sampling
(`tracestate: ot=th:...`), from which a backend extrapolates; those kept by a rule stand for themselves alone.
Specification: OpenTelemetry "TraceState: Probability Sampling".
"""

import re
from bisect import bisect_left
from collections import Counter
from typing import Any

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.correlate.attempt import EndKind
from agent.correlate.config import KeepConfig
from agent.correlate.settlement import Settled
from agent.correlate.shift import Shift

RANDOM_BITS = 56
_ALL = 1 << RANDOM_BITS
_HEX_DIGITS = RANDOM_BITS // 4
_MAX_MEMBERS = 32  # W3C Trace Context, section 3.3.1.1
_THRESHOLD = re.compile(r"(?:^|;)th:([0-9a-f]{1,14})(?:;|$)")
_RANDOMNESS = re.compile(r"(?:^|;)rv:([0-9a-f]{14})(?:;|$)")
MAX_TASKS = 2000
"""Tasks whose run times are followed; beyond that the one heard of first is forgotten."""


class SpeedState(Struct, array_like=True):
    """How often a task's runs took how long (by bucket), and the bucket above which they are slow."""

    counts: dict[int, int]
    total: int
    limit: int


class KeeperState(Struct, array_like=True):
    """What is known of each task: its speed, and when one of it was kept last."""

    speeds: dict[str, SpeedState]
    kept_ns: dict[str, int]


class Keeper:
    """Decides, and remembers what is slow and what is rare."""

    def __init__(self, config: KeepConfig) -> None:
        self._config = config
        self._threshold = round((1 - config.ratio) * _ALL)
        self._speeds: dict[str, RunningQuantile] = {}
        self._kept_ns: dict[str, int] = {}

    @property
    def all(self) -> bool:
        """Whether everything is kept, so that nothing needs to be decided."""
        return not self._threshold

    def by_trace(self, trace_id: bytes, trace_state: str) -> bool:
        """Whether the trace belongs to the share that is kept whatever happens in it."""
        return not self._threshold or _randomness(trace_id, trace_state) >= self._threshold

    def state(self) -> KeeperState:
        """Return what is remembered."""
        return KeeperState({task: speed.state() for task, speed in self._speeds.items()}, self._kept_ns)

    def restore(self, state: KeeperState, shift: Shift) -> None:
        """Go on from a state."""
        for task, speed in state.speeds.items():
            self._speed(task).restore(speed)
        self._kept_ns = {task: shift(kept_ns) for task, kept_ns in state.kept_ns.items()}

    def keep(self, settled: Settled, now_ns: int) -> str | None:
        """Return the `tracestate` that the attempt's spans carry, or None when it is not kept."""
        trace_state = settled.origin.lineage.trace_state
        if not self._threshold:
            return trace_state
        remarkable = self._remarkable(settled, now_ns)  # also of what is kept anyway: it is followed
        return self._choose(settled.trace_id, trace_state, remarkable=remarkable)

    def keep_run(self, trace_id: bytes, trace_state: str, *, failed: bool) -> str | None:
        """Return the `tracestate` that a workflow run's span carries, or None when it is not kept."""
        if not self._threshold:
            return trace_state
        return self._choose(trace_id, trace_state, remarkable=failed and self._config.failed)

    def _choose(self, trace_id: bytes, trace_state: str, *, remarkable: bool) -> str | None:
        if self.by_trace(trace_id, trace_state):
            return with_threshold(trace_state, self._threshold)
        return with_threshold(trace_state, 0) if remarkable else None

    def _remarkable(self, settled: Settled, now_ns: int) -> bool:
        config, task = self._config, settled.attempt.task
        slow = False
        if config.slow and settled.kind is EndKind.SUCCEEDED and settled.attempt.started_ns:
            slow = self._speed(task).above((settled.end_ns - settled.start_ns) / NANOSECONDS)
        rare = False
        if config.rare:
            kept_ns = self._kept_ns.get(task)
            rare = kept_ns is None or now_ns - kept_ns >= config.rare * NANOSECONDS
            if rare:
                _make_room(self._kept_ns, task)
                self._kept_ns[task] = now_ns
        failed = config.failed and (settled.failed or settled.attempt.number > 0 or settled.kind is None)
        return slow or rare or failed

    def _speed(self, task: str) -> "RunningQuantile":
        speed = self._speeds.get(task)
        if speed is None:
            _make_room(self._speeds, task)
            speed = self._speeds[task] = RunningQuantile(self._config.slow)
        return speed


def _make_room(memory: dict[str, Any], task: str) -> None:
    if task not in memory and len(memory) >= MAX_TASKS:
        del memory[next(iter(memory))]


class RunningQuantile:
    """Tells what lies above a quantile of what came before it; old values count less and less.

    Values are counted in buckets that grow by 10 %, so memory is bounded and the answer is that exact. Nothing is above
    before `WARM_UP` values were seen.
    """

    WARM_UP = 100
    HALVE_AT = 10_000
    BOUNDS = tuple(0.001 * 1.1**power for power in range(180))  # 1 ms to 7 h

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._counts: Counter[int] = Counter()
        self._total = 0
        self._limit = len(self.BOUNDS)

    def state(self) -> SpeedState:
        """Return what was counted."""
        return SpeedState(self._counts, self._total, self._limit)

    def restore(self, state: SpeedState) -> None:
        """Go on from a state."""
        self._counts, self._total, self._limit = Counter(state.counts), state.total, state.limit

    def above(self, value: float) -> bool:
        """Add a value (seconds); return whether it lies above the quantile of the earlier ones."""
        bucket = bisect_left(self.BOUNDS, value)
        is_above = self._total >= self.WARM_UP and bucket > self._limit
        self._counts[bucket] += 1
        self._total += 1
        if self._total % 64 == 0 or self._total == self.WARM_UP:
            self._look()
        return is_above

    def _look(self) -> None:
        if self._total >= self.HALVE_AT:
            self._counts = Counter({bucket: count // 2 for bucket, count in self._counts.items() if count > 1})
            self._total = self._counts.total()
        rank, passed = self._quantile * self._total, 0
        for bucket in sorted(self._counts):
            passed += self._counts[bucket]
            if passed >= rank:
                self._limit = bucket
                return


def with_threshold(trace_state: str, threshold: int) -> str:
    """Return `tracestate` with the rejection threshold in its `ot` member; a stricter one that is there stays."""
    members = [member.strip() for member in trace_state.split(",") if member.strip()]
    own = next((member for member in members if member.startswith("ot=")), "ot=")
    fields = own.removeprefix("ot=")
    if found := _THRESHOLD.search(fields):
        threshold = max(threshold, int(found[1].ljust(_HEX_DIGITS, "0"), 16))
    others = [field for field in fields.split(";") if field and not field.startswith("th:")]
    digits = f"{threshold:0{_HEX_DIGITS}x}".rstrip("0") or "0"
    rest = [member for member in members if member is not own][: _MAX_MEMBERS - 1]
    return ",".join([f"ot={';'.join([f'th:{digits}', *others])}", *rest])


def _randomness(trace_id: bytes, trace_state: str) -> int:
    for member in trace_state.split(",") if trace_state else ():
        if member.strip().startswith("ot=") and (found := _RANDOMNESS.search(member.strip().removeprefix("ot="))):
            return int(found[1], 16)
    return int.from_bytes(trace_id[-RANDOM_BITS // 8 :], "big")
