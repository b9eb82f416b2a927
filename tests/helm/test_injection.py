"""Injection without a webhook: the policy's expressions are evaluated on pods, and the pod that comes out runs."""

import signal
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from helm_python import HelmRenderError

from tests.conftest import ObservedSink
from tests.helm.charts import (
    LEAST,
    NEWEST,
    Object,
    hold_to_kubernetes,
    hold_to_the_restricted_standard,
    merged,
    one,
    rendered,
    the_agent,
)
from tests.helm.pods import Pod
from tests.helm.policies import admitted, types
from tests.integration.conftest import Start
from tests.integration.test_whole_path import publish
from tests.support import Story

V1 = "admissionregistration.k8s.io/v1"


def injecting(over: Object | None = None, **settings: Any) -> list[Object]:
    values = {"sidecar": {"enabled": False}, "injection": {"enabled": True, "apiVersion": V1, **settings}}
    return rendered(merged(merged(LEAST, values), over or {}))


def policy(over: Object | None = None) -> Object:
    return one(injecting(over), "MutatingAdmissionPolicy")


def pod(*containers: Object, inject: str | None = "true", **spec: Any) -> Object:
    annotations = {"metadata": {"name": "pod-7", "annotations": {"stem-agent/inject": inject}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        **(annotations if inject else {"metadata": {"name": "pod-7"}}),
        "spec": {"containers": [*(containers or [{"name": "worker", "image": "shop/worker"}])], **spec},
    }


EMITTER = {"name": "STEM_EMITTER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_kubernetes_takes_the_policy_and_its_binding(version: str) -> None:
    objects = injecting(apiVersion=f"admissionregistration.k8s.io/{version}")
    assert [each["kind"] for each in objects] == ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"]
    assert objects[1]["spec"]["policyName"] == objects[0]["metadata"]["name"]
    hold_to_kubernetes(objects, NEWEST)


@pytest.mark.parametrize(
    "asked",
    [
        pod(),
        pod(initContainers=[{"name": "migrate", "image": "shop/migrate"}]),
        pod(
            {"name": "worker", "image": "shop/worker", "env": [{"name": "A", "value": "b"}]},
            {"name": "b", "image": "b"},
        ),
    ],
)
def test_a_pod_that_asks_for_the_agent_gets_it_first_and_its_containers_the_emitter(asked: Object) -> None:
    made = admitted(policy(), asked)
    hold_to_kubernetes([made], NEWEST)
    spec = made["spec"]
    assert spec["initContainers"][0]["name"] == "stem-agent"
    assert spec["initContainers"][0]["restartPolicy"] == "Always"
    assert spec["initContainers"][1:] == asked["spec"].get("initContainers", [])
    for before, after in zip(asked["spec"]["containers"], spec["containers"], strict=True):
        assert after == {**before, "env": [EMITTER, *before.get("env", ())]}
    hold_to_the_restricted_standard(spec, the_agent(spec))


@pytest.mark.parametrize("inject", [None, "false", "TRUE"])
def test_a_pod_that_does_not_ask_is_left_alone(inject: str | None) -> None:
    assert admitted(policy(), pod(inject=inject)) == pod(inject=inject)


def test_a_pod_gets_no_second_agent() -> None:
    made = admitted(policy(), pod())
    assert admitted(policy(), made) == made
    plain = pod({"name": "worker", "image": "w"}, {"name": "stem-agent", "image": "a"})
    assert admitted(policy(), plain) == plain


def test_an_emitter_that_a_container_has_is_left_alone() -> None:
    own = {"name": "worker", "image": "w", "env": [{"name": "STEM_EMITTER", "value": "mine"}]}
    assert admitted(policy(), pod(own))["spec"]["containers"] == [own]


def test_each_type_is_a_path_in_the_pod() -> None:
    over = {"resourceAttributes": {"a": "b"}, "prometheus": {"enabled": True}}
    made = admitted(policy(over), pod())

    def there(at: Any, path: list[str]) -> bool:
        if isinstance(at, list):
            return any(there(each, path) for each in at)
        return not path or (path[0] in at and there(at[path[0]], path[1:]))

    named = {name for each in policy(over)["spec"]["mutations"] for name in types(each["jsonPatch"]["expression"])}
    assert "Object.spec.initContainers.env.valueFrom.fieldRef" in named
    assert [name for name in named if not there(made, name.split(".")[1:])] == []


def test_quotes_and_backslashes_arrive_as_they_are() -> None:
    variable = {"name": "ODD", "value": 'a "b" \\ <c>\n{d: e} é'}
    assert variable in the_agent(admitted(policy({"env": [variable]}), pod())["spec"])["env"]


def test_quantities_are_plain_maps_of_texts_for_their_keys_need_not_be_names() -> None:
    limits = {"memory": "192Mi", "cpu": 2, "ephemeral-storage": "1Gi"}
    over = {"sidecar": {"resources": {"limits": limits}}}
    made = the_agent(admitted(policy(over), pod())["spec"])
    assert made["resources"]["limits"] == {"memory": "192Mi", "cpu": "2", "ephemeral-storage": "1Gi"}


def test_only_named_namespaces_may_ask() -> None:
    def names(objects: list[Object]) -> Any:
        constraints = one(objects, "MutatingAdmissionPolicy")["spec"]["matchConstraints"]
        return constraints["namespaceSelector"]["matchExpressions"][0]["values"]

    assert names(injecting()) == ["jobs"]
    assert names(injecting(namespaces=["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"injection": {"apiVersion": ""}}, "injection.enabled needs a cluster that serves MutatingAdmissionPolicy"),
        ({"vendor": "honeycomb", "vendorSecret": "k"}, "vendor and injection.enabled contradict each other"),
        ({"redis": {"tls": {"existingSecret": "pems"}}}, "redis.tls.existingSecret and injection.enabled contradict"),
        ({"sidecar": {"config": {"a": 1}}}, "sidecar.config and injection.enabled contradict each other"),
        ({"sidecar": {"storage": {"enabled": True}}}, "sidecar.storage.enabled and injection.enabled contradict"),
        ({"sidecar": {"native": False}}, "sidecar.native is false, and injection.enabled adds a native sidecar"),
    ],
)
def test_what_an_injected_agent_cannot_have_is_refused(over: Object, words: str) -> None:
    with pytest.raises(HelmRenderError) as refused:
        injecting(over)
    assert words in str(refused.value)


async def test_the_injected_agent_runs_by_its_variables_alone(
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
    spec = admitted(policy(over), pod())["spec"]
    agent = the_agent(spec)
    made = Pod(spec, [], tmp_path, {"redis": {"broker-url": redis_url}}, {"http://collector:4318": sink.url})
    running = await made.start(start, agent)
    assert await made.started(agent)
    assert await made.probe(agent, "readinessProbe") == 200
    assert await made.probe(agent, "livenessProbe") == 200
    await publish(client, namespace, Story("worker-1", "pod-7", namespace).run(), emitter="pod-7")
    await sink.until(lambda: len(sink.spans) == 3)
    assert "stem_agent_" in await made.get(agent, "metrics", "/metrics/agent")
    assert await running.end(signal.SIGTERM) == 0
    assert sink.resources["traces"]["k8s.pod.name"] == "pod-7"
