"""When clients take the model and when the server steps, on the simulated clock; one schedule per file."""

from hetfl.schedule.age import FRESH, Age
from hetfl.schedule.asynchronous import Asynchronous
from hetfl.schedule.base import OpenRound, Schedule
from hetfl.schedule.buffered import Buffered
from hetfl.schedule.flight import Accepted, Flight, Reply
from hetfl.schedule.semi_synchronous import SemiSynchronous
from hetfl.schedule.staleness import Constant, Hinge, Polynomial, StalenessWeight
from hetfl.schedule.synchronous import Synchronous
from hetfl.schedule.timed import Timed

__all__ = [
    "FRESH",
    "Accepted",
    "Age",
    "Asynchronous",
    "Buffered",
    "Constant",
    "Flight",
    "Hinge",
    "OpenRound",
    "Polynomial",
    "Reply",
    "Schedule",
    "SemiSynchronous",
    "StalenessWeight",
    "Synchronous",
    "Timed",
]
