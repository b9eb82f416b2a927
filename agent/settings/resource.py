"""The agent's resource: who speaks, from the environment (telemetry contract, section 6)."""

import socket
from collections.abc import Mapping
from urllib.parse import unquote
from uuid import UUID, uuid4, uuid5

from agent import __version__

# Semantic conventions, `service.instance.id`: the namespace for version-5 UUIDs.
_INSTANCE_NAMESPACE = UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
# What the chart sets from the downward API.
_KUBERNETES = {
    "k8s.pod.name": "POD_NAME",
    "k8s.pod.uid": "POD_UID",
    "k8s.namespace.name": "POD_NAMESPACE",
    "k8s.node.name": "NODE_NAME",
    "k8s.container.name": "CONTAINER_NAME",
}


class ResourceError(ValueError):
    """`OTEL_RESOURCE_ATTRIBUTES` cannot be read; none of it is used (resource SDK specification)."""


def detect_resource(environ: Mapping[str, str], namespace: str) -> dict[str, str]:
    """Return resource attributes; `namespace` names the service where nothing else does.

    Raises `ResourceError`.
    """
    attributes = {
        "service.name": namespace,
        "service.namespace": namespace,
        "host.name": socket.gethostname(),
        "telemetry.distro.name": "stem-otel-agent",
        "telemetry.distro.version": __version__,
    }
    attributes |= {key: environ[name] for key, name in _KUBERNETES.items() if environ.get(name)}
    attributes["service.instance.id"] = _instance_id(attributes)
    attributes |= parse_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if name := environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = name
    return attributes


def parse_attributes(text: str) -> dict[str, str]:
    """Parse `key=value,key2=value2`, percent-decoded. Raises `ResourceError`, naming the pair."""
    attributes = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        key, equals, value = pair.partition("=")
        try:
            decoded_key, decoded = unquote(key.strip(), errors="strict"), unquote(value.strip(), errors="strict")
        except UnicodeDecodeError:
            equals = ""
        if not equals or not key.strip():
            raise ResourceError(f"found {pair.strip()!r}, expected key=value pairs, percent-encoded, joined by commas")
        attributes[decoded_key] = decoded
    return attributes


def _instance_id(attributes: Mapping[str, str]) -> str:
    parts = [attributes.get(key) for key in ("k8s.namespace.name", "k8s.pod.name", "k8s.container.name")]
    if parts[0] and parts[1]:
        return str(uuid5(_INSTANCE_NAMESPACE, ".".join(part for part in parts if part)))
    return str(uuid4())
