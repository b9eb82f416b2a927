"""The agent as a process: load, build, supervise, reload, drain.

Stopping is a sequence under one deadline (`service.shutdown_timeout`): receivers stop and hand on what they heard,
the connector settles what it can, exporters seal and drain, then the books are closed and told.
"""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import __version__
from agent.changes import Changes, heads_differ
from agent.configuration import AgentConfig
from agent.core.clock import SteadyClock
from agent.core.errors import EXIT_HELD, EXIT_LOST, EXIT_OK, AgentError
from agent.core.ledger import Ledger
from agent.core.status import StatusBoard
from agent.otlp.resource import Resource
from agent.pipeline import Graph
from agent.registry import Host
from agent.reload import ConfigReloaded, ConfigRolledBack, ConfigUnchanged, Load, Reloader
from agent.self_telemetry import SelfTelemetry
from agent.settings.resource import detect_resource
from agent.settings.secrets import secrets_of
from agent.swap import NotStartedError, Swap
from agent.telemetry import logs
from agent.telemetry.events import Telemetry, log

# Waiting for the network is most of stopping; this share of the deadline is kept for closing the books.
_DRAIN_SHARE = 0.9
# The agent's last word about itself is worth one attempt, not the deadline.
_LAST_WORD_SECONDS = 1.0
_TELL_SECONDS = 10.0
_CHANGE_SHARE = 0.4  # of the deadline, for a reload that is under way when the stop comes
_LOST_COUNTERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("stem_agent.correlate.evicted", {}),
    ("stem_agent.signals.lost", {"reason": "shed"}),
    ("stem_agent.signals.lost", {"reason": "shutdown"}),
    ("stem_agent.signals.lost", {"reason": "internal_error"}),
)


_INSTANCE = "service.instance.id"


class Agent:
    """One running agent. `run` returns the exit code.

    With `load` it takes another configuration on SIGHUP, and when one of the `watched` files changed.
    """

    def __init__(
        self,
        config: AgentConfig,
        environ: Mapping[str, str],
        load: Load | None = None,
        watched: Sequence[Path] = (),
    ) -> None:
        self._config = config
        self._environ = environ
        self._attributes = attributes = _resource(config, environ)
        clock = SteadyClock()
        self.telemetry = Telemetry(clock, config.mask)
        self.ledger = Ledger()
        self.status = StatusBoard(clock)
        self.status.agent = attributes[_INSTANCE]
        self.graph = Graph(config, Host(self.telemetry, self.ledger, clock, Resource(attributes), self.status))
        self._own = SelfTelemetry(config, self.telemetry, self.ledger, attributes)
        self._reloader = Reloader(load, self.apply, self.telemetry, watched) if load else None
        self._applying = asyncio.Lock()
        self._last_word_s = _LAST_WORD_SECONDS
        self._stop = asyncio.Event()
        self._teller: asyncio.TimerHandle

    def stop(self) -> None:
        """Ask the agent to drain and end; a second time, to end without draining."""
        self._stop.set()

    async def run(self) -> int:
        """Run until stopped; raises `StartupError` if a component cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if self._reloader:
            loop.add_signal_handler(signal.SIGHUP, self._reloader.ask, "SIGHUP")
        self._own.start_logs()
        self._tell_left_out()
        log(logging.INFO, "stem-agent starting", {"version": __version__, **_shape(self._config)})
        try:
            if not await self._started():
                return self._close_books()
            self._own.start_metrics()
            log(logging.INFO, "stem-agent running", {})
            trouble = await self._until_stopped()
            code = await self._drain()
            if trouble:
                raise trouble
            return code
        finally:  # after the books are closed and told
            self._teller.cancel()
            await self._own.stop(self._last_word_s)

    async def _started(self) -> bool:
        """Start everything; return False if asked to stop before that was done (Redis may take its time)."""
        starting = asyncio.create_task(self.graph.start())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            await starting  # raises what it raised
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False

    async def _until_stopped(self) -> AgentError | None:
        """Wait until somebody asks to stop; return what kept the agent from running on, if something did."""
        reloads = asyncio.create_task(self._reloader.run(), name="configuration: reloads") if self._reloader else None
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait(filter(None, (stopped, reloads)), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if reloads and not reloads.done():
            # Half a change is worse than either: it is ended first, while there is time.
            try:
                async with asyncio.timeout(self._config.service.shutdown_timeout * _CHANGE_SHARE), self._applying:
                    pass
            except TimeoutError:
                log(logging.ERROR, "a reload was cut short by the stop", {})
            reloads.cancel()
        (error,) = await asyncio.gather(reloads, return_exceptions=True) if reloads else (None,)
        if isinstance(error, BaseException) and not isinstance(error, AgentError | asyncio.CancelledError):
            raise error
        return error if isinstance(error, AgentError) else None

    # --- another configuration ---------------------------------------------------------------------------------------

    async def apply(self, config: AgentConfig, why: str) -> None:
        """Go on with another configuration; raises `AgentError` if neither it nor the one before can start."""
        async with self._applying:
            self.telemetry.mask.learn(secrets_of(config.components))
            attributes = {**_resource(config, self._environ), _INSTANCE: self._attributes[_INSTANCE]}
            swap = Swap(self.graph, config, Resource(attributes))
            changes = swap.changes()
            if not changes.count and not heads_differ(self._config, config) and config.service == self._config.service:
                self.telemetry.emit(ConfigUnchanged(why))
                return
            try:
                await swap.run()
            except NotStartedError as error:
                self.telemetry.emit(ConfigRolledBack(why, str(error)))
                return
            before, self._config, self._attributes = self._config, config, attributes
            await self._speak_anew(before)
            for warning in config.warnings:
                log(logging.WARNING, "the configuration has a warning", {"warning": str(warning)})
            self.telemetry.emit(_reloaded(why, changes))

    async def _speak_anew(self, before: AgentConfig) -> None:
        """Tell of the agent itself as the new configuration says."""
        old, new = before.service, self._config.service
        exporters = before.components["exporters"], self._config.components["exporters"]
        if (old.telemetry, old.pipelines, exporters[0]) == (new.telemetry, new.pipelines, exporters[1]):
            return
        await self._own.stop(_LAST_WORD_SECONDS)
        if (settings := new.telemetry.logs) != old.telemetry.logs:
            logs.configure(settings.level, settings.format, mask=self.telemetry.mask)
        self._own = SelfTelemetry(self._config, self.telemetry, self.ledger, self._attributes)
        self._own.start_logs()
        self._own.start_metrics()

    async def _drain(self) -> int:
        timeout = self._config.service.shutdown_timeout
        log(logging.INFO, "stopping: draining what is held", {"shutdown_timeout": timeout})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        drain = asyncio.create_task(self.graph.stop(timeout * _DRAIN_SHARE))
        self._stop.clear()
        second = asyncio.create_task(self._stop.wait())
        await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
        if cut := not drain.done():
            log(logging.WARNING, "asked to stop again: not draining any further", {})
        second.cancel()
        drain.cancel()
        await asyncio.gather(drain, second, return_exceptions=True)
        await self.graph.stop(0)  # what a cancelled drain did not come to
        self._last_word_s = 0.0 if cut else min(_LAST_WORD_SECONDS, max(0.0, deadline - loop.time()))
        return self._close_books()

    def _tell_left_out(self) -> None:
        self.telemetry.tell_left_out()
        self._teller = asyncio.get_running_loop().call_later(_TELL_SECONDS, self._tell_left_out)

    def _close_books(self) -> int:
        self.telemetry.tell_left_out(all_of_it=True)
        for account in self.ledger.accounts.values():
            if not account.accepted:
                continue
            fields = {
                "exporter": account.exporter,
                "signal": account.kind,
                "accepted": account.accepted,
                "delivered": account.delivered,
                "rejected": _by_reason(account.rejected),
                "dropped": _by_reason(account.dropped),
                "held": account.held,
                "restored": account.restored,
            }
            log(logging.ERROR if account.lost else logging.INFO, "ledger", fields)
        held = sum(account.held for account in self.ledger.accounts.values())
        lost = self.ledger.lost + sum(self.telemetry.counted(name, **labels) for name, labels in _LOST_COUNTERS)
        # Exporters drop and count what they cannot keep: what is still held is on a disk, and the next start sends it.
        log(logging.ERROR if lost else logging.INFO, "stem-agent stopped", {"lost": lost, "held": held})
        return EXIT_LOST if lost else EXIT_HELD if held else EXIT_OK


def _by_reason(counts: Counter[str]) -> str:
    return ",".join(f"{reason}:{count}" for reason, count in sorted(counts.items())) or "0"


def _reloaded(why: str, changes: Changes) -> ConfigReloaded:
    def told(section_ids: Mapping[str, frozenset[str]]) -> str:
        return " ".join(sorted(identity for ids in section_ids.values() for identity in ids))

    replaced = {section: changes.go[section] & changes.come[section] for section in changes.go}
    removed = {section: changes.go[section] - changes.come[section] for section in changes.go}
    added = {section: changes.come[section] - changes.go[section] for section in changes.go}
    return ConfigReloaded(why, told(replaced), told(removed), told(added))


def _resource(config: AgentConfig, environ: Mapping[str, str]) -> dict[str, str]:
    namespaces = {getattr(receiver, "namespace", "stem") for receiver in config.components["receivers"].values()}
    return detect_resource(environ, namespaces.pop() if len(namespaces) == 1 else "stem")


def _shape(config: AgentConfig) -> dict[str, str]:
    return {
        name: f"{','.join(pipeline.receivers)} -> {','.join((*pipeline.processors, *pipeline.exporters))}"
        for name, pipeline in config.service.pipelines.items()
    }
