"""Part rules: which part of a global model a client holds in a round, one rule per file."""

from hetfl.parts.alternating_factors import AlternatingFactors
from hetfl.parts.base import NOBODY, PartRule
from hetfl.parts.base_nets import BaseNets
from hetfl.parts.client_importance import ClientImportance
from hetfl.parts.dynamic_mask import DynamicMask
from hetfl.parts.greedy_mask import GreedyMask
from hetfl.parts.hunted_mask import HuntedMask
from hetfl.parts.personal_mask import PersonalMask
from hetfl.parts.prefix import Prefix
from hetfl.parts.pruned_channels import PrunedChannels, PrunedGroup
from hetfl.parts.random_channels import RandomChannels
from hetfl.parts.random_mask import RandomMask
from hetfl.parts.ranked_mask import RankedMask
from hetfl.parts.rewound_mask import RewoundMask
from hetfl.parts.rolling import Rolling
from hetfl.parts.scored_channels import ScoredChannels
from hetfl.parts.threshold_mask import ThresholdMask
from hetfl.parts.trained_ranks import TrainedRanks
from hetfl.parts.voted_mask import VotedMask

__all__ = [
    "NOBODY",
    "AlternatingFactors",
    "BaseNets",
    "ClientImportance",
    "DynamicMask",
    "GreedyMask",
    "HuntedMask",
    "PartRule",
    "PersonalMask",
    "Prefix",
    "PrunedChannels",
    "PrunedGroup",
    "RandomChannels",
    "RandomMask",
    "RankedMask",
    "RewoundMask",
    "Rolling",
    "ScoredChannels",
    "ThresholdMask",
    "TrainedRanks",
    "VotedMask",
]
