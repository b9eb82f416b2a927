"""What agents say to each other, through Redis, about who processes an emitter: the words of `claims.py`. Pure."""

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from typing import NamedTuple


class Kind(StrEnum):
    """How an owner holds: a sidecar for good, a gateway until a sidecar comes, who leaves until anybody does."""

    SIDECAR = "sidecar"
    GATEWAY = "gateway"
    LEAVING = "leaving"


class Holder(NamedTuple):
    """Who holds a claim, or wishes for it; both empty for nobody."""

    kind: str
    agent: str

    @classmethod
    def read(cls, text: str) -> "Holder":
        """Read what `str` wrote."""
        kind, _, agent = text.partition(" ")
        return cls(kind, agent)

    def __str__(self) -> str:
        return f"{self.kind} {self.agent}"


NOBODY = Holder("", "")


class Record(NamedTuple):
    """What an owner left: who, whether it gave the claim up on purpose, and the last number it processed per boot.

    `heir` is who has taken the claim since and written nothing yet, though it may have processed something.
    """

    by: str
    clean: bool
    seen: Mapping[str, int]
    heir: str = ""


NO_RECORD = Record("", clean=False, seen={})


class Action(StrEnum):
    """What is asked of the server about one emitter."""

    KEEP = "keep"  # renew it; take it if it is free
    WANT = "want"  # take it if it is free; else wish for it
    LOOK = "look"  # see who has it
    GIVE = "give"  # hand it over, or let go of it


class Ask(NamedTuple):
    """One question; `value` is who is to hold it afterwards, empty for nobody. `record`: what was processed."""

    emitter: str
    action: Action
    value: str = ""
    record: Record | None = None


class Answer(NamedTuple):
    """Who holds it now, who wishes for it, and the record that was there when it became ours."""

    holder: Holder
    wish: Holder = NOBODY
    record: Record = NO_RECORD
    taken: bool = False  # it was free


class Standing(Enum):
    """See the table above."""

    UNDECIDED = auto()
    WANTED = auto()
    FOREIGN = auto()
    HELD = auto()
    LAPSED = auto()


class What(Enum):
    """What an answer changed."""

    ACQUIRED = auto()  # process it from now on, after what the record says
    RESUMED = auto()  # it lapsed, and nobody else had it meanwhile
    LOST = auto()  # another agent has it
    FOREIGN = auto()  # it is another's: nothing of it needs to be kept
    REFUSED = auto()  # a sidecar's own emitter is another sidecar's


class Change(NamedTuple):
    """What became of a claim."""

    what: What
    emitter: str
    record: Record = NO_RECORD
    holder: Holder = NOBODY
