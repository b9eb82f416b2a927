"""Every `ci/*-values.yaml`: what it renders to is what it was, and what Kubernetes and the chart's promises ask for."""

import pytest

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
)
from tests.helm.golden import FEATURES, GOLDEN, difference

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


def test_no_value_of_a_secret_is_in_an_object() -> None:
    objects = rendered(read(CHART / "ci" / "secrets-values.yaml"))
    (worker,) = one(objects, "Deployment", "shop-stem-agent-example")["spec"]["template"]["spec"]["containers"]
    sources = {each["name"]: each.get("valueFrom") for each in worker["env"]}
    assert sources["STEM_BROKER_URL"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
    assert sources["STEM_RESULT_BACKEND_URL"] == {"secretKeyRef": {"name": "redis", "key": "results"}}
