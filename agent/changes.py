"""What becomes of each component when a configuration takes the place of another. Pure.

| component | stays while |
| --- | --- |
| exporter, `health`, `memory_limiter`, `file_storage` | its own options are the same, and the storage it names stays |
| connector | so do they, and the receivers stay, and the resource is the same |
| receivers, and `ownership` | all of them are the same: they agree with other agents as one |

Who stays goes on as if nothing had happened: its connections, queues, open attempts and books are not touched.
Receivers that begin other kinds of pipelines than before are others; a receiver that tells of the fleet through its
connector stays only where that stays. Processors keep nothing, and are always made anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.configuration import AgentConfig
from agent.registry import RECEIVERS, STORAGE, type_of

OWNERSHIP = "ownership"
_BUILT = ("extensions", "exporters", "connectors", "receivers")
_Running = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Changes:
    """Ids by section: who stays, who goes, who comes. Who is replaced goes and comes."""

    stay: Mapping[str, frozenset[str]]
    go: Mapping[str, frozenset[str]]
    come: Mapping[str, frozenset[str]]

    @property
    def count(self) -> int:
        """How many components go or come."""
        return sum(len(self.go[section] | self.come[section]) for section in _BUILT)


def running(config: AgentConfig) -> _Running:
    """Return what runs: by section and id, everything that makes a component what it is."""
    pipelines = config.service.pipelines.items()
    named: dict[str, list[str]] = {section: [] for section in _BUILT}
    begins: dict[str, set[str]] = {}
    for name, pipeline in pipelines:
        kind = type_of(name)
        named["exporters"] += pipeline.exporters
        for identity in pipeline.receivers:
            begins.setdefault(identity, set()).add(kind)
    named["extensions"] = list(config.service.extensions)
    named["receivers"] = named["connectors"] = list(begins)
    return {
        section: {
            identity: (config.components[section][identity], begins[identity] if section == "receivers" else None)
            for identity in dict.fromkeys(named[section])
            if identity in config.components[section]
        }
        for section in _BUILT
    }


def compare(old: AgentConfig, new: AgentConfig, *, same_resource: bool) -> Changes:
    """Return who stays, goes and comes; `same_resource`: what is told is told in the same name."""
    before, after = running(old), running(new)
    same = {
        section: {identity for identity, each in before[section].items() if after[section].get(identity) == each}
        for section in _BUILT
    }
    lost = {name for name in before["extensions"] | after["extensions"] if type_of(name) == STORAGE}
    lost -= same["extensions"]
    for section in _BUILT:
        same[section] -= {name for name in same[section] if lost & set(_storages(before[section][name][0]))}
    together = _all_same("receivers", before, after, same) and same_resource
    together = together and all(
        name in same["extensions"] for name in before["extensions"] | after["extensions"] if type_of(name) == OWNERSHIP
    )
    bound = any(RECEIVERS[type_of(name)].bound for name in before["receivers"])
    if not together or (bound and not _all_same("connectors", before, after, same)):
        same["receivers"], same["connectors"] = set(), set()
        same["extensions"] -= {name for name in same["extensions"] if type_of(name) == OWNERSHIP}
    return Changes(
        {section: frozenset(same[section]) for section in _BUILT},
        {section: frozenset(before[section].keys() - same[section]) for section in _BUILT},
        {section: frozenset(after[section].keys() - same[section]) for section in _BUILT},
    )


def heads_differ(old: AgentConfig, new: AgentConfig) -> bool:
    """Whether pipelines lead otherwise than before, or through other processors."""
    processors = old.components["processors"], new.components["processors"]
    return old.service.pipelines != new.service.pipelines or processors[0] != processors[1]


def _all_same(section: str, before: _Running, after: _Running, same: Mapping[str, set[str]]) -> bool:
    return before[section].keys() == after[section].keys() == same[section]


def _storages(config: Any) -> Iterator[str]:
    for holder in (config, getattr(config, "sending_queue", None)):
        if name := getattr(holder, "storage", None):
            yield name
