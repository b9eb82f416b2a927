"""The README's picture, from a real run on a real terminal: `make picture`.

The demo runs on a pseudo-terminal; what it writes goes through a terminal emulator, and the emulator's screen is drawn
as SVG. Nothing is staged: the numbers are those of the run.
"""

import io
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from fcntl import ioctl
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

PICTURE = Path(__file__).parents[1] / ".github" / "demo.svg"
COLUMNS, LINES = 124, 33
SECONDS = 22.0
COMMAND = ["demo", "--duration", "forever", "--faults", "loss=0.2%,kill-worker=8s"]


def watch(seconds: float) -> pyte.Screen:
    """Run the demo for so long on a terminal of its own; return what is on its screen."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execv(sys.executable, [sys.executable, "-m", "agent", *COMMAND])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            stream.feed(os.read(terminal, 1 << 16))
    os.kill(pid, signal.SIGINT)
    while select.select([terminal], [], [], 30.0)[0]:
        try:
            os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.waitpid(pid, 0)
    return screen


def draw(screen: pyte.Screen) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in range(LINES):
        text = Text()
        cells = [screen.buffer[line][column] for column in range(COLUMNS)]
        for (foreground, bold), run in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
            text.append("".join(cell.data for cell in run), Style(color=colour(foreground), bold=bold))
        text.rstrip()
        console.print(text, no_wrap=True)
    return console.export_svg(title="stem-agent demo")


def colour(name: str) -> str | None:
    """Return rich's name for a colour of the emulator's; it calls the terminal's yellow brown, as the VGA did."""
    if name == "default":
        return None
    if set(name) <= set("0123456789abcdef"):
        return f"#{name}"
    return name.replace("bright", "bright_").replace("brown", "yellow")


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(watch(SECONDS)), encoding="utf-8")
