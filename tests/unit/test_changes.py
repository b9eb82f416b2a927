"""Who stays, who goes and who comes when a configuration takes the place of another; and what joints hold meanwhile."""

from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.changes import Changes, compare, heads_differ
from agent.configuration import AgentConfig, parse
from agent.core.ledger import Ledger
from agent.core.status import StatusBoard
from agent.joints import Joints, SignalJoint, TelemetryJoint
from agent.otlp.batch import Kind
from tests.unit.test_configuration import problems

TEXT = """\
receivers:
  stem_signals: {url: "redis://:secret@h", RECEIVER}
  stem_state: {STATE}
connectors:
  correlate: {CONNECTOR}
exporters:
  otlp_http: {EXPORTER}
  otlp_http/kept: {sending_queue: {storage: file_storage}}
extensions:
  file_storage: {STORAGE}
  health: {HEALTH}
  ownership: {OWNERSHIP}
service:
  extensions: [file_storage, health, ownership]
  pipelines:
    signals: {receivers: [stem_signals, stem_state], exporters: [correlate]}
    traces: {receivers: [correlate], exporters: [otlp_http]}
    logs: {receivers: [correlate], exporters: [otlp_http/kept]}
    metrics: {receivers: [stem_state, correlate], exporters: [otlp_http]}
"""
HOLES = {
    "RECEIVER": "ping_interval: 3s",
    "STATE": "interval: 3s",
    "CONNECTOR": "settle: 3s",
    "EXPORTER": "timeout: 3s",
    "STORAGE": "max_age: 3h",
    "HEALTH": "unhealthy_after: 3s",
    "OWNERSHIP": "lease: 9s",
}
ALL = {
    ("extensions", "file_storage"),
    ("extensions", "health"),
    ("extensions", "ownership"),
    ("exporters", "otlp_http"),
    ("exporters", "otlp_http/kept"),
    ("connectors", "correlate"),
    ("receivers", "stem_signals"),
    ("receivers", "stem_state"),
}
INNER = {(s, i) for s, i in ALL if s in {"connectors", "receivers"} or i == "ownership"}


def config(*changed: str, text: str = TEXT) -> AgentConfig:
    for hole, option in HOLES.items():
        text = text.replace(f"{{{hole}}}", f"{{{option if hole in changed else ''}}}")
        text = text.replace(f", {hole}}}", f", {option}}}" if hole in changed else "}")
    return parse(text, {})


def flat(sections: Any) -> set[tuple[str, str]]:
    return {(section, identity) for section, ids in sections.items() for identity in ids}


def replaced(changes: Changes) -> set[tuple[str, str]]:
    assert flat(changes.go) == flat(changes.come)
    assert flat(changes.go) | flat(changes.stay) == ALL
    assert not flat(changes.go) & flat(changes.stay)
    return flat(changes.go)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([], set()),
        (["EXPORTER"], {("exporters", "otlp_http")}),
        (["HEALTH"], {("extensions", "health")}),
        (["CONNECTOR"], {("connectors", "correlate")}),
        (["STORAGE"], {("extensions", "file_storage"), ("exporters", "otlp_http/kept")}),
        (["RECEIVER"], INNER),
        (["STATE"], INNER),
        (["OWNERSHIP"], INNER),
        (["EXPORTER", "CONNECTOR"], {("exporters", "otlp_http"), ("connectors", "correlate")}),
    ],
)
def test_who_is_replaced(changed: list[str], expected: set[tuple[str, str]]) -> None:
    assert replaced(compare(config(), config(*changed), same_resource=True)) == expected
    assert replaced(compare(config(*changed), config(), same_resource=True)) == expected


@given(st.sets(st.sampled_from(sorted(HOLES))), st.sets(st.sampled_from(sorted(HOLES))))
def test_whoever_stays_has_the_same_options_and_the_way_back_is_the_same(old: set[str], new: set[str]) -> None:
    before, after = config(*old), config(*new)
    changes = compare(before, after, same_resource=True)
    for section, identity in flat(changes.stay):
        assert before.components[section][identity] == after.components[section][identity]
    assert replaced(changes) == replaced(compare(after, before, same_resource=True))
    assert (changes.count == 0) is (old == new)


def test_another_resource_is_another_name_for_all_that_is_told() -> None:
    assert replaced(compare(config(), config(), same_resource=False)) == INNER


def test_a_password_is_a_part_of_a_url() -> None:
    other = TEXT.replace(":secret@", ":other@")
    assert ("receivers", "stem_signals") in replaced(compare(config(), config(text=other), same_resource=True))


def test_who_is_added_comes_and_who_is_left_out_goes() -> None:
    text = TEXT.replace("exporters: [otlp_http]}", "exporters: [otlp_http, debug]}", 1)
    text = text.replace("exporters:\n", "exporters:\n  debug:\n", 1).replace(", health, ", ", ")
    changes = compare(config(), config(text=text), same_resource=True)
    assert flat(changes.come) == {("exporters", "debug")}
    assert flat(changes.go) == {("extensions", "health")}


def test_a_receiver_that_begins_other_pipelines_is_another_one() -> None:
    text = TEXT.replace("receivers: [stem_state, correlate]", "receivers: [correlate]")
    assert replaced(compare(config(), config(text=text), same_resource=True)) == INNER


def test_a_receiver_bound_to_its_connector_is_replaced_with_it() -> None:
    text = TEXT.replace("  stem_state: {STATE}", "  stem_state: {STATE}\n  stem_tail:")
    text = text.replace("[stem_signals, stem_state]", "[stem_signals, stem_state, stem_tail]")
    changes = compare(config(text=text), config("CONNECTOR", text=text), same_resource=True)
    assert flat(changes.go) == {*INNER, ("receivers", "stem_tail")}


def test_processors_and_the_order_of_pipelines_change_where_telemetry_leads() -> None:
    text = TEXT.replace("exporters:\n", "processors: {resource: {set: {a: b}}}\nexporters:\n", 1)
    through = text.replace("[correlate], exporters", "[correlate], processors: [resource], exporters")
    assert not heads_differ(config(), config("EXPORTER"))
    assert heads_differ(config(text=text), config(text=through))
    assert heads_differ(config(text=through), config(text=through.replace("a: b", "a: c")))
    assert problems("service:")


# --- joints ----------------------------------------------------------------------------------------------------------


class Ear:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def consume(self, batch: Any) -> None:
        self.heard.append(batch)

    def consume_facts(self, facts: Any, _: Any) -> None:
        self.heard += facts


def test_a_joint_holds_what_comes_in_its_order_and_lets_it_go_to_whoever_is_there_then() -> None:
    joint, before, after = SignalJoint(), Ear(), Ear()
    joint.lead_to([before])  # type: ignore[list-item]
    joint.consume_facts(["a"], UTC)  # type: ignore[list-item]
    joint.hold()
    joint.consume_facts(["b"], UTC)  # type: ignore[list-item]
    joint.hold()
    joint.consume_facts(["c", "d"], UTC)  # type: ignore[list-item]
    joint.lead_to([after])  # type: ignore[list-item]
    assert (before.heard, after.heard) == (["a"], [])
    joint.let_go()
    joint.let_go()
    joint.consume_facts(["e"], UTC)  # type: ignore[list-item]
    assert (before.heard, after.heard) == (["a"], ["b", "c", "d", "e"])


def test_a_joint_leads_to_several_or_to_none() -> None:
    joint, ears = TelemetryJoint(), [Ear(), Ear()]
    joint.consume("lost")  # type: ignore[arg-type]
    joint.lead_to(ears)
    joint.consume("a")  # type: ignore[arg-type]
    assert [ear.heard for ear in ears] == [["a"], ["a"]]


def test_a_kind_whose_last_pipeline_ends_has_no_joint() -> None:
    joints, ear = Joints(), Ear()
    joints.lead_to({Kind.TRACES: [ear]})
    kept = joints.telemetry
    kept[Kind.TRACES].hold()
    kept[Kind.TRACES].consume("a")  # type: ignore[arg-type]
    joints.lead_to({Kind.LOGS: [ear]})
    assert set(kept) == {Kind.LOGS}
    assert ear.heard == ["a"], "what it held is let go to where it was going"


# --- the books and the status ----------------------------------------------------------------------------------------


def test_what_a_forgotten_component_says_is_heard_by_nobody() -> None:
    board, heard = StatusBoard(lambda: 0), list[str]()
    board.watchers.append(lambda component, _: heard.append(component.reason))
    old = board.of("exporters", "otlp_http").part("traces")
    board.started("exporters", "otlp_http")
    board.forget("exporters", "otlp_http")
    new = board.of("exporters", "otlp_http").part("traces")
    board.started("exporters", "otlp_http")
    old.recovering("away")
    assert [component.reason for component in board] == [""]
    new.recovering("also away")
    assert heard[-1] == "also away"
    assert "away" not in heard


def test_accounts_go_on_over_the_change_of_an_exporter() -> None:
    ledger = Ledger()
    assert ledger.account("otlp_http", "traces") is ledger.account("otlp_http", "traces")
