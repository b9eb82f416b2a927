"""What keeping 100 000 open attempts costs: `python -m tests.benchmarks.state`.

Writes in one process, reads in another, as a restart does: seconds, MiB, and the memory of each before, after, at most.
"""

import argparse
import gc
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from agent.correlate.config import CorrelateConfig
from agent.correlate.correlator import Correlator
from tests.support import EPOCH, UTC_ZONE, Story, envelope, nanoseconds, signals_of

NOW = nanoseconds(EPOCH)
MIB = 1 << 20


def memory() -> str:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{pages * resource.getpagesize() / MIB:.0f} MiB now, {most:.0f} at most"


def write(path: Path, attempts: int) -> None:
    correlator, story = Correlator(CorrelateConfig(max_tasks=attempts), NOW), Story()
    for _ in range(attempts):
        attempt = story.attempt(envelope(id=str(uuid.uuid4())))
        attempt.received()
        attempt.prerun()
        for signal in signals_of(story.payloads):
            correlator.handle(signal, UTC_ZONE, NOW)
        story.payloads.clear()
        correlator.recorder.log.records.take()
    gc.collect()
    print(f"{len(correlator.tasks.attempts)} attempts are open: {memory()}")
    began = time.perf_counter()
    state = correlator.snapshot(NOW)
    print(f"written in {time.perf_counter() - began:.3f} s, {len(state) / MIB:.1f} MiB: {memory()}")
    path.write_bytes(state)


def read(path: Path, attempts: int) -> None:
    state = path.read_bytes()
    correlator = Correlator(CorrelateConfig(max_tasks=attempts), NOW)
    print(f"the next process: {memory()}")
    began = time.perf_counter()
    restored = correlator.restore(state, NOW)
    print(f"{restored.attempts} attempts read in {time.perf_counter() - began:.3f} s: {memory()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=100_000)
    parser.add_argument("--step", choices=["write", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        (write if options.step == "write" else read)(options.path, options.attempts)
        return
    with tempfile.TemporaryDirectory() as directory:
        for step in ("write", "read"):
            own = ["--step", step, "--path", f"{directory}/state", "--attempts", str(options.attempts)]
            subprocess.run([sys.executable, "-m", "tests.benchmarks.state", *own], check=True)


if __name__ == "__main__":
    main()
