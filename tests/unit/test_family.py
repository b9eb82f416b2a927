"""Who was traced by its creator, and who only inherited a header (telemetry contract, section 2)."""

import itertools
from typing import Any

from agent.correlate.family import MAX_KNOWN, Family
from agent.correlate.origin import Origin
from tests.support import TRACEPARENT, Heard, Story, envelope, found

TRACE, CREATOR = TRACEPARENT.split("-")[1:3]
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00000000000000aa-01"


def task(task_id: str, traceparent: str | None, parent: str | None = None, **headers: str) -> dict[str, Any]:
    meta = {"stem.parentTaskId": parent, "stem.rootTaskId": "root"} if parent else {}
    return envelope(id=task_id, headers={**({"traceparent": traceparent} if traceparent else {}), **headers}, meta=meta)


def spans(*tasks: dict[str, Any], order: tuple[int, ...] | None = None) -> dict[tuple[str, str], Any]:
    """Live through tasks, each on a worker of its own; return the spans by role and task."""
    stories = [Story(f"worker-{index}", f"pod-{index}").run(task=each) for index, each in enumerate(tasks)]
    heard = Heard()
    for index in order or range(len(stories)):
        heard.hear(stories[index][:2])
    for index in order or range(len(stories)):
        heard.hear(stories[index][2:])
    return {(span.name.partition(" ")[0], found(span)["stem.task.id"]): span for span in heard.pass_time(1).spans}


def test_a_child_that_carries_its_parents_header_was_not_traced() -> None:
    made = spans(task("root", TRACEPARENT), task("child", TRACEPARENT, "root"))
    send, process = made["send", "child"], made["process", "child"]
    assert send.parent_span_id.hex() == CREATOR, "beside its parent, as Stem's own spans would be"
    assert process.parent_span_id == made["wait", "child"].parent_span_id == send.span_id
    assert {span.trace_id.hex() for span in made.values()} == {TRACE}
    assert ("send", "root") not in made


def test_a_grandchild_hangs_from_the_send_of_its_parent() -> None:
    made = spans(task("root", TRACEPARENT), task("child", TRACEPARENT, "root"), task("grand", TRACEPARENT, "child"))
    assert made["send", "grand"].parent_span_id == made["send", "child"].span_id


def test_a_child_with_a_header_of_its_own_was_traced() -> None:
    made = spans(task("root", TRACEPARENT), task("child", OTHER, "root"))
    assert ("send", "child") not in made
    assert made["process", "child"].parent_span_id.hex() == OTHER.split("-")[2]


def test_a_child_whose_parent_nobody_saw_is_believed() -> None:
    made = spans(task("child", TRACEPARENT, "root"))
    assert made["process", "child"].parent_span_id.hex() == CREATOR


def test_an_untraced_child_hangs_from_its_parents_send() -> None:
    made = spans(task("root", None), task("child", None, "root"))
    assert made["send", "child"].parent_span_id == made["send", "root"].span_id


def test_the_order_in_which_a_family_is_heard_does_not_matter() -> None:
    tasks = (task("root", TRACEPARENT), task("child", TRACEPARENT, "root"), task("grand", TRACEPARENT, "child"))
    outcomes = [spans(*tasks, order=order) for order in itertools.permutations(range(3))]
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_beats_tasks_have_a_schedule_span_for_their_root() -> None:
    made = spans(task("nightly", None, **{"schedule-id": "every-night"}))
    root = made["schedule", "nightly"]
    assert root.name == "schedule every-night"
    assert root.span_id.hex() == made["process", "nightly"].parent_span_id.hex()
    assert found(root)["stem.schedule.id"] == "every-night"


def test_a_child_of_beats_task_has_an_ordinary_root() -> None:
    made = spans(task("nightly", None, **{"schedule-id": "n"}), task("child", None, "nightly", **{"schedule-id": "n"}))
    assert ("send", "child") in made
    assert ("schedule", "child") not in made


def test_canvas_lineage_is_told() -> None:
    headers = {"stem-chord-id": "chord-1", "stem-chain-id": "chain-1", "stem-chain-index": "2"}
    told = found(spans(task("one", None, **headers))["process", "one"])
    assert (told["stem.chord.id"], told["stem.chain.id"], told["stem.chain.index"]) == ("chord-1", "chain-1", "2")


def test_memory_is_bounded() -> None:
    family = Family()
    for index in range(MAX_KNOWN + 10):
        family.remember(f"task-{index}", Origin(trace_context=bytes(range(1, 25))))
    assert len(family._known) == MAX_KNOWN
