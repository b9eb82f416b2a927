"""The templates for other charts: what a few lines add to somebody's Deployment, and that it runs."""

import signal
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.conftest import ObservedSink
from tests.helm.charts import (
    VERSIONS,
    Object,
    hold_to_kubernetes,
    hold_to_the_restricted_standard,
    one,
    rendered,
    shop_chart,
    the_agent,
)
from tests.helm.pods import Pod
from tests.integration.conftest import Start
from tests.integration.test_whole_path import publish
from tests.support import Story

QUICK: Object = {
    "connectors": {"correlate": {"settle": "100ms", "metrics_interval": "100ms"}},
    "exporters": {"otlp_http": {"sending_queue": {"batch": {"flush_timeout": "50ms"}}}},
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return shop_chart(tmp_path / "charts")


def workers_pod(objects: list[Object]) -> Object:
    spec: Object = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def of_agent(**values: Any) -> Object:
    return {"stem-agent": values}


NATIVE = [(version, True) for version in VERSIONS]
PLAIN = [(version, False) for version in VERSIONS[1:]]  # a preStop that sleeps came with Kubernetes 1.30


@pytest.mark.parametrize(("version", "native"), [*NATIVE, *PLAIN])
def test_kubernetes_takes_a_deployment_with_the_agent_added(shop: Path, version: str, native: bool) -> None:
    hold_to_kubernetes(rendered(of_agent(sidecar={"native": native}), shop), version)


def test_the_agent_starts_before_the_worker_and_stops_after_it(shop: Path) -> None:
    pod = workers_pod(rendered({}, shop))
    (agent,) = pod["initContainers"]
    assert agent["restartPolicy"] == "Always"
    assert [each["name"] for each in pod["containers"]] == ["worker"]


def test_a_plain_container_waits_for_the_worker_before_it_stops(shop: Path) -> None:
    pod = workers_pod(rendered(of_agent(sidecar={"native": False, "workerGraceSeconds": 45}), shop))
    agent = the_agent(pod)
    assert "initContainers" not in pod
    assert "restartPolicy" not in agent
    assert agent["lifecycle"] == {"preStop": {"sleep": {"seconds": 45}}}


def test_the_pod_has_time_for_the_worker_and_for_the_agent(shop: Path) -> None:
    sidecar = {"workerGraceSeconds": 60, "shutdownTimeoutSeconds": 20}
    assert workers_pod(rendered(of_agent(sidecar=sidecar), shop))["terminationGracePeriodSeconds"] == 85


def test_the_sidecar_and_the_pod_settings_keep_to_the_restricted_standard(shop: Path) -> None:
    pod = workers_pod(rendered(of_agent(redis={"tls": {"existingSecret": "ca"}}), shop))
    hold_to_the_restricted_standard(pod, the_agent(pod))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_both_containers_are_told_one_emitter(shop: Path) -> None:
    pod = workers_pod(rendered({}, shop))
    agent, worker = the_agent(pod), pod["containers"][0]
    (theirs,) = [each for each in worker["env"] if each["name"] == "STEM_EMITTER"]
    assert theirs == {"name": "STEM_EMITTER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert theirs in agent["env"]


def test_other_configuration_makes_other_pods(shop: Path) -> None:
    def checksum(values: Object) -> str:
        template = one(rendered(values, shop), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/stem-agent-config"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum(of_agent(sidecar={"config": {"connectors": {"correlate": {"settle": "2s"}}}}))


def test_the_pod_mounts_the_config_map_that_the_dependency_renders(shop: Path) -> None:
    objects = rendered({}, shop)
    names = {volume["configMap"]["name"] for volume in workers_pod(objects)["volumes"] if "configMap" in volume}
    assert names == {one(objects, "ConfigMap")["metadata"]["name"]}


NATIVE_ONE: Object = {"sidecar": {"config": QUICK}}
PLAIN_ONE: Object = {
    "sidecar": {"native": False, "storage": {"enabled": True}, "config": QUICK},
    "prometheus": {"enabled": True},
}


@pytest.mark.parametrize("over", [NATIVE_ONE, PLAIN_ONE], ids=["native", "plain with a disk"])
async def test_the_sidecar_as_rendered_runs_and_its_probes_answer(
    over: Object,
    shop: Path,
    start: Start,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    redis_url: str,
    namespace: str,
    tmp_path: Path,
) -> None:
    attributes = {"deployment.environment.name": "a,b=c d+é%"}
    values = of_agent(workerNamespace=namespace, resourceAttributes=attributes, **over)
    objects = rendered(values, shop)
    spec = workers_pod(objects)
    agent = the_agent(spec)
    peers = {"redis://redis:6379/0": redis_url, "http://collector:4318": sink.url}
    pod = Pod(spec, objects, tmp_path / "volumes", peers=peers)
    running = await pod.start(start, agent)
    assert await pod.started(agent)
    assert await pod.probe(agent, "readinessProbe") == 200
    assert await pod.probe(agent, "livenessProbe") == 200
    # The worker in the pod speaks by the name that it was given; another pod's is not heard.
    emitter = pod.variables({**agent, "env": spec["containers"][0]["env"]})["STEM_EMITTER"]
    await publish(client, namespace, Story("worker-2", "pod-8", namespace).run(), emitter="pod-8")
    await publish(client, namespace, Story("worker-1", emitter, namespace).run(), emitter=emitter)
    await sink.until(lambda: len(sink.spans) == 3)
    assert await running.end(signal.SIGTERM) == 0
    resource = sink.resources["traces"]
    assert resource["k8s.pod.name"] == "pod-7"
    assert resource["k8s.namespace.name"] == "jobs"
    assert resource["k8s.node.name"] == "node-1"
    assert resource["k8s.container.name"] == "stem-agent"
    assert resource["deployment.environment.name"] == "a,b=c d+é%"


def test_under_another_name_the_agents_scope_is_handed_over(shop: Path) -> None:
    for path, old, new in (
        ("Chart.yaml", "{name: stem-agent,", "{name: stem-agent, alias: watcher,"),
        ("values.yaml", "stem-agent:\n", "watcher:\n"),
        ("templates/worker.yaml", '.Values "stem-agent"', '.Values "watcher"'),
        ("templates/worker.yaml", " . | nindent", ' (index .Subcharts "watcher") | nindent'),
    ):
        text = (shop / path).read_text(encoding="utf-8")
        assert old in text
        (shop / path).write_text(text.replace(old, new), encoding="utf-8")
    objects = rendered({"watcher": {"sidecar": {"workerGraceSeconds": 50}}}, shop)
    pod = workers_pod(objects)
    assert pod["terminationGracePeriodSeconds"] == 65
    assert {"configMap": {"name": one(objects, "ConfigMap")["metadata"]["name"]}, "name": "stem-agent-config"} in (
        pod["volumes"]
    )


def test_a_disk_for_the_sidecar_is_smaller_than_its_volume(shop: Path) -> None:
    objects = rendered(of_agent(sidecar={"storage": {"enabled": True, "maxSizeMiB": 512}}), shop)
    volumes = {volume["name"]: volume for volume in workers_pod(objects)["volumes"]}
    assert volumes["stem-agent-data"] == {"name": "stem-agent-data", "emptyDir": {"sizeLimit": "640Mi"}}
    assert "max_size: 512MiB" in one(objects, "ConfigMap")["data"]["values.yaml"]
