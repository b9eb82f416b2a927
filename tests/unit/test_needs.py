"""From what a server refuses to the line that would mend it, as Redis 6.2, Redis 7 and Valkey word it."""

from collections.abc import Sequence

from agent.settings.needs import Right, is_older, missing, on_key, trouble

PING = Right(("PING",))
HEAR = Right(("SUBSCRIBE", "c"), "&c")
GROUPS, RANGE = on_key("stem:stream:x", "%R~stem:*", "XINFO GROUPS {}", "XRANGE {} - +", gives="queues")


def lacking(rights: Sequence[Right], refusals: Sequence[str | None], *, older: bool = False) -> dict[str, list[str]]:
    return missing(rights, refusals, older=older)


def refused(command: str, *, old: bool = False) -> str:
    if old:
        return f"NOPERM this user has no permissions to run the '{command}' command or its subcommand"
    return f"NOPERM User x has no permissions to run the '{command}' command ({command})"


NO_KEY = "NOPERM No permissions to access a key (XRANGE stem:stream:x)"
NO_CHANNEL = "NOPERM No permissions to access a channel (SUBSCRIBE c)"


def test_nothing_refused_is_nothing_missing() -> None:
    assert lacking([PING, HEAR], [None, None]) == {}


def test_what_another_error_says_is_no_refusal() -> None:
    assert lacking([GROUPS], ["ERR no such key (XINFO GROUPS stem:stream:x)"]) == {}


def test_a_command_alone_is_missing_where_its_key_has_been_shown() -> None:
    assert lacking([GROUPS, RANGE], [refused("xinfo|groups"), None]) == {"queues": ["+xinfo|groups"]}


def test_a_key_that_nothing_has_shown_is_granted_with_its_commands() -> None:
    expected = {"queues": ["%R~stem:*", "+xinfo|groups", "+xrange"]}
    assert lacking([GROUPS, RANGE], [refused("xinfo|groups"), refused("xrange")]) == expected


def test_a_key_alone_is_missing_where_the_command_is_allowed() -> None:
    assert lacking([GROUPS, RANGE], [NO_KEY, NO_KEY]) == {"queues": ["%R~stem:*"]}


def test_what_is_needed_and_what_is_done_without_are_told_apart() -> None:
    told = lacking([PING, HEAR, GROUPS], [refused("ping"), NO_CHANNEL, NO_KEY])
    assert told == {"": ["&c", "+ping"], "queues": ["%R~stem:*"]}


def test_before_redis_7_keys_are_granted_whole() -> None:
    both = [refused("xinfo", old=True), refused("xrange", old=True)]
    assert lacking([GROUPS, RANGE], both, older=True) == {"queues": ["~stem:*", "+xinfo|groups", "+xrange"]}
    old = "NOPERM this user has no permissions to access one of the keys used as arguments"
    assert lacking([RANGE], [old], older=True) == {"queues": ["~stem:*"]}


def test_a_server_older_than_redis_7_is_told_by_how_it_knows_subcommands() -> None:
    assert not is_older("ERR unknown subcommand 'NOPE'. Try CLIENT HELP.")
    assert is_older("ERR Unknown subcommand or wrong number of arguments for 'NOPE'. Try CLIENT HELP.")
    assert is_older(refused("client", old=True))


def test_a_server_that_is_of_no_use_is_told_by_its_own_words() -> None:
    assert trouble([None, refused("ping")]) is None
    told = trouble([None, "LOADING Redis is loading the dataset in memory"])
    assert told == "LOADING Redis is loading the dataset in memory: it is still reading its data; try again"
