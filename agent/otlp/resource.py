"""Resource and scope: who speaks, encoded once."""

from collections.abc import Mapping
from functools import cached_property

from agent import __version__
from agent.otlp.wire import Attribute, AttributeValue, delimited, tag, utf8

# Of opentelemetry-semantic-conventions 0.66b2, the release pinned for the attribute names in this package.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE_NAME = "stem-agent"

_SCOPE_NAME = tag(1, 2)
_SCOPE_VERSION = tag(2, 2)
RESOURCE_ATTRIBUTE_FIELD = 1
_OF_ONE_AGENT = ("container.", "host.", "k8s.container.", "k8s.node.", "k8s.pod.", "process.")


class Resource:
    """Immutable resource attributes with their encoding (`opentelemetry.proto.resource.v1.Resource`)."""

    def __init__(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.attributes: Mapping[str, AttributeValue] = dict(attributes)

    def of_the_fleet(self) -> "Resource":
        """Return the resource of what is told for the whole fleet, whichever agent tells it: its series go on."""
        kept = {key: value for key, value in self.attributes.items() if not key.startswith(_OF_ONE_AGENT)}
        return Resource({**kept, "service.instance.id": "fleet"})

    @cached_property
    def encoded(self) -> bytes:
        """The message's bytes, attributes in the order of their keys."""
        return b"".join(
            Attribute(key, RESOURCE_ATTRIBUTE_FIELD)(value) for key, value in sorted(self.attributes.items())
        )


SCOPE = delimited(_SCOPE_NAME, utf8(SCOPE_NAME)) + delimited(_SCOPE_VERSION, utf8(__version__))
"""`InstrumentationScope` of everything the agent makes from signals."""
