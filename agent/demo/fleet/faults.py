"""What goes wrong on purpose: signals lost, doubled and delayed, workers killed, clocks that differ, restarts."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from agent.core.tasks import cancel
from agent.demo.truth import SignalsTruth
from agent.emit import AsyncSignalEmitter, Composer, utc_now
from agent.stem.catalogue import SignalName

if TYPE_CHECKING:
    import redis.asyncio

Clock = Callable[[], datetime]

KILL_EVERY_SECONDS = 5.0
CUT_EVERY_SECONDS = 3.0
RESTART_EVERY_SECONDS = 7.0
_PERCENT = "%"
_EXPECTED = (
    "expected a list such as loss=1%,dup=1%,shuffle=80ms,skew=90s,cut,kill-worker,restart-agent; "
    "cut=3s, kill-worker=5s and restart-agent=7s say how often"
)


class Faults(msgspec.Struct, frozen=True):
    """Shares are 0 to 1; `shuffle_s` delays a signal by up to so many seconds; the intervals are 0 for never.

    Every `cut_every_s` Redis closes the subscribers' connections. No clock is wrong by more than `skew_s`. The agent
    is not the fleet's: who runs both restarts it.
    """

    loss: float = 0.0
    dup: float = 0.0
    shuffle_s: float = 0.0
    kill_every_s: float = 0.0
    skew_s: float = 0.0
    restart_every_s: float = 0.0
    cut_every_s: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        return self != Faults()

    @property
    def of_signals(self) -> bool:
        """Whether anything goes wrong with signals, or with whoever listens to them."""
        return bool(self.loss or self.dup or self.shuffle_s or self.cut_every_s)


def parse_faults(text: str) -> Faults:
    """Read `loss=1%,dup=1%,shuffle=80ms,kill-worker`; raises `ValueError` that says what was expected."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            match name:
                case "loss" | "dup":
                    found[name] = _share(value)
                case "shuffle":
                    found["shuffle_s"] = _seconds(value)
                case "skew":
                    found["skew_s"] = _seconds(value)
                case "kill-worker":
                    found["kill_every_s"] = _seconds(value, zero=False) if value else KILL_EVERY_SECONDS
                case "cut":
                    found["cut_every_s"] = _seconds(value, zero=False) if value else CUT_EVERY_SECONDS
                case "restart-agent":
                    found["restart_every_s"] = _seconds(value, zero=False) if value else RESTART_EVERY_SECONDS
                case _:
                    raise ValueError(name)  # noqa: TRY301 - told once, below
        except ValueError:
            raise ValueError(f"found {part!r}; {_EXPECTED}") from None
    return Faults(**found)


def _share(text: str) -> float:
    share = float(text.removesuffix(_PERCENT)) / (100 if text.endswith(_PERCENT) else 1)
    if not 0 <= share <= 1:
        raise ValueError(text)
    return share


def _seconds(text: str, *, zero: bool = True) -> float:
    number, factor = (text.removesuffix("ms"), 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    seconds = float(number) * factor
    if not 0 <= seconds < math.inf or (not zero and not seconds):
        raise ValueError(text)
    return seconds


def skewed(seconds: float) -> Clock:
    """Return a clock that is fast by so many seconds, or slow by as many below zero."""
    if not seconds:
        return utc_now
    offset = timedelta(seconds=seconds)
    return lambda: utc_now() + offset


class FaultyEmitter(AsyncSignalEmitter):
    """An emitter whose signals meet `faults` after they were numbered, as on a real network.

    One that is `silent` sends none: its worker has no bridge. `heard` are the attempts (task id, number) of which at
    least one signal reached Redis.
    """

    def __init__(self, client: "redis.asyncio.Redis", composer: Composer) -> None:
        super().__init__(client, composer)
        self.faults = Faults()
        self.silent = False
        self.chance = random.Random()
        self.heard: set[tuple[str, int]] = set()
        self._subject: tuple[str, int] | None = None
        self._arrived = bytearray()  # one for each number: whether Redis got it
        self._doubled = 0
        self._late: dict[asyncio.Task[None], tuple[str, int] | None] = {}

    def did(self) -> SignalsTruth:
        """Return what became of the signals so far."""
        arrived = self._arrived
        between = arrived[arrived.find(1) : arrived.rfind(1)]
        return SignalsTruth(
            sent=len(arrived),
            dropped=self.dropped,
            lost=arrived.count(0) - self.dropped,
            noticeable=between.count(0),
            doubled=self._doubled,
        )

    def emit(self, name: SignalName | str, attributes: Mapping[str, Any], **details: Any) -> Awaitable[None]:
        """Send any signal, and remember whose attempt it is about, if it is about one."""
        extra = details.get("extra")
        self._subject = (attributes["taskId"], extra["attempt"]) if extra else None
        return super().emit(name, attributes, **details)

    def send(self, payload: bytes | None) -> Coroutine[Any, Any, None]:
        """Publish, or not, or twice, or later."""
        return self._send(payload, self._subject)

    async def _send(self, payload: bytes | None, subject: tuple[str, int] | None) -> None:
        if self.silent:
            return
        number = len(self._arrived)
        self._arrived.append(0)
        if self.chance.random() < self.faults.loss:
            return
        doubled = self.chance.random() < self.faults.dup
        self._doubled += doubled
        for _ in range(1 + doubled):
            if self.faults.shuffle_s:
                task = asyncio.create_task(self._send_late(payload, number, subject))
                self._late[task] = subject
                task.add_done_callback(self._late.pop)
            else:
                await self._publish_one(payload, number, subject)

    async def _send_late(self, payload: bytes | None, number: int, subject: tuple[str, int] | None) -> None:
        await asyncio.sleep(self.chance.uniform(0, self.faults.shuffle_s))
        await self._publish_one(payload, number, subject)

    async def _publish_one(self, payload: bytes | None, number: int, subject: tuple[str, int] | None) -> None:
        dropped = self.dropped
        await super().send(payload)
        if self.dropped == dropped:
            self._arrived[number] = 1
            if subject:
                self.heard.add(subject)

    async def close(self) -> None:
        """Send what is on its way, then close."""
        await asyncio.gather(*self._late)
        await super().close()

    async def kill(self) -> set[tuple[str, int]]:
        """Close at once, as a killed process does: what is on its way is lost. Return whose signals were."""
        on_their_way = {subject for subject in self._late.values() if subject}
        await cancel(self._late)
        await super().close()
        return on_their_way
