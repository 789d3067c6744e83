"""The certificates of one plan: the contexts its workers inherit, and the files they came from.

The contexts are made here, before any fork: workers share the keys of session tickets by that, and need no right to
read the keys. The files are looked at from time to time. When they were written and have rested for one look, since
certificate and key are two files, they are read and tried in contexts of their own; only what passes is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from procmgr.config.tls import options
from procmgr.errors import ConfigError
from procmgr.plain import record
from procmgr.tls import Contexts, Material, MaterialEstate, signature

if TYPE_CHECKING:
    from pathlib import Path

    from procmgr.config.settings import Settings
    from procmgr.config.tls import TLSSettings
    from procmgr.tls import Options, Signature


@record
class CertificatesEstate:
    """Certificates as they are handed over; what the files looked like is not, so they are read again."""

    material: MaterialEstate


class Certificates:
    """What `options` name, in use since the files looked like `seen`; raises `ConfigError` if it cannot be used.

    `warnings` says what else is wrong with the files, one line each.
    """

    def __init__(self, options: Options, material: Material, seen: Signature | None) -> None:
        self._options = options
        self._material = material
        self._seen = seen
        self._before = seen
        self.contexts = Contexts(options, material)
        self.warnings = _warnings(options)

    @classmethod
    def open(cls, settings: TLSSettings, cwd: Path) -> Self | None:
        """Read what the settings name, None if they name nothing; raises `ConfigError`."""
        found = options(settings, cwd)
        if found is None:
            return None
        seen = signature(found.pairs)  # before they are read: what is written meanwhile is seen later
        material = _read(found)
        try:
            return cls(found, material, seen)
        except ConfigError:
            material.close()
            raise

    @classmethod
    def adopt(cls, estate: CertificatesEstate, settings: TLSSettings, cwd: Path) -> Self:
        """Take over a predecessor's, by whose descriptors they are the same whatever became of the files.

        Raises `ConfigError`, and leaves the descriptors open: they are needed for the way back.
        """
        found = options(settings, cwd)
        if found is None:
            raise ConfigError("certificates were handed over without settings for them")
        return cls(found, Material.adopt(estate.material), None)

    def hand_over(self) -> CertificatesEstate:
        """Return what `adopt` needs."""
        return CertificatesEstate(material=self._material.hand_over())

    def look(self) -> tuple[int, ...] | None:
        """Use what is in the files if they were written and hold something else now; return the pairs as memfds.

        None if there is nothing new. Raises `ConfigError` if there is, but it cannot be used; that is said once.
        """
        now, before = signature(self._options.pairs), self._before
        self._before = now
        if now == self._seen or now != before:
            return None
        self._seen = now
        return self._take(_read(self._options))

    def close(self) -> None:
        """Let go of the memfds."""
        self._material.close()

    def _take(self, fresh: Material) -> tuple[int, ...] | None:
        if fresh.same(self._material):
            fresh.close()
            return None
        try:
            self.contexts.use(fresh.pairs)
        except ConfigError:
            fresh.close()
            raise
        self._material.close()
        self._material = Material(fresh.pairs, self._material.authorities)
        self.warnings = _warnings(self._options)
        return self._material.pairs


def check(settings: Settings, cwd: Path) -> list[str]:
    """Try what the settings name and return what there is to say about it; raises `ConfigError`."""
    found = Certificates.open(settings.tls, cwd)
    if found is None:
        return []
    found.close()
    return found.warnings


def _warnings(options: Options) -> list[str]:
    return [text for pair in options.pairs if (text := pair.exposed()) is not None]


def _read(options: Options) -> Material:
    try:
        return Material.read(options.pairs, options.authorities)
    except OSError as error:
        raise ConfigError(f"certificates cannot be kept in memory: {error.strerror}") from error
