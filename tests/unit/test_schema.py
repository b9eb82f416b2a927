"""The schema that editors use says what the agent says: it knows every key, type and choice."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from typer.testing import CliRunner

from agent.cli import app
from agent.configuration import parse
from agent.core.errors import ConfigError
from agent.registry import SECTIONS
from agent.schema import FILE, schema, text
from tests.unit.test_configuration import WORKING

ROOT = Path(__file__).parents[2]
SAMPLES = [file for file in sorted((ROOT / "config").rglob("*.yaml")) if not file.name.endswith(".collector.yaml")]
IN_README = [
    block
    for block in re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    if "pipelines:" in block and block.startswith("receivers:")
]


def told(yaml: str) -> list[str]:
    """Return what an editor would say: paths and messages, deepest first."""
    document: Any = YAML(typ="safe", pure=True).load(yaml)
    validator = Draft202012Validator(json.loads(FILE.read_text(encoding="utf-8")))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(document)]


def test_it_is_a_valid_schema_and_the_file_is_up_to_date() -> None:
    Draft202012Validator.check_schema(schema())
    assert FILE.read_text(encoding="utf-8") == text()
    assert CliRunner().invoke(app, ["config", "schema"]).output == text()


@pytest.mark.parametrize("sample", SAMPLES, ids=[str(sample.relative_to(ROOT)) for sample in SAMPLES])
def test_a_sample_file_is_valid_and_its_first_line_leads_to_the_schema(sample: Path) -> None:
    yaml = sample.read_text(encoding="utf-8")
    assert told(yaml) == []
    modeline = re.match(r"# yaml-language-server: \$schema=(\S+)\n", yaml)
    assert modeline
    assert (sample.parent / modeline[1]).resolve() == FILE.resolve()


@pytest.mark.parametrize("yaml", IN_README)
def test_what_the_readme_shows_is_valid(yaml: str) -> None:
    assert told(yaml) == []


def test_the_readme_shows_something() -> None:
    assert IN_README


VARIED = """\
receivers:
  stem_signals/a: {url: "${env:URL}", backlog: 4096, max_payload: "${SIZE:-1MiB}", emitters: [1, b], namespace: 0123}
  stem_state:
connectors:
  correlate: {settle: 0, wait_spans: "${env:WAIT:-true}", keep: {ratio: 0.5, slow: 0}, logs: , max_tasks: "${N:-5}"}
processors:
  resource: {set: {a: 1, b: true}, remove: [c]}
exporters:
  otlp_http: {headers: {x-id: 5, key: {file: /key}}, traces: {timeout: 1h30m}, sending_queue: {queue_size: 5 MiB}}
  otlp_grpc: {headers: "${env:HEADERS:-a=b}", endpoint: "h:4317", compression: "${C:-gzip}"}
  debug:
extensions:
  health: {endpoint: "${env:POD_IP:-127.0.0.1}:13133"}
  memory_limiter: {limit_percentage: 80}
service:
  extensions: [health, memory_limiter]
  telemetry: {logs: {level: DEBUG}}
  pipelines:
    signals: {receivers: [stem_signals/a, stem_state], exporters: [correlate]}
    traces/x: {receivers: [correlate], processors: [resource], exporters: [otlp_http, otlp_grpc, debug]}
"""


def test_what_the_agent_takes_the_schema_takes() -> None:
    parse(VARIED, {"URL": "redis://h"})
    assert told(VARIED) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("endpoint:", "endpont:", "exporters.otlp_http: Additional properties are not allowed ('endpont' was"),
        ("exporters:\n", "exportes:\n", ": Additional properties are not allowed ('exportes' was unexpected)"),
        ("otlp_http: {", "otlp_htp: {", "exporters: 'otlp_htp' does not match any of the regexes"),
        ("otlp_http: {", "otlp_http/: {", "exporters: 'otlp_http/' does not match any of the regexes"),
        ("    traces:", "    spans:", "service.pipelines: 'spans' does not match any of the regexes"),
        ("  correlate:\n", "  correlate: {settle: 1 second}\n", "connectors.correlate.settle: '1 second' is not valid"),
        ("  correlate:\n", "  correlate: {settle: 5}\n", "connectors.correlate.settle: 5 is not valid under any of"),
        ("  correlate:\n", "  correlate: {wait_spans: 5}\n", "connectors.correlate.wait_spans: 5 is not valid under"),
        ("  correlate:\n", "  correlate: {max_tasks: 0}\n", "connectors.correlate.max_tasks: 0 is not valid under any"),
        ("  correlate:\n", "  correlate: {span_name: no}\n", "connectors.correlate.span_name: 'no' is not valid under"),
        ("  correlate:\n", "  correlate: {logs: [DEBUG]}\n", "connectors.correlate.logs: ['DEBUG'] is not of type"),
        ("redis://", "http://", "receivers.stem_signals.url: 'http://localhost:6379/0' is not valid under any of the"),
        ("[otlp_http]", "otlp_http", "service.pipelines.traces.exporters: 'otlp_http' is not of type 'array'"),
        ("exporters: [otlp_http]", "processors: []", "service.pipelines.traces: 'exporters' is a required property"),
        ("exporters: [otlp_http]", "exporters: []", "service.pipelines.traces.exporters: [] should be non-empty"),
        (WORKING[WORKING.index("service:") :], "", ": 'service' is a required property"),
    ],
)
def test_what_the_agent_refuses_by_itself_the_schema_refuses(old: str, new: str, expected: str) -> None:
    yaml = WORKING.replace(old, new)
    assert yaml != WORKING
    with pytest.raises(ConfigError):
        parse(yaml, {})
    assert [line for line in told(yaml) if line.startswith(expected)], told(yaml)


def test_every_option_is_described() -> None:
    found = schema()["$defs"]
    bare = {
        f"{name}.{option}"
        for name, definition in found.items()
        for option, each in definition.get("properties", {}).items()
        if not each.get("description")
    }
    assert bare == set()
    assert set(schema()["properties"]) == {*SECTIONS, "service"}
