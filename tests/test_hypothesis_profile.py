"""Properties of every Hypothesis test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

DEFAULT, CHANGED = settings(), settings(max_examples=7)


def test_no_example_has_a_time_limit() -> None:
    for used in (DEFAULT, CHANGED):  # settings are made at import, as decorators make them
        assert used.deadline is None
        assert HealthCheck.too_slow in used.suppress_health_check
