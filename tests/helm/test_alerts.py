"""The alerts of the chart: promtool lets each of them fire, and not fire, on series that are written down."""

import re
from pathlib import Path
from typing import Any

import helm_python
import pytest

from tests.helm.charts import CHART
from tests.helm.monitoring import alerts, cases, from_yaml, promtool, rules, unit_test, write
from tests.prometheus import binary

with_promtool = pytest.mark.skipif(not binary("promtool"), reason="no promtool here")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    judged = {name: {bool(case["fires"]) for case in each} for name, each in cases().items()}
    assert judged == {name: {True, False} for name in alerts()}


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for alert in alerts(runbookUrl="https://wiki.example.com/stem/").values():
        texts = alert["annotations"]
        assert set(texts) == {"summary", "description", "runbook", "runbook_url"}
        assert all(len(texts[key]) > 20 for key in texts)
        assert texts["runbook_url"] == f"https://wiki.example.com/stem/{alert['alert']}"
        assert alert["labels"]["severity"] in {"info", "warning", "critical"}


@with_promtool
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": ["cluster", "namespace"], "matchFleets": 'namespace="shop"', "matchAgents": 'job=~"shop/.*",pod!=""'},
        {"interval": "15s", "alertLabels": {"team": "jobs"}, "alerts": {"StemQueueStalled": {"window": "30m"}}},
    ],
)
async def test_promtool_takes_the_rules_with_whatever_values(options: dict[str, Any], tmp_path: Path) -> None:
    made = rules(**options)
    code, said = await promtool("check", "rules", str(write(tmp_path / "rules.yaml", made)))
    assert code == 0, said
    assert f"SUCCESS: {len(made['groups'][0]['rules'])} rules found" in said


@with_promtool
async def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    severities = {name: alert["labels"]["severity"] for name, alert in alerts().items()}
    tests = [unit_test(name, case, severities[name]) for name, each in cases().items() for case in each]
    write(tmp_path / "rules.yaml", rules())
    file = write(tmp_path / "test.yaml", {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": tests})
    code, said = await promtool("test", "rules", str(file))
    assert code == 0, said


@with_promtool
async def test_thresholds_are_values(tmp_path: Path) -> None:
    options = {"alerts": {"StemFleetTooSmall": {"minimum": 3, "for": "1m", "severity": "info"}}}
    case = {
        "says": "two of three",
        "at": "2m",
        "fires": [{"namespace": "shop"}],
        "series": {f'stem_worker_up{{namespace="shop",worker="w{n}"}}': "1x10" for n in (1, 2)},
    }
    write(tmp_path / "rules.yaml", rules(**options))
    test = unit_test("StemFleetTooSmall", case, "info")
    file = write(tmp_path / "test.yaml", {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": [test]})
    code, said = await promtool("test", "rules", str(file))
    assert code == 0, said
    assert "there should be 3 at least" in alerts(**options)["StemFleetTooSmall"]["annotations"]["description"]


def test_an_alert_can_be_left_out() -> None:
    options = {"alerts": {"StemFleetSaturated": {"enabled": False}}}
    assert set(alerts()) - set(alerts(**options)) == {"StemFleetSaturated"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alerts": {"StemQueueStaled": {"enabled": False}}}, "'StemQueueStaled' not allowed"),
        ({"alerts": {"StemScheduleMissed": {"over": None}}}, "StemScheduleMissed has no value for ${over}"),
        ({"alerts": {"StemScheduleMissed": {"for": "soon"}}}, "'soon' does not match pattern"),
        ({"alerts": {"StemFleetSaturated": {"ratio": 90}}}, "maximum: got 90, want 1"),
        ({"matchFleets": "shop"}, "'shop' does not match pattern"),
        ({"by": ["cluster"]}, "no items match contains schema"),
    ],
)
def test_values_that_make_no_rules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError) as error:
        alerts(**options)
    assert message in str(error.value)


def test_the_rules_are_in_sixteen_parts() -> None:
    text = (CHART / "alerts.yaml").read_text()
    assert re.findall(r"^# (\d+)\. ", text, re.MULTILINE) == [str(part) for part in range(1, 17)]
    assert [each["alert"] for each in from_yaml(text)] == list(alerts())
