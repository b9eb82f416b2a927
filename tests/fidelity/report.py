"""The fidelity runs as a table: `python -m tests.fidelity.report [--check|--write]` keeps the README's in step."""

import sys
from pathlib import Path
from typing import Any

from tests.generated import keep_table, write_results

RESULTS = Path(__file__).with_name("results.json")


def percent(share: float) -> str:
    """Two digits, rounded down: only all of them are 100 %."""
    return "100 %" if share == 1 else f"{int(share * 10_000) / 100:.2f} %"


def table(result: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {run['attempts']:,} | {percent(run['exact'])} | {percent(run['incomplete'])} | "
        f"{percent(run['missing'])} | {run['wrong']} | {run['invented']} | {run['cpu_share'] * 100:.0f} % |"
        for name, run in result["scenarios"].items()
    ]
    return "\n".join(
        (
            f"On {result['machine']}; {result['duration_s']:g} s of about {result['rate']:g} tasks a second each:",
            "",
            "| what goes wrong | attempts | exact | incomplete | missing | wrong | doubled or invented | agent's CPU |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        )
    )


def keep_results(result: dict[str, Any]) -> None:
    write_results(RESULTS, result)
    keep_table("fidelity", RESULTS, table, ("--write",))


if __name__ == "__main__":
    keep_table("fidelity", RESULTS, table, sys.argv[1:])
