"""The files that ``hetfl init`` writes: a configuration, its data section for each kind of data, and a net for each."""
