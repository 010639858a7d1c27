"""Attacks for studies of defences: hooks, client transforms, an assignment, and clients that collude."""

from hetfl.attacks.backdoor import Backdoor
from hetfl.attacks.base import Attack
from hetfl.attacks.collusion import ALittleIsEnough, Collusion, InnerProduct
from hetfl.attacks.free_rider import FreeRider
from hetfl.attacks.gaussian import Gaussian
from hetfl.attacks.hostile import hostile_clients
from hetfl.attacks.label_flip import LabelFlip
from hetfl.attacks.scaling import Scaling, SignFlip
from hetfl.attacks.widest import ClaimsWidest

__all__ = [
    "ALittleIsEnough",
    "Attack",
    "Backdoor",
    "ClaimsWidest",
    "Collusion",
    "FreeRider",
    "Gaussian",
    "InnerProduct",
    "LabelFlip",
    "Scaling",
    "SignFlip",
    "hostile_clients",
]
