"""Tables of the README that are made from results in JSON: written by `--write`, held against them by `--check`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.options import keep


def keep_table(name: str, results: Path, table: Callable[[Any], str], arguments: Sequence[str]) -> None:
    keep(name, table(json.loads(results.read_text(encoding="utf-8"))), arguments)


def write_results(results: Path, found: Any) -> None:
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
