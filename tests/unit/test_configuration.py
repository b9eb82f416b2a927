"""Configuration: everything wrong is told at once, with place, path, found, expected and nearest."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from agent.configuration import default_file, load, parse
from agent.core.errors import ConfigError
from agent.exporters.otlp.headers import read_headers
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.otlp.batch import Kind
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.settings.resource import ResourceError, detect_resource, parse_attributes
from agent.settings.types import HostPort, RedisUrl, parse_duration, parse_listen_address, parse_size

WORKING = """\
receivers:
  stem_signals: {url: "redis://localhost:6379/0"}
connectors:
  correlate:
exporters:
  otlp_http: {endpoint: "http://localhost:4318"}
service:
  pipelines:
    signals: {receivers: [stem_signals], exporters: [correlate]}
    traces: {receivers: [correlate], exporters: [otlp_http]}
"""


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse(text, environ or {}, "agent.yaml")
    return [str(problem) for problem in refused.value.problems]


def problem(text: str, environ: dict[str, str] | None = None) -> str:
    (only,) = problems(text, environ)
    return only


def replaced(old: str, new: str) -> str:
    assert old in WORKING
    return WORKING.replace(old, new)


def test_a_working_file_has_typed_values_and_defaults() -> None:
    config = parse(WORKING, {})
    receiver = config.components["receivers"]["stem_signals"]
    assert isinstance(receiver, StemSignalsConfig)
    assert (receiver.url.address, receiver.namespace, receiver.backlog) == ("localhost:6379", "stem", 256 << 20)
    assert config.warnings == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "endpoint:",
            "endpont:",
            "agent.yaml:6:15: exporters.otlp_http.endpont: unknown key; did you mean 'endpoint'?",
        ),
        (
            "  correlate:\n",
            "  correlate: {settle: 1 second}\n",
            "agent.yaml:4:23: connectors.correlate.settle: found '1 second', "
            "expected a duration such as 250ms, 10s, 5m or 1h30m",
        ),
        (
            "  correlate:\n",
            "  correlate: {wait_spans: yes}\n",
            "agent.yaml:4:27: connectors.correlate.wait_spans: found 'yes', expected true or false",
        ),
        (
            "  correlate:\n",
            "  correlate: {max_tasks: 0}\n",
            "agent.yaml:4:26: connectors.correlate.max_tasks: found '0', expected more than 0",
        ),
        (
            "  correlate:\n",
            "  correlate: {logs: [DEBUG]}\n",
            "agent.yaml:4:21: connectors.correlate.logs: found a list, expected a mapping",
        ),
        (
            "otlp_http: {endpoint",
            "otlp_htp: {endpoint",
            "agent.yaml:6:3: exporters.otlp_htp: unknown exporter; did you mean 'otlp_http'?",
        ),
        (
            "signals: {receivers: [stem_signals]",
            "signals: {receivers: [stem_signal]",
            "agent.yaml:9:27: service.pipelines.signals.receivers[0]: found 'stem_signal', "
            "which is not configured under receivers; did you mean 'stem_signals'?",
        ),
        (
            "traces: {receivers: [correlate]",
            "traces: {receivers: [stem_signals]",
            "agent.yaml:10:26: service.pipelines.traces.receivers[0]: found 'stem_signals', "
            "which begins a signals pipeline; traces begin at a connector",
        ),
        (
            "    traces:",
            "    spans:",
            "agent.yaml:10:5: service.pipelines.spans: unknown kind of pipeline",
        ),
        (
            "redis://localhost:6379/0",
            "redis://localhost:port/0",
            "agent.yaml:2:23: receivers.stem_signals.url: found 'redis://localhost:port/0', expected a URL such as",
        ),
        (
            "http://localhost:4318",
            "http://localhost:4318/v1/traces",
            "agent.yaml:6:25: exporters.otlp_http.endpoint: found 'http://localhost:4318/v1/traces', "
            "expected a base URL such as http://localhost:4318",
        ),
        (
            "exporters: [otlp_http]",
            "exporters: [otlp_http, otlp_http]",
            "agent.yaml:10:61: service.pipelines.traces.exporters[1]: found 'otlp_http' twice",
        ),
        (
            "service:",
            "service:\n  telemetry: {metrics: {exporter: otlp_htp}}",
            "agent.yaml:8:35: service.telemetry.metrics.exporter: found 'otlp_htp', "
            "expected the id of an otlp_http or otlp_grpc; did you mean 'otlp_http'?",
        ),
        (
            'endpoint: "http://localhost:4318"',
            'headers: {api-key: "hunter2\\n"}',
            "agent.yaml:6:34: exporters.otlp_http.headers.api-key: found a value (not shown: it may be secret), "
            "expected a value without line breaks",
        ),
        (
            "exporters: [otlp_http]",
            "exporters: [prometheus]",
            "agent.yaml:10:50: service.pipelines.traces.exporters[0]: found 'prometheus', "
            "which is not configured under exporters",
        ),
        (
            '  otlp_http: {endpoint: "http://localhost:4318"}\n',
            '  prometheus: {basic_auth: {username: me}}\n  otlp_http: {endpoint: "http://localhost:4318"}\n',
            "agent.yaml:6:28: exporters.prometheus.basic_auth: found a mapping, "
            "expected both a username and a password",
        ),
        (
            "service:",
            "service:\n  extensions: [health]",
            "agent.yaml:8:16: service.extensions[0]: found 'health', which is not configured under extensions",
        ),
    ],
)
def test_each_mistake_names_its_place_and_its_remedy(old: str, new: str, expected: str) -> None:
    told = problems(replaced(old, new))
    assert any(line.startswith(expected) for line in told), told


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        replaced("redis://", "rediss:").replace("endpoint:", "endpont:").replace("[correlate], exp", "[corelate], exp")
    )
    told = problems(text)
    assert [line.split(": ")[1] for line in told] == [
        "receivers.stem_signals.url",
        "exporters.otlp_http.endpont",
        "service.pipelines.traces.receivers[0]",
    ]


def test_a_connector_must_be_used_on_both_sides() -> None:
    text = WORKING[: WORKING.index("    traces:")]
    assert "connectors.correlate: used as one of the exporters, but in no pipeline as one of the receivers" in problem(
        text
    )


def test_a_component_that_nothing_uses_is_a_warning() -> None:
    config = parse(replaced("exporters:\n", "exporters:\n  debug:\n"), {}, "agent.yaml")
    (warning,) = config.warnings
    assert str(warning) == "agent.yaml:6:3: exporters.debug: configured, but used in no pipeline; it will not run"


def test_a_key_given_twice_is_an_error() -> None:
    text = replaced("exporters:\n", "exporters:\n  otlp_http:\n")
    assert "agent.yaml:7:3: exporters.otlp_http: duplicate key; first given in line 6" in problem(text)


@pytest.mark.parametrize("text", ["", "# nothing", "- a\n- b", "just text", "5"])
def test_a_file_without_a_mapping_says_what_it_should_have(text: str) -> None:
    assert "expected the keys receivers, connectors, exporters and service" in problem(text)


@pytest.mark.parametrize("text", ["a: [1", "a: 'x", "\ta: 1", "a: b: c", "a: *nowhere"])
def test_broken_yaml_is_told_with_its_place(text: str) -> None:
    told = problem(text)
    assert told.startswith("agent.yaml:")
    assert "not valid YAML" in told or "expected" in told


def test_yaml_nested_without_end_is_told() -> None:
    assert "nested too deeply" in problem("[" * 3000)
    assert "nested too deeply" in problem("".join("{a: " for _ in range(3000)))


def test_an_alias_to_itself_is_told() -> None:
    assert any("refers to the very thing" in line for line in problems("receivers: &r\n  a: *r\n"))


def test_variables_are_substituted_in_values_once() -> None:
    text = replaced("http://localhost:4318", "${env:HOST_URL}").replace(
        "correlate:\n", "correlate: {settle: '${SETTLE:-250ms}'}\n", 1
    )
    config = parse(text, {"HOST_URL": "http://collector:4318", "OTHER": "x"})
    exporter = config.components["exporters"]["otlp_http"]
    assert isinstance(exporter, OtlpHttpConfig)
    assert exporter.endpoint == "http://collector:4318"
    assert getattr(config.components["connectors"]["correlate"], "settle") == 0.25  # noqa: B009 - typed as Config


def test_a_substituted_value_is_not_substituted_again_and_adds_no_structure() -> None:
    text = replaced('{url: "redis://localhost:6379/0"}', "{namespace: '${env:NS}'}")
    config = parse(text, {"NS": "${env:OTHER}, emitters: [x]", "OTHER": "y"})
    receiver = config.components["receivers"]["stem_signals"]
    assert isinstance(receiver, StemSignalsConfig)
    assert receiver.namespace == "${env:OTHER}, emitters: [x]"
    assert receiver.emitters == ()


def test_two_dollar_signs_are_one() -> None:
    config = parse(replaced('{url: "redis://localhost:6379/0"}', "{namespace: 'a$$b'}"), {})
    assert getattr(config.components["receivers"]["stem_signals"], "namespace") == "a$b"  # noqa: B009


@pytest.mark.parametrize(("environ", "state"), [({}, "not set"), ({"URL": ""}, "empty")])
def test_a_variable_without_value_or_default_is_an_error(environ: dict[str, str], state: str) -> None:
    told = problem(replaced("http://localhost:4318", "${env:URL}"), environ)
    assert told.startswith(f"agent.yaml:6:25: exporters.otlp_http.endpoint: environment variable URL is {state}")


def test_text_stays_text_where_text_is_wanted() -> None:
    config = parse(replaced('{url: "redis://localhost:6379/0"}', "{namespace: 0123}"), {})
    assert getattr(config.components["receivers"]["stem_signals"], "namespace") == "0123"  # noqa: B009


SECRET = "hunter2"


@pytest.mark.parametrize(
    "options",
    [
        "{url: 'redis://user:hunter2@localhost:x'}",
        "{url: 'http://user:hunter2@localhost'}",
        "{backlog: '${env:SECRET}'}",
        "{url: '${env:SECRET}'}",
        "{url: 'redis//:hunter2'}",
        "{url: 'ftp://host?key=hunter2'}",
    ],
)
def test_no_error_shows_a_secret(options: str) -> None:
    told = problems(replaced('{url: "redis://localhost:6379/0"}', options), {"SECRET": SECRET})
    assert SECRET not in "\n".join(told)


@pytest.mark.parametrize("headers", ["hunter2", "{api-key: [hunter2]}", "{api-key: 'hunter2\x07'}"])
def test_no_error_shows_a_header(headers: str) -> None:
    told = problems(replaced('endpoint: "http://localhost:4318"', f"headers: {headers}"))
    assert SECRET not in "\n".join(told)
    with pytest.raises(ConfigError) as refused:
        load(None, {"OTEL_EXPORTER_OTLP_HEADERS": "api-key hunter2"})
    assert SECRET not in str(refused.value)


def test_secrets_are_opaque_in_every_representation() -> None:
    text = replaced('{endpoint: "http://localhost:4318"}', "{headers: {api-key: hunter2}}").replace(
        "redis://localhost", "redis://:hunter2@localhost"
    )
    config = parse(text, {})
    assert SECRET not in repr(config)
    assert SECRET not in str(config.components)
    exporter = config.components["exporters"]["otlp_http"]
    assert isinstance(exporter, OtlpHttpConfig)
    assert read_headers(exporter.headers)["api-key"] == SECRET


def test_the_environment_fills_what_the_file_leaves_out_and_the_file_wins() -> None:
    environ = {
        "STEM_BROKER_URL": "redis://broker:6379/1",
        "STEM_WORKER_NAMESPACE": "shop",
        "STEM_EMITTER": "pod-7",
        "STEM_TLS_ALLOW_INSECURE": "1",
        "STEM_OTLP_ENDPOINT": "http://stem:4318",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,x=y",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:4318/custom",
    }
    config = load(None, environ)
    receiver, exporter = config.components["receivers"]["stem_signals"], config.components["exporters"]["otlp_http"]
    assert isinstance(receiver, StemSignalsConfig)
    assert isinstance(exporter, OtlpHttpConfig)
    assert (receiver.url.address, receiver.url.database) == ("broker:6379", 1)
    assert (receiver.namespace, receiver.emitters) == ("shop", ("pod-7",))
    assert receiver.tls.insecure_skip_verify
    assert exporter.endpoint_of(Kind.METRICS) == "http://stem:4318/v1/metrics"
    assert exporter.endpoint_of(Kind.TRACES) == "http://stem:4318/v1/traces"
    assert read_headers(exporter.headers)["api-key"] == "a b"
    explicit = parse(WORKING, environ).components["exporters"]["otlp_http"]
    assert isinstance(explicit, OtlpHttpConfig)
    assert explicit.endpoint_of(Kind.TRACES) == "http://localhost:4318/v1/traces"
    del environ["STEM_OTLP_ENDPOINT"]
    standard = load(None, environ).components["exporters"]["otlp_http"]
    assert isinstance(standard, OtlpHttpConfig)
    assert standard.endpoint_of(Kind.TRACES) == "http://traces:4318/custom"
    assert standard.endpoint_of(Kind.LOGS) == "http://otel:4318/v1/logs"


def test_an_exporter_ends_the_pipelines_that_it_can() -> None:
    text = WORKING.replace("service:\n", "  prometheus:\nservice:\n").replace(
        "[otlp_http]}", "[otlp_http, prometheus]}"
    )
    assert problem(text) == (
        "agent.yaml:11:61: service.pipelines.traces.exporters[1]: found 'prometheus', which takes metrics only"
    )


def test_a_bad_variable_is_named_as_the_place() -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {"STEM_BROKER_URL": "amqp://user:hunter2@x"})
    assert str(refused.value).startswith("environment variable STEM_BROKER_URL: receivers.stem_signals.url: found")
    assert SECRET not in str(refused.value)


def chosen(text: str, **environ: str) -> dict[str, str | None]:
    """The exporters of metrics, and the URL of metrics that each was given."""
    config = load(None, {"STEM_METRIC_EXPORTERS": text, **environ})
    configs = config.components["exporters"]
    pipelines = config.service.pipelines
    assert {pipelines[kind].exporters for kind in ("traces", "logs")} <= {("otlp_http",), ("otlp_grpc",)}
    assert config.warnings == []
    return {name: getattr(configs[name], "metrics_endpoint", None) for name in pipelines["metrics"].exporters}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"otlp_http": None}),
        (" , ", {"otlp_http": None}),
        ("otlp", {"otlp_http": None}),
        ("otlp:http://h:4318/v1/metrics", {"otlp_http": "http://h:4318/v1/metrics"}),
        (
            "otlp:http://h:4318/v1/metrics,prometheus,datadog,console",
            {"otlp_http": "http://h:4318/v1/metrics", "prometheus": None, "datadog": None, "console": None},
        ),
        ("prometheus", {"prometheus": None}),
        ("console,console,otlp,otlp", {"console": None, "otlp_http": None}),
        (
            "otlp,otlp:https://two/m,otlp:https://three",
            {"otlp_http": None, "otlp_http/2": "https://two/m", "otlp_http/3": "https://three"},
        ),
    ],
)
def test_stem_metric_exporters_choose_the_metrics_pipeline(text: str, expected: dict[str, str | None]) -> None:
    assert chosen(text) == expected


def test_a_url_with_a_path_is_http_whatever_the_others_speak() -> None:
    grpc = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert chosen("otlp:http://h:4318/v1/metrics", **grpc) == {"otlp_http": "http://h:4318/v1/metrics"}
    assert chosen("otlp:http://h:4317/", **grpc) == {"otlp_grpc": "http://h:4317/"}


@pytest.mark.parametrize("entry", ["statsd", "otlp:", "console:x", "Prometheus"])
def test_an_exporter_that_stem_does_not_know_is_an_error(entry: str) -> None:
    with pytest.raises(
        ConfigError, match=f"STEM_METRIC_EXPORTERS: found '{entry}', expected otlp, otlp:<url>, prometheus"
    ):
        load(None, {"STEM_METRIC_EXPORTERS": f"otlp,{entry}"})


def test_a_url_that_is_none_is_an_error_of_the_variable_and_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {"STEM_METRIC_EXPORTERS": "otlp:host:4318"})
    assert str(refused.value).startswith(
        "environment variable STEM_METRIC_EXPORTERS: exporters.otlp_http.metrics_endpoint"
    )


def test_with_a_file_the_variable_is_not_used_and_that_is_told(write: Any) -> None:
    file = write(WORKING)
    config = load(file, {"STEM_METRIC_EXPORTERS": "console"})
    assert list(map(str, config.warnings)) == [
        "environment variable STEM_METRIC_EXPORTERS: not used: with --config the file says where metrics go "
        "(service.pipelines.metrics.exporters)"
    ]
    assert load(file, {}).warnings == []


def test_the_default_file_is_valid_by_itself() -> None:
    assert load(default_file(), {}).warnings == []


def test_without_a_file_health_runs_where_somebody_says_where() -> None:
    assert "health" not in load(None, {}).service.extensions
    config = load(None, {"STEM_HEALTH_ENDPOINT": "127.0.0.1:0"})
    assert config.service.extensions[-1] == "health"
    assert config.components["extensions"]["health"].endpoint == HostPort("127.0.0.1", 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("wanted", "runs"), [("on", True), ("TRUE", True), ("off", False), ("", False)])
def test_without_a_file_a_variable_has_tasks_read_that_nobody_signals(wanted: str, runs: bool) -> None:
    config = load(None, {"STEM_TAIL": wanted})
    assert ("stem_tail" in config.service.pipelines["signals"].receivers) is runs
    assert ("stem_tail" in config.components["receivers"]) is runs


def test_a_variable_that_says_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(ConfigError, match="environment variable STEM_TAIL: found 'perhaps', expected on or off"):
        load(None, {"STEM_TAIL": "perhaps"})


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/agent\.yaml: cannot be read: no such file or directory"):
        load(Path("/nowhere/agent.yaml"), {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("10s", 10), ("5m", 300), ("1h30m", 5400), ("0", 0), ("1.5s", 1.5), ("10us", 1e-5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "10 s", "-1s", "1d", "1e3s", "ten", "99999999h", "\u0661s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("64KiB", 65536), ("1 GiB", 1 << 30), ("2MB", 2000000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "1.5MiB", "10mib"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.text())
def test_no_text_breaks_the_value_types(text: str) -> None:
    for parse_value in (parse_duration, parse_size):
        try:
            parse_value(text)
        except ValueError as error:
            assert "such as" in str(error)


def test_a_lone_userinfo_is_the_password_as_in_stem() -> None:
    url = RedisUrl("redis://s%40crit@host/3")
    assert (url.username, url.password, url.database, url.port) == (None, "s@crit", 3, 6379)
    assert "crit" not in repr(url)


def test_the_resource_follows_the_environment() -> None:
    environ = {
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod,team=a%2Cb",
        "OTEL_SERVICE_NAME": "shop",
        "POD_NAME": "shop-1",
        "POD_NAMESPACE": "default",
        "CONTAINER_NAME": "agent",
    }
    resource = detect_resource(environ, "stem")
    assert resource["service.name"] == "shop"
    assert resource["service.namespace"] == "stem"
    assert resource["team"] == "a,b"
    assert resource["k8s.pod.name"] == "shop-1"
    assert resource == detect_resource(environ, "stem")
    assert detect_resource({}, "stem")["service.instance.id"] != detect_resource({}, "stem")["service.instance.id"]
    assert detect_resource({}, "stem")["service.name"] == "stem"


def test_bad_resource_attributes_are_discarded_whole_and_told() -> None:
    with pytest.raises(ResourceError, match="'novalue'"):
        parse_attributes("a=b,novalue")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:13133", "127.0.0.1", 13133),
        ("localhost:0", "localhost", 0),
        ("[::1]:80", "::1", 80),
        ("fd00::1:2:13133", "fd00::1:2", 13133),  # ${env:POD_IP}:13133 where pods have IPv6
    ],
)
def test_an_address_to_listen_on(text: str, host: str, port: int) -> None:
    address = parse_listen_address(text)
    assert address == HostPort(host, port)
    assert parse_listen_address(str(address)) == address


@pytest.mark.parametrize("text", ["", ":13133", "13133", "localhost", "localhost:x", "a b:1", "h:65536", "h:-1", "h:²"])
def test_what_is_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(PydanticCustomError, match="an address to listen on such as"):
        parse_listen_address(text)


@pytest.mark.parametrize(
    ("options", "environ", "address"),
    [
        ("{}", {}, "localhost:6379"),
        ("{}", {"STEM_BROKER_URL": "redis://b"}, "b:6379"),
        ("{url: redis://y}", {"STEM_BROKER_URL": "redis://b"}, "y:6379"),
        ("{url: redis://y, results: {namespace: other}}", {}, "y:6379"),
        ("{url: redis://y}", {"STEM_RESULT_BACKEND_URL": "redis://r"}, "r:6379"),
        ("{url: redis://y, results: {url: redis://z}}", {"STEM_RESULT_BACKEND_URL": "redis://r"}, "z:6379"),
    ],
)
def test_results_are_where_the_queues_are_unless_somebody_says_otherwise(
    options: str, environ: dict[str, str], address: str
) -> None:
    text = replaced('stem_signals: {url: "redis://localhost:6379/0"}', f"stem_signals: {{}}\n  stem_state: {options}")
    config: Any = parse(text, environ).components["receivers"]["stem_state"]
    assert config.result_store[0].address == address
