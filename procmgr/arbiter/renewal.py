"""New certificates for running workers, and warnings before old ones end.

A changed pair goes to the workers of its generation, and to the zygote they come from, as memfds on their channels:
connections from then on get the new certificate, nothing else happens. What cannot be used changes nothing and is said.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from procmgr import messages
from procmgr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.certificates import Certificates
    from procmgr.arbiter.plans import Plan
    from procmgr.tls import Certificate

_DAY: Final = 86_400.0
_WARN_DAYS: Final = (1, 7, 30)

log = logging.getLogger("procmgr.error")


class Renewal:
    """Looks at the files of every plan that serves. `send` gives a message with descriptors to all workers."""

    def __init__(
        self, *, plans: Callable[[], dict[int, Plan]], send: Callable[[messages.Message, tuple[int, ...]], None]
    ) -> None:
        self._plans = plans
        self._send = send
        self._said: dict[str, int] = {}
        self._warned: set[str] = set()

    def look(self) -> None:
        """Do what is due about once a second."""
        looked: dict[int, tuple[int, ...] | None] = {}
        for generation, plan in self._plans().items():
            certificates = plan.certificates
            if certificates is None:
                continue
            if id(certificates) not in looked:  # a generation that repeats another has the same ones
                looked[id(certificates)] = self._look(certificates)
            pairs = looked[id(certificates)]
            if pairs is not None:
                self._send(messages.NewCertificates(generation), pairs)
                log.info("new certificates are in use: %s", ", ".join(map(_until, certificates.contexts.certificates)))

    def _look(self, certificates: Certificates) -> tuple[int, ...] | None:
        try:
            pairs = certificates.look()
        except ConfigError as error:
            log.error("the certificates stay as they are: %s", error)
            pairs = None
        self._warn(certificates)
        return pairs

    def _warn(self, certificates: Certificates) -> None:
        """Say once what there is to say of files, and of each certificate's end."""
        for text in certificates.warnings:
            if text not in self._warned:
                log.warning("%s", text)
                self._warned.add(text)
        now = time.time()
        for each in certificates.contexts.certificates:
            days = (each.expires - now) / _DAY
            level = next((limit for limit in (0, *_WARN_DAYS) if days < limit), None)
            if level is not None and level < self._said.get(each.digest, _WARN_DAYS[-1] + 1):
                self._said[each.digest] = level
                log.log(logging.ERROR if level == 0 else logging.WARNING, "the certificate for %s", _ending(each, days))


def describe(certificates: Certificates | None) -> list[dict[str, Any]]:
    """Return the certificates as status tells them; times in seconds, since the epoch and from now."""
    now = time.time()
    return [
        {
            "name": str(each),
            "names": list(each.names),
            "subject": each.subject,
            "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each.expires)),
            "expires_in": round(each.expires - now),
            "digest": each.digest,
        }
        for each in (certificates.contexts.certificates if certificates else ())
    ]


def _until(certificate: Certificate) -> str:
    return f"{certificate} until {time.strftime('%Y-%m-%d', time.gmtime(certificate.expires))}"


def _ending(certificate: Certificate, days: float) -> str:
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(certificate.expires))
    if days < 0:
        return f"{certificate} expired on {date}"
    left = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
    return f"{certificate} expires in {left}, on {date}"
