"""`validate` level by level: what this machine lacks, what Redis refuses and the line that mends it, what OTLP says."""

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from agent.checks.connectivity import check_connectivity
from agent.checks.environment import check_environment
from agent.checks.findings import Findings
from agent.cli import app
from agent.configuration import check, load
from agent.settings.substitution import read
from tests.conftest import ObservedSink
from tests.integration.conftest import Start
from tests.servers import Server
from tests.stores import Stores

FULL = """\
receivers:
  stem_signals: {{url: "{url}", canary: {{enabled: true}}}}
  stem_state: {{url: "{url}", schedules: {{url: "{url}"}}, workflows: {{url: "{url}"}}}}
connectors:
  correlate: {{results: {{url: "{url}"}}}}
exporters:
  debug:
extensions:
  ownership: {{url: "{url}"}}
service:
  extensions: [ownership]
  pipelines:
    signals: {{receivers: [stem_signals, stem_state], exporters: [correlate]}}
    metrics: {{receivers: [stem_state], exporters: [debug]}}
    traces: {{receivers: [correlate], exporters: [debug]}}
"""
OTLP = """\
receivers:
  stem_signals: {{url: "{url}"}}
connectors:
  correlate:
    results: {{enabled: false}}
exporters:
  otlp_http: {{endpoint: "{endpoint}", timeout: 2s}}
service:
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""
README = Path(__file__).parents[2] / "README.md"
USER, PASSWORD = "stem-agent", "secret"


async def asked(text: str) -> Findings:
    document = read(text, "agent.yaml", {})
    return await check_connectivity(check(document, {}), document)


def told(problems: Iterable[Any]) -> list[str]:
    return [str(problem) for problem in problems]


def rights_of(text: str) -> dict[str, set[str]]:
    """Return everything that a configuration says it needs: of each component."""
    config, found = load_text(text), {}
    for components in config.components.values():
        for identity, component in components.items():
            models = [component, *(getattr(component, name) for name in type(component).model_fields)]
            uses = [use for model in models if hasattr(model, "redis_uses") for use in model.redis_uses()]
            rights = {rule for use in uses for right in use.rights for rule in (right.rule, right.grant) if rule}
            found[identity] = rights
    return {identity: rights for identity, rights in found.items() if rights}


def load_text(text: str) -> Any:
    return check(read(text, "agent.yaml", {}), {})


def all_rights(text: str, server: Server) -> list[str]:
    rights = sorted(set().union(*rights_of(text).values()), key=lambda rule: rule.startswith("+"))
    return [rule if server.knows_lag else rule.replace("%R~", "~") for rule in rights]


def covers(rule: str, other: str) -> bool:
    """Whether who has a rule for keys or channels needs another no more."""
    wide, narrow = rule.removeprefix("%R"), other.removeprefix("%R")
    return wide.endswith("*") and narrow.startswith(wide[:-1])


@pytest.fixture
async def user(stores: Stores, server: Server) -> Callable[..., Any]:
    async def set_user(*rules: str) -> str:
        await stores("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "resetchannels", *rules)
        return server.database(user=f"{USER}:{PASSWORD}")

    return set_user


# --- redis -----------------------------------------------------------------------------------------------------------


async def test_a_user_with_exactly_the_rights_that_are_asked_for_may_do_everything(
    server: Server, user: Callable[..., Any], stores: Stores
) -> None:
    rights = all_rights(FULL.format(url="redis://h"), server)
    url = await user("-@all", "+auth", "+select", *rights)
    async with stores.unchanged():
        found = await asked(FULL.format(url=url))
    assert told(found.errors) == told(found.warnings) == []
    (well,) = found.well
    assert well.endswith("(stem_signals, stem_state, correlate, ownership)")
    refused = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in await stores("ACL", "LOG")]
    objects = {entry[b"object"] for entry in refused if entry[b"username"] == USER.encode()}
    assert objects <= {b"client|setinfo", b"client"}  # redis-py's own greeting


async def test_each_right_that_is_missing_is_named_by_the_line_that_gives_it(
    server: Server, user: Callable[..., Any], stores: Stores
) -> None:
    rights = all_rights(FULL.format(url="redis://h"), server)
    for without in rights:
        url = await user("-@all", "+auth", "+select", *(rule for rule in rights if rule != without))
        found = await asked(FULL.format(url=url))
        lines = [str(problem).partition("run: ")[2] for problem in (*found.errors, *found.warnings)]
        assert all(line.startswith(f"ACL SETUSER {USER} ") for line in lines)
        mended = {rule for line in lines for rule in line.removeprefix(f"ACL SETUSER {USER} ").split(" ")}
        covered = any(covers(other, without) for other in rights if other != without)
        assert (mended - {""} == set()) if covered else (without in mended), without
        await stores("ACL", "SETUSER", USER, *filter(None, mended))
        assert told((again := await asked(FULL.format(url=url))).errors) == told(again.warnings) == []


async def test_a_right_that_can_be_done_without_is_a_warning_and_says_what_there_will_not_be(
    server: Server, user: Callable[..., Any]
) -> None:
    rights = all_rights(FULL.format(url="redis://h"), server)
    url = await user("-@all", "+auth", "+select", *(r for r in rights if r not in {"+llen", "&stem:heartbeat:stem"}))
    found = await asked(FULL.format(url=url))
    assert found.errors == []
    server_name = f"user {USER} of redis {url.rpartition('@')[2].removesuffix('/0')}"
    assert told(found.warnings) == [
        f"agent.yaml:2:3: receivers.stem_signals: {server_name} lacks the rights for Stem's own heartbeats, "
        f"which there will not be; run: ACL SETUSER {USER} &stem:heartbeat:stem",
        f"agent.yaml:3:3: receivers.stem_state: {server_name} lacks the rights for dead letters, "
        f"which there will not be; run: ACL SETUSER {USER} +llen",
    ]


async def test_a_right_that_is_needed_is_an_error(server: Server, user: Callable[..., Any]) -> None:
    rights = all_rights(FULL.format(url="redis://h"), server)
    url = await user("-@all", "+auth", "+select", *(r for r in rights if r not in {"+evalsha", "&stem-agent:*"}))
    errors = told((await asked(FULL.format(url=url))).errors)
    assert [line.partition("needed here; ")[2] for line in errors] == [
        f"run: ACL SETUSER {USER} &stem-agent:* +evalsha"
    ]
    assert errors[0].startswith("agent.yaml:9:3: extensions.ownership: user stem-agent of redis 127.0.0.1:")


async def test_the_readmes_line_for_everything_is_enough_without_a_file(server: Server, stores: Stores) -> None:
    (line,) = re.findall(r"^ACL SETUSER (stem-agent on .*zadd.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    words = [word for word in line.split(" ") if word != "+client|setinfo"]  # since 7.2
    if not server.knows_lag:
        words = [word.replace("%R~", "~") for word in words]
    await stores("ACL", "SETUSER", *words)
    url = server.database(user=f"stem-agent:{PASSWORD}")
    environ = {f"STEM_{name}_URL": url for name in ("BROKER", "RESULT_BACKEND", "SCHEDULE_STORE", "WORKFLOW_STORE")}
    config = load(None, environ)
    document = read("", "agent.yaml", {})
    found = await check_connectivity(config, document, {("exporters", "otlp_http")})
    assert told(found.errors) == told(found.warnings) == []


async def test_a_server_that_is_away_is_one_error_however_many_use_it(unused_tcp_port: int) -> None:
    url = f"redis://127.0.0.1:{unused_tcp_port}"
    (error,) = told((await asked(FULL.format(url=url))).errors)
    assert error == (
        f"agent.yaml:2:23: receivers.stem_signals.url: failed to connect to redis 127.0.0.1:{unused_tcp_port}: "
        "connection refused; check the address, and that it is reachable from here "
        "(so do receivers.stem_state, receivers.stem_state.schedules, receivers.stem_state.workflows, "
        "connectors.correlate.results, extensions.ownership)"
    )


async def test_a_wrong_password_and_a_missing_one_are_told(server: Server, stores: Stores) -> None:
    (error,) = told((await asked(FULL.format(url=server.database(user="nobody:hunter2")))).errors)
    assert "refused user nobody: " in error
    assert "hunter2" not in error
    assert "check user, password and database" in error
    await stores("CONFIG", "SET", "requirepass", "p")
    try:
        (error,) = told((await asked(FULL.format(url=server.database()))).errors)
    finally:
        await stores("AUTH", "p")
        await stores("CONFIG", "SET", "requirepass", "")
    assert "refused user default: authentication required; check user, password and database" in error


async def test_a_replica_is_told_where_something_is_written(server: Server, stores: Stores) -> None:
    await stores("REPLICAOF", "127.0.0.1", "1")
    try:
        (error,) = told((await asked(FULL.format(url=server.database()))).errors)
    finally:
        await stores("REPLICAOF", "NO", "ONE")
    assert error.startswith("agent.yaml:9:20: extensions.ownership.url: redis 127.0.0.1:")
    assert "READONLY" in error
    assert error.endswith("it is a replica; `url` has to name the primary")


# --- otlp ------------------------------------------------------------------------------------------------------------


async def test_each_kind_that_an_exporter_is_used_for_is_tried_with_an_empty_export(
    sink: ObservedSink, redis_url: str
) -> None:
    found = await asked(OTLP.format(url=redis_url, endpoint=sink.url))
    assert told(found.errors) == told(found.warnings) == []
    assert "otlp_http (logs, traces)" in found.well
    assert sorted(sink.requests) == ["logs", "traces"]
    assert sink.spans == sink.logs == []


@pytest.mark.parametrize(
    ("status", "level", "expected"),
    [
        (401, "errors", "failed to export to {logs} and {traces}: http_401: "),
        (503, "errors", "failed to export to {logs} and {traces}: http_503: "),
        (400, "warnings", "an empty export was not taken by {logs} and {traces}: http_400: "),
    ],
)
async def test_what_an_endpoint_answers_is_told_once(
    sink: ObservedSink, redis_url: str, status: int, level: str, expected: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text="no")

    sink.answer = answer
    found = await asked(OTLP.format(url=redis_url, endpoint=sink.url))
    (line,) = told(getattr(found, level))
    urls = {kind: f"{sink.url}/v1/{kind}" for kind in ("logs", "traces")}
    assert line.startswith(f"agent.yaml:7:3: exporters.otlp_http: {expected.format(**urls)}")


async def test_an_endpoint_that_is_away_is_told_for_either_transport(redis_url: str, unused_tcp_port: int) -> None:
    for exporter in ("otlp_http", "otlp_grpc"):
        text = OTLP.format(url=redis_url, endpoint=f"http://127.0.0.1:{unused_tcp_port}").replace("otlp_http", exporter)
        (line,) = told((await asked(text)).errors)
        assert line.startswith(f"agent.yaml:7:3: exporters.{exporter}: failed to export to ")
        assert "connection refused" in line.lower()


# --- this machine ----------------------------------------------------------------------------------------------------

HERE = """\
receivers:
  stem_signals: {url: "rediss://127.0.0.1:1", tls: {ca_file: /nowhere/ca.pem}}
connectors:
  correlate:
exporters:
  otlp_http: {endpoint: "https://h", tls: {ca_file: /nowhere/otlp.pem}}
extensions:
  file_storage: {directory: FILE/below}
  health: {endpoint: "192.0.2.1:13133"}
  memory_limiter: {limit_mib: 100000000}
service:
  extensions: [file_storage, health, memory_limiter]
  pipelines:
    signals: {receivers: [stem_signals], exporters: [correlate]}
    traces: {receivers: [correlate], exporters: [otlp_http]}
"""


def here(text: str) -> Findings:
    document = read(text, "agent.yaml", {})
    return check_environment(check(document, {}), document, {})


def test_everything_that_this_machine_lacks_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    lines = told(here(HERE.replace("FILE", str(file))).errors)
    starts = [
        "agent.yaml:2:52: receivers.stem_signals.tls: failed to load tls files /nowhere/ca.pem: ",
        "agent.yaml:6:3: exporters.otlp_http: failed to load tls files /nowhere/otlp.pem: ",
        f"agent.yaml:8:3: extensions.file_storage: {file} is no directory; name another as directory (STEM_AGENT_DIREC",
        "agent.yaml:9:22: extensions.health.endpoint: cannot listen on 192.0.2.1:13133: cannot assign requested addre",
        "agent.yaml:10:3: extensions.memory_limiter: limit_mib is 100000000, but only ",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_a_directory_too_small_for_what_it_may_hold_is_told_and_none_is_made(tmp_path: Path) -> None:
    text = HERE.replace("FILE", str(tmp_path / "new")).replace("/below}", ", max_size: 100000000GiB}")
    (line,) = [line for line in told(here(text).errors) if "file_storage" in line]
    assert re.search(rf"{tmp_path}/new has \d+ MiB free, less than max_size, which is \d+ MiB", line)
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_scrape_endpoint_and_the_directory_of_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exporters = f"""\
  prometheus: {{basic_auth: {{username: me, password: {{file: /nowhere/password}}}}}}
  prometheus/tls: {{endpoint: "127.0.0.1:0", tls: {{cert_file: /nowhere/server.pem}}}}
  file: {{directory: {tmp_path}/file/below}}
"""
    text = (
        HERE[: HERE.index("  otlp_http")]
        + exporters
        + HERE[HERE.index("service") :]
        .replace("[otlp_http]", "[file]")
        .replace("extensions: [file_storage, health, memory_limiter]", "extensions: []")
    )
    text += "    metrics: {receivers: [correlate], exporters: [prometheus, prometheus/tls]}\n"
    lines = told(here(text.replace(", tls: {ca_file: /nowhere/ca.pem}", "")).errors)
    starts = [
        "agent.yaml:6:3: exporters.prometheus: failed to read /nowhere/password: no such file",
        "agent.yaml:7:3: exporters.prometheus/tls: failed to load tls files /nowhere/server.pem: ",
        f"agent.yaml:8:3: exporters.file: {tmp_path}/file is no directory; name another as directory (STEM_FILE_DIRECT",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_what_does_not_run_is_not_looked_at(tmp_path: Path) -> None:
    text = HERE.replace("extensions: [file_storage, health, memory_limiter]", "extensions: []")
    text = text.replace(", tls: {ca_file: /nowhere/ca.pem}", "").replace(", tls: {ca_file: /nowhere/otlp.pem}", "")
    assert here(text).errors == []


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_that_somebody_listens_on_may_be_the_running_agents(taken: int) -> None:
    text = HERE[HERE.index("receivers") :].replace("192.0.2.1:13133", f"127.0.0.1:{taken}")
    assert not [line for line in told(here(text).errors) if "health" in line]


# --- the command -----------------------------------------------------------------------------------------------------


def validated(file: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["validate", "-c", str(file), *flags])


async def test_each_levels_outcome_is_printed(
    start: Start, write: Callable[[str], Path], sink: ObservedSink, redis_url: str
) -> None:
    file = write(OTLP.format(url=redis_url, endpoint=sink.url))
    agent = await start("validate", "-c", str(file))
    assert await agent.end() == 0
    assert agent.process.stdout
    lines = (await agent.process.stdout.read()).decode().splitlines()
    assert lines == [
        "syntax        ok",
        "references    ok",
        "environment   ok",
        f"connectivity  ok: otlp_http (logs, traces); redis {redis_url.split('/')[2]} (stem_signals)",
        f"{file}: ok",
    ]


def test_no_environment_stops_before_this_machine_and_every_server(write: Callable[[str], Path]) -> None:
    result = validated(write(HERE), "--no-environment")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:4] == [
        "syntax        ok",
        "references    ok",
        "environment   left out",
        "connectivity  left out",
    ]


def test_warnings_can_be_denied(write: Callable[[str], Path]) -> None:
    file = write(HERE.replace("exporters:\n", "exporters:\n  debug:\n", 1))
    result = validated(file, "--no-environment")
    assert result.exit_code == 0
    assert "references    1 warning" in result.stdout
    denied = validated(file, "--no-environment", "--deny-warnings")
    assert denied.exit_code == 78
    assert denied.stderr.splitlines()[-1] == "1 warning, and --deny-warnings takes them for errors"


def test_what_is_wrong_in_the_text_keeps_it_from_looking_further(write: Callable[[str], Path]) -> None:
    text = HERE.replace('endpoint: "https', 'endpont: "https').replace("[correlate], exporters: [otlp_http]", "[x]")
    result = validated(write(text))
    assert result.exit_code == 78
    assert result.stdout.splitlines() == [
        "syntax        2 errors",
        "references    1 error",
        "environment   not looked at",
        "connectivity  not looked at",
    ]


def test_a_component_that_this_machine_is_not_ready_for_is_not_asked_about(write: Callable[[str], Path]) -> None:
    result = validated(write(HERE))
    assert result.exit_code == 78
    assert "environment   4 errors\n" in result.stdout
    assert "https://h" not in result.stderr
