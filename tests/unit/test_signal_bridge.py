"""One wire, two writers: the Dart bridge and the Python emitter say what `signals.json` says, and we can read it.

The fixture has, for every signal, its keys and those of its attributes with their JSON types (`?` marks what may be
absent), and one example of what a bridge sends.
"""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.emit import iso
from agent.emit.composer import PRIVATE_META
from agent.stem import wire
from agent.stem.catalogue import SIGNAL_NAMES, SignalName
from agent.stem.envelope import decode_envelope
from agent.stem.wire import Attributes, Signal, decode_signal
from tests.dart import Dart, literal, text, walk
from tests.support import EPOCH, Story, envelope, tell_end

ROOT = Path(__file__).parent.parent.parent
FIXTURE: dict[str, Any] = json.loads((ROOT / "tests/fixtures/signals.json").read_text())
SIGNALS: dict[str, Any] = FIXTURE["signals"]
BRIDGE = Dart.read(ROOT / "config/stem_signal_bridge.dart")

DART_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(\d{3})?Z")
TYPES = {"string": str, "integer": int, "object": dict, "array": list}


def fits(value: object, kind: str) -> bool:
    kind, _, nullable = kind.partition(" or ")
    if value is None:
        return bool(nullable)
    if kind == "time":
        return isinstance(value, str) and bool(DART_TIME.fullmatch(value))
    return isinstance(value, TYPES[kind]) and not isinstance(value, bool)


def check(found: dict[str, Any], shape: dict[str, str]) -> None:
    kinds = {key.removesuffix("?"): kind for key, kind in shape.items()}
    required = {key for key in shape if not key.endswith("?")}
    assert required <= found.keys() <= kinds.keys()
    assert [key for key, value in found.items() if not fits(value, kinds[key])] == []


def check_signal(signal: dict[str, Any]) -> None:
    shape = SIGNALS[signal["eventName"]]
    check(signal, shape["keys"])
    check(signal["attributes"], shape["attributes"])
    if "envelope" in signal:
        check(signal["envelope"], FIXTURE["envelope"])


def required(shape: dict[str, str]) -> dict[str, bool]:
    return {key.removesuffix("?"): not key.endswith("?") for key in shape}


# --- the fixture and our decoder --------------------------------------------------------------------------------------


def test_the_fixture_knows_every_signal_and_its_examples_have_its_shapes() -> None:
    assert SIGNALS.keys() == SIGNAL_NAMES
    for shape in SIGNALS.values():
        check_signal(shape["example"])


def assert_same(decoded: msgspec.Struct, example: dict[str, Any]) -> None:
    for spec in msgspec.structs.fields(type(decoded)):
        value, said = getattr(decoded, spec.name), example.get(spec.encode_name)
        if isinstance(value, msgspec.Struct):
            assert_same(value, said or {})
        elif isinstance(value, datetime):
            assert value == datetime.fromisoformat(said or "")
        elif not isinstance(value, msgspec.Raw) and spec.encode_name in example:
            assert value == said, spec.name


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_we_read_what_a_bridge_sends_and_lose_no_field(name: str) -> None:
    example = SIGNALS[name]["example"]
    payload = json.dumps(example).encode()
    signal = wire._signal.decode(payload)  # the strict decoder: nothing had to be salvaged
    assert decode_signal(payload) == signal
    assert_same(signal, example)
    if "envelope" in example:
        decoded = decode_envelope(signal.envelope)
        assert decoded
        assert_same(decoded, example["envelope"])


def test_what_we_read_is_what_the_fixture_has() -> None:
    keys = {key.removesuffix("?") for shape in SIGNALS.values() for key in shape["keys"]}
    attributes = {key.removesuffix("?") for shape in SIGNALS.values() for key in shape["attributes"]}
    assert {spec.encode_name for spec in msgspec.structs.fields(Signal)} - {"__namespace"} == keys
    assert {spec.encode_name for spec in msgspec.structs.fields(Attributes)} <= attributes


# --- the Python emitter -----------------------------------------------------------------------------------------------


def everything() -> Story:
    """Tell every signal of the catalogue, with everything that can be said."""
    story, later = Story(), EPOCH + timedelta(seconds=1)
    emitter = story.recorded
    emitter.before_publish(envelope())
    emitter.after_publish(envelope())
    for end in ("succeeded", "failed", "retry", "revoked"):
        story.run(end)
    for name in ("init", "ready", "stopping", "shutdown"):
        emitter.worker(f"worker-{name}", queues=["default"], broadcasts=["all"], reason="warm")
    emitter.heartbeat(queues=["default"])
    emitter.worker_child(SignalName.WORKER_CHILD_INIT, 271828)
    emitter.worker_child(SignalName.WORKER_CHILD_SHUTDOWN, 271828)
    for name in ("started", "suspended", "resumed", "completed", "failed", "cancelled"):
        metadata = {"result": {"iban": "x"}, "error": "Bad state: no stock"}
        emitter.workflow(f"workflow-run-{name}", "run-1", "order", "running", step="reserve", metadata=metadata)
    emitter.schedule_due("nightly", EPOCH)
    emitter.schedule_dispatched("nightly", EPOCH, later)
    emitter.schedule_failed("nightly", EPOCH, "SocketException: Connection refused", "#0 main")
    emitter.control(
        SignalName.CONTROL_COMMAND_RECEIVED, "r-1", "revoke", targets=["*"], payload={"a": 1}, timeoutMs=5000
    )
    emitter.control(
        SignalName.CONTROL_COMMAND_COMPLETED,
        "r-1",
        "revoke",
        status="error",
        response={"b": 2},
        error={"message": "no"},
    )
    return story


def test_the_python_emitter_says_what_the_fixture_says_of_all_signals() -> None:
    told = [json.loads(payload) for payload in everything().payloads]
    assert {signal["eventName"] for signal in told} == SIGNAL_NAMES
    for signal in told:
        check_signal(signal)


def test_arguments_results_and_what_repeats_them_never_leave() -> None:
    private = dict.fromkeys(PRIVATE_META, "secret")
    story = Story()
    story.attempt(envelope(args={"a": "secret"}, meta={**private, "stem.task": "email.send"})).received()
    name = SignalName.WORKFLOW_RUN_COMPLETED
    story.recorded.workflow(name, "run-1", "order", "completed", metadata={"result": "secret"})
    story.recorded.control(SignalName.CONTROL_COMMAND_RECEIVED, "r", "stats", targets=[], payload={"a": "secret"})
    story.recorded.control(SignalName.CONTROL_COMMAND_COMPLETED, "r", "stats", status="ok", response={"a": "secret"})
    assert b"secret" not in b"".join(story.payloads)
    received, completed, *_ = map(json.loads, story.payloads)
    assert received["envelope"]["meta"] == {"stem.task": "email.send"}
    assert "metadata" not in completed["attributes"]


def test_a_process_without_a_worker_leaves_its_id_out() -> None:
    story = Story(worker_id="")
    story.recorded.heartbeat()
    beat = json.loads(story.payloads[0])
    check_signal(beat)
    assert "workerId" not in beat["attributes"]
    attempt = story.attempt()
    attempt.received()
    tell_end(attempt, "succeeded", story.time)
    assert all("workerId" not in json.loads(payload) for payload in story.payloads)


def test_the_emitter_writes_time_as_dart_does() -> None:
    assert DART_TIME.fullmatch(iso(EPOCH))
    assert DART_TIME.fullmatch(iso(EPOCH.replace(microsecond=0)))


# --- the Dart bridge --------------------------------------------------------------------------------------------------


def connected() -> dict[str, set[str]]:
    """Every signal the bridge connects to, with the functions that write its details."""
    found: dict[str, set[str]] = {}
    for field, details in BRIDGE.calls("_on"):
        name = re.sub(r"[A-Z]", lambda letter: f"-{letter[0].lower()}", text(field).removeprefix("StemSignals."))
        assert name not in found, f"{name} is connected twice"
        found[name] = BRIDGE.named_in(details)
    return found


def test_the_grammar_follows_the_bridge_everywhere() -> None:
    assert BRIDGE.mistakes == []


def test_the_grammar_would_notice_a_mistake(tmp_path: Path) -> None:
    source = (ROOT / "config/stem_signal_bridge.dart").read_text()
    broken = tmp_path / "broken.dart"
    for right, wrong in (("=> {'envelope'", "=> 'envelope'"), ("final seq = ++_seq;", "final seq = ++;")):
        assert source.count(right) == 1
        broken.write_text(source.replace(right, wrong))
        assert Dart.read(broken).mistakes


def test_every_signal_is_connected_exactly_once() -> None:
    assert connected().keys() == SIGNAL_NAMES


def test_the_bridge_writes_the_keys_of_the_fixture() -> None:
    always = BRIDGE.keys_of("_compose", deep=False)
    attempts: dict[str, bool] = {}
    for name, functions in connected().items():
        written = dict(always)
        for function in functions:
            written |= BRIDGE.keys_of(function)
        said = required(SIGNALS[name]["keys"])
        if functions == {"_attempt"}:  # one function for seven signals: each may write less than all of them
            assert said.keys() <= written.keys(), name
            attempts |= said
            assert attempts.items() <= written.items(), name
        else:
            assert written == said, name
    assert always | BRIDGE.keys_of("_attempt") == attempts


def test_the_beat_of_the_bridge_is_a_heartbeat() -> None:
    assert BRIDGE.keys_of("_heartbeat", deep=False) == required(SIGNALS["worker-heartbeat"]["attributes"])
    assert BRIDGE.named_in(BRIDGE.functions["_beat"]) >= {"_send", "_heartbeat", "_process"}


def test_every_key_of_the_wire_is_a_literal_of_the_bridge() -> None:
    literals = {literal(node) for node in walk(BRIDGE.root) if node.type == "string_literal" and "$" not in text(node)}
    assert literals >= {spec.encode_name for spec in msgspec.structs.fields(Signal)} - {"__namespace"}


def test_bridge_and_emitter_leave_out_the_same() -> None:
    assert BRIDGE.set_of("_privateMeta") == PRIVATE_META
    removed = {
        literal(node)
        for function in ("_attributes", "_withoutPayloads")
        for node in walk(BRIDGE.functions[function])
        if node.type == "string_literal"
    }
    assert removed == {"args", "meta", "metadata", "payload", "response", "result"}
