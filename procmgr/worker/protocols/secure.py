"""What is different for a connection over TLS: how its bytes come in, how it ends, what the scope says of it.

Bytes come in through a buffer: for each read without one both loops allocate 256 KiB, which the C library takes from
the kernel and gives back each time unless something else has taught it better (mallopt(3), M_MMAP_THRESHOLD): then a
request costs up to twice the time. One buffer serves all connections of a worker: whoever asked for it (`get_buffer`)
has filled it and given it back (`buffer_updated`) before anything else runs.

The end. TLS has no half-closed connection here: a transport that is closed flushes, sends close_notify, and reads and
throws away what comes until the peer has answered it. asyncio's, unlike uvloop's, takes data that comes then for an
attack and resets the connection, which may destroy the response. So while the client may still be sending a request,
the response, which said `Connection: close`, is left to speak for itself for a while before the transport is closed.
A peer that does not answer is let go of, once nothing is left to be sent. The transport does not count what it gave to
the one below it; but while that one has something, the socket is not writable.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from procmgr.tls import Certificate
from procmgr.worker.protocols.base import LINGER, Connection, Phase
from procmgr.worker.protocols.http1 import Http1Connection
from procmgr.worker.protocols.kernel import polled
from procmgr.worker.protocols.scope import http_scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.context import Context, Scope
    from procmgr.worker.protocols.framing import Request

_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_BUFFER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Secure:
    """What all TLS connections of a worker share: the buffer, and the numbers of cipher suites by OpenSSL's names."""

    buffer: memoryview
    suites: Mapping[str, int]

    @classmethod
    def of(cls, context: ssl.SSLContext) -> Secure:
        """Return it for connections that begin with `context`.

        The lower half of what OpenSSL calls a suite's id is its number in TLS (SSL_CIPHER_get_id(3)).
        """
        suites = {each["name"]: each["id"] & 0xFFFF for each in context.get_ciphers()}
        return cls(memoryview(bytearray(_BUFFER_BYTES)), suites)


class SecureConnection(Connection, asyncio.BufferedProtocol):
    """A connection over TLS, to be mixed into one that speaks a protocol: the protocol's class comes after it."""

    __slots__ = ()

    @property
    def expecting(self) -> bool:
        """Whether the client may be in the midst of sending something."""
        raise NotImplementedError

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - more is as good
        """Return where decrypted bytes are to be put."""
        return self._secure.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take decrypted bytes out of the buffer."""
        self.data_received(self._secure.buffer[:nbytes].tobytes())

    def eof_received(self) -> bool:
        """Take the client's close_notify: the transport closes then, whatever we say."""
        super().eof_received()
        self.flush()
        return False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read once what the scope says of the connection."""
        connection = transport.get_extra_info("ssl_object")
        if connection is not None:  # else the peer is gone already
            self.tls = describe(connection, self._secure.suites)
        super().connection_made(transport)

    def close(self, *, linger: float = LINGER) -> None:
        """Flush and close; a client that may still be sending gets a while to read the response and close itself."""
        if self.phase is Phase.OPEN and self.expecting and not self.eof:
            self.context.loop.call_later(linger, self._close_transport)
            self._end(linger + LINGER)
        elif self.phase is Phase.OPEN:
            self._end(linger)
            self.transport.close()

    def finish(self) -> None:
        """Flush and close, where the client sends no more."""
        if self.phase is Phase.OPEN:
            self._end(LINGER)
            self.transport.close()

    def _end(self, linger: float) -> None:
        self.flush()
        self.resume_reading()
        self._shut(Phase.LINGERING)
        self.bucket.discard(self)
        self.context.loop.call_later(linger, self._linger_over)

    def _close_transport(self) -> None:
        if self.phase is Phase.LINGERING:
            self.transport.close()

    def unsent(self) -> int:
        """Return how much of what was written has not left this process, in bytes; 1 where that is unknown."""
        waiting = super().unsent()
        if waiting or self.phase is Phase.OPEN:
            return waiting
        return 0 if polled(self.transport, select.POLLOUT) else 1

    def let_go(self) -> None:
        """End a connection whose peer does not answer."""
        self.abort()

    @property
    def _secure(self) -> Secure:
        assert self.context.secure is not None  # this class is only used with it
        return self.context.secure


class SecureHttp1Connection(SecureConnection, Http1Connection):
    """One connection that speaks HTTP/1.1 over TLS."""

    __slots__ = ()

    sendfile = False

    @property
    def expecting(self) -> bool:
        """Whether the client may be in the midst of a request."""
        return self._body_open or bool(self._pending)

    def scope(self, context: Context, request: Request, client: Address | None, server: Address | None) -> Scope:
        """Return the scope of a request, with what is known of the TLS connection."""
        scope = http_scope(context, request, client, server)
        if self.tls is not None:
            scope["extensions"]["tls"] = self.tls.copy()
        return scope


def describe(connection: ssl.SSLObject, suites: Mapping[str, int]) -> dict[str, Any]:
    """Return what the scope says of a TLS connection (ASGI TLS extension 0.2)."""
    own: Certificate | None = getattr(connection.context, "certificate", None)
    client = connection.getpeercert(binary_form=True)
    cipher = connection.cipher()
    return {
        "server_cert": None if own is None else own.pem,
        "client_cert_chain": () if client is None else _chain(connection, client),
        "client_cert_name": None if client is None else _name(client),
        "client_cert_error": None,  # a certificate that does not verify ends the handshake
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": None if cipher is None else suites.get(cipher[0]),
    }


def _chain(connection: ssl.SSLObject, client: bytes) -> tuple[str, ...]:
    """Return the client's certificate, and since Python 3.13 those that it sent beside."""
    sent = getattr(connection, "get_unverified_chain", lambda: [client])()
    return tuple(ssl.DER_cert_to_PEM_cert(each) for each in (sent or [client]))


def _name(client: bytes) -> str | None:
    try:
        return Certificate.read(client).subject
    except ValueError:
        return None
