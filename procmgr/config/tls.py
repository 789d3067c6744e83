"""The settings of TLS, and the options of contexts that they make."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

from procmgr.config.declare import Applies, setting
from procmgr.config.kind import Kind, string
from procmgr.config.types import choice, many, path, seconds, target, text
from procmgr.errors import ConfigError
from procmgr.tls import Options, Pair

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")
Versions = Literal["auto", "tls1.2", "tls1.3"]
Verify = Literal["none", "optional", "required"]

_ROLL: Final = Applies.ROLL
_VERSIONS: Final = {
    "auto": (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED),
    "tls1.2": (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
    "tls1.3": (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
}
_VERIFY: Final = {
    "none": ssl.VerifyMode.CERT_NONE,
    "optional": ssl.VerifyMode.CERT_OPTIONAL,
    "required": ssl.VerifyMode.CERT_REQUIRED,
}
# What uvicorn and gunicorn take: ssl.PROTOCOL_TLS_SERVER, PROTOCOL_TLS and PROTOCOL_TLSv1_2; ssl.CERT_*.
_VERSION_NUMBERS: Final = {"17": "auto", "2": "auto", "5": "tls1.2"}
_VERIFY_NUMBERS: Final = {"0": "none", "1": "optional", "2": "required"}
_TOO_OLD: Final = dict.fromkeys(("0", "1", "3", "4"), "versions of TLS before 1.2 are not safe")


def _numbered(words: Kind[T], numbers: Mapping[str, str]) -> Kind[T]:
    """Return the kind `words`, whose words other programs give as numbers."""

    def read(text: str) -> T:
        return words.text(numbers.get(text, text))

    def native(value: object) -> T:
        number = isinstance(value, int) and not isinstance(value, bool)
        return read(f"{value:d}" if number else string(value))

    forms = [words.schema, {"enum": [int(number) for number in numbers]}]
    return Kind(
        metavar=words.metavar,
        wanted=words.wanted,
        text=read,
        native=native,
        toml=words.toml,
        schema={"anyOf": forms},
        example=words.example,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """TLS."""

    ssl_certfile: tuple[str, ...] = setting(
        (),
        many(path("FILE", "/etc/ssl/example.pem")),
        _ROLL,
        "Serve HTTPS with the certificate chain in this PEM file. Of several the client's server name (SNI) chooses; "
        "the first is for all other names.",
        flags=("--certfile",),
        uvicorn="ssl_certfile",
        gunicorn="certfile",
    )
    ssl_keyfile: tuple[str, ...] = setting(
        (),
        many(path("FILE", "/etc/ssl/example.key")),
        _ROLL,
        "The private key in this PEM file; of several each is for the certificate at the same place.",
        flags=("--keyfile",),
        default="in the file of the certificate",
        uvicorn="ssl_keyfile",
        gunicorn="keyfile",
    )
    ssl_keyfile_password: str | None = setting(
        None,
        text("PASSWORD", "a password of at most 1,000 characters", "secret"),
        _ROLL,
        "What encrypted private keys are decrypted with.",
        uvicorn="ssl_keyfile_password",
        secret=True,
    )
    ssl_version: Versions = setting(
        "auto",
        _numbered(choice(get_args(Versions), _TOO_OLD), _VERSION_NUMBERS),
        _ROLL,
        "The versions of TLS; auto is 1.3, and 1.2 for clients that do not know it.",
        uvicorn="ssl_version",
        gunicorn="ssl_version",
    )
    ssl_cert_reqs: Verify = setting(
        "none",
        _numbered(choice(get_args(Verify)), _VERIFY_NUMBERS),
        _ROLL,
        "Whether a client is asked for a certificate, and has to have one.",
        flags=("--cert-reqs",),
        uvicorn="ssl_cert_reqs",
        gunicorn="cert_reqs",
    )
    ssl_ca_certs: str | None = setting(
        None,
        path("FILE", "/etc/ssl/clients.pem"),
        _ROLL,
        "Verify the certificates of clients by the authorities in this PEM file.",
        flags=("--ca-certs",),
        uvicorn="ssl_ca_certs",
        gunicorn="ca_certs",
    )
    ssl_ciphers: str | None = setting(
        None,
        text("LIST", "a cipher list as of OpenSSL", "ECDHE+AESGCM"),
        _ROLL,
        "The ciphers for TLS 1.2, as OpenSSL lists them.",
        flags=("--ciphers",),
        default="Python's",
        uvicorn="ssl_ciphers",
        gunicorn="ciphers",
    )
    ssl_handshake_timeout: float = setting(
        10.0,
        seconds(3600, zero=False),
        _ROLL,
        "Give a client so long for the TLS handshake.",
    )
    ssl_context_factory: str | None = setting(
        None,
        target(),
        _ROLL,
        "Have this function, called with the settings of TLS and with a function that makes the usual one, make the "
        "ssl.SSLContext of each worker.",
        uvicorn="ssl_context_factory",
    )

    @property
    def enabled(self) -> bool:
        """Whether HTTPS is spoken."""
        return bool(self.ssl_certfile or self.ssl_context_factory)

    @property
    def scheme(self) -> str:
        """What URLs begin with."""
        return "https" if self.enabled else "http"


def options(settings: TLSSettings, base: Path) -> Options | None:
    """Return the options of contexts, None if there is no certificate; relative paths count from `base`.

    Raises `ConfigError`.
    """
    wrong = mistake(settings)
    if wrong is not None:
        raise ConfigError(wrong[1])
    if not settings.ssl_certfile:
        return None
    keys = settings.ssl_keyfile or (None,) * len(settings.ssl_certfile)
    pairs = zip(settings.ssl_certfile, keys, strict=True)
    minimum, maximum = _VERSIONS[settings.ssl_version]
    return Options(
        pairs=tuple(Pair(base / certificate, None if key is None else base / key) for certificate, key in pairs),
        password=settings.ssl_keyfile_password,
        minimum=minimum,
        maximum=maximum,
        verify=_VERIFY[settings.ssl_cert_reqs],
        authorities=None if settings.ssl_ca_certs is None else base / settings.ssl_ca_certs,
        ciphers=settings.ssl_ciphers,
    )


def mistake(settings: TLSSettings) -> tuple[str, str] | None:
    """Return the setting that does not fit the others, and one line about it; None if all fit."""
    certificates, keys = len(settings.ssl_certfile), len(settings.ssl_keyfile)
    if keys and not certificates:
        return "ssl_keyfile", "ssl_keyfile: there is a key but no certificate; expected ssl_certfile, too"
    if keys not in {0, certificates}:
        wanted = f"expected one for each of the {certificates} of ssl_certfile, in the same order"
        return "ssl_keyfile", f"ssl_keyfile: {keys} given; {wanted}, or none if those hold the keys"
    if settings.ssl_cert_reqs != "none" and settings.ssl_ca_certs is None and not settings.ssl_context_factory:
        text = f"ssl_cert_reqs: {settings.ssl_cert_reqs} without ssl_ca_certs: no client could be verified"
        return "ssl_cert_reqs", text
    if settings.ssl_context_factory and certificates > 1:
        return "ssl_context_factory", f"ssl_context_factory: expected at most one ssl_certfile, not {certificates}"
    return None


def pointless(settings: TLSSettings) -> list[str]:
    """Return one line for each setting that means nothing beside the others."""
    if settings.enabled:
        return []
    names = ("ssl_keyfile_password", "ssl_ca_certs", "ssl_ciphers")
    return [f"{name} means nothing without ssl_certfile" for name in names if getattr(settings, name)]
