"""The interface of a federated module to Lightning's trainer: requirements, fingerprints, logging, writing."""
