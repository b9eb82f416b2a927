"""Starts a rendered container as a process of this machine, and asks its probes as the kubelet does.

What a container has by mounts, a process has by paths: each volume is a directory below a temporary one, and its mount
path is replaced by that directory wherever it stands, in arguments, variables and mounted files. Each pod has an
address of its own in 127.0.0.0/8, so that ports stay as they are rendered.
"""

import asyncio
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.helm.charts import Object
from tests.integration.conftest import Child, Start

_FIELDS = {
    "metadata.name": "pod-7",
    "metadata.uid": "0f6e2a52-6f8e-4d7e-9a51-0a4a3c1d2e3f",
    "metadata.namespace": "jobs",
    "spec.nodeName": "node-1",
}


def _loopback() -> str:
    return f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(2, 254)}"


@dataclass
class Pod:
    """A pod's surroundings: its objects, the secrets of its namespace, what its peers' names stand for."""

    spec: Object
    objects: list[Object]
    directory: Path
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    address: str = field(default_factory=_loopback)

    async def start(self, start: Start, container: Object) -> Child:
        """Start a container; its image's entry point is `stem-agent`."""
        arguments, environ = self.process(container)
        return await start(*arguments, **environ)

    def process(self, container: Object) -> tuple[list[str], dict[str, str]]:
        """Mount a container's volumes, and return its arguments and variables."""
        assert "command" not in container
        environ = self.variables(container)
        arguments = [self._local(container, _expanded(each, environ)) for each in container["args"]]
        self._mount(container)
        return arguments, {name: self._local(container, value) for name, value in environ.items()}

    def variables(self, container: Object) -> dict[str, str]:
        """Return the variables as the kubelet makes them: envFrom first, `$(NAME)` from those before it."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= self.secrets[source["secretRef"]["name"]]
        for each in container["env"]:
            found[each["name"]] = (
                _expanded(each["value"], found) if "value" in each else self._source(each["valueFrom"])
            )
        return found

    def _source(self, source: Mapping[str, Any]) -> str:
        (kind,) = source
        if kind in {"secretKeyRef", "configMapKeyRef"}:
            return self.secrets[source[kind]["name"]][source[kind]["key"]]
        assert kind == "fieldRef", source
        path = source[kind]["fieldPath"]
        return self.address if path == "status.podIP" else _FIELDS[path]

    def _path(self, volume: str) -> Path:
        path = self.directory / volume
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _local(self, container: Object, text: str) -> str:
        for mount in container.get("volumeMounts", ()):
            text = text.replace(mount["mountPath"], str(self._path(mount["name"])))
        for name, address in self.peers.items():
            text = text.replace(name, address)
        return text

    def _mount(self, container: Object) -> None:
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            volume = volumes.get(mount["name"], {"claimed": {}})
            for name, text in self._files(volume).items():
                (self._path(mount["name"]) / name).write_text(self._local(container, text), encoding="utf-8")

    def _files(self, volume: Mapping[str, Any]) -> Mapping[str, str]:
        if wanted := volume.get("configMap"):
            (found,) = [
                each["data"]
                for each in self.objects
                if each["kind"] == "ConfigMap" and each["metadata"]["name"] == wanted["name"]
            ]
            return dict(found)
        return self.secrets[volume["secret"]["secretName"]] if "secret" in volume else {}

    async def probe(self, container: Object, name: str) -> int:
        """Ask a probe once, and return the status, or 0 where nothing listens."""
        probe = container[name]["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        url = f"http://{self.address}:{ports[probe['port']]}{probe['path']}"
        timeout = aiohttp.ClientTimeout(total=container[name].get("timeoutSeconds", 1))
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
                return answer.status
        except aiohttp.ClientConnectionError:
            return 0

    async def get(self, container: Object, port: str, path: str) -> str:
        """Return what a named port answers."""
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        url = f"http://{self.address}:{ports[port]}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.text()

    async def started(self, container: Object) -> bool:
        """Ask the startup probe as often as it says, and tell whether it succeeded before the pod would be killed."""
        probe = container["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            if await self.probe(container, "startupProbe") == 200:
                return True
            await asyncio.sleep(probe["periodSeconds"])
        return False


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environ.get(match[1], match[0]), text)
