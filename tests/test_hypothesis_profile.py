"""What holds for every test that draws its examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

DEFAULT, CHANGED = settings(), settings(max_examples=7)


def test_no_example_has_a_time_limit() -> None:
    for used in (DEFAULT, CHANGED):  # made at import, as decorators are
        assert used.deadline is None
        assert HealthCheck.too_slow in used.suppress_health_check
