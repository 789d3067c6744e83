"""Certificates for tests, made by an authority of the test's own, and clients that trust it."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trustme
from cryptography.hazmat.primitives import serialization

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 20.0


@dataclass
class Files:
    """A certificate and its key, as files of mode 0600."""

    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """The command line that serves with them."""
        return ["--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.key)]


def replace(path: Path, data: bytes) -> None:
    """Put a new file in the place of another, as tools that renew certificates do."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(data)
    fresh.rename(path)


class Authority:
    """Issues certificates into a directory."""

    def __init__(self, room: Path) -> None:
        self._ca = trustme.CA()
        self._room = room
        self.file = room / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, *hosts: str, days: float = 90, rsa: bool = False, subject: str | None = None) -> trustme.LeafCert:
        """Return a new certificate."""
        kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
        end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        return self._ca.issue_cert(*hosts, key_type=kind, not_after=end, common_name=subject)

    def write(self, name: str, leaf: trustme.LeafCert, *, password: str | None = None) -> Files:
        """Write a certificate and its key, or replace those that are there."""
        files = Files(self._room / f"{name}.pem", self._room / f"{name}.key")
        key = leaf.private_key_pem.bytes()
        if password is not None:
            key = serialization.load_pem_private_key(key, None).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
        replace(files.certificate, b"".join(each.bytes() for each in leaf.cert_chain_pems))
        replace(files.key, key)
        return files

    def client(self, *, certificate: trustme.LeafCert | None = None, version: str | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this authority."""
        context = ssl.create_default_context(cafile=str(self.file))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if certificate is not None:
            certificate.configure_cert(context)
        if version is not None:
            context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        return context


def serial(leaf: trustme.LeafCert) -> bytes:
    """Return the DER form of a certificate, as `Answer.certificate` has it."""
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


@dataclass
class Answer:
    """What a client got."""

    body: Any
    certificate: bytes
    session: ssl.SSLSession
    reused: bool
    version: str
    alpn: str | None


def fetch(
    port: int, client: ssl.SSLContext, *, host: str = "a.test", path: str = "/", session: ssl.SSLSession | None = None
) -> Answer:
    """GET on a connection of its own."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
        client.wrap_socket(plain, server_hostname=host, session=session) as sock,
    ):
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := sock.recv(65536):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), data
        version = sock.version()
        der = sock.getpeercert(binary_form=True)
        assert version is not None
        assert der is not None
        assert sock.session is not None
        return Answer(
            body=json.loads(body),
            certificate=der,
            session=sock.session,
            reused=bool(sock.session_reused),
            version=version,
            alpn=sock.selected_alpn_protocol(),
        )
