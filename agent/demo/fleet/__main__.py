"""The fleet as a process of its own: `python -m agent.demo.fleet --url ... --truth FILE`."""

import argparse
import asyncio
import signal
from pathlib import Path

from agent.demo.fleet.faults import parse_faults
from agent.demo.fleet.fleet import Fleet
from agent.demo.valkey import announce


async def live(options: argparse.Namespace) -> None:
    """Run the fleet until SIGTERM, let every task end, write the truth."""
    fleet = Fleet(
        options.url,
        namespace=options.namespace,
        rate=options.rate,
        workers=options.workers,
        seed=options.seed,
        faults=parse_faults(options.faults),
        silent=options.no_signals,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, fleet.stop.set)
    announce(options.truth.with_suffix(".ready"), "")
    (await fleet.run()).write(options.truth)


def main() -> None:
    """Read the command line, and live."""
    parser = argparse.ArgumentParser(prog="python -m agent.demo.fleet", description="a simulated Stem fleet")
    parser.add_argument("--url", required=True, help="the Redis to work on")
    parser.add_argument("--namespace", default="stem", help="worker namespace; the stores' prefix is always stem")
    parser.add_argument("--rate", type=float, default=100.0, help="tasks published per second")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="", help="such as loss=1%%,dup=1%%,shuffle=80ms,kill-worker")
    parser.add_argument("--no-signals", action="store_true", help="workers without a bridge")
    parser.add_argument("--truth", type=Path, required=True, help="file to write")
    asyncio.run(live(parser.parse_args()))


if __name__ == "__main__":
    main()
