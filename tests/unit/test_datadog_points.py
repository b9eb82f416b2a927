"""Names, tags and values as Datadog has them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.histogram import DURATION_BOUNDS, Histogram
from agent.exporters.datadog.config import DatadogConfig
from agent.exporters.datadog.points import MAX_TEXT, VALUES_A_LINE, metric_name, packed, resource_tags, spread, tag
from agent.otlp.deltas import Total
from tests.unit.test_otlp_config import checked


def total(values: list[float]) -> Total:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return Total(0, 1, histogram.total, len(values), tuple(histogram.counts), DURATION_BOUNDS)


@given(st.lists(st.floats(0, 20_000), min_size=1, max_size=50), st.booleans())
def test_values_are_exact_in_number_and_sum_and_lie_in_their_buckets(values: list[float], known: bool) -> None:
    extremes = (min(values), max(values)) if known else (None, None)
    came = total(values)
    told = spread(came, least=extremes[0], most=extremes[1])
    assert sum(count for _, count in told) == len(values)
    if known or max(values) <= DURATION_BOUNDS[-1]:
        assert math.isclose(sum(value * count for value, count in told), sum(values), rel_tol=1e-9, abs_tol=1e-9)
    histogram = Histogram()
    for value, count in told:
        # At the lower edge a value belongs to the bucket below: a hair is enough.
        histogram.observe(math.nextafter(value, math.inf) if value in DURATION_BOUNDS else value, count)
    if known:
        assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for value, _ in told)
    assert sum(histogram.counts) == sum(came.buckets)


def test_one_value_is_told_as_it_was() -> None:
    assert spread(total([0.037]), least=0.001, most=9.0) == [(pytest.approx(0.037), 1)]


def test_a_histogram_of_one_bucket_is_its_mean() -> None:
    assert spread(Total(0, 1, 6.0, 4, (4,)), least=None, most=None) == [(1.5, 4)]
    assert spread(Total(0, 1, 0.0, 0, (0,)), least=None, most=None) == []


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 300)), max_size=6))
def test_packing_loses_no_value(values: list[tuple[float, int]]) -> None:
    lines = list(packed(values))
    assert all(line.count(":") < VALUES_A_LINE for line in lines)
    assert [float(value) for line in lines for value in line.split(":")] == [
        pytest.approx(value, rel=1e-8) for value, count in values for _ in range(count)
    ]


def test_names_and_tags_are_those_that_datadog_takes() -> None:
    assert metric_name("stem.tasks.succeeded") == "stem.tasks.succeeded"
    assert metric_name("2 größe|x") == "m_2_gr_e_x"
    assert len(metric_name("x" * 500)) == MAX_TEXT
    assert len(tag("task", "x" * 500)) == MAX_TEXT
    resource = {"service.name": "shop", "k8s.pod.name": "pod-7", "cloud.region": "eu", "service.version": ""}
    assert resource_tags(resource, ["service.name", "k8s.pod.name", "cloud.region", "service.version", "other"]) == [
        "service:shop",
        "pod_name:pod-7",
        "cloud.region:eu",
    ]


@pytest.mark.parametrize(
    ("values", "environ", "expected"),
    [
        ({}, {}, "udp://localhost:8125"),
        ({}, {"DD_AGENT_HOST": "10.0.0.1", "DD_DOGSTATSD_PORT": "9125"}, "udp://10.0.0.1:9125"),
        ({}, {"DD_DOGSTATSD_URL": "unix:///run/dsd.socket", "DD_AGENT_HOST": "h"}, "unix:///run/dsd.socket"),
        ({"host": "mine"}, {"DD_DOGSTATSD_URL": "unix:///run/dsd.socket"}, "udp://mine:8125"),
        ({"url": "udp://h:1"}, {"DD_DOGSTATSD_URL": "unix:///run/dsd.socket"}, "udp://h:1"),
    ],
)
def test_datadogs_own_variables_say_where(values: dict[str, str], environ: dict[str, str], expected: str) -> None:
    assert checked(DatadogConfig, values, environ).address == expected


@pytest.mark.parametrize("url", ["http://h:1", "udp://h", "unix://relative", "h:8125"])
def test_a_url_that_is_none_is_an_error(url: str) -> None:
    with pytest.raises(Exception, match="expected udp://host:port, unix:///path"):
        checked(DatadogConfig, {"url": url}, {})
