"""What the chart renders for each `ci/*-values.yaml`, kept: `python -m tests.helm.golden [--check|--write]`."""

import difflib
import sys
from pathlib import Path

from tests.helm.charts import CHART, read, texts

GOLDEN = Path(__file__).parent / "golden"
FEATURES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))


def render(feature: str) -> str:
    """Return all that a feature's values render to, a document after the other, the templates by name."""
    found = texts(read(CHART / "ci" / f"{feature}-values.yaml"))
    return "".join(f"# {name}\n{text.strip()}\n" for name, text in sorted(found.items()))


def difference(feature: str) -> str:
    """Return how what is rendered differs from what is kept."""
    path = GOLDEN / f"{feature}.yaml"
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (text.splitlines(keepends=True) for text in (kept, render(feature)))
    return "".join(difflib.unified_diff(*lines, f"kept/{path.name}", "rendered"))


def main(arguments: list[str]) -> None:
    """Write all, or fail where one differs; features that are gone go."""
    if "--write" in arguments:
        GOLDEN.mkdir(exist_ok=True)
        for path in GOLDEN.glob("*.yaml"):
            path.unlink()
        for feature in FEATURES:
            (GOLDEN / f"{feature}.yaml").write_text(render(feature), encoding="utf-8")
    elif found := "".join(map(difference, FEATURES)):
        sys.exit(f"{found}the chart renders otherwise than tests/helm/golden has it; make format writes it anew")


if __name__ == "__main__":
    main(sys.argv[1:])
