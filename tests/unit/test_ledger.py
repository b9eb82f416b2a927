"""What was accepted by a mark, and whether it has found its end."""

import pytest

from agent.core.ledger import Account, Ledger

KINDS = ("traces", "logs", "metrics")


def test_nothing_accepted_has_passed_at_once() -> None:
    ledger = Ledger()
    assert ledger.passed(ledger.mark())
    ledger.account("otlp", "traces")
    assert ledger.passed(ledger.mark())


def delivered(account: Account) -> None:
    account.delivered += 1


def rejected(account: Account) -> None:
    account.rejected["partial_success"] += 1


def dropped(account: Account) -> None:
    account.dropped["queue_overflow"] += 1


@pytest.mark.parametrize("end", [delivered, rejected, dropped])
def test_a_mark_is_passed_when_as_many_items_have_found_their_end_whatever_that_was(end: object) -> None:
    assert callable(end)
    ledger = Ledger()
    account = ledger.account("otlp", "traces")
    account.accepted += 2
    mark = ledger.mark()
    account.accepted += 5
    end(account)
    assert not ledger.passed(mark)
    end(account)
    assert ledger.passed(mark)


def test_a_mark_waits_for_every_account() -> None:
    ledger = Ledger()
    accounts = [ledger.account(exporter, kind) for exporter in ("otlp", "other") for kind in KINDS]
    for account in accounts:
        account.accepted += 1
    mark = ledger.mark()
    for account in accounts:
        assert not ledger.passed(mark)
        account.delivered += 1
    assert ledger.passed(mark)


def test_a_mark_does_not_wait_for_what_came_later() -> None:
    ledger = Ledger()
    first = ledger.account("otlp", "traces")
    mark = ledger.mark()
    first.accepted += 1
    ledger.account("later", "traces").accepted += 1
    assert ledger.passed(mark)


def test_whoever_listens_is_told_of_every_end() -> None:
    ledger, told = Ledger(), list[str]()
    before = ledger.account("otlp", "traces")
    ledger.on_end(lambda: told.append("first"))
    ledger.on_end(lambda: told.append("second"))
    before.ended()
    ledger.account("otlp", "logs").ended()
    assert told == ["first", "second"] * 2
