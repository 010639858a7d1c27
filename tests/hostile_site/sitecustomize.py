"""Python imports this module at the start of node processes; the process that answers requests becomes hostile."""

from __future__ import annotations

import sys

if "hetfl.flower.command.warm" in sys.orig_argv:
    from tests.hostile_node import become_hostile

    become_hostile()
