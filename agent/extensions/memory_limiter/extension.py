"""The watch over the memory in use."""

import asyncio
from collections.abc import Callable

from agent.core.clock import NANOSECONDS
from agent.core.errors import StartupError, fault
from agent.core.pressure import LOWEST, Level, Limits, Pressure, Step, decide
from agent.core.status import Reports
from agent.core.tasks import cancel
from agent.extensions.memory_limiter.cgroup import available_bytes
from agent.extensions.memory_limiter.config import MIB, MemoryLimiterConfig, limits
from agent.extensions.memory_limiter.events import LEVELS, MemoryUnknown, MemoryUnwatched
from agent.telemetry.events import Telemetry
from agent.telemetry.memory import give_back, resident_bytes

_GIVE_BACK_NS = 5 * NANOSECONDS
"""How often free memory is given back while memory is short; at once where something was given up for it."""


class MemoryLimiter:
    """Looks at the memory in use every `check_interval`, and has done what that asks for."""

    def __init__(
        self,
        identity: str,
        config: MemoryLimiterConfig,
        pressure: Pressure,
        telemetry: Telemetry,
        reports: Reports,
        *,
        used: Callable[[], int | None] = resident_bytes,
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self._id = identity
        self._config = config
        self._pressure = pressure
        self._telemetry = telemetry
        self._status = reports.part("memory")
        self._used = used
        self._available = available
        self._limits = Limits(0, 0)
        self._level = Level.CALM
        self._before = 0
        self._gave_back_ns = 0
        self._tasks: list[asyncio.Task[None]] = []
        telemetry.gauge("stem_agent.memory.limit", lambda: float(self._limits.hard))
        telemetry.gauge("stem_agent.memory.soft_limit", lambda: float(self._limits.soft))
        telemetry.gauge("stem_agent.memory.floor", lambda: float(pressure.floor))

    async def start(self) -> None:
        """Begin to watch. Raises `StartupError` for limits that are impossible here, or if another limiter watches."""
        if self._pressure.guarded:
            raise StartupError(f"{self._id}: another memory_limiter runs; one limits the whole agent")
        try:
            self._limits = limits(self._config, self._available())
        except ValueError as error:
            raise StartupError(f"{self._id}: {error} (extensions.{self._id})") from None
        if self._used() is None:
            self._telemetry.emit(MemoryUnknown(self._id))
            self._status.degraded("memory is not limited: this platform does not tell how much is in use")
            return
        self._pressure.guarded = True
        self._tasks = [asyncio.create_task(self._watch(), name=f"{self._id}: watch")]

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109, ARG002 - see Component; there is nothing to wait for
        """Stop watching: everything is taken again."""
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        if tasks:
            self._pressure.guarded = False
            self._pressure.floor = LOWEST

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the watch
                where = fault(error)
                self._telemetry.emit(MemoryUnwatched(self._id, where))
                self._status.failed(f"a fault of the agent: {where}")
            await asyncio.sleep(self._config.check_interval)

    async def look(self) -> None:
        """Look once, and do what is to be done."""
        used, pressure = self._used(), self._pressure
        if used is None:
            return
        step = decide(
            self._limits,
            floor=pressure.floor,
            used=used,
            rise=max(0, used - (self._before or used)),
            spillable=pressure.spillable_bytes,
            held=pressure.held_bytes,
        )
        self._before = used
        shed = pressure.follow(step)
        self._tell(step, used, shed)
        now_ns = self._telemetry.clock()
        if step.spill and (shed or used >= self._limits.hard or now_ns >= self._gave_back_ns + _GIVE_BACK_NS):
            self._gave_back_ns = now_ns
            await asyncio.to_thread(give_back)

    def _tell(self, step: Step, used: int, shed: int) -> None:
        held, limit = self._pressure.held_bytes // MIB, self._limits.hard // MIB
        if step.level is not self._level:
            self._level = step.level
            self._telemetry.emit(LEVELS[step.level](used // MIB, held, limit))
        floor = self._pressure.floor
        refused = f"; nothing below {floor.name.lower()} is taken" if floor else ""
        if not (step.spill or floor):
            self._status.ok()
            return
        text = f"{used // MIB} of {limit} MiB are used, {held} of them by queues in memory{refused}"
        if shed:
            text += f"; dropped {shed // MIB} MiB of what waited"
        if step.level is Level.CRAMPED:
            text += "; the limit is too small for the rest (open attempts, code): raise it"
        self._status.degraded(text)
