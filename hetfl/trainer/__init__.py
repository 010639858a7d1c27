"""What a federated module and Lightning's trainer agree on: requirements, fingerprints, what is logged and written."""
