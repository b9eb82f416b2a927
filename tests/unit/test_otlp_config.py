"""Options of the OTLP exporters: endpoints, headers, what the environment says, and what each refuses."""

from typing import Any

import pytest

from agent.configuration import load
from agent.core.errors import ConfigError
from agent.exporters.otlp.config import OtlpConfig
from agent.exporters.otlp.headers import read_headers
from agent.exporters.otlp_grpc.config import OtlpGrpcConfig
from agent.exporters.otlp_http.config import OtlpHttpConfig
from agent.otlp.batch import Kind
from agent.settings.substitution import read
from agent.settings.validate import validate


def checked(model: type[OtlpConfig], options: dict[str, Any], environ: dict[str, str] | None = None) -> Any:
    document = read("", "agent.yaml", {})
    config = validate(model, options, ("exporters", "otlp"), document, environ or {})
    if document.problems:
        raise ConfigError(document.problems)
    return config


@pytest.mark.parametrize(
    ("endpoint", "insecure", "target", "tls"),
    [
        ("http://localhost:4317", False, "localhost:4317", False),
        ("https://otlp.example.com", True, "otlp.example.com:443", True),
        ("http://collector", False, "collector:80", False),
        ("https://otlp.example.com:4317/", False, "otlp.example.com:4317", True),
        ("collector:4317", False, "collector:4317", True),
        ("collector:4317", True, "collector:4317", False),
        ("collector", True, "collector:4317", False),
        ("[::1]:4317", True, "[::1]:4317", False),
    ],
)
def test_a_grpc_endpoint_says_where_and_whether_with_tls(endpoint: str, insecure: bool, target: str, tls: bool) -> None:
    config = checked(OtlpGrpcConfig, {"endpoint": endpoint, "tls": {"insecure": insecure}})
    assert (config.endpoint_of(Kind.LOGS), config.uses_tls(Kind.LOGS)) == (target, tls)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpoint": "https://h/v1/traces"}, "expected a URL without a path: grpc has none (otlp_http has)"),
        ({"endpoint": "http://user:hunter2@h"}, "expected a URL without credentials"),
        ({"endpoint": "unix:/run/otlp"}, "expected a URL without a path"),
        ({"endpoint": "ftp://h"}, "expected a URL such as http://localhost:4317"),
        ({"endpoint": "h:0"}, "expected a URL such as"),
        (
            {"compression": "zstd"},
            "otlp.compression: found 'zstd', expected gzip or none (the grpc library has no",
        ),
        ({"traces": {"compression": "zstd"}}, "otlp.traces.compression: found 'zstd', expected gzip or none"),
        ({"tls": {"insecure_skip_verify": "true"}}, "expected false: the grpc library always verifies; trust"),
        ({"headers": {"grpc-timeout": "1"}}, "expected the name of grpc metadata in place of 'grpc-timeout'"),
        ({"headers": {"key-bin": "1"}}, "expected the name of grpc metadata in place of 'key-bin'"),
        ({"headers": {"key": "schl\u00fcssel"}}, "expected a value of 'key' in printable ASCII"),
    ],
)
def test_what_grpc_cannot_do_is_told_with_what_can_be_done(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(OtlpGrpcConfig, options)
    assert told in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("model", [OtlpHttpConfig, OtlpGrpcConfig])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"headers": {"key": {"fle": "hunter2"}}},
            "headers.key: found a mapping, expected a value, or a mapping of one",
        ),
        ({"headers": {"key": ["hunter2"]}}, "headers.key: found a list, expected a value, or a mapping of one key"),
        (
            {"proxy_url": "socks5://user:hunter2@h:1"},
            "proxy_url: found a value (not shown: it may be secret), expected",
        ),
        ({"proxy_url": "h:3128"}, "expected a URL such as http://proxy.example.com:3128"),
        ({"auth_grace": "-1s"}, "auth_grace: found '-1s', expected a duration"),
        ({"tracess": {}}, "unknown key; did you mean 'traces'?"),
        ({"traces": {"timout": "1s"}}, "otlp.traces.timout: unknown key; did you mean 'timeout'?"),
    ],
)
def test_what_neither_can_do(model: type[OtlpConfig], options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(model, options)
    assert told in str(refused.value)
    assert "hunter2" not in str(refused.value)


ENVIRON = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel:4317",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces:4317",
    "OTEL_EXPORTER_OTLP_HEADERS": "key=general,tenant=shop",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "key=own",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "3000",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "500",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "/traces-ca.pem",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": "/traces-cert.pem",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/traces-key.pem",
}


@pytest.mark.parametrize("model", [OtlpHttpConfig, OtlpGrpcConfig])
def test_the_environment_says_it_for_all_signals_and_for_one(model: type[OtlpConfig]) -> None:
    config = checked(model, {}, ENVIRON)
    traces, logs = config.route(Kind.TRACES), config.route(Kind.LOGS)
    assert (traces.timeout, logs.timeout) == (0.5, 3.0)
    assert (traces.compression, logs.compression) == ("none", "gzip")
    assert read_headers(traces.headers) == {"key": "own"}
    assert read_headers(logs.headers) == {"key": "general", "tenant": "shop"}
    assert traces.tls.files == ("/traces-ca.pem", "/traces-cert.pem", "/traces-key.pem")
    assert logs.tls.files == ("/ca.pem",)
    assert ("traces:4317" in traces.endpoint, "otel:4317" in logs.endpoint) == (True, True)


@pytest.mark.parametrize("model", [OtlpHttpConfig, OtlpGrpcConfig])
def test_a_general_option_in_the_file_beats_the_environment_of_one_signal(model: type[OtlpConfig]) -> None:
    options = {
        "endpoint": "https://file:1",
        "timeout": "7s",
        "compression": "gzip",
        "headers": {"key": "file"},
        "tls": {"ca_file": "/file.pem"},
    }
    traces = checked(model, options, ENVIRON).route(Kind.TRACES)
    assert (traces.timeout, traces.compression, read_headers(traces.headers)) == (7.0, "gzip", {"key": "file"})
    assert traces.tls.files == ("/file.pem", "/traces-cert.pem", "/traces-key.pem")
    assert "file:1" in traces.endpoint


def test_insecure_counts_where_no_scheme_says_it() -> None:
    environ = {"OTEL_EXPORTER_OTLP_INSECURE": "true", "OTEL_EXPORTER_OTLP_LOGS_INSECURE": "FALSE"}
    config = checked(OtlpGrpcConfig, {"endpoint": "h:1", "traces_endpoint": "https://h:1"}, environ)
    assert [config.uses_tls(kind) for kind in Kind] == [True, False, True]


def test_a_bad_variable_of_one_signal_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        checked(OtlpHttpConfig, {}, {"OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "soon"})
    assert str(refused.value).startswith(
        "environment variable OTEL_EXPORTER_OTLP_LOGS_TIMEOUT: exporters.otlp.logs.timeout: found"
    )


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({}, ["otlp_http", "otlp_http", "otlp_http"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ["otlp_http", "otlp_http", "otlp_http"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_grpc", "otlp_grpc", "otlp_grpc"]),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, ["otlp_http", "otlp_grpc", "otlp_http"]),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "STEM_METRIC_EXPORTERS": "otlp:http://h:1"},
            ["otlp_grpc", "otlp_grpc", "otlp_grpc"],
        ),
    ],
)
def test_the_protocol_chooses_the_exporters_where_there_is_no_file(
    environ: dict[str, str], exporters: list[str]
) -> None:
    config = load(None, environ)
    assert [config.service.pipelines[kind].exporters for kind in Kind] == [(exporter,) for exporter in exporters]
    assert config.warnings == []


def test_a_protocol_that_is_not_spoken_is_told() -> None:
    with pytest.raises(ConfigError, match="found 'http/json', expected http/protobuf or grpc"):
        load(None, {"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"})
