"""`resource`: adds, changes or removes resource attributes."""

from dataclasses import replace

from pydantic import Field

from agent.core.component import Passive
from agent.otlp.batch import Batch, Consumer
from agent.otlp.resource import Resource
from agent.settings.model import Config


class ResourceConfig(Config):
    """Change the resource of everything that passes."""

    set: dict[str, str] = Field(default_factory=dict, description="attributes to add or overwrite")
    remove: tuple[str, ...] = Field((), description="attributes to remove")


class ResourceProcessor(Passive):
    """Hands every batch on under the changed resource; the items are not touched."""

    def __init__(self, config: ResourceConfig, consumer: Consumer) -> None:
        self._config = config
        self._consumer = consumer
        # Resources are few and batches share them: each is changed once, and batching still sees one object.
        self._changed: dict[int, tuple[Resource, Resource]] = {}

    def consume(self, batch: Batch) -> None:
        """Hand the batch on."""
        known = self._changed.get(id(batch.resource))
        if known is None:
            attributes = {**batch.resource.attributes, **self._config.set}
            changed = Resource({key: value for key, value in attributes.items() if key not in self._config.remove})
            known = self._changed[id(batch.resource)] = (batch.resource, changed)
        self._consumer.consume(replace(batch, resource=known[1]))
