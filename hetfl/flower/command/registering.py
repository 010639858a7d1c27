"""Registers the keys of nodes at a SuperLink: ``registering.py CONNECTION KEY...`` prints the nodes' numbers by key.

One process registers all keys, as Flower's command takes seconds for each. It runs as a file, like ``child.py``.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from flwr.cli.app import app


def main() -> None:
    """Register the keys, and print JSON."""
    stdout = sys.stdout
    connection, *keys = sys.argv[1:]
    nodes: dict[str, str] = {}
    for key in keys:
        output = io.StringIO()
        command = ["supernode", "register", key, connection, "--name", Path(key).stem, "--format", "json"]
        sys.__stdout__ = output  # type: ignore[misc,assignment]  # Flower writes JSON there, past sys.stdout
        try:
            app(command, standalone_mode=False)
        finally:
            sys.__stdout__ = sys.stdout = stdout  # type: ignore[misc,assignment]
        answer = json.loads(output.getvalue())
        if not answer.get("success"):
            sys.exit(f"{key}: {answer.get('error-message', answer)}")
        nodes[key] = str(answer["node-id"])
    print(json.dumps(nodes))


if __name__ == "__main__":
    main()
