"""Another configuration in the place of the one that runs: who is the same stays, and what was known goes over.

The order is that of a stop and a start, for those that change. Whoever stays hands on to a joint; while its next step
is replaced, the joint holds what comes. So nothing is lost on the way, and nothing is done twice:

    receivers stop ─ hold signals ─ connectors stop ─ hold telemetry ─ exporters stop ─ extensions stop
    build ─ extensions start ─ exporters start ─ connectors start ─ let everything go ─ receivers start

A connector or receiver leaves what it knows (open attempts, series, numbers of signals) to the one that follows it. An
exporter with its queue on a disk leaves it there; one with its queue in memory goes on until that is empty, beside the
one that follows. What cannot start is taken back: then the configuration before is put in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from agent.changes import Changes, compare, heads_differ
from agent.configuration import AgentConfig
from agent.core.errors import AgentError
from agent.core.ownership import Ownership
from agent.core.states import StateStore
from agent.exporters.otlp.config import OtlpConfig
from agent.otlp.batch import Kind
from agent.otlp.resource import Resource
from agent.pipeline import Graph
from agent.registry import SIGNALS, Host

_WITH_NEIGHBOURS_SECONDS = 5.0
"""For receivers to decode what they heard, and to let other agents take over."""
_FOR_THE_DISK_SECONDS = 2.0
"""For requests under way to end: what is cut short is sent again."""


class NotStartedError(AgentError):
    """The new configuration could not start; the one before runs again."""


class NeitherStartedError(AgentError):
    """The new configuration could not start, and neither could the one before."""


@runtime_checkable
class Heir(Protocol):
    """A component that can go on from where another stopped."""

    def hand_over(self, store: StateStore) -> None:
        """Leave what is known there when stopped, wherever it is kept otherwise."""

    def take_over(self, store: StateStore) -> None:
        """Begin, when started, from what is there."""


@runtime_checkable
class Successor(Protocol):
    """A component that goes on with what another of its id had, whether that one still works or not."""

    def succeed(self, before: object) -> None:
        """Take what is needed."""


class Estate:
    """What those who go leave to those who come: in memory, as a `StateStore`."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> bool:
        """Keep a value."""
        self._values[key] = value
        return True

    async def take(self, key: str) -> bytes | None:
        """Return a value and forget it."""
        return self._values.pop(key, None)

    @property
    def unclaimed(self) -> list[str]:
        """Whose values nobody took."""
        return sorted(self._values)


@dataclass(slots=True)
class Swap:
    """The change of one graph from its configuration to another one."""

    graph: Graph
    config: AgentConfig
    resource: Resource

    def changes(self) -> Changes:
        """Return who stays, goes and comes."""
        return compare(self.graph.config, self.config, same_resource=self._same_resource)

    @property
    def _same_resource(self) -> bool:
        return self.resource.attributes == self.graph.host.resource.attributes

    async def run(self) -> Changes:
        """Make the change; return what it was.

        Raises `NotStartedError` if it was taken back, `NeitherStartedError` if that failed.
        """
        graph, changes = self.graph, self.changes()
        config, host, estate = graph.config, graph.host, Estate()
        resource = host.resource if self._same_resource else self.resource  # batches are told apart by the object
        try:
            try:
                await self._change(changes.go, changes.come, self.config, _host(host, changes, resource), estate)
            except Exception as error:
                began = _present(graph, changes.come)
                try:
                    await self._change(began, changes.go, config, _host(host, changes, host.resource), estate)
                except Exception as again:
                    unclaimed = f"; lost the state of {', '.join(estate.unclaimed)}" if estate.unclaimed else ""
                    raise NeitherStartedError(f"{error}; and going back failed: {again}{unclaimed}") from again
                raise NotStartedError(str(error)) from error
        finally:
            graph.let_go()
        return changes

    async def _change(
        self,
        go: Mapping[str, frozenset[str]],
        come: Mapping[str, frozenset[str]],
        config: AgentConfig,
        host: Host,
        estate: Estate,
    ) -> None:
        graph = self.graph
        await self._leave("receivers", go, estate, _WITH_NEIGHBOURS_SECONDS)
        if go["connectors"] | come["connectors"]:
            graph.hold("receivers", SIGNALS)
        await self._leave("connectors", go, estate, 0)
        exporters = go["exporters"] | come["exporters"]
        if exporters or heads_differ(graph.config, config):
            graph.hold("connectors", "telemetry")
            graph.hold("receivers", "telemetry")
        await graph.leave("processors", list(dict(graph.stages)["processors"]), 0)
        replaced = {name: graph.component("exporters", name) for name in go["exporters"] & come["exporters"]}
        held = await self._exporters_leave(go["exporters"])
        await graph.leave("extensions", go["extensions"], _FOR_THE_DISK_SECONDS)

        graph.config, graph.host = config, host
        # All are built before the first starts, as in a new graph: who keeps the claims has to know whose they are.
        graph.make("extensions", [name for name in config.service.extensions if name in come["extensions"]])
        graph.make("exporters", sorted(come["exporters"]))
        for name, before in replaced.items():
            exporter: object = graph.component("exporters", name)
            if isinstance(exporter, Successor):
                exporter.succeed(before)
        graph.lead_on()
        self._make("connectors", come, estate)
        graph.join()
        self._make("receivers", come, estate)
        await graph.begin("extensions")
        await graph.begin("exporters")
        self._found_again(held)
        await graph.begin("processors")
        await graph.begin("connectors")
        graph.let_go()
        await graph.begin("receivers")

    async def _leave(self, section: str, go: Mapping[str, frozenset[str]], estate: Estate, seconds: float) -> None:
        for identity in go[section]:
            component: object = self.graph.component(section, identity)
            if isinstance(component, Heir):
                component.hand_over(estate)
        await self.graph.leave(section, go[section], seconds)

    def _make(self, section: str, come: Mapping[str, frozenset[str]], estate: Estate) -> None:
        order = self.graph.config.components[section]
        self.graph.make(section, [identity for identity in order if identity in come[section]])
        for identity in come[section]:
            component: object = self.graph.component(section, identity)
            if isinstance(component, Heir):
                component.take_over(estate)

    async def _exporters_leave(self, go: frozenset[str]) -> dict[tuple[str, str], int]:
        """Let exporters go; return how many items each left on a disk."""
        configs, ledger = self.graph.config.components["exporters"], self.graph.host.ledger
        lingering = {name for name in go if _lingers(configs.get(name))}
        self.graph.linger("exporters", lingering)
        await self.graph.leave("exporters", go - lingering, _FOR_THE_DISK_SECONDS)
        kinds = [(name, str(kind)) for name in go - lingering for kind in Kind]
        return {key: ledger.account(*key).held for key in kinds if key in ledger.accounts}

    def _found_again(self, held: Mapping[tuple[str, str], int]) -> None:
        """Take out of the books again what the new exporter found on the disk, and the one before had accepted."""
        for key, items in held.items():
            account = self.graph.host.ledger.account(*key)
            twice = min(items, max(0, account.held - items))
            account.accepted -= twice
            account.restored -= twice


def _host(host: Host, changes: Changes, resource: Resource) -> Host:
    """Return what the new components share; those that agree with other agents do so anew."""
    agree_anew = changes.go["receivers"] | changes.come["receivers"]
    return replace(host, resource=resource, ownership=Ownership() if agree_anew else host.ownership)


def _lingers(config: object) -> bool:
    """Whether two exporters of one id can work side by side: they share no file, and listen on nothing."""
    return isinstance(config, OtlpConfig) and not config.sending_queue.storage


def _present(graph: Graph, come: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Return those of the new components that were built before something failed."""
    stages = dict(graph.stages)
    return {section: frozenset(come[section] & stages[section].keys()) for section in come}
