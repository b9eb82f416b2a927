"""What the chart has for Prometheus and Grafana, rendered by Helm's own engine, and who judges it."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.helm.charts import CHART, LEAST, ROOT, Object, merged, one, rendered
from tests.prometheus import binary

CASES = ROOT / "tests" / "fixtures" / "alerts.yaml"


def from_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def monitored(over: Mapping[str, Any] | None = None, **monitoring: Any) -> list[Object]:
    """Render the chart with these values of `monitoring`, and those of the rest."""
    values = merged(LEAST, {"prometheus": {"enabled": True}, "monitoring": monitoring})
    return rendered(merged(values, over or {}))


def rules(**options: Any) -> dict[str, Any]:
    """Return the groups of the PrometheusRule: what Prometheus itself reads."""
    spec: dict[str, Any] = one(monitored(prometheusRule={"enabled": True, **options}), "PrometheusRule")["spec"]
    return spec


def alerts(**options: Any) -> dict[str, dict[str, Any]]:
    """Return each alert by its name."""
    return {each["alert"]: each for each in rules(**options)["groups"][0]["rules"]}


def dashboards() -> dict[str, dict[str, Any]]:
    """Return each dashboard by its file's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels that show something; rows do not."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", ())


def cases() -> dict[str, list[dict[str, Any]]]:
    """Return when each alert fires, and when it does not."""
    found: dict[str, list[dict[str, Any]]] = from_yaml(CASES.read_text())
    return found


def unit_test(alert: str, case: Mapping[str, Any], severity: str) -> dict[str, Any]:
    """Return a case as promtool has it. `ALERTS` is asked, so that texts are not repeated."""
    own = {"alertname": alert, "alertstate": "firing", "severity": severity}
    expected = [{**own, **labels} for labels in case["fires"]]
    return {
        "name": f"{alert}: {case['says']}",
        "interval": "30s",
        "input_series": [{"series": series, "values": values} for series, values in case["series"].items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{alert}",alertstate="firing"}}',
                "eval_time": case["at"],
                "exp_samples": [{"labels": f"ALERTS{selector(labels)}", "value": 1} for labels in expected],
            }
        ],
    }


def selector(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def write(path: Path, what: Any) -> Path:
    """Write JSON, which is YAML, too."""
    path.write_text(json.dumps(what))
    return path


async def promtool(*arguments: str) -> tuple[int | None, str]:
    """Run promtool, and return its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(str(binary("promtool")), *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()
