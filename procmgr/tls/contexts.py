"""The SSLContexts of a server: one in front that every connection begins with, and one for each certificate.

Theory of operation. Python has no access to the keys of session tickets, but OpenSSL takes those of the context that a
connection began with, whatever context is chosen later. So the one in front, made before the fork, stays for as long as
the settings do: a session of one worker is resumed by all others, and after a change of the certificate too. It has no
certificate itself. Its callback, called in every handshake, with or without a name from the client (RFC 6066
section 3), chooses the context that has.

A certificate is changed by making new contexts for all of them and choosing from those. What goes on keeps its own.
`SSLContext.load_cert_chain` on one in use would not do: it leaves a certificate with another type of key in place, and
a pair that does not match breaks the context.

Without a name, or with one that no certificate is for, the first is chosen: a client that insists notices itself. A
name goes before a wildcard, which is for one label (RFC 9525 section 6.3), and an earlier certificate before a later.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from procmgr.errors import ConfigError
from procmgr.tls.material import Material, Pair, contents
from procmgr.tls.x509 import Certificate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ALPN: Final = ("http/1.1",)
_MISMATCH: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What contexts are made of. Without `authorities` no client can be verified."""

    pairs: tuple[Pair, ...]
    password: str | None = field(default=None, repr=False)
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    verify: ssl.VerifyMode = ssl.VerifyMode.CERT_NONE
    authorities: Path | None = None
    ciphers: str | None = None


class ServerContext(ssl.SSLContext):
    """A context that knows its own certificate."""

    certificate: Certificate


class Contexts:
    """Every context of one configuration, made of what `material` holds, which is not kept.

    Raises `ConfigError` when the pairs or the options are wrong.
    """

    def __init__(self, options: Options, material: Material) -> None:
        self._options = options
        self._authorities = material.authorities
        self.front = self._make()
        self.front.sni_callback = self._choose
        self._chosen = _Choice(self._load_all(material.pairs))

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The certificates in use, in the order of the settings."""
        return tuple(context.certificate for context in self._chosen.contexts)

    @property
    def default(self) -> ServerContext:
        """The context of the first certificate: complete, and without any of the others."""
        return self._chosen.contexts[0]

    def use(self, pairs: Sequence[int]) -> None:
        """Use the pairs in these memfds for connections from now on; raises `ConfigError` and changes nothing."""
        self._chosen = _Choice(self._load_all(pairs))

    def _choose(self, connection: ssl.SSLObject, name: str | None, _front: ssl.SSLContext) -> None:
        connection.context = self._chosen.find(name)

    def _make(self) -> ServerContext:
        options = self._options
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.maximum_version = options.minimum, options.maximum
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(ALPN)
        context.verify_mode = options.verify
        if options.ciphers is not None:
            try:
                context.set_ciphers(options.ciphers)
            except ssl.SSLError:
                raise ConfigError(f"ssl_ciphers: OpenSSL knows no cipher in {options.ciphers!r:.200}") from None
        if self._authorities is not None:
            try:
                context.load_verify_locations(cadata=self._authorities)
            except ssl.SSLError as error:
                raise ConfigError(f"ssl_ca_certs: {options.authorities}: {_reason(error)}") from None
        return context

    def _load_all(self, pairs: Sequence[int]) -> tuple[ServerContext, ...]:
        return tuple(self._load(pair, fd) for pair, fd in zip(self._options.pairs, pairs, strict=True))

    def _load(self, pair: Pair, fd: int) -> ServerContext:
        context = self._make()
        asked = False

        def password() -> str:
            nonlocal asked
            asked = True
            return self._options.password or ""

        try:
            # Without a password of ours OpenSSL would ask for one on the terminal.
            context.load_cert_chain(f"/proc/self/fd/{fd}", password=password)
            context.certificate = Certificate.first(contents(fd))
        except (OSError, ValueError) as error:
            raise ConfigError(self._explain(pair, error, asked=asked)) from None
        return context

    def _explain(self, pair: Pair, error: Exception, *, asked: bool) -> str:
        setting = "ssl_keyfile" if pair.key else "ssl_certfile"
        if isinstance(error, ssl.SSLError) and error.reason in _MISMATCH:
            return f"{setting}: {pair.secret} does not hold the key of the certificate in {pair.certificate}"
        if asked and not self._options.password:
            return f"{setting}: the key in {pair.secret} is encrypted; expected ssl_keyfile_password"
        if asked:
            return f"ssl_keyfile_password: it does not decrypt the key in {pair.secret}"
        what = "key or certificate" if pair.key else "it"
        return f"{setting}: {pair.secret}: {what} cannot be used: {_reason(error)}"


class _Choice:
    """Contexts, and for which names each is."""

    def __init__(self, contexts: tuple[ServerContext, ...]) -> None:
        self.contexts = contexts
        self._by_name: dict[str, ServerContext] = {}
        for context in contexts:
            for name in context.certificate.names:
                self._by_name.setdefault(name, context)

    def find(self, name: str | None) -> ServerContext:
        """Return the context for `name`."""
        if name is None:
            return self.contexts[0]
        name = name.lower()
        wildcard = f"*.{name.partition('.')[2]}"
        return self._by_name.get(name) or self._by_name.get(wildcard) or self.contexts[0]


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)
