"""Renders charts with the real Helm engine, and reads what comes out."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
from helm_python import Chart, values_from_yaml
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "stem-agent"
SHOP = Path(__file__).parent / "shop"
OLDEST, NEWEST = "1.29", "1.37"
VERSIONS = (OLDEST, "1.33", NEWEST)
"""Kubernetes: the oldest with native sidecars on, the first that calls them stable, the newest that schemas are of."""

Values = Mapping[str, Any]
Object = dict[str, Any]

LEAST: Values = {
    "image": {"repository": "registry.example.com/stem-agent"},
    "redis": {"brokerUrl": "redis://redis:6379/0"},
    "otlp": {"endpoint": "http://collector:4318"},
}
"""What nothing works without."""


def merged(under: Values, over: Values) -> dict[str, Any]:
    """Return `over` on `under`, as Helm merges values."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def read(path: Path) -> dict[str, Any]:
    """Return values from a file."""
    return values_from_yaml(path.read_text(encoding="utf-8"))


def texts(values: Values, chart: Path = CHART, release: str = "shop") -> dict[str, str]:
    """Return what each template renders to; raises helm_python's errors."""
    with Chart.load(chart) as loaded:
        return {
            name: text
            for name, text in loaded.render(dict(values), name=release, namespace="jobs").items()
            if text.strip() and name.endswith(".yaml")
        }


def rendered(values: Values, chart: Path = CHART, release: str = "shop") -> list[Object]:
    """Return all objects."""
    documents = YAML(typ="safe", pure=True)
    return [each for text in texts(values, chart, release).values() for each in documents.load_all(text) if each]


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the only object of a kind, and name where it is given."""
    (found,) = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def pod_specs(objects: list[Object]) -> Iterator[Object]:
    """Return the spec of each pod that would run."""
    for each in objects:
        if each["kind"] in {"Deployment", "StatefulSet"}:
            yield each["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    """Return all containers of a pod."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def the_agent(pod: Object) -> Object:
    """Return the agent's container."""
    (found,) = [each for each in containers(pod) if each["name"] == "stem-agent"]
    return found


def shop_chart(directory: Path) -> Path:
    """Return a user's chart in `directory`, with this one as its dependency."""
    chart = directory / "shop"
    shutil.copytree(SHOP, chart)
    shutil.copytree(CHART, chart / "charts" / "stem-agent")
    return chart


def hold_to_kubernetes(objects: list[Object], version: str) -> None:
    """Raise where an object is not what that version of Kubernetes takes; unknown fields are errors too.

    Of what Prometheus' operator defines, Kubernetes knows nothing.
    """
    for each in objects:
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, version, strict=True)


def hold_to_the_restricted_standard(pod: Object, container: Object) -> None:
    """Check a container against "Restricted" of the Pod Security Standards, and for a read-only root on top of it."""
    security = container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] >= 10_000
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert not security.get("privileged")
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert not any(port.get("hostPort") for port in container.get("ports", ()))
    allowed = {"configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod.get("volumes", ()))
