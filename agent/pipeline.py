"""Joining components into pipelines, and the order in which they start and stop.

    receivers --facts--> connectors --batches--> processors --> exporters

Everything is built from its end: a component is handed its next step. Started sinks first, so that nobody speaks
before somebody listens; stopped sources first, so that everything on its way still arrives. Extensions begin first
and end last: `health` answers while the others start and drain.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import tzinfo

from agent.configuration import AgentConfig
from agent.core.component import Component
from agent.core.status import Phase
from agent.otlp.batch import Consumer, Fanout, Kind
from agent.registry import (
    CONNECTORS,
    EXPORTERS,
    EXTENSIONS,
    PROCESSORS,
    RECEIVERS,
    SIGNALS,
    Connector,
    Exporter,
    Host,
    Outputs,
    type_of,
)
from agent.stem.wire import Fact, SignalConsumer, Tailed
from agent.telemetry.events import log


class SignalFanout:
    """Hands facts to several connectors, or to none."""

    def __init__(self, consumers: Sequence[SignalConsumer]) -> None:
        self._consumers = tuple(consumers)

    def consume_facts(self, facts: Sequence[Fact], zone: tzinfo) -> None:
        """Hand the facts to each consumer in turn."""
        for consumer in self._consumers:
            consumer.consume_facts(facts, zone)

    def consume_tailed(self, receiver: str, facts: Sequence[Tailed], zone: tzinfo) -> None:
        """Hand what was read to each consumer in turn."""
        for consumer in self._consumers:
            consumer.consume_tailed(receiver, facts, zone)

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:
        """Have each consumer begin, from totals whose names begin with its place."""
        for place, consumer in enumerate(self._consumers):
            own = {key.removeprefix(f"{place}."): each for key, each in totals.items() if key.startswith(f"{place}.")}
            consumer.take_up(receiver, own)

    def totals(self, receiver: str, *, everything: bool = False) -> dict[str, bytes | None]:
        """Return the totals of all consumers."""
        return {
            f"{place}.{key}": each
            for place, consumer in enumerate(self._consumers)
            for key, each in consumer.totals(receiver, everything=everything).items()
        }

    def give_up(self, receiver: str, *, told: bool) -> None:
        """Have each consumer tell no more of the fleet."""
        for consumer in self._consumers:
            consumer.give_up(receiver, told=told)


class Graph:
    """All components of a configuration, joined; `sources` and the others are in the order of starting."""

    def __init__(self, config: AgentConfig, host: Host) -> None:
        self._config = config
        self._host = host
        self._status = host.status
        self._started: list[Component] = []
        pipelines = config.service.pipelines
        extensions = self._extensions()  # first, because the others use them
        exporters = self._exporters(
            sorted({name for p in pipelines.values() for name in self._known("exporters", p.exporters)})
        )
        processors, outputs = self._outputs(exporters)
        connectors = self._connectors(outputs)
        self.stages: list[tuple[str, Mapping[str, Component]]] = [
            ("extensions", extensions),
            ("exporters", exporters),
            ("processors", processors),
            ("connectors", connectors),
            ("receivers", self._receivers(connectors, outputs)),
        ]
        for section, components in self.stages:
            for identity in components:
                self._status.of(section, identity)

    async def start(self) -> None:
        """Start every component, sinks first; on failure stop those that run, and raise."""
        try:
            for section, components in self.stages:
                for identity, component in components.items():
                    self._started.append(component)
                    await component.start()
                    self._status.started(section, identity)
        except BaseException:
            await self.stop(0)
            raise
        self._status.phase = Phase.RUNNING

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - one deadline for all stops
        """Stop every started component, sources first, within `timeout` seconds altogether.

        Exporters come last and drain together: they share what the others left of the time. A stop that was
        cancelled can be called again: it goes on with what is not stopped yet.
        """
        self._status.phase = Phase.DRAINING
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for section, components in reversed(self.stages):
            running = {identity: each for identity, each in components.items() if each in self._started}
            left = max(0.0, deadline - loop.time())
            ends = await asyncio.gather(
                *(component.stop(left) for component in running.values()), return_exceptions=True
            )
            for error in ends:
                if isinstance(error, Exception):  # its fault must not keep the others from draining
                    log(logging.ERROR, "failed to stop a component", {"error": f"{type(error).__name__}: {error}"})
            for identity, component in running.items():
                self._started.remove(component)
                self._status.stopped(section, identity)

    # --- building, from the end --------------------------------------------------------------------------------------

    def _known(self, section: str, identities: Sequence[str]) -> list[str]:
        return [identity for identity in identities if identity in self._config.components[section]]

    def _exporters(self, identities: Sequence[str]) -> dict[str, Exporter]:
        configs = self._config.components["exporters"]
        return {
            identity: EXPORTERS[type_of(identity)].build(identity, configs[identity], self._host)
            for identity in identities
        }

    def _outputs(
        self, exporters: Mapping[str, Exporter]
    ) -> tuple[dict[str, Component], dict[str, dict[Kind, Consumer]]]:
        """Return the processors, and for each connector and receiver the first step of its pipeline of each kind."""
        processors: dict[str, Component] = {}
        heads: dict[str, dict[Kind, list[Consumer]]] = {}
        configs = self._config.components["processors"]
        for name, pipeline in self._config.service.pipelines.items():
            if type_of(name) == SIGNALS:
                continue
            head: Consumer = _join([exporters[identity] for identity in pipeline.exporters])
            for identity in reversed(pipeline.processors):
                processor = PROCESSORS[type_of(identity)].build(identity, configs[identity], head, self._host)
                processors[f"{name}: {identity}"] = processor
                head = processor
            for identity in pipeline.receivers:
                heads.setdefault(identity, {}).setdefault(Kind(type_of(name)), []).append(head)
        outputs = {
            identity: {kind: _join(consumers) for kind, consumers in kinds.items()} for identity, kinds in heads.items()
        }
        return processors, outputs

    def _connectors(self, outputs: Mapping[str, Mapping[Kind, Consumer]]) -> dict[str, Connector]:
        configs = self._config.components["connectors"]
        return {
            identity: CONNECTORS[type_of(identity)].build(identity, configs[identity], outputs[identity], self._host)
            for identity in self._known("connectors", list(outputs))
        }

    def _receivers(
        self, connectors: Mapping[str, Connector], outputs: Mapping[str, Mapping[Kind, Consumer]]
    ) -> dict[str, Component]:
        targets: dict[str, list[SignalConsumer]] = {}
        for name, pipeline in self._config.service.pipelines.items():
            if type_of(name) == SIGNALS:
                for identity in pipeline.receivers:
                    targets.setdefault(identity, []).extend(connectors[target] for target in pipeline.exporters)
        configs = self._config.components["receivers"]
        return {
            identity: RECEIVERS[type_of(identity)].build(
                identity,
                configs[identity],
                Outputs(_fan_out(targets.get(identity, ())), outputs.get(identity, {})),
                self._host,
            )
            for identity in self._known(
                "receivers", [*targets, *(identity for identity in outputs if identity not in targets)]
            )
        }

    def _extensions(self) -> dict[str, Component]:
        configs = self._config.components["extensions"]
        return {
            identity: EXTENSIONS[type_of(identity)].build(identity, configs[identity], self._host)
            for identity in self._config.service.extensions
        }


def _fan_out(consumers: Sequence[SignalConsumer]) -> SignalConsumer:
    return consumers[0] if len(consumers) == 1 else SignalFanout(consumers)


def _join(consumers: Sequence[Consumer]) -> Consumer:
    return consumers[0] if len(consumers) == 1 else Fanout(consumers)
