"""The chart's README: its tables are made of values.yaml, and what it tells people to write renders and runs."""

import re
from pathlib import Path

from ruamel.yaml import YAML

from tests.helm.charts import (
    CHART,
    VERSIONS,
    Object,
    hold_to_kubernetes,
    hold_to_the_restricted_standard,
    one,
    read,
    rendered,
    shop_chart,
    the_agent,
)
from tests.helm.readme import README, rows, updated

ALERTS = "monitoring.prometheusRule.alerts."
BLOCKS = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_tables_are_those_of_the_values_and_of_the_bench() -> None:
    readme = README.read_text(encoding="utf-8")
    assert updated(readme) == readme


def test_every_value_has_a_comment_and_a_row() -> None:
    def leaves(values: Object, path: str = "") -> set[str]:
        found = set()
        for key, value in values.items():
            nested = isinstance(value, dict) and value and key not in {"resources", "labels"} and path != ALERTS
            found |= leaves(value, f"{path}{key}.") if nested else {f"{path}{key}"}
        return found

    told = {path: meaning for path, _, meaning in rows()}
    assert told.keys() == leaves(read(CHART / "values.yaml"))
    assert [path for path, meaning in told.items() if not meaning] == []


def test_the_deployment_that_people_are_to_write_renders_with_the_values_that_they_are_to_give(tmp_path: Path) -> None:
    dependencies, deployment, values = BLOCKS
    safe = YAML(typ="safe", pure=True)
    chart = shop_chart(tmp_path)
    (chart / "templates" / "worker.yaml").write_text(deployment, encoding="utf-8")
    (chart / "values.yaml").write_text(values, encoding="utf-8")
    asked = safe.load(dependencies)["dependencies"][0]
    assert asked["name"] == safe.load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["name"]
    objects = rendered({}, chart)
    for version in VERSIONS:
        hold_to_kubernetes(objects, version)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    hold_to_the_restricted_standard(pod, the_agent(pod))
    assert "vendor.yaml" in one(objects, "ConfigMap")["data"]
    assert the_agent(pod)["envFrom"] == [{"secretRef": {"name": "honeycomb"}}]
