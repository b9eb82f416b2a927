"""Names, tags and values as Datadog has them: pure."""

import re
from collections.abc import Iterable, Iterator, Mapping

from agent.otlp.deltas import Total

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.]+")
MAX_TEXT = 200  # Datadog's limit for names and for tags, in characters
VALUES_A_LINE = 64
"""Of a distribution: so that a line with its tags fits into a datagram of 1432 bytes."""

# Datadog's names of what OpenTelemetry's conventions describe ("OpenTelemetry Semantic Conventions to Datadog").
_TAGS = {
    "service.name": "service",
    "service.version": "version",
    "service.instance.id": "instance",
    "deployment.environment.name": "env",
    "deployment.environment": "env",
    "container.id": "container_id",
    "k8s.cluster.name": "kube_cluster_name",
    "k8s.container.name": "kube_container_name",
    "k8s.deployment.name": "kube_deployment",
    "k8s.namespace.name": "kube_namespace",
    "k8s.node.name": "kube_node",
    "k8s.pod.name": "pod_name",
}
INSTANCE = "service.instance.id"


def metric_name(name: str) -> str:
    """Return a name of letters, digits, `_` and `.`, which begins with a letter."""
    plain = _NOT_IN_A_NAME.sub("_", name)
    return (plain if plain[:1].isalpha() else f"m_{plain}")[:MAX_TEXT]


def tag(key: str, value: str) -> str:
    """Return a tag; the client replaces what Datadog does not take."""
    return f"{key}:{value}"[:MAX_TEXT]


def resource_tags(resource: Mapping[str, object], keys: Iterable[str]) -> list[str]:
    """Return the attributes of a resource that are wanted, under Datadog's names."""
    return [tag(_TAGS.get(key, key), str(resource[key])) for key in keys if resource.get(key) not in {None, ""}]


def spread(came: Total, *, least: float | None, most: float | None) -> list[tuple[float, int]]:
    """Return values that stand for what came to a histogram, and how often each: exact in number and in sum.

    Each lies in its bucket, all of them equally far along theirs. `least` and `most` are the extremes of all that was
    ever recorded, where they are known.
    """
    edges = [(lower, upper, count) for lower, upper, count in _edges(came, least, most) if count]
    low = sum(lower * count for lower, _, count in edges)
    high = sum(upper * count for _, upper, count in edges)
    share = min(max((came.value - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    return [(lower + share * (upper - lower), count) for lower, upper, count in edges]


def _edges(came: Total, least: float | None, most: float | None) -> Iterator[tuple[float, float, int]]:
    bounds = came.bounds
    if not bounds:  # one bucket: the mean is all there is to say
        mean = came.value / came.count if came.count else 0.0
        yield mean, mean, came.count
        return
    bottom = min(0.0, bounds[0]) if least is None else least
    top = bounds[-1] if most is None else most
    for index, count in enumerate(came.buckets):
        lower = bounds[index - 1] if index else bottom
        upper = bounds[index] if index < len(bounds) else max(top, lower)
        yield max(lower, bottom), max(min(upper, max(top, lower)), lower), count


def packed(values: Iterable[tuple[float, int]]) -> Iterator[str]:
    """Yield values as DogStatsD packs them (protocol 1.1), so many a line: `0.3:0.3:0.4`."""
    line: list[str] = []
    for value, count in values:
        text, left = f"{value:.9g}", count
        while left:
            taken = min(left, VALUES_A_LINE - len(line))
            line += [text] * taken
            left -= taken
            if len(line) == VALUES_A_LINE:
                yield ":".join(line)
                line = []
    if line:
        yield ":".join(line)
