"""The image without a container engine: its lock, its lint, and its own build steps in an empty environment."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from agent.demo.valkey import free_port
from tests.conftest import ObservedSink
from tests.helm.charts import CHART, ROOT
from tests.integration.conftest import Start

DOCKERFILE = ROOT / "helm" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
LOCK = ROOT / "helm" / "requirements.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
HADOLINT = Path(sys.executable).with_name("hadolint")


def instruction(name: str) -> list[str]:
    """Return what an instruction of the last stage is given, each time it is there."""
    return re.findall(rf"^{name} +(.*)$", TEXT.rpartition("\nFROM ")[2], re.MULTILINE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(lock: Path) -> dict[str, str]:
    return dict(_LOCKED.findall(lock.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        (LOCK, PROJECT["project"]["dependencies"]),
        (LOCK.with_name("build-requirements.txt"), PROJECT["build-system"]["requires"]),
    ],
    ids=["image", "build"],
)
def test_the_lock_holds_what_the_project_asks_for_by_hash(lock: Path, wanted: list[str]) -> None:
    locked = versions(lock)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[canonical(requirement.name)]), requirement
    blocks = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip())
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.skipif(not HADOLINT.exists(), reason="there is no hadolint for this platform")
def test_hadolint_has_nothing_to_say() -> None:
    found = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_it_runs_as_nobody_in_particular_by_the_id_that_the_chart_says() -> None:
    assert instruction("USER") == ["10001:10001"]


def test_the_charts_version_is_the_packages() -> None:
    chart = YAML(typ="safe", pure=True).load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == PROJECT["project"]["version"]


def test_every_file_that_is_copied_is_let_through() -> None:
    let_through = {
        line[1:] for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        source
        for sources in re.findall(r"^COPY +(?!--from)(.*) \S+$", TEXT, re.MULTILINE)
        for source in sources.split()
    }
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


def build(root: Path) -> Path:
    """Do what the build stage does, by its own commands, below a directory; the interpreter is this one."""
    source, builder, target = root / "src", root / "builder", root / "opt"
    for name in ("agent", "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "helm/requirements.txt", "helm/build-requirements.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", builder], check=True)
    pip = f"{builder}/bin/python -m pip"
    subprocess.run([*pip.split(), "install", "--quiet", "--upgrade", "pip>=25.1"], check=True)
    commands = re.findall(r"^RUN +(.*)$", TEXT.rpartition("\nFROM ")[0], re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        here = re.sub(r"(?<![\w/.-])pip ", f"{pip} ", command).replace(
            "python -m venv", f"{builder}/bin/python -m venv"
        )
        here = here.replace("/opt/stem-agent", str(target))
        done = subprocess.run(["/bin/sh", "-c", here], cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return target


async def told(*command: str, **environ: str) -> tuple[int, str]:
    """Run a command, and return its exit code and what it printed."""
    pipe, silent = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=pipe, stderr=silent)
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


LIST = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"


@pytest.mark.timeout(300)
async def test_what_is_built_is_what_is_locked_and_starts_by_its_own_entry_point_and_says_how_it_is(
    tmp_path: Path, start: Start, sink: ObservedSink, redis_url: str, namespace: str
) -> None:
    installed = await asyncio.to_thread(build, tmp_path)
    _, listed = await told(f"{installed}/bin/python", "-c", LIST)
    found = {canonical(name): version for name, version in (each.split("==") for each in listed.split())}
    version = PROJECT["project"]["version"]
    assert found.pop("stem-otel-agent") == version
    locked = versions(LOCK)
    assert found
    assert {name: version for name, version in found.items() if locked.get(name) != version} == {}
    for name in ("stem-agent", "stem"):
        assert await told(f"{installed}/bin/{name}", "--version") == (0, f"stem-agent {version}\n")
    assert list(installed.rglob("agent/config/vendors/honeycomb.yaml"))

    (entry_point,), (command,), (health,) = (instruction(name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    environ = {
        "PATH": f"{installed}/bin:/usr/bin:/bin",
        "STEM_HEALTH_ENDPOINT": f"127.0.0.1:{free_port()}",
        "STEM_BROKER_URL": redis_url,
        "STEM_WORKER_NAMESPACE": namespace,
        "STEM_OTLP_ENDPOINT": sink.url,
    }
    healthy = json.loads(health.partition(" CMD ")[2])
    assert (await told(*healthy, **environ))[0] != 0
    (program,) = json.loads(entry_point)
    agent = await start(*json.loads(command), program=f"{installed}/bin/{program}", **environ)
    await agent.until("stem-agent running")
    assert await told(*healthy, **environ) == (0, "")
    assert await agent.end(signal.SIGTERM) == 0
