"""Every `ci/*-values.yaml`: what it renders to is what it was, and what Kubernetes and the chart's promises ask for."""

import subprocess
import sys
from pathlib import Path

import pytest
from helm_python.chart import lint

from tests.helm.charts import (
    CHART,
    NEWEST,
    OLDEST,
    VERSIONS,
    containers,
    hold_to_kubernetes,
    hold_to_the_restricted_standard,
    one,
    pod_specs,
    read,
    rendered,
    the_agent,
)
from tests.helm.golden import FEATURES, GOLDEN, difference
from tests.helm.pods import Pod
from tests.helm.policies import admitted
from tests.samples import VENDORS

INFO = 1  # a severity of `helm lint`

# What came later than the oldest Kubernetes that the chart takes: a preStop that sleeps, the admission policy.
SINCE = {"plain-container": VERSIONS[1], "injection": NEWEST}


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_rendered_is_what_is_kept(feature: str) -> None:
    assert difference(feature) == ""


def test_nothing_is_kept_of_a_feature_that_is_gone() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == FEATURES


@pytest.mark.parametrize("feature", FEATURES)
def test_kubernetes_takes_every_object_of_every_version_that_has_its_kind(feature: str) -> None:
    objects = rendered(read(CHART / "ci" / f"{feature}-values.yaml"))
    versions = [each for each in VERSIONS if each >= SINCE.get(feature, OLDEST)]
    assert objects
    assert versions
    for version in versions:
        hold_to_kubernetes(objects, version)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_container_keeps_to_the_restricted_standard_and_no_pod_has_a_token(feature: str) -> None:
    for pod in pod_specs(rendered(read(CHART / "ci" / f"{feature}-values.yaml"))):
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            hold_to_the_restricted_standard(pod, container)
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("feature", FEATURES)
def test_helm_has_nothing_to_say(feature: str) -> None:
    told = lint(CHART, read(CHART / "ci" / f"{feature}-values.yaml"), strict=True, kube_version=f"v{NEWEST}.0")
    assert [each for each in told["messages"] if each["severity"] > INFO] == []
    assert told["errors"] == []


# What the values name, and somebody else makes.
SECRETS = {
    "redis": {"broker-url": "redis://redis:6379/0", "url": "redis://redis:6379/0", "results": "redis://results:6379"},
    "redis-tls": {"ca.crt": "", "tls.crt": "", "tls.key": ""},
    "otlp": {"headers": "api-key=secret"},
    "honeycomb": VENDORS["honeycomb"],
    "proxy": {"url": "http://proxy:3128"},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_the_agent_takes_each_configuration_without_a_warning(feature: str, tmp_path: Path) -> None:
    objects = rendered(read(CHART / "ci" / f"{feature}-values.yaml"))
    specs = list(pod_specs(objects))
    if feature == "injection":
        asking = {
            "metadata": {"annotations": {"stem-agent/inject": "true"}},
            "spec": {"containers": [{"name": "worker"}]},
        }
        specs = [admitted(one(objects, "MutatingAdmissionPolicy"), asking)["spec"]]
    assert bool(specs) == (feature != "sidecar")
    for number, spec in enumerate(specs):
        arguments, environ = Pod(spec, objects, tmp_path / str(number), SECRETS).process(the_agent(spec))
        command = [sys.executable, "-m", "agent", "validate", *arguments[1:], "--no-environment", "--deny-warnings"]
        told = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr


def test_no_value_of_a_secret_is_in_an_object() -> None:
    objects = rendered(read(CHART / "ci" / "secrets-values.yaml"))
    (worker,) = one(objects, "Deployment", "shop-stem-agent-example")["spec"]["template"]["spec"]["containers"]
    sources = {each["name"]: each.get("valueFrom") for each in worker["env"]}
    assert sources["STEM_BROKER_URL"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
    assert sources["STEM_RESULT_BACKEND_URL"] == {"secretKeyRef": {"name": "redis", "key": "results"}}
