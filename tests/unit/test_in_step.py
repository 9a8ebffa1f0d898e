"""A standby that is not known to be up to date is not moved to, and says why."""

from __future__ import annotations

from upgrader.core.in_step import InStep


def test_a_standby_that_was_never_up_to_date_is_not_moved_to() -> None:
    assert InStep().stale(5.0, 2.0) == "it was not brought up to date by this coordinator yet"
    assert "refused" in str(InStep().failed("refused", 4.0).stale(5.0, 2.0))


def test_one_that_is_up_to_date_is_until_it_is_too_long_ago() -> None:
    fresh = InStep().succeeded(10.0)
    assert fresh.stale(12.0, 2.0) is None
    assert fresh.stale(12.5, 2.0) == "it was last brought up to date 2.5 s ago, more than 2 s"


def test_a_failure_is_said_at_once_with_how_long_it_lasts_and_forgotten_after_a_success() -> None:
    lost = InStep().succeeded(10.0).failed("MONITOR_LOST: gone", 10.2)
    assert lost.stale(10.5, 2.0) == "it could not be brought up to date for 0.5 s: MONITOR_LOST: gone"
    assert lost.succeeded(11.0).stale(11.0, 2.0) is None


def test_what_failed_after_a_switch_had_died_says_nothing_of_the_copy_at_its_death() -> None:
    died = InStep().succeeded(10.0).failed("no answer", 11.5)
    assert died.stale(11.0, 2.0) is None
    assert "no answer" in str(died.stale(12.0, 2.0))
    lagged = InStep().succeeded(10.0).failed("refused", 10.5).failed("no answer", 20.0)
    assert lagged.stale(19.0, 2.0) == "it could not be brought up to date for 9.0 s: no answer"
