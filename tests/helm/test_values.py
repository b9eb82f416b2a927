"""Values: what is refused, and with which words; the files that the chart carries are those of config/."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from helm_python import HelmRenderError, HelmValuesError
from ruamel.yaml import YAML

from tests.helm.charts import CHART, LEAST, Object, merged, one, rendered, shop_chart, texts, the_agent
from tests.samples import CONFIG, VENDORS, vendor_file

FLEET: Object = {"gateway": {"enabled": True}}


@pytest.mark.parametrize("name", ["sidecar.yaml", "gateway.yaml", *(f"vendors/{name}.yaml" for name in VENDORS)])
def test_the_chart_carries_the_sample_files_as_they_are(name: str) -> None:
    assert (CHART / "files" / name).read_text(encoding="utf-8") == (CONFIG / name).read_text(encoding="utf-8")


def test_it_carries_no_others() -> None:
    carried = {path.relative_to(CHART / "files").as_posix() for path in (CHART / "files").rglob("*.yaml")}
    assert carried == {"sidecar.yaml", "gateway.yaml", *(f"vendors/{name}.yaml" for name in VENDORS)}


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"image": {"repository": ""}}, "image.repository is empty: name the repository"),
        ({"redis": {"brokerUrl": ""}}, "redis.brokerUrl is empty: say where"),
        ({"redis": {"brokerUrl": "redis://:secret@redis:6379"}}, "redis.brokerUrl holds a password"),
        ({"redis": {"resultBackendUrl": "redis://secret@redis"}}, "redis.resultBackendUrl holds a password"),
        ({"redis": {"existingSecret": "urls"}}, "redis.brokerUrl and redis.secretKeys.brokerUrl"),
        (
            {"redis": {"brokerUrl": "", "existingSecret": "urls", "secretKeys": {"brokerUrl": ""}}},
            "redis.secretKeys.brokerUrl is empty: name the key of secret urls",
        ),
        (
            {"redis": {"tls": {"existingSecret": "pems", "certKey": "tls.crt"}}},
            "certKey and redis.tls.keyKey go together",
        ),
        ({"otlp": {"endpoint": ""}}, "otlp.endpoint is empty and no vendor is chosen"),
        ({"vendor": "honeycomb", "otlp": {"endpoint": ""}}, "vendor honeycomb needs HONEYCOMB_API_KEY: put it into"),
        ({"vendor": "honeycomb", "vendorSecret": "key"}, "otlp.endpoint and vendor honeycomb contradict each other"),
        ({"env": [{"name": "STEM_EMITTER", "value": "me"}]}, "env STEM_EMITTER is set by this chart"),
        ({"env": [{"name": "HONEYCOMB_API_KEY", "value": "k"}]}, "env HONEYCOMB_API_KEY looks like a secret"),
        ({"redis": {"brokerUrl": "redis://redis:7000"}}, "redis.brokerUrl has port 7000, which gateway.networkPolicy"),
        ({"example": {"enabled": True}}, "example.image is empty: name the image"),
        (
            {"example": {"enabled": True, "image": "worker"}, "sidecar": {"enabled": False}},
            "sidecar.enabled is false, and example.enabled shows a sidecar",
        ),
        (
            {"gateway": {"podDisruptionBudget": {"maxUnavailable": 2}}},
            "gateway.podDisruptionBudget.maxUnavailable 2 allows all 2 gateway.replicas to go at once",
        ),
        ({"gateway": {"enabled": False}, "sidecar": {"enabled": False}}, "nothing would run; enable one of them"),
        ({"otlp": {"endpoint": "http://collector"}}, "otlp.endpoint has port 80, which gateway.networkPolicy"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(over: Object, words: str) -> None:
    with pytest.raises(HelmRenderError) as refused:
        rendered(merged(merged(LEAST, FLEET), over))
    assert words in str(refused.value)


def test_a_plain_container_is_refused_where_kubernetes_cannot_hold_it_up(tmp_path: Path) -> None:
    # The engine renders for one version of Kubernetes only: another one is written in its place.
    shutil.copytree(CHART, tmp_path / "chart")
    checks = tmp_path / "chart" / "templates" / "_checks.tpl"
    text = checks.read_text(encoding="utf-8")
    assert ".Capabilities.KubeVersion.Version" in text
    for version, refused in (("v1.29.4", True), ("v1.30.0", False)):
        checks.write_text(text.replace(".Capabilities.KubeVersion.Version", f'"{version}"'), encoding="utf-8")
        assert rendered(LEAST, tmp_path / "chart")
        words = "sidecar.native is false, which needs Kubernetes 1.30 or later"
        with pytest.raises(HelmRenderError, match=words) if refused else contextlib.nullcontext():
            assert rendered(merged(LEAST, {"sidecar": {"native": False}}), tmp_path / "chart")


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(HelmRenderError) as refused:
        rendered({})
    for words in ("image.repository is empty", "redis.brokerUrl is empty", "otlp.endpoint is empty"):
        assert words in str(refused.value)


def test_a_sidecar_that_is_off_cannot_be_included(tmp_path: Path) -> None:
    with pytest.raises(HelmRenderError, match=r"sidecar\.enabled is false"):
        rendered({"stem-agent": {"sidecar": {"enabled": False}, **FLEET}}, shop_chart(tmp_path))


@pytest.mark.parametrize(
    ("over", "where"),
    [
        ({"gatway": {}}, "gatway"),
        ({"gateway": {"replica": 2}}, "replica"),
        ({"gateway": {"replicas": 0}}, "replicas"),
        ({"gateway": {"storage": {"maxSizeMiB": "1Gi"}}}, "maxSizeMiB"),
        ({"sidecar": {"native": "yes"}}, "native"),
        ({"sidecar": {"resources": {"requests": {"cpu": "10m"}, "limits": {"memory": None}}}}, "limits"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"redis": {"brokerUrl": "redis:6379"}}, "brokerUrl"),
        ({"otlp": {"endpoint": "collector:4318"}}, "endpoint"),
        ({"vendor": "honeycom"}, "vendor"),
        ({"env": [{"name": "A", "value": "b", "valueFrom": {"secretKeyRef": {}}}]}, "env"),
        ({"env": [{"name": "A B", "value": "b"}]}, "env"),
        ({"resourceAttributes": {"shard": 7}}, "resourceAttributes"),
        ({"prometheus": {"port": 80}}, "port"),
        ({"logs": {"level": "LOUD"}}, "level"),
    ],
)
def test_the_schema_takes_nothing_that_the_chart_does_not_know(over: Object, where: str) -> None:
    with pytest.raises((HelmValuesError, HelmRenderError)) as refused:
        rendered(merged(LEAST, over))
    assert where in str(refused.value)


def test_a_parent_may_give_what_helm_gives_to_every_dependency() -> None:
    assert rendered(merged(LEAST, {"global": {"anything": 1}, "enabled": True}))


@pytest.mark.parametrize("name", VENDORS)
def test_a_vendor_comes_first_and_what_it_needs_is_asked_for(name: str) -> None:
    bare: dict[str, Any] = {**LEAST, "otlp": {}, "vendor": name, **FLEET}
    if VENDORS[name]:
        with pytest.raises(HelmRenderError) as refused:
            texts(bare)
        for variable in VENDORS[name]:
            assert f"vendor {name} needs {variable}" in str(refused.value)
    objects = rendered({**bare, "vendorSecret": "keys"})
    agent = the_agent(one(objects, "Deployment")["spec"]["template"]["spec"])
    assert agent["args"][2::2] == [f"/etc/stem-agent/config/{file}.yaml" for file in ("vendor", "gateway", "values")]
    assert agent["envFrom"] == [{"secretRef": {"name": "keys"}}]
    vendor = one(objects, "ConfigMap", "shop-stem-agent-gateway")["data"]["vendor.yaml"]
    safe = YAML(typ="safe", pure=True)
    assert safe.load(vendor) == safe.load(vendor_file(name).read_text(encoding="utf-8"))


def test_a_digest_goes_over_the_tag_and_the_tag_over_the_charts() -> None:
    def image(**values: str) -> str:
        objects = rendered(merged(merged(LEAST, FLEET), {"image": values}))
        return str(the_agent(one(objects, "Deployment")["spec"]["template"]["spec"])["image"])

    digest = f"sha256:{'0' * 64}"
    assert image() == "registry.example.com/stem-agent:0.1.0"
    assert image(tag="2.0") == "registry.example.com/stem-agent:2.0"
    assert image(tag="2.0", digest=digest) == f"registry.example.com/stem-agent@{digest}"
