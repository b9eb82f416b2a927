"""How each component is: what it says of itself, and when that counts as unhealthy. Pure: time is an argument.

| state | what a component means by it | counts as |
| --- | --- | --- |
| starting | it was built and is not started yet | |
| ok | it does its job | healthy |
| degraded | it does its job with less than was promised: no repair, a queue nearly full, memory only | healthy |
| recovering | it cannot do its job now, and goes on trying by itself | unhealthy |
| failed | its last try was refused for good: somebody has to look | unhealthy |
| stopped | it ended | |

A component has parts (the subscription and the canary of a receiver, the kinds of an exporter), each with a state of
its own; the gravest is the component's. Only the graph tells that a component started and stopped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from agent.core.clock import Clock


class State(StrEnum):
    """What a component, or a part of it, says of itself; see the table above."""

    STARTING = "starting"
    OK = "ok"
    DEGRADED = "degraded"
    RECOVERING = "recovering"
    FAILED = "failed"
    STOPPED = "stopped"


UNHEALTHY = frozenset({State.RECOVERING, State.FAILED})
_GRAVITY = (State.OK, State.DEGRADED, State.RECOVERING, State.FAILED)


class Phase(StrEnum):
    """What the whole agent is doing."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


@dataclass(slots=True)
class Part:
    """One thing a component can do well or badly. Moments are Unix nanoseconds, 0 for never.

    `since_ns` is when the state was entered; the reason may change within it. `proven_ns` is when it last did its job.
    """

    since_ns: int
    state: State = State.OK
    reason: str = ""
    last_error: str = ""
    last_error_ns: int = 0
    proven_ns: int = 0

    def report(self, state: State, reason: str, now_ns: int) -> None:
        """Take what the component says; a reason of another state than ok is kept as the last error."""
        if state is not self.state:
            self.state, self.since_ns = state, now_ns
        self.reason = reason
        if state is State.OK:
            self.proven_ns = now_ns
        else:
            self.last_error, self.last_error_ns = reason, now_ns


@dataclass(slots=True)
class ComponentStatus:
    """A component and its parts. `section` is the key it is configured under: `receivers`, `exporters`, ..."""

    section: str
    identity: str
    life_ns: int
    life: State = State.STARTING
    parts: dict[str, Part] = field(default_factory=dict)
    probes: list[Callable[[int], None]] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The gravest state of its parts while it runs."""
        return self._gravest[0]

    @property
    def since_ns(self) -> int:
        """Since when it is in this state."""
        return self._gravest[1]

    @property
    def reason(self) -> str:
        """Why, in plain words; empty where there is nothing to say."""
        return self._gravest[2]

    @property
    def unhealthy(self) -> bool:
        """Whether it cannot do its job at this moment."""
        return self.state in UNHEALTHY

    @property
    def last_error(self) -> tuple[str, int]:
        """The last thing that went wrong in any part, and when."""
        # A copy: what is exported about the agent is read in another thread.
        return max(
            ((part.last_error, part.last_error_ns) for part in list(self.parts.values())), key=_when, default=("", 0)
        )

    @property
    def _gravest(self) -> tuple[State, int, str]:
        parts = list(self.parts.values())
        if self.life is not State.OK or not parts:
            return self.life, self.life_ns, ""
        worst = max(parts, key=lambda part: _GRAVITY.index(part.state))
        alike = [part for part in parts if part.state is worst.state]
        # Bad for as long as any part is; good only since the last one became so.
        since_ns = max(part.since_ns for part in alike) if worst.state is State.OK else min(p.since_ns for p in alike)
        return worst.state, max(self.life_ns, since_ns), "; ".join(dict.fromkeys(p.reason for p in alike if p.reason))


def _when(error: tuple[str, int]) -> int:
    return error[1]


class Reporter:
    """What one part of a component speaks into. Saying the same again costs little, and changes only the time."""

    def __init__(self, board: "StatusBoard", component: ComponentStatus, part: Part) -> None:
        self._board = board
        self._component = component
        self._part = part

    @property
    def state(self) -> State:
        """What was said last."""
        return self._part.state

    def ok(self, reason: str = "") -> None:
        """Tell that it does its job, and has just shown so."""
        self._say(State.OK, reason)

    def degraded(self, reason: str) -> None:
        """Tell that it does its job with less than was promised."""
        self._say(State.DEGRADED, reason)

    def recovering(self, reason: str) -> None:
        """Tell that it cannot do its job now, and goes on trying."""
        self._say(State.RECOVERING, reason)

    def failed(self, reason: str) -> None:
        """Tell that it was refused for good, or is broken."""
        self._say(State.FAILED, reason)

    def _say(self, state: State, reason: str) -> None:
        now_ns = self._board.clock()
        before = self._part.state
        self._part.report(state, reason, now_ns)
        if before is not state and self._board.knows(self._component):
            self._board.changed(self._component, now_ns)


class Reports:
    """What a component is handed to tell how it is: a reporter for each of its parts."""

    def __init__(self, board: "StatusBoard", component: ComponentStatus) -> None:
        self._board = board
        self._component = component

    def part(self, name: str) -> Reporter:
        """Return the reporter of a part, which is ok until something else is said."""
        part = self._component.parts.setdefault(name, Part(self._board.clock()))
        return Reporter(self._board, self._component, part)

    def probe(self, look: Callable[[int], None]) -> None:
        """Have `look` called with the time (Unix nanoseconds) whenever the board is to be up to date.

        For what announces itself to nobody: that something has not happened for long.
        """
        self._component.probes.append(look)


class StatusBoard:
    """The states of all components, and the phase of the whole."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.began_ns = clock()
        self.agent = ""
        """Under which id other agents know this one."""
        self.phase = Phase.STARTING
        self.components: dict[tuple[str, str], ComponentStatus] = {}
        self.watchers: list[Callable[[ComponentStatus, int], None]] = []

    def __iter__(self) -> Iterator[ComponentStatus]:
        return iter(list(self.components.values()))

    def of(self, section: str, identity: str) -> Reports:
        """Return what the component is to be handed."""
        return Reports(self, self._component(section, identity))

    def started(self, section: str, identity: str) -> None:
        """Note that a component runs."""
        self._live(section, identity, State.OK)

    def stopped(self, section: str, identity: str) -> None:
        """Note that a component ended."""
        self._live(section, identity, State.STOPPED)

    def forget(self, section: str, identity: str) -> None:
        """Forget a component that is no more; what it may still say is heard by nobody."""
        self.components.pop((section, identity), None)

    def knows(self, component: ComponentStatus) -> bool:
        """Whether this component is one of those that run."""
        return self.components.get((component.section, component.identity)) is component

    def refresh(self) -> None:
        """Ask for what announces itself to nobody."""
        now_ns = self.clock()
        for component in self:
            for look in component.probes:
                look(now_ns)

    def changed(self, component: ComponentStatus, now_ns: int) -> None:
        """Tell the watchers that a state of the component is another."""
        for watcher in self.watchers:
            watcher(component, now_ns)

    def _live(self, section: str, identity: str, life: State) -> None:
        component = self._component(section, identity)
        component.life, component.life_ns = life, self.clock()
        self.changed(component, component.life_ns)

    def _component(self, section: str, identity: str) -> ComponentStatus:
        key = (section, identity)
        if key not in self.components:
            self.components[key] = ComponentStatus(section, identity, self.clock())
        return self.components[key]
