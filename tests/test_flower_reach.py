"""Why a node cannot reach its server, and temporary folders of commands that were killed."""

from __future__ import annotations

import fcntl
import http.server
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hetfl.flower.command import reach
from hetfl.flower.command.client import Troubles
from hetfl.flower.command.processes import free_port, remove_leftovers
from hetfl.flower.events import Event, EventFile, EventLog


def certificates(folder: Path, days: int = 3) -> Path:
    """Make a CA and a certificate of this machine, which expires after some days; return their folder."""
    folder.mkdir()
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("CA", "server"))
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(ca_name, ca_name, ca_key.public_key(), 1, now - timedelta(9), now + timedelta(9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256()),
        x509.CertificateBuilder(ca_name, name, key.public_key(), 2, now - timedelta(9), now + timedelta(days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(ca_key, hashes.SHA256()),
    )
    for file, certificate in zip(("ca.crt", "server.crt"), made, strict=True):
        (folder / file).write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder


@contextmanager
def served(tls: Path | None) -> Iterator[str]:
    """Serve HTTP on the loopback, by TLS with the certificate of a folder; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_reason_is_named(tmp_path: Path) -> None:
    """Wrong CA, expired certificate, TLS on one side alone, nobody there, no such name."""
    mine, other = certificates(tmp_path / "mine"), certificates(tmp_path / "other")
    with served(mine) as address:
        assert reach.trouble(address, mine / "ca.crt") == ""
        assert "certificate is not accepted" in reach.trouble(address, other / "ca.crt")
        assert reach.trouble(address, None) == "the server does not answer without TLS: give --certificates"
        name = f"localhost:{address.rpartition(':')[2]}"
        assert "Hostname mismatch" in reach.trouble(name, mine / "ca.crt")
    with served(None) as address:
        assert reach.trouble(address, None) == ""
        assert "the server does not use TLS" in reach.trouble(address, mine / "ca.crt")
        assert reach.answers(address)
    assert "Connection refused" in reach.trouble(address, None)
    assert not reach.answers(address)
    assert "no.such.host.invalid is no known name of a machine" in reach.trouble("no.such.host.invalid:1", None)


def test_an_expired_certificate_is_named(tmp_path: Path) -> None:
    expired = certificates(tmp_path / "expired", days=-1)
    with served(expired) as address:
        assert "certificate has expired" in reach.trouble(address, expired / "ca.crt")


def test_a_trouble_is_reported_once_until_it_changes(tmp_path: Path) -> None:
    shown: list[str] = []
    log = EventLog(EventFile(tmp_path / "events"), None, as_json=False, show=shown.append)
    troubles = Troubles(log, ("unreachable", "reachable"), "it is there")
    for trouble in ("", "refused", "refused", "no name", "", ""):
        troubles.now(trouble)
    kinds = [line.split(" ", 1)[1] for line in shown]
    assert kinds == ["unreachable: refused", "unreachable: no name", "reachable: it is there"]
    assert Event("a", "b").seconds <= time.time()


def test_folders_of_killed_commands_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of commands at work, new folders and links stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("hetfl-flower-dead", "hetfl-flower-old", "hetfl-flower-busy", "hetfl-flower-new", "other"):
        (tmp_path / name / "bin").mkdir(parents=True)
    for name in ("dead", "busy"):
        (tmp_path / f"hetfl-flower-{name}" / ".lock").touch()
    (tmp_path / "hetfl-flower-link").symlink_to(tmp_path / "other")
    for name in ("hetfl-flower-dead", "hetfl-flower-old", "hetfl-flower-busy", "other"):
        os.utime(tmp_path / name, (0, 0))
    with (tmp_path / "hetfl-flower-busy" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"hetfl-flower-busy", "hetfl-flower-new", "hetfl-flower-link", "other"}
    assert free_port() > 0
