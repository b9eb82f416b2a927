"""The tables of the chart's README, from values.yaml and the bench: `python -m tests.helm.readme [--check|--write]`."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.report import RESULTS
from tests.helm.charts import CHART

README = CHART / "README.md"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9_-]*):(?: (.*))?$")


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield each value that can be given: its path, its default, and the comment above it."""
    path: list[str] = []
    comments: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            comments.append(line.lstrip("# "))
        elif found := _KEY.match(line):
            indent, key, default = found.groups()
            path = [*path[: len(indent) // 2], key]
            if default:
                yield ".".join(path), default, " ".join(comments)
            comments = []
        else:
            comments = []


def values_table() -> str:
    """Return the table of values."""
    lines = [f"| `{path}` | `{default}` | {meaning.replace('|', '&#124;')} |" for path, default, meaning in rows()]
    return "\n".join(("| value | default | meaning |", "| --- | --- | --- |", *lines, ""))


def sizing_table(result: dict[str, Any]) -> str:
    """Return what an agent needs by the tasks that it hears of, from the bench's figures."""
    cost, memory, held = result["cpu_us_per_signal"]["agent"], result["rss_mib"]["agent"], result["open_attempts"]
    idle_ms = result["idle_core_share"] * 1000
    lines = [f"| {tasks:,} | {4 * tasks * cost / 1000 + idle_ms:.0f}m |" for tasks in (1, 10, 100, 1_000, 5_000)]
    return "\n".join(
        (
            f"Measured on {result['machine']}: {cost:.1f} us of CPU a signal, {idle_ms:.1f}m idle. A task is four "
            "signals.",
            "",
            "| tasks a second, heard by one agent | CPU |",
            "| --- | --- |",
            *lines,
            "",
            f"Memory: {memory['idle']:.0f} MiB idle, {memory['loaded']:.0f} MiB after a load, and "
            f"{held['rss_mib']:.0f} MiB with {held['count']:,} attempts open. The limit has to hold what a backend "
            "that is away makes wait: the agent keeps to 80 % of it, then drops what matters least, and says so.",
            "",
        )
    )


def updated(readme: str) -> str:
    """Return the README with its tables made anew."""
    tables = {"values": values_table(), "sizing": sizing_table(json.loads(RESULTS.read_text(encoding="utf-8")))}
    for name, table in tables.items():
        head, mark, rest = readme.partition(f"<!-- {name}: ")
        comment, _, rest = rest.partition("\n")
        _, end, tail = rest.partition(f"<!-- {name} end -->")
        readme = f"{head}{mark}{comment}\n{table}{end}{tail}"
    return readme


def main(arguments: list[str]) -> None:
    """Write the tables, or fail where they differ."""
    readme = README.read_text(encoding="utf-8")
    if "--write" in arguments:
        README.write_text(updated(readme), encoding="utf-8")
    elif updated(readme) != readme:
        sys.exit(
            "the tables of helm/stem-agent/README.md differ from values.yaml or the bench; make format writes them"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
