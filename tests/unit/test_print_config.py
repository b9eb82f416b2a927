"""What `print-config` and `components` print: the configuration that counts, where it comes from, and no secret."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.cli import app
from agent.configuration import check, gather, parse
from agent.printing import printed
from agent.registry import SECTIONS
from agent.settings.document import Document
from tests.unit.test_configuration import WORKING
from tests.unit.test_schema import VARIED

SECRET = "hunter2"


def run(*arguments: str, environ: dict[str, str] | None = None) -> Result:
    names = ("STEM_BROKER_URL", "STEM_WORKER_NAMESPACE", "STEM_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS")
    return CliRunner().invoke(app, list(arguments), env=dict.fromkeys(names) | (environ or {}))


def of(text: str, environ: dict[str, str], tmp_path: Path, *sets: str) -> str:
    file = tmp_path / "agent.yaml"
    file.write_text(text, encoding="utf-8")
    document = gather(file, environ, sets=sets)
    return printed(check(document, environ), document).replace(f"{tmp_path}/", "")


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return " ".join(line.split())


def test_each_value_has_its_origin(tmp_path: Path) -> None:
    environ = {"STEM_WORKER_NAMESPACE": "shop", "OTEL_EXPORTER_OTLP_TIMEOUT": "1500", "HOST": "h"}
    text = WORKING.replace("redis://localhost:6379/0", "redis://${env:HOST}:${env:PORT:-1}")
    told = of(text, environ, tmp_path, "connectors.correlate.settle=250ms")
    assert line_of(told, "url: redis://h") == (
        "url: redis://h:1/0 # agent.yaml:2, environment variable HOST, default of ${env:PORT}"
    )
    assert line_of(told, "namespace: shop") == "namespace: shop # environment variable STEM_WORKER_NAMESPACE"
    assert line_of(told, "timeout: 1500ms") == "timeout: 1500ms # environment variable OTEL_EXPORTER_OTLP_TIMEOUT"
    assert line_of(told, "settle:") == "settle: 250ms # --set connectors.correlate.settle"
    assert line_of(told, "settled_ttl:") == "settled_ttl: 1m # default"
    assert line_of(told, "receivers: [stem_signals]") == "receivers: [stem_signals] # agent.yaml:9"


@pytest.mark.parametrize("text", [WORKING, VARIED], ids=["plain", "varied"])
def test_what_is_printed_is_the_same_configuration(text: str, tmp_path: Path) -> None:
    environ = {"URL": "redis://h", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://$collector:4318"}
    told = of(text, environ, tmp_path).replace('"***"', "a")
    first, again = parse(text, environ), parse(told, {})
    assert repr(again.components) == repr(first.components)
    assert again.service == first.service
    assert "# default" not in of(told, {}, tmp_path)


def test_text_that_yaml_would_take_for_something_else_is_quoted(tmp_path: Path) -> None:
    odd = [
        "null",
        "",
        "~",
        "- a",
        "a: b",
        "a #b",
        "*a",
        "&a",
        "a'b",
        'a"b',
        "$x",
        "${x}",
        "[a]",
        " a",
        "a:",
        "é",
        "ü\n",
    ]
    text = WORKING.replace("service:\n", "processors: {resource: {set: {}}}\nservice:\n")
    for value in odd:
        config = parse(text, {})
        config.components["processors"]["resource"].set["k"] = value  # type: ignore[attr-defined]
        document = gather_text(text, tmp_path)
        again = parse(printed(config, document), {})
        assert again.components["processors"]["resource"].set == {"k": value}  # type: ignore[attr-defined]


def gather_text(text: str, tmp_path: Path) -> Document:
    file = tmp_path / "agent.yaml"
    file.write_text(text, encoding="utf-8")
    return gather(file, {})


def test_no_secret_is_printed(tmp_path: Path) -> None:
    options = (
        'endpoint: "https://h/x?key=hunter2", headers: {api-key: hunter2, a: {file: /hidden}}, '
        'proxy_url: "http://u:hunter2@p:1"'
    )
    text = WORKING.replace("redis://", "redis://u:hunter2@").replace('endpoint: "http://localhost:4318"', options)
    text = text.replace("correlate:\n", "correlate: {results: {url: '${env:R:-redis://:hunter2@r}'}}\n", 1)
    file = tmp_path / "agent.yaml"
    file.write_text(text, encoding="utf-8")
    result = run("print-config", "-c", str(file), "--set", "exporters.otlp_http.traces.headers={b: hunter2}")
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert 'url: "redis://u:***@localhost:6379/0"' in result.output
    assert "file: /hidden" in result.output


def test_headers_of_a_variable_are_hidden_and_their_variable_is_named() -> None:
    result = run("print-config", environ={"OTEL_EXPORTER_OTLP_HEADERS": "api-key=hunter2"})
    assert SECRET not in result.output
    assert line_of(result.output, "api-key:") == 'api-key: "***" # environment variable OTEL_EXPORTER_OTLP_HEADERS'


def test_what_a_variable_chose_without_a_file_is_told() -> None:
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "STEM_METRIC_EXPORTERS": "console"}
    told = run("print-config", environ=environ).output
    assert "exporters: [otlp_grpc]" in told
    assert "# environment variable OTEL_EXPORTER_OTLP_PROTOCOL" in told
    assert told.count("# environment variable STEM_METRIC_EXPORTERS\n") == 1


def test_a_broken_configuration_is_told_and_not_printed() -> None:
    result = run("print-config", "--set", "exporters.otlp_http.timeuot=1s")
    assert result.exit_code == 78
    assert result.stdout == ""
    assert "error: --set exporters.otlp_http.timeuot: unknown key; did you mean 'timeout'?" in result.stderr


def test_components_lists_every_type_in_one_line() -> None:
    lines = run("components").output.splitlines()
    for section, types in SECTIONS.items():
        assert f"{section}:" in lines
        for name in types:
            (line,) = [line for line in lines if line.split()[0] == name]
            assert len(line.split()) > 2
    assert lines[-1] == "pipelines: signals, traces, metrics, logs"
