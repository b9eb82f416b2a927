"""The RESP conversation, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.receivers.stem_signals.session import Login, Session, Subscription, command


def session(*subscriptions: Subscription, login: Login | None = None) -> tuple[Session, list[tuple[bytes, bytes]]]:
    heard: list[tuple[bytes, bytes]] = []
    wanted = subscriptions or (Subscription(("a:*",), pattern=True),)
    return Session(login or Login(None, None, 0), wanted, lambda c, p: heard.append((c, p))), heard


TIME = b"*2\r\n$10\r\n1776938400\r\n$6\r\n123456\r\n"
READY = b"+OK\r\n" + TIME
SUBSCRIBED = b"*3\r\n$10\r\npsubscribe\r\n$3\r\na:*\r\n:1\r\n"
MESSAGE = b"*4\r\n$8\r\npmessage\r\n$3\r\na:*\r\n$3\r\na:b\r\n$5\r\nhello\r\n"


def test_the_handshake_logs_in_selects_and_subscribes_in_that_order() -> None:
    subject, _ = session(login=Login("agent", "secret", 3))
    commands = [
        command("AUTH", "agent", "secret"),
        command("CLIENT", "SETNAME", "stem-agent"),
        command("SELECT", "3"),
        command("TIME"),
        command("PSUBSCRIBE", "a:*"),
    ]
    assert subject.opening == b"".join(commands)


def test_a_password_without_a_user_uses_the_old_form() -> None:
    subject, _ = session(login=Login(None, "secret", 0))
    assert subject.opening.startswith(command("AUTH", "secret"))


def test_it_is_ready_only_after_every_answer() -> None:
    subject, _ = session()
    subject.feed(READY)
    assert not subject.ready
    subject.feed(SUBSCRIBED)
    assert subject.ready
    assert subject.server_time_us == 1776938400_123456


@given(st.lists(st.integers(1, 40), max_size=10))
def test_messages_survive_any_fragmentation(cuts: list[int]) -> None:
    subject, heard = session()
    stream = READY + SUBSCRIBED + MESSAGE * 3
    for cut in cuts:
        subject.feed(stream[:cut])
        stream = stream[cut:]
    subject.feed(stream)
    assert heard == [(b"a:b", b"hello")] * 3
    assert subject.ready


@pytest.mark.parametrize(
    ("answer", "heals"),
    [
        ("WRONGPASS invalid username-password pair or user is disabled.", False),
        ("NOPERM this user has no permissions to access one of the channels", False),
        ("NOAUTH Authentication required.", False),
        ("LOADING Redis is loading the dataset in memory", True),
        ("ERR max number of clients reached", True),
    ],
)
def test_a_refusal_says_whether_waiting_helps(answer: str, *, heals: bool) -> None:
    subject, _ = session()
    subject.feed(READY)
    subject.feed(f"-{answer}\r\n".encode())
    assert not subject.ready
    assert subject.refusal
    assert (subject.refusal.answer, subject.refusal.heals) == (answer, heals)


def test_an_optional_step_may_be_declined() -> None:
    subject, _ = session(Subscription(("a",)), Subscription(("b",), optional=True))
    subject.feed(b"-NOPERM no client command\r\n" + b"-NOPERM no time command\r\n")
    subject.feed(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
    subject.feed(b"-NOPERM no channel\r\n")
    assert subject.ready
    assert [refusal.step for refusal in subject.declined] == ["CLIENT SETNAME", "TIME", "SUBSCRIBE b"]
    assert subject.server_time_us is None


def test_a_pong_is_no_message() -> None:
    subject, heard = session()
    subject.feed(READY + SUBSCRIBED + b"*2\r\n$4\r\npong\r\n$0\r\n\r\n" + MESSAGE)
    assert len(heard) == 1


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(Login("agent", "secret", 0))
