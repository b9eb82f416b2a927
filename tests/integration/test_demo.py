"""`stem-agent demo` as a stranger runs it: its comparison, its faults, its flags."""

import contextlib
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pyte
import pytest
import redis.asyncio

from tests.conftest import ObservedSink
from tests.integration.conftest import Child, Start


async def runs(demo: Child) -> None:
    """Wait until the agent and the fleet run."""
    assert demo.process.stdout
    while b"agent and fleet run" not in (line := await demo.process.stdout.readline()):
        assert line, "the demo ended by itself"


async def test_ctrl_c_ends_the_demo_in_order(start: Start) -> None:
    demo = await start("demo", "--duration", "forever")
    await runs(demo)
    assert demo.process.stdout
    os.killpg(demo.process.pid, signal.SIGINT)
    printed = (await demo.process.stdout.read()).decode()
    assert await demo.end() == 0, demo.output + printed
    assert "is accounted for" in printed


def descendants(pid: int) -> Iterator[int]:
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()):
        yield child
        yield from descendants(child)


def all_end(pidfds: list[int]) -> bool:
    """Wait until all the processes have ended, and close the descriptors."""
    ended = [bool(select.select([pidfd], [], [], 20)[0]) for pidfd in pidfds]
    for pidfd in pidfds:
        os.close(pidfd)
    return all(ended)


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no child is bound to its parent")


@linux
async def test_who_kills_the_demo_kills_all_of_it(start: Start) -> None:
    demo = await start("demo", "--duration", "forever")
    await runs(demo)
    pidfds = [os.pidfd_open(pid) for pid in descendants(demo.process.pid)]
    assert len(pidfds) == 4, "Valkey and its parent, the agent, the fleet"
    demo.process.kill()
    assert all_end(pidfds)


@linux
def test_who_closes_the_terminal_ends_all_of_it() -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "agent", "demo", "--duration", "forever"]
    with subprocess.Popen(
        command,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        env={"PATH": "/usr/bin:/bin"},
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - only its own terminal hangs up on it
    ) as demo:
        os.close(end)
        printed = b""
        while b"agent and fleet run" not in printed:
            printed += os.read(terminal, 1 << 16)
        pidfds = [os.pidfd_open(pid) for pid in [demo.pid, *descendants(demo.pid)]]
        os.close(terminal)
        assert all_end(pidfds)


async def test_the_demo_accounts_for_every_task(start: Start) -> None:
    demo = await start("demo", "--duration", "3s", "--rate", "80")
    assert demo.process.stdout
    printed = (await demo.process.stdout.read()).decode()
    assert await demo.end() == 0, demo.output + printed
    attempts = re.search(r"every one of \d+ tasks and (\d+) attempts is accounted for", printed)
    assert attempts
    assert "DIFFERS" not in printed
    told = re.search(r"^the end +(\d+) attempts ", printed, re.MULTILINE)
    assert told, "the last line is of after the drain"
    assert told[1] == attempts[1]


def play_on_a_terminal(columns: int, lines: int, *arguments: str) -> tuple[int, str]:
    """Run the demo to its end on a terminal of that size; return its exit code and all that is then to be read."""
    terminal, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environ = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "agent", "demo", *arguments]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True, env=environ) as demo:
        os.close(end)
        screen = pyte.HistoryScreen(columns, lines, history=1000)
        stream = pyte.ByteStream(screen)
        with contextlib.suppress(OSError):  # the other end is closed
            while written := os.read(terminal, 1 << 16):
                stream.feed(written)
    os.close(terminal)
    gone = ["".join(line[column].data for column in range(columns)) for line in screen.history.top]
    return demo.returncode, "\n".join(line.rstrip() for line in [*gone, *screen.display])


async def test_a_fleet_that_sends_no_signals_is_accounted_for_all_the_same(start: Start) -> None:
    demo = await start("demo", "--no-signals", "--duration", "6s", "--rate", "60", "--plain")
    assert demo.process.stdout
    printed = (await demo.process.stdout.read()).decode()
    assert await demo.end() == 0, demo.output + printed
    assert re.search(r"every one of \d+ tasks and \d+ attempts is accounted for", printed)
    assert "no signals: everything was read from the streams and records on redis" in printed
    assert re.search(r"attempts succeeded +(\d+) +\1 +0 +0  ok", printed)


async def test_without_signals_none_can_be_lost(start: Start) -> None:
    demo = await start("demo", "--no-signals", "--faults", "loss=1%")
    assert await demo.end() == 2
    assert "no signals are sent, so none can be lost" in demo.output


def test_the_last_frame_on_the_screen_says_what_the_table_says() -> None:
    code, text = play_on_a_terminal(110, 30, "--duration", "2s", "--workers", "8")
    assert code == 0, text
    assert text.count("key indicators") == 1, "every frame was drawn over the one before"
    assert "over after" in text
    assert "Ctrl-C ends it" not in text
    frame, table = (re.search(rf"{label} +([\d,]+)", text) for label in ("│ succeeded", "attempts succeeded"))
    assert frame, text
    assert table, text
    assert frame[1].replace(",", "") == table[1]


def test_on_a_small_terminal_no_line_is_broken() -> None:
    code, text = play_on_a_terminal(80, 24, "--duration", "1s", "--faults", "loss=5%,dup=5%")
    assert code == 0, text
    lines = text.splitlines()
    assert any(line.startswith("signals lost, and noticed ") and line.endswith("ok") for line in lines)
    assert any(line.endswith("Ctrl-C ends the demo") and line.startswith("agent and fleet run") for line in lines)
    assert any(line.endswith("nothing that arrived is wrong, doubled or invented") for line in lines)


async def play(start: Start, *arguments: str, expect: int = 0, **environ: str) -> str:
    demo = await start("demo", "--rate", "80", *arguments, **environ)
    assert demo.process.stdout
    printed = (await demo.process.stdout.read()).decode()
    assert await demo.end() == expect, demo.output + printed
    return printed


async def test_under_faults_nothing_that_arrives_is_wrong_and_every_noticeable_loss_is_noticed(start: Start) -> None:
    printed = await play(start, "--duration", "4s", "--faults", "loss=5%,dup=5%,kill-worker=1.5s")
    assert "nothing that arrived is wrong, doubled or invented" in printed, printed
    assert "DIFFERS" not in printed
    told = re.search(r"faults: (\d+) signals lost, (\d+) signals? doubled, (\d+) workers? killed", printed)
    assert told
    assert all(int(number) for number in told.groups())
    row = next(line for line in printed.splitlines() if "signals lost, and noticed" in line)
    expected, received = (int(cell) for cell in row.split()[-5:-3])
    assert expected == received > 0


async def test_a_real_backend_gets_the_same_and_its_headers(start: Start, sink: ObservedSink) -> None:
    printed = await play(
        *(start, "--duration", "2s", "--endpoint", sink.url),
        OTEL_EXPORTER_OTLP_HEADERS="api-key=secret",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",  # the user's own, and none of the demo's business
    )
    assert "is accounted for" in printed
    told = re.search(rf"{sink.url}: (\d+) of (\d+) items delivered, 0 rejected, 0 dropped", printed)
    assert told
    assert told[1] == told[2]
    assert len(sink.spans) > 0
    assert all(headers["api-key"] == "secret" for headers in sink.headers)


async def test_a_backend_that_takes_nothing_is_told_of(start: Start) -> None:
    printed = await play(start, "--duration", "1s", "--endpoint", "http://127.0.0.1:9", expect=1)
    assert printed.startswith("nothing answers at http://127.0.0.1:9 yet (connection refused);")
    assert printed.endswith("nothing answers at http://127.0.0.1:9: connection refused\n")
    assert "is accounted for" in printed, "the comparison stays with the local endpoint"
    assert re.search(r"http://127\.0\.0\.1:9: 0 of \d+ items delivered", printed)


async def test_redis_can_be_kept(start: Start) -> None:
    printed = await play(start, "--duration", "1s", "--keep")
    told = re.search(r"redis is left running: (\S+) \(process (\d+)", printed)
    assert told
    client = redis.asyncio.Redis.from_url(told[1])
    try:
        assert await client.exists("stem:stream:default")
        assert await client.scard("stem:worker:heartbeats") == 3
    finally:
        await client.aclose()
        os.kill(int(told[2]), signal.SIGTERM)


@pytest.mark.parametrize("faults", ["loss=2", "loss=x", "noise=1%", "kill-worker=0s", "loss=150%"])
async def test_an_unknown_fault_is_refused_with_what_was_expected(start: Start, faults: str) -> None:
    demo = await start("demo", "--faults", faults, COLUMNS="200")
    assert await demo.end() == 2
    assert faults in demo.output
    assert "loss=1%,dup=1%" in demo.output
