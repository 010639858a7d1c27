"""``hetfl compare``: the plan of many runs, their processes, and a report on all of them."""
