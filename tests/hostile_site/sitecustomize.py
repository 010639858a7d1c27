"""Python imports this at its start in a node's processes: the one that answers becomes hostile."""

from __future__ import annotations

import sys

if "hetfl.flower.command.warm" in sys.orig_argv:
    from tests.hostile_node import become_hostile

    become_hostile()
