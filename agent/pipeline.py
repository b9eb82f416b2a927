"""Joining components into pipelines, and the order in which they start and stop.

    receivers --facts--> connectors --batches--> processors --> exporters

Everything is built from its end: a component is handed its next step, by way of a joint (`joints.py`), so that another
may take that step's place. Started sinks first, so that nobody speaks before somebody listens; stopped sources first,
so that everything on its way still arrives. Extensions begin first and end last: `health` answers while the others
start and drain. `swap.py` has the order in which some of them are replaced.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agent.configuration import AgentConfig
from agent.core.component import Component
from agent.core.status import Phase
from agent.joints import Joints
from agent.otlp.batch import Consumer, Fanout, Kind
from agent.registry import (
    CONNECTORS,
    EXPORTERS,
    EXTENSIONS,
    PROCESSORS,
    RECEIVERS,
    SIGNALS,
    Connector,
    Host,
    Outputs,
    type_of,
)
from agent.telemetry.events import log

STAGES = ("extensions", "exporters", "processors", "connectors", "receivers")
_FOR_EVER_SECONDS = 10 * 365 * 86_400.0


class Graph:
    """All components of a configuration, joined; `stages` and what is in them are in the order of starting."""

    def __init__(self, config: AgentConfig, host: Host) -> None:
        self.config = config
        self.host = host
        self._started: list[Component] = []
        self._joints: dict[tuple[str, str], Joints] = {}
        self._gauges: dict[tuple[str, str], set[object]] = {}
        self._lingering: dict[asyncio.Task[None], str] = {}
        self._parts: dict[str, dict[str, Component]] = {section: {} for section in STAGES}
        self.make("extensions", config.service.extensions)  # first, because the others use them
        named = sorted({name for each in config.service.pipelines.values() for name in each.exporters})
        self.make("exporters", self._known("exporters", named))
        self.lead_on()
        begin = list(dict.fromkeys(name for each in config.service.pipelines.values() for name in each.receivers))
        self.make("connectors", self._known("connectors", begin))
        self.join()
        self.make("receivers", self._known("receivers", begin))

    @property
    def stages(self) -> list[tuple[str, Mapping[str, Component]]]:
        """The components by section and id."""
        return list(self._parts.items())

    async def start(self) -> None:
        """Start every component, sinks first; on failure stop those that run, and raise."""
        try:
            for section in STAGES:
                await self.begin(section)
        except BaseException:
            await self.stop(0)
            raise
        self.host.status.phase = Phase.RUNNING

    async def begin(self, section: str) -> None:
        """Start those of a section that do not run yet; raises what they raise."""
        for identity, component in self._parts[section].items():
            if component not in self._started:
                self._started.append(component)
                with self._noting_gauges(section, identity):
                    await component.start()
                self.host.status.started(section, identity)

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - one deadline for all stops
        """Stop every started component, sources first, within `timeout` seconds altogether.

        Exporters come last and drain together: they share what the others left of the time. A stop that was
        cancelled can be called again: it goes on with what is not stopped yet.
        """
        self.host.status.phase = Phase.DRAINING
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for section in reversed(STAGES):
            left = max(0.0, deadline - loop.time())
            lingering = [self._last(task, left) for task in self._lingering] if section == "exporters" else []
            await asyncio.gather(self._end(section, self._parts[section], left), *lingering)

    async def _end(self, section: str, components: Mapping[str, Component], seconds: float) -> None:
        running = {identity: each for identity, each in components.items() if each in self._started}
        ends = await asyncio.gather(
            *(component.stop(seconds) for component in running.values()), return_exceptions=True
        )
        for error in ends:
            if isinstance(error, Exception):  # its fault must not keep the others from draining
                log(logging.ERROR, "failed to stop a component", {"error": f"{type(error).__name__}: {error}"})
        for identity, component in running.items():
            self._started.remove(component)
            self.host.status.stopped(section, identity)

    # --- one by one --------------------------------------------------------------------------------------------------

    def component(self, section: str, identity: str) -> Component | None:
        """Return a component; None if there is none."""
        return self._parts[section].get(identity)

    async def leave(self, section: str, identities: Iterable[str], seconds: float) -> None:
        """Stop components and forget them: their place is free."""
        leaving = self._taken_out(section, identities)
        await self._end(section, leaving, seconds)
        for identity in leaving:
            self.host.status.forget(section, identity)

    def linger(self, section: str, identities: Iterable[str]) -> None:
        """Let components finish what they have in the background, and forget them: their place is free."""
        for identity, component in self._taken_out(section, identities).items():
            if component in self._started:
                self._started.remove(component)
                task = asyncio.create_task(component.stop(_FOR_EVER_SECONDS), name=f"{identity}: lingers")
                self._lingering[task] = identity
                task.add_done_callback(self._lingered)
            self.host.status.forget(section, identity)

    def _taken_out(self, section: str, identities: Iterable[str]) -> dict[str, Component]:
        parts = self._parts[section]
        out = {identity: parts.pop(identity) for identity in list(identities) if identity in parts}
        for identity in out:
            for key in self._gauges.pop((section, identity), ()):
                self.host.telemetry.gauges.pop(key, None)  # type: ignore[call-overload]
        return out

    def _lingered(self, task: "asyncio.Task[None]") -> None:
        identity = self._lingering.pop(task)
        if not task.cancelled() and (error := task.exception()):
            log(logging.ERROR, "failed to stop a component", {"component": identity, "error": str(error)})

    @staticmethod
    async def _last(task: "asyncio.Task[None]", seconds: float) -> None:
        """Wait for one that lingers; whoever is cut short closes its books."""
        await asyncio.wait((task,), timeout=seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def hold(self, section: str, kind: str) -> None:
        """Hold what the components of a section hand on: their `signals`, or their `telemetry`."""
        for joints in self._joints_in(section):
            for joint in (joints.signals,) if kind == SIGNALS else joints.telemetry.values():
                joint.hold()

    def let_go(self) -> None:
        """Let everything through that was held."""
        for joints in self._joints.values():
            for joint in (*joints.telemetry.values(), joints.signals):
                joint.let_go()

    def _joints_in(self, section: str) -> list[Joints]:
        return [self._joints[section, identity] for identity in self._parts[section]]

    # --- building, from the end --------------------------------------------------------------------------------------

    def make(self, section: str, identities: Iterable[str]) -> None:
        """Build components, and put them in their places; raises `StartupError` for files that cannot be used."""
        for identity in identities:
            with self._noting_gauges(section, identity):
                self._parts[section][identity] = self._built(section, identity)
            self.host.status.of(section, identity)

    def _built(self, section: str, identity: str) -> Component:
        config, name, host = self.config.components[section][identity], type_of(identity), self.host
        if section == "extensions":
            return EXTENSIONS[name].build(identity, config, host)
        if section == "exporters":
            return EXPORTERS[name].build(identity, config, host)
        joints = self._joints.setdefault((section, identity), Joints())
        if section == "connectors":
            return CONNECTORS[name].build(identity, config, joints.telemetry, host)
        return RECEIVERS[name].build(identity, config, Outputs(joints.signals, joints.telemetry), host)

    def lead_on(self) -> None:
        """Build the processors, and lead each connector and receiver to the first step of its pipelines."""
        heads: dict[str, dict[Kind, list[Consumer]]] = {}
        for name, pipeline in self.config.service.pipelines.items():
            if type_of(name) != SIGNALS:
                head = self._head(name, pipeline.processors, pipeline.exporters)
                for identity in pipeline.receivers:
                    heads.setdefault(identity, {}).setdefault(Kind(type_of(name)), []).append(head)
        configured = self.config.components
        self._joints = {key: each for key, each in self._joints.items() if key[1] in configured[key[0]]}
        for section in ("connectors", "receivers"):
            for identity in configured[section]:
                self._joints.setdefault((section, identity), Joints()).lead_to(heads.get(identity, {}))

    def _head(self, pipeline: str, processors: Sequence[str], exporters: Sequence[str]) -> Consumer:
        ends: list[Consumer] = [self._parts["exporters"][identity] for identity in exporters]  # type: ignore[misc]
        head = ends[0] if len(ends) == 1 else Fanout(ends)
        for identity in reversed(processors):
            config = self.config.components["processors"][identity]
            head = processor = PROCESSORS[type_of(identity)].build(identity, config, head, self.host)
            self._parts["processors"][f"{pipeline}: {identity}"] = processor
            self.host.status.of("processors", f"{pipeline}: {identity}")
        return head

    def join(self) -> None:
        """Lead each receiver to the connectors of its pipelines."""
        targets: dict[str, list[Connector]] = {}
        for name, pipeline in self.config.service.pipelines.items():
            if type_of(name) == SIGNALS:
                ends: list[Connector] = [self._parts["connectors"][end] for end in pipeline.exporters]  # type: ignore[misc]
                for identity in pipeline.receivers:
                    targets.setdefault(identity, []).extend(ends)
        for identity in self.config.components["receivers"]:
            self._joints.setdefault(("receivers", identity), Joints()).signals.lead_to(targets.get(identity, ()))

    def _known(self, section: str, identities: Sequence[str]) -> list[str]:
        return [identity for identity in identities if identity in self.config.components[section]]

    @contextlib.contextmanager
    def _noting_gauges(self, section: str, identity: str) -> Iterator[None]:
        """Note which gauges are a component's, so that they end with it."""
        gauges = self.host.telemetry.gauges
        before: dict[object, Callable[[], float]] = dict(gauges.items())
        yield
        new = {key for key, read in gauges.items() if before.get(key) is not read}
        self._gauges.setdefault((section, identity), set()).update(new)
