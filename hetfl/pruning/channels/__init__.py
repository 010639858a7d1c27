"""Channels of a net: which dimensions of its tensors hold the same ones, and their scores."""

from hetfl.pruning.channels.groups import Group, Member, channel_groups
from hetfl.pruning.channels.scores import channel_scores, ranking

__all__ = ["Group", "Member", "channel_groups", "channel_scores", "ranking"]
