"""Claims as plain decisions: who asks for what, who gives way, what is forgotten."""

from agent.core.claim_terms import NOBODY, Action, Answer, Ask, Holder, Record, Standing, What
from agent.core.claims import IDLE_ROUNDS, SETTLE_NS, Claims, rendezvous

SECOND = 1_000_000_000
LEASE = 15 * SECOND
ME, OTHER = Holder("gateway", "a"), Holder("gateway", "b")
PODS = [f"pod-{number}" for number in range(1000)]


def mine_of(*members: str) -> str:
    """An emitter that rendezvous hashing gives to agent a."""
    return next(pod for pod in PODS if rendezvous(pod, members) == "a")


def gateway() -> Claims:
    return Claims("a", LEASE)


def ask(claims: Claims, *members: str) -> Ask:
    (only,) = claims.asks(members)
    return only


def held(emitter: str = "pod-1") -> Claims:
    claims = gateway()
    claims.hear(emitter)
    claims.answered(ask(claims, "a"), Answer(ME, taken=True), 0, 0)
    assert claims.holds(emitter)
    return claims


def test_each_gateway_has_its_share_and_only_that_of_who_leaves_moves() -> None:
    three = {pod: rendezvous(pod, ("a", "b", "c")) for pod in PODS}
    two = {pod: rendezvous(pod, ("a", "b")) for pod in PODS}
    assert all(list(three.values()).count(member) > 250 for member in "abc")
    assert all(two[pod] == owner for pod, owner in three.items() if owner != "c")
    assert rendezvous("pod-1", ()) == ""


def test_what_is_heard_first_is_kept_until_somebody_has_it() -> None:
    claims = gateway()
    emitter = next(pod for pod in PODS if rendezvous(pod, ("a", "b")) == "b")
    assert claims.hear(emitter) is Standing.UNDECIDED
    assert claims.again
    asked = ask(claims, "a", "b")
    assert asked.action is Action.LOOK
    assert claims.answered(asked, Answer(NOBODY), 0, 0) == []
    assert claims.hear(emitter) is Standing.UNDECIDED
    (change,) = claims.answered(ask(claims, "a", "b"), Answer(OTHER), 0, 0)
    assert change.what is What.FOREIGN
    assert claims.hear(emitter) is Standing.FOREIGN


def test_what_nobody_takes_for_two_leases_is_anybodys() -> None:
    claims = gateway()
    claims.hear(next(pod for pod in PODS if rendezvous(pod, ("a", "b")) == "b"))
    for now_ns in (1, 2 * LEASE):
        claims.answered(ask(claims, "a", "b"), Answer(NOBODY), now_ns, now_ns)
        assert ask(claims, "a", "b").action is Action.LOOK
    claims.answered(ask(claims, "a", "b"), Answer(NOBODY), 2 * LEASE + 2, 2 * LEASE + 2)
    assert ask(claims, "a", "b").action is Action.WANT


def test_its_share_is_kept_before_it_is_asked_for() -> None:
    claims, emitter = gateway(), mine_of("a", "b")
    claims.hear(emitter)
    claims.answered(ask(claims, "b"), Answer(OTHER), 0, 0)
    assert claims.hear(emitter) is Standing.FOREIGN
    asked = ask(claims, "a", "b")
    assert asked.action is Action.LOOK
    claims.answered(asked, Answer(OTHER), 0, 0)
    assert claims.again
    assert claims.hear(emitter) is Standing.WANTED
    assert ask(claims, "a", "b") == Ask(emitter, Action.WANT, "gateway a")


def test_nobody_asks_a_sidecar_for_its_emitter() -> None:
    claims, emitter = gateway(), mine_of("a")
    claims.hear(emitter)
    claims.answered(ask(claims, "a"), Answer(Holder("sidecar", "s")), 0, 0)
    assert claims.hear(emitter) is Standing.FOREIGN
    claims.answered(ask(claims, "a"), Answer(Holder("leaving", "s")), 0, 0)
    assert claims.hear(emitter) is Standing.WANTED


def test_a_wish_is_granted_when_everything_before_it_is_processed() -> None:
    claims = held()
    claims.answered(ask(claims, "a"), Answer(ME, Holder("sidecar", "s")), 0, 0)
    assert claims.courted
    assert claims.due(SETTLE_NS - 1, received=10, processed=10) == []
    assert claims.due(SETTLE_NS, received=10, processed=9) == []
    assert claims.due(SETTLE_NS, received=20, processed=10) == [("pod-1", Holder("sidecar", "s"))]
    claims.given("pod-1")
    assert claims.hear("pod-1") is Standing.FOREIGN


def test_a_gateway_gives_way_only_to_whom_the_share_belongs() -> None:
    emitter = mine_of("a", "b")
    claims = held(emitter)
    claims.answered(ask(claims, "a", "b"), Answer(ME, OTHER), 0, 0)
    assert not claims.courted


def test_an_answer_that_was_under_way_for_a_lease_gives_nothing() -> None:
    claims = gateway()
    claims.hear("pod-1")
    assert claims.answered(ask(claims, "a"), Answer(ME, taken=True), 0, LEASE) == []
    assert not claims.holds("pod-1")
    assert claims.again


def test_a_lease_that_is_over_is_resumed_only_if_nobody_else_had_it() -> None:
    for by, expected in (("a", [What.RESUMED]), ("", [What.RESUMED]), ("b", [What.LOST, What.ACQUIRED])):
        claims = held()
        assert claims.lapse(LEASE) == ["pod-1"]
        assert claims.hear("pod-1") is Standing.LAPSED
        answer = Answer(ME, record=Record(by, clean=False, seen={}), taken=True)
        changes = claims.answered(ask(claims, "a"), answer, LEASE, LEASE)
        assert [change.what for change in changes] == expected


def test_who_takes_a_claim_and_writes_nothing_is_known_as_its_heir() -> None:
    claims = held()
    claims.lapse(LEASE)
    answer = Answer(ME, record=Record("a", clean=False, seen={}, heir="b"), taken=True)
    changes = claims.answered(ask(claims, "a"), answer, LEASE, LEASE)
    assert [change.what for change in changes] == [What.LOST, What.ACQUIRED]


def test_what_is_silent_for_long_is_let_go_of_and_forgotten() -> None:
    claims = held()
    for _ in range(IDLE_ROUNDS + 2):
        claims.answered(ask(claims, "a"), Answer(ME), 0, 0)
    assert claims.due(0, received=0, processed=0) == [("pod-1", NOBODY)]
    claims.given("pod-1")
    assert claims.asks(("a",)) == []
    assert not claims.claims


def test_who_leaves_asks_for_nothing_new() -> None:
    claims = held()
    claims.leave()
    assert claims.hear("pod-2") is Standing.FOREIGN
    assert ask(claims, "b") == Ask("pod-1", Action.KEEP, "leaving a")
    claims.answered(ask(claims, "b"), Answer(Holder("leaving", "a"), OTHER), 0, 0)
    assert claims.due(SETTLE_NS, received=0, processed=0) == [("pod-1", OTHER)]


def test_a_sidecar_asks_for_its_own_as_long_as_it_runs() -> None:
    claims = Claims("a", LEASE, ("pod-1",))
    for holder, expected in ((OTHER, []), (Holder("sidecar", "s"), [What.REFUSED])):
        asked = ask(claims)
        assert asked == Ask("pod-1", Action.WANT, "sidecar a")
        assert [change.what for change in claims.answered(asked, Answer(holder), 0, 0)] == expected
    claims.answered(ask(claims), Answer(Holder("sidecar", "a"), taken=True), 0, 0)
    (change,) = claims.answered(ask(claims), Answer(OTHER), 0, 0)
    assert change.what is What.LOST
    assert claims.hear("pod-1") is Standing.WANTED
