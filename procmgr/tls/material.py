"""Certificates and keys: read from their files once, kept in sealed memory, passed on as descriptors.

A pair is one memfd with the key before the chain, so that of all who load it nobody can load halves of two pairs. Who
has the descriptor can load it (`/proc/self/fd/N`) although the files are not his to read, or are gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from procmgr.errors import ConfigError
from procmgr.handover import Descriptor
from procmgr.plain import record

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES: Final = 1 << 20
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Signature = tuple[tuple[int, ...], ...]
"""What of files changes when they are written or replaced."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a certificate chain and its key are; without `key` the key is in the file of the certificate."""

    certificate: Path
    key: Path | None = None

    def __str__(self) -> str:
        return str(self.certificate)

    @property
    def secret(self) -> Path:
        """The file that holds the key."""
        return self.key or self.certificate

    def read(self) -> bytes:
        """Return the key, then the chain; raises `ConfigError`."""
        chain = read_file("ssl_certfile", self.certificate)
        if b"-----BEGIN CERTIFICATE-----" not in chain:
            raise ConfigError(f"ssl_certfile: {self.certificate} holds no PEM certificate")
        if self.key is None:
            if b"PRIVATE KEY-----" not in chain:
                raise ConfigError(f"ssl_certfile: {self.certificate} holds no key; expected ssl_keyfile, too")
            return chain
        key = read_file("ssl_keyfile", self.key)
        if b"PRIVATE KEY-----" not in key:
            raise ConfigError(f"ssl_keyfile: {self.key} holds no PEM private key")
        return key.rstrip(b"\n") + b"\n" + chain

    def exposed(self) -> str | None:
        """Return one line if others than its owner may read or write the key, None if not."""
        try:
            mode = self.secret.stat().st_mode
        except OSError:
            return None  # it was replaced a moment ago: there will be another look
        if not mode & _OTHERS & ~(stat.S_IXGRP | stat.S_IXOTH):
            return None
        return f"{self.secret} holds a private key and has mode {stat.S_IMODE(mode):04o}; expected 0600"


def read_file(setting: str, path: Path) -> bytes:
    """Return what is in a file; raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{setting}: {path} has more than {_MAX_BYTES} bytes")
    return data


def signature(pairs: tuple[Pair, ...]) -> Signature:
    """Return what of the files changes when they are written or replaced; a missing one has a signature, too."""
    return tuple(_signature(path) for pair in pairs for path in {pair.certificate, pair.secret})


def _signature(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


@record
class MaterialEstate:
    """Material as it is handed over."""

    pairs: tuple[Descriptor, ...]
    authorities: str | None


@dataclass(frozen=True, slots=True)
class Material:
    """Pairs as sealed memfds, which belong to this object, and the PEM certificates of the authorities."""

    pairs: tuple[int, ...]
    authorities: str | None = None

    @classmethod
    def read(cls, pairs: tuple[Pair, ...], authorities: Path | None) -> Self:
        """Read all from the files; raises `ConfigError` or `OSError`, and nothing is left open then."""
        trusted = None if authorities is None else _read_authorities(authorities)
        contents = [pair.read() for pair in pairs]
        with ExitStack() as undo:
            made = tuple(_seal(content, undo) for content in contents)
            undo.pop_all()
        return cls(made, trusted)

    @classmethod
    def adopt(cls, estate: MaterialEstate) -> Self:
        """Take over what was handed over."""
        return cls(tuple(each.number for each in estate.pairs), estate.authorities)

    def hand_over(self) -> MaterialEstate:
        """Return what `adopt` needs."""
        return MaterialEstate(pairs=tuple(Descriptor(fd) for fd in self.pairs), authorities=self.authorities)

    def same(self, other: Material) -> bool:
        """Return whether the pairs hold the same bytes."""
        return [contents(fd) for fd in self.pairs] == [contents(fd) for fd in other.pairs]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.pairs:
            os.close(fd)


def contents(fd: int) -> bytes:
    """Return what is in the memfd of a pair."""
    return os.pread(fd, 2 * _MAX_BYTES + 1, 0)


def _read_authorities(path: Path) -> str:
    blocks = _PEM.findall(read_file("ssl_ca_certs", path))  # without comments, which may be in any encoding
    if not blocks:
        raise ConfigError(f"ssl_ca_certs: {path} holds no PEM certificate")
    return b"\n".join(blocks).decode("ascii")


def _seal(data: bytes, undo: ExitStack) -> int:
    # Its mode lets anybody open it anew, but only who may trace a process that has it gets near it (proc(5)).
    fd = os.memfd_create("procmgr-certificate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    undo.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
