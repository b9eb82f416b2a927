"""The command `stem-agent demo` around the run: what it refuses, and what it says before, during and after."""

import io
import re
import socket
from collections import Counter
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agent.cli import app
from agent.cli.demo import _headline, _report
from agent.core.errors import EXIT_LOST
from agent.demo.compare import Fidelity, Row, compare
from agent.demo.fleet.faults import Faults
from agent.demo.reach import refusal
from agent.demo.sink import Sink
from agent.demo.stage import Plot, Result, Stage
from agent.demo.truth import SignalsTruth, Truth
from agent.demo.valkey import main as run_valkey
from agent.demo.view import View
from tests.conftest import ObservedSink


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--duration", "abc", "found 'abc'; expected a duration such as 20s or 2m, above zero, or `forever`"),
        ("--duration", "0s", "found '0s'; expected a duration"),
        ("--duration", "0", "found '0'; expected a duration"),
        ("--endpoint", "localhost:4318", "expected a URL with its scheme, such as http://localhost:4318"),
        ("--endpoint", "", "expected a URL such as"),
        ("--endpoint", "http://me:hush@localhost", "expected a URL without credentials"),
        ("--faults", "kill-worker=0s", "found 'kill-worker=0s'; expected a list"),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_expected_before_anything_starts(
    flag: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "play", None)
    result = CliRunner().invoke(app, ["demo", flag, value], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Invalid value for {flag}: {expected}" in result.output
    assert "hush" not in result.output


# --- the user's own endpoint ---------------------------------------------------------------------------------------


async def test_whoever_takes_connections_is_no_refusal(sink: ObservedSink) -> None:
    assert await refusal(sink.url) is None


async def test_a_closed_port_is_a_refusal_with_its_reason() -> None:
    with socket.socket() as taken:  # bound, so that it stays free, and not listening
        taken.bind(("127.0.0.1", 0))
        for host in ("127.0.0.1", "localhost"):
            assert await refusal(f"http://{host}:{taken.getsockname()[1]}") == "connection refused"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("timed out"), "no answer within 2 s"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name or service not known"),
    ],
)
async def test_other_refusals_have_their_reasons(error: OSError, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: tuple[str, int], _timeout: float) -> None:
        assert address == ("otlp.example.com", 443)
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    assert await refusal("https://otlp.example.com/base") == reason


# --- what is said --------------------------------------------------------------------------------------------------


def test_the_headline_says_how_to_end_the_run_and_then_that_it_is_over() -> None:
    view, plot = View(Sink()), Plot(duration=20.0, workers=1, fault_text="loss=1%")
    running = _headline(plot, view.look(3.0, cpu_s=0, rss_mib=0, traces=1))
    assert running == "stem-agent demo: 3 s of 20 s; Ctrl-C ends it   1 worker, about 100 tasks/s, with loss=1%"
    over = _headline(plot, view.look(21.0, cpu_s=0, rss_mib=0, traces=1, over=True))
    assert "over after 21 s" in over
    assert "Ctrl-C" not in over


def reported(
    plot: Plot, rows: list[Row], *, truth: Truth | None = None, terminal: bool = True, **changes: Any
) -> list[str]:
    """What the report says on a terminal of 80 columns, or where nobody says how wide it is."""
    truth = truth or Truth(signals=SignalsTruth(sent=12_345_678, lost=123_456, doubled=1))
    known = {"agent_exit": 0, "cpu_s": 12345.67, "rss_mib": 1234.0, "agent_log": "", "backend": Counter[str]()}
    known |= {"repaired": 0, "refusal": None, "kept": None, "fidelity": Fidelity(0, 0, 0, 0, 0, 0), "examples": []}
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    _report(console, Result(plot=plot, truth=truth, rows=rows, **{**known, **changes}))
    return [text.rstrip() for text in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_report_fits_80_columns() -> None:
    rows = [Row(row.what, 9_999_999, 8_888_888, 7_777_777, 10**7) for row in compare(Truth(), Sink())]
    truth = Truth(agents=12, cuts=123, skews={"a": 90, "b": -91})
    truth.killed_workers = ["a"] * 12
    truth.signals = SignalsTruth(sent=12_345_678, lost=123_456, doubled=123_456)
    text = reported(Plot(faults=Faults(loss=0.01)), rows, truth=truth, agent_exit=EXIT_LOST, repaired=10**6)
    assert max(map(len, text)) <= 80
    table = [each for each in text if "9999999" in each]
    assert len(table) == len(rows), "no row is wrapped"
    assert all(each.endswith("DIFFERS") for each in table)
    assert "…" not in "".join(text)


def test_without_a_terminal_nothing_is_cut() -> None:
    what = "a counter of which the name goes on and on, and is longer than it ever should have been"
    text = reported(Plot(), [Row(what, 10**20, 10**20)], terminal=False)
    assert any(what in each and each.endswith("ok") for each in text)


def test_a_row_in_which_nothing_was_and_nothing_came_is_not_shown() -> None:
    rows = [Row("nothing", 0, 0), Row("invented", 0, 0, wrong=1), Row("missing", 1, 0), Row("doubled", 0, 1)]
    text = "\n".join(reported(Plot(), rows))
    assert all(row.what in text for row in rows[1:])
    assert not re.search("^nothing ", text, re.MULTILINE)
    assert "rows that are 0 on both sides, and not shown: 1" in text
    assert "not shown" not in "\n".join(reported(Plot(), rows[1:]))


def test_the_summary_says_which_faults_there_were() -> None:
    plot = Plot(faults=Faults(loss=0.01))
    assert "faults: none happened" in reported(plot, [], truth=Truth())
    truth = Truth(agents=2, cuts=3, killed_workers=["worker-1"], skews={"worker-1": -89.7, "worker-2": 20.0})
    text = " ".join(" ".join(reported(plot, [], truth=truth, repaired=4)).split())
    assert "faults: 1 worker killed, 3 connections cut, 1 agent restart, clocks off by up to 90 s" in text
    truth.signals = SignalsTruth(lost=221, doubled=30)
    text = " ".join(" ".join(reported(plot, [], truth=truth, repaired=4)).split())
    assert "faults: 221 signals lost, 30 signals doubled, 1 worker killed," in text
    assert "4 attempts repaired: " in text


@pytest.mark.parametrize(
    ("faults", "why"),
    [(Faults(loss=0.01), "as it should under faults"), (Faults(), "its log above says what")],
)
def test_the_agents_word_for_losses_is_explained(faults: Faults, why: str) -> None:
    text = "\n".join(reported(Plot(faults=faults), [], agent_exit=EXIT_LOST))
    assert re.search(rf"^exit code 4: the agent knows that something was lost.*{why}$", text, re.MULTILINE)
    assert "exit code 4" not in "\n".join(reported(Plot(faults=faults), []))


def test_an_endpoint_that_refuses_has_the_last_word() -> None:
    plot = Plot(endpoint="http://localhost:9")
    backend = Counter(accepted=7, dropped=7)
    *_, counts, last = reported(plot, [], backend=backend, refusal="connection refused")
    assert counts == "http://localhost:9: 0 of 7 items delivered, 0 rejected, 7 dropped"
    assert last == "nothing answers at http://localhost:9: connection refused"


def test_one_is_no_plural() -> None:
    assert Plot(workers=1).scene == "1 worker, about 100 tasks/s"
    assert Plot(workers=2).scene == "2 workers, about 100 tasks/s"


def test_the_embedded_valkey_asks_for_its_file_and_writes_none_named_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["agent.demo.valkey", "--help"])
    with pytest.raises(SystemExit) as ended:
        run_valkey()
    assert ended.value.code == 0
    assert "where to write its URL" in capsys.readouterr().out
