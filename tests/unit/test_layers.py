"""Several files and `--set` are one configuration: later ones win, and every message names the place that counts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.configuration import AgentConfig, gather, load
from agent.core.errors import ConfigError
from tests.unit.test_configuration import WORKING

Load = Callable[..., AgentConfig]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads texts as the files base.yaml, over.yaml and last.yaml."""
    monkeypatch.chdir(tmp_path)

    def load_texts(*texts: str, sets: Sequence[str] = (), environ: dict[str, str] | None = None) -> AgentConfig:
        files = [Path(name) for name, _ in zip(("base.yaml", "over.yaml", "last.yaml"), texts, strict=False)]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, encoding="utf-8")
        return load(files, environ or {}, sets=sets)

    return load_texts


def problems(loaded: Load, *texts: str, sets: Sequence[str] = (), environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        loaded(*texts, sets=sets, environ=environ)
    return [str(problem) for problem in refused.value.problems]


def exporter(config: AgentConfig) -> Any:
    return config.components["exporters"]["otlp_http"]


def receiver(config: AgentConfig) -> Any:
    return config.components["receivers"]["stem_signals"]


def test_mappings_are_merged_deep_and_the_later_file_wins(loaded: Load) -> None:
    over = "exporters:\n  otlp_http:\n    timeout: 2s\n    sending_queue: {batch: {max_items: 5}}\n"
    last = "exporters: {otlp_http: {timeout: 3s}}\n"
    found = exporter(loaded(WORKING, over, last))
    assert (found.endpoint, found.timeout, found.sending_queue.batch.max_items) == ("http://localhost:4318", 3.0, 5)


def test_lists_are_replaced_whole(loaded: Load) -> None:
    over = "exporters: {debug: }\nservice: {pipelines: {traces: {exporters: [debug]}}}\n"
    config = loaded(WORKING, over)
    assert config.service.pipelines["traces"].exporters == ("debug",)
    assert config.service.pipelines["traces"].receivers == ("correlate",)
    assert [str(warning) for warning in config.warnings] == [
        "base.yaml:6:3: exporters.otlp_http: configured, but used in no pipeline; it will not run"
    ]


def test_a_key_without_a_value_takes_back_what_was_said_below_it(loaded: Load) -> None:
    base = WORKING.replace("endpoint: ", "timeout: 2s, endpoint: ")
    assert exporter(loaded(base, "exporters:\n  otlp_http:\n")).timeout == 10.0
    assert exporter(loaded(base, "exporters:\n  otlp_http: {}\n")).timeout == 2.0


@pytest.mark.parametrize("empty", ["", "# nothing here\n"])
def test_an_empty_file_changes_nothing(loaded: Load, empty: str) -> None:
    assert exporter(loaded(WORKING, empty)).endpoint == "http://localhost:4318"
    assert exporter(loaded(empty, WORKING)).endpoint == "http://localhost:4318"


def test_each_mistake_is_told_with_the_file_that_it_is_in(loaded: Load) -> None:
    base = WORKING.replace("redis://", "amqp://")
    over = "exporters:\n  otlp_http:\n    timeuot: 1s\n"
    assert [line.partition(": found")[0].partition(": unknown")[0] for line in problems(loaded, base, over)] == [
        "base.yaml:2:23: receivers.stem_signals.url",
        "over.yaml:3:5: exporters.otlp_http.timeuot",
    ]


def test_what_a_later_file_mends_is_no_mistake(loaded: Load) -> None:
    base = WORKING.replace("http://localhost:4318", "${env:NOT_SET}").replace("[otlp_http]", "[otlp_htp]")
    over = "exporters: {otlp_http: {endpoint: 'http://h:1'}}\nservice: {pipelines: {traces: {exporters: [otlp_http]}}}"
    assert exporter(loaded(base, over)).endpoint == "http://h:1"


def test_a_file_that_is_no_mapping_is_told(loaded: Load) -> None:
    assert problems(loaded, WORKING, "- a\n") == [
        "over.yaml:1:1: found no mapping, expected keys such as receivers, exporters and service"
    ]


def test_files_that_cannot_be_read_are_all_told() -> None:
    with pytest.raises(ConfigError) as refused:
        load([Path("/nowhere/a.yaml"), Path("/nowhere/b.yaml")], {})
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    ("assignment", "namespace"),
    [
        ("receivers.stem_signals.namespace=shop", "shop"),
        ("receivers.stem_signals={namespace: shop}", "shop"),
        ("receivers.stem_signals.namespace='a=b'", "a=b"),
        ("receivers.stem_signals.namespace=0123", "0123"),
        ("receivers.stem_signals.namespace=${env:NS:-other}", "shop"),
        ("receivers.stem_signals.namespace=$$x", "$x"),
    ],
)
def test_set_goes_over_every_file(loaded: Load, assignment: str, namespace: str) -> None:
    over = "receivers: {stem_signals: {namespace: over}}"
    found = receiver(loaded(WORKING, over, sets=[assignment], environ={"NS": "shop"}))
    assert (found.namespace, found.url.address) == (namespace, "localhost:6379")


def test_the_later_set_wins_and_lists_are_yaml(loaded: Load) -> None:
    sets = ["receivers.stem_signals.emitters=[a]", "receivers.stem_signals.emitters=[b, c]"]
    assert receiver(loaded(WORKING, sets=sets)).emitters == ("b", "c")


def test_set_makes_what_is_not_there(loaded: Load) -> None:
    sets = ["exporters.debug=", "service.pipelines.logs={receivers: [correlate], exporters: [debug]}"]
    assert loaded(WORKING, sets=sets).service.pipelines["logs"].exporters == ("debug",)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        (
            "receivers.stem_signals.namespase=x",
            "--set receivers.stem_signals.namespase: unknown key; did you mean 'namespace'?",
        ),
        (
            "connectors.correlate.settle=soon",
            "--set connectors.correlate.settle: found 'soon', expected a duration such as 250ms",
        ),
        (
            "connectors.correlate={logs: {min_severity: LOUD}}",
            "--set connectors.correlate: connectors.correlate.logs.min_severity: found 'LOUD', expected TRACE",
        ),
        ("service.pipelines.traces.exporters=[x]", "--set service.pipelines.traces.exporters: service.pipelines.tr"),
        ("connectors.correlate.settle=[", "--set connectors.correlate.settle: not valid YAML: "),
        ("connectors.correlate.settle={a: 1, a: 2}", "--set connectors.correlate.settle: connectors.correlate.settle"),
        ("connectors.correlate.settle", "--set: found 'connectors.correlate.settle', expected KEY=VALUE"),
        ("connectors..settle=1s", "--set: found 'connectors..settle', expected KEY=VALUE"),
        ("=1s", "--set: found '', expected KEY=VALUE"),
        ("receivers.stem_signals.url=${env:NONE}", "--set receivers.stem_signals.url: environment variable NONE is no"),
    ],
)
def test_a_mistake_in_a_flag_names_the_flag(loaded: Load, assignment: str, expected: str) -> None:
    told = problems(loaded, WORKING, sets=[assignment])
    assert told[0].startswith(expected), told


def test_no_message_about_a_flag_shows_what_may_be_secret(loaded: Load) -> None:
    for assignment in (
        "receivers.stem_signals.url=redis://u:hunter2@h:x",
        "exporters.otlp_http.headers={api-key: [hunter2]}",
        "exporters.otlp_http.proxy_url=hunter2",
    ):
        assert "hunter2" not in "\n".join(problems(loaded, WORKING, sets=[assignment]))


def test_a_default_of_a_variable_is_not_shown(loaded: Load) -> None:
    text = WORKING.replace("redis://localhost:6379/0", "${env:BROKER:-amqp://u:hunter2@h}")
    (told,) = problems(loaded, text)
    assert "found '${env:BROKER}' (as substituted), expected a URL such as" in told
    (told,) = problems(loaded, text.replace("${env", "amqp:hunter2@${env"))
    assert "hunter2" not in told


def test_set_goes_over_what_variables_chose_without_a_file() -> None:
    document = gather(None, {"STEM_METRIC_EXPORTERS": "otlp:http://h/$x"})
    assert document.root["exporters"]["otlp_http"]["metrics_endpoint"] == "http://h/$x"
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    config = load(None, environ, sets=["service.pipelines.traces.exporters=[debug]", "exporters.debug={}"])
    assert config.service.pipelines["traces"].exporters == ("debug",)
    assert config.service.pipelines["logs"].exporters == ("otlp_grpc",)
