"""When clients take the model and when the server steps; one schedule per file."""

from hetfl.schedule.age import FRESH, Age
from hetfl.schedule.base import Schedule, Turn
from hetfl.schedule.flight import Accepted, Flight, Reply
from hetfl.schedule.synchronous import Synchronous

__all__ = ["FRESH", "Accepted", "Age", "Flight", "Reply", "Schedule", "Synchronous", "Turn"]
