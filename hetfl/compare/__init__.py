"""``hetfl compare``: many runs, what is left to do of each, their processes, and the report on them all."""
