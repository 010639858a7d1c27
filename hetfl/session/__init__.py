"""A training from its start to its end: callbacks, loggers, figures; for the command line and Python."""
