"""How Prometheus' operator finds the agents: a monitor for each shape, of both expositions."""

from typing import Any

import helm_python
import pytest

from tests.helm.charts import Object, hold_to_kubernetes, one
from tests.helm.monitoring import monitored

GATEWAY: Object = {"gateway": {"enabled": True}, "sidecar": {"enabled": False}}
BOTH: Object = {"gateway": {"enabled": True}}
OF_GATEWAYS = {"app.kubernetes.io/name": "stem-agent", "app.kubernetes.io/instance": "shop"}


def monitors(kind: str, over: Object | None = None, **options: Any) -> dict[str, Object]:
    made = monitored(over, **{kind: {"enabled": True, **options}})
    return {each["metadata"]["name"]: each for each in made if each["kind"].lower() == kind.lower()}


@pytest.mark.parametrize(
    ("kind", "endpoints"), [("podMonitor", "podMetricsEndpoints"), ("serviceMonitor", "endpoints")]
)
def test_both_expositions_are_scraped_and_keep_their_targets(kind: str, endpoints: str) -> None:
    options = {"labels": {"release": "prometheus"}, "endpoint": {"scheme": "https"}, "sampleLimit": 5000000}
    found = monitors(kind, BOTH, **options)
    assert set(found) == {"shop-stem-agent-gateway", "shop-stem-agent-sidecar"}
    for monitor in found.values():
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert monitor["spec"]["sampleLimit"] == 5_000_000
        fleet, own = monitor["spec"][endpoints]
        assert [fleet["path"], own["path"]] == ["/metrics", "/metrics/agent"]
        for each in (fleet, own):
            assert (each["honorLabels"], each["scheme"], each["port"]) == (True, "https", "metrics")
        assert {each["targetLabel"] for each in fleet["metricRelabelings"]} >= {"pod", "container", "endpoint"}
        assert "metricRelabelings" not in own


def test_a_pod_monitor_selects_what_the_gateway_and_sidecars_are_labelled_with() -> None:
    found = monitors("podMonitor", BOTH, sidecars={"app": "worker"}, namespaceSelector={"any": True})
    gateway, sidecar = (found[f"shop-stem-agent-{shape}"]["spec"] for shape in ("gateway", "sidecar"))
    pods = one(monitored(BOTH), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert gateway["selector"]["matchLabels"].items() <= pods.items()
    assert "namespaceSelector" not in gateway
    (default,) = monitors("podMonitor").values()
    assert default["spec"]["selector"]["matchLabels"] == {"stem-agent/scrape": "true"}
    assert sidecar["selector"]["matchLabels"] == {"app": "worker"}
    assert sidecar["namespaceSelector"] == {"any": True}


def test_a_service_monitor_comes_with_the_services_it_selects() -> None:
    made = monitored(GATEWAY, serviceMonitor={"enabled": True})
    service, monitor = one(made, "Service"), one(made, "ServiceMonitor")
    hold_to_kubernetes([service], "1.33")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    pods = one(made, "Deployment")["spec"]["template"]
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert port == {"name": "metrics", "port": 9464, "targetPort": "metrics"}
    assert "metrics" in {each["name"] for each in pods["spec"]["containers"][0]["ports"]}


def test_nothing_is_installed_unless_it_is_asked_for() -> None:
    assert {each["kind"] for each in monitored()} == {"ConfigMap"}


@pytest.mark.parametrize(
    ("over", "monitoring", "message"),
    [
        ({}, {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}, "would be scraped twice"),
        ({"prometheus": {"enabled": False}}, {"podMonitor": {"enabled": True}}, "set prometheus.enabled to true"),
        ({}, {"podMonitor": {"enabled": True, "interval": "often"}}, "'often' does not match pattern"),
    ],
)
def test_values_that_contradict_are_refused(over: Object, monitoring: Object, message: str) -> None:
    with pytest.raises(helm_python.HelmError) as error:
        monitored(over, **monitoring)
    assert message in str(error.value)
