"""The fidelity harness's own figures: what it prints is what was judged."""

import pytest

from tests.fidelity.report import percent, table


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.99999, "99.99 %"), (0.999, "99.90 %"), (0.5, "50.00 %"), (0.0, "0.00 %")]
)
def test_only_all_of_them_are_a_hundred_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_the_readme_table_has_a_line_for_each_scenario() -> None:
    run = {"attempts": 4000, "exact": 1.0, "incomplete": 0.0, "missing": 0.0, "wrong": 0, "invented": 0}
    run["cpu_share"] = 0.11
    result = {"machine": "2 cores", "duration_s": 30.0, "rate": 100.0, "scenarios": {"none": run, "skew": run}}
    assert table(result).splitlines()[-1] == "| skew | 4,000 | 100 % | 0.00 % | 0.00 % | 0 | 0 | 11 % |"
