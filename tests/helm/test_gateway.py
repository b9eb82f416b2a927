"""The gateway: which objects it is made of, and that its pods run as they are rendered."""

import signal
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.conftest import ObservedSink
from tests.helm.charts import (
    LEAST,
    VERSIONS,
    Object,
    hold_to_kubernetes,
    hold_to_the_restricted_standard,
    merged,
    one,
    pod_specs,
    rendered,
    the_agent,
)
from tests.helm.pods import Pod
from tests.helm.test_sidecar import QUICK
from tests.integration.conftest import Start
from tests.integration.test_whole_path import publish
from tests.support import Story

DISK: Object = {"storage": {"enabled": True, "maxSizeMiB": 2048, "storageClassName": "fast"}}


def gateway(over: Object | None = None, **settings: Any) -> list[Object]:
    values = merged(LEAST, {"sidecar": {"enabled": False}, "gateway": {"enabled": True, **settings}})
    return rendered(merged(values, over or {}))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("settings", [{}, DISK])
def test_kubernetes_takes_the_gateway(version: str, settings: Object) -> None:
    hold_to_kubernetes(gateway(**settings), version)


def test_without_a_disk_it_is_a_deployment_and_an_empty_directory() -> None:
    objects = gateway()
    assert [each["kind"] for each in objects] == ["ConfigMap", "Deployment", "PodDisruptionBudget", "NetworkPolicy"]
    (spec,) = pod_specs(objects)
    assert {"name": "stem-agent-data", "emptyDir": {"sizeLimit": "1280Mi"}} in spec["volumes"]


def test_with_a_disk_it_is_a_stateful_set_and_a_claim_above_the_files_limit() -> None:
    objects = gateway(**DISK)
    kinds = ["ConfigMap", "Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"]
    assert sorted(each["kind"] for each in objects) == sorted(kinds)
    (claim,) = one(objects, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"] == {"requests": {"storage": "2560Mi"}}
    assert claim["spec"]["storageClassName"] == "fast"
    assert "max_size: 2048MiB" in one(objects, "ConfigMap")["data"]["values.yaml"]


def test_it_keeps_to_the_restricted_standard_without_a_token() -> None:
    (spec,) = pod_specs(gateway(**DISK))
    hold_to_the_restricted_standard(spec, the_agent(spec))
    assert spec["automountServiceAccountToken"] is False


def test_a_pod_is_killed_only_after_the_drain_had_its_time() -> None:
    objects = gateway(shutdownTimeoutSeconds=40)
    (spec,) = pod_specs(objects)
    assert spec["terminationGracePeriodSeconds"] == 45
    assert "shutdown_timeout: 40s" in one(objects, "ConfigMap")["data"]["values.yaml"]


def test_its_selectors_find_its_pods_and_no_others() -> None:
    objects = gateway(podLabels={"team": "shop"}, **DISK)
    stateful = one(objects, "StatefulSet")
    selector = stateful["spec"]["selector"]["matchLabels"]
    assert selector["app.kubernetes.io/component"] == "gateway"
    assert selector.items() <= stateful["spec"]["template"]["metadata"]["labels"].items()
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector
    assert one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == selector
    assert one(objects, "Service")["spec"]["selector"] == selector


def test_only_redis_the_backend_and_names_are_reached_and_only_scrapers_come_in() -> None:
    policy = {"redisPorts": [6380], "otlpPorts": [4318], "scrapers": [{"namespaceSelector": {}}]}
    broker = {"redis": {"brokerUrl": "redis://redis:6380/0"}}
    closed = one(gateway(broker, networkPolicy=policy), "NetworkPolicy")["spec"]
    names, others = closed["egress"]
    assert [port["port"] for port in names["ports"]] == [53, 53]
    assert [port["port"] for port in others["ports"]] == [6380, 4318]
    assert closed["ingress"] == []
    scraped = gateway({**broker, "prometheus": {"enabled": True}}, networkPolicy=policy)
    (rule,) = one(scraped, "NetworkPolicy")["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": 9464}], "from": [{"namespaceSelector": {}}]}


@pytest.mark.parametrize("settings", [{}, DISK], ids=["deployment", "stateful set"])
async def test_a_pod_as_rendered_runs_and_its_probes_answer(
    settings: Object,
    start: Start,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    redis_url: str,
    namespace: str,
    tmp_path: Path,
) -> None:
    over = {
        "workerNamespace": namespace,
        "prometheus": {"enabled": True},
        "redis": {"brokerUrl": "", "existingSecret": "redis"},
    }
    objects = gateway(over, config=QUICK, **settings)
    (spec,) = pod_specs(objects)
    agent = the_agent(spec)
    secrets = {"redis": {"broker-url": redis_url}}
    pod = Pod(spec, objects, tmp_path, secrets=secrets, peers={"http://collector:4318": sink.url})
    running = await pod.start(start, agent)
    assert await pod.started(agent)
    assert await pod.probe(agent, "livenessProbe") == 200
    await publish(client, namespace, Story(namespace=namespace).run())
    await sink.until(lambda: len(sink.spans) == 3 and sink.sums("stem.tasks.succeeded").total() == 1)
    assert "stem_tasks_succeeded_total" in await pod.get(agent, "metrics", "/metrics")
    assert await running.end(signal.SIGTERM) == 0
    assert any((tmp_path / "stem-agent-data").iterdir())
    instance = sink.resources["traces"]["service.instance.id"]
    assert (instance == "jobs.pod-7") == bool(settings)
