"""The server behind `/livez`, `/readyz` and `/status`."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from agent.core.clock import NANOSECONDS
from agent.core.ledger import Ledger
from agent.core.status import ComponentStatus, Phase, StatusBoard
from agent.extensions.health.config import HealthConfig
from agent.extensions.health.judge import Judge, Watchdog
from agent.extensions.health.report import status_report
from agent.http_server import listen, port_of
from agent.telemetry.events import Telemetry

if TYPE_CHECKING:
    from aiohttp import web

BEAT_SECONDS = 0.5
"""The watchdog's pace, and the longest that an unannounced change takes to be judged."""
_GOODBYE_SECONDS = 0.5  # for answers under way when the server stops: it stops last, so nothing waits for it

Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


class HealthExtension:
    """Serves until it is stopped, which is after everything else: draining is when it is asked most."""

    def __init__(
        self, identity: str, config: HealthConfig, board: StatusBoard, ledger: Ledger, telemetry: Telemetry
    ) -> None:
        self._id = identity
        self._config = config
        self._board = board
        self._ledger = ledger
        self._telemetry = telemetry
        self._judge = Judge(
            unhealthy_after_ns=int(config.unhealthy_after * NANOSECONDS),
            healthy_after_ns=int(config.healthy_after * NANOSECONDS),
        )
        board.watchers.append(self._judge.observe)
        self._watchdog = Watchdog(config.loop_timeout, 0.0)
        self._beating: asyncio.TimerHandle | None = None
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the start."""
        return port_of(self._runner)

    async def start(self) -> None:
        """Listen; raises `StartupError` if the address cannot be had."""
        from aiohttp import web  # noqa: PLC0415 - see agent.http_server

        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        options = f"extensions.{self._id}.endpoint, or STEM_HEALTH_ENDPOINT"
        self._runner = await listen(
            app, self._config.endpoint, identity=self._id, options=options, goodbye_seconds=_GOODBYE_SECONDS
        )
        self._beat()

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109, ARG002 - see Component; it takes half a second
        """Stop listening."""
        if self._beating:
            self._beating.cancel()
            self._beating = None
        if self._judge.observe in self._board.watchers:
            self._board.watchers.remove(self._judge.observe)
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog.beat(loop.time())
        # First, because a probe that fails must not look like a loop that stands still.
        self._beating = loop.call_later(BEAT_SECONDS, self._beat)
        self._board.refresh()

    async def _livez(self, _: "web.Request") -> "web.StreamResponse":
        still = self._watchdog.still(asyncio.get_running_loop().time())
        return _answer(f"the event loop stood still for {still:.1f} s" if still else "")

    async def _readyz(self, _: "web.Request") -> "web.StreamResponse":
        return _answer(self._telemetry.mask(self._not_ready()))

    async def _status(self, _: "web.Request") -> "web.StreamResponse":
        from aiohttp import web  # noqa: PLC0415 - see agent.http_server

        self._board.refresh()
        now_ns = self._board.clock()
        telemetry = self._telemetry
        report = status_report(
            self._board,
            self._ledger,
            telemetry.counters,
            {key: read() for key, read in telemetry.gauges.items()},
            healthy=lambda component: self._judge.healthy(component, now_ns),
            ready=self._not_ready(),
            now_ns=now_ns,
        )
        text = telemetry.mask(json.dumps(report, indent=1, ensure_ascii=False))
        return web.Response(text=text, content_type="application/json", headers=_HEADERS)

    def _not_ready(self) -> str:
        """Return why the agent is not ready; empty when it is."""
        if self._board.phase is not Phase.RUNNING:
            return f"the agent is {self._board.phase}"
        now_ns = self._board.clock()
        return "; ".join(
            f"{component.identity}: {component.reason or 'healthy again, but not for long'}"
            for component in self._board
            if self._is_needed(component) and not self._judge.healthy(component, now_ns)
        )

    def _is_needed(self, component: ComponentStatus) -> bool:
        return self._config.ready_needs in {"all", component.section}


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _answer(trouble: str) -> "web.Response":
    from aiohttp import web  # noqa: PLC0415 - see agent.http_server

    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200, headers=_HEADERS)
