"""What is read from a certificate here: its names, its subject, its end. Python's ssl tells them of a peer's only.

Just enough of DER (X.690) to walk through a Certificate (RFC 5280 section 4.1). Nothing is verified: these are our own
certificates, or a peer's that OpenSSL has verified. Whatever is not as it should be is a `ValueError`.
"""

from __future__ import annotations

import calendar
import hashlib
import re
import ssl
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")
_SEQUENCE, _SET, _OID, _OCTETS, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x31, 0x06, 0x04, 0x17, 0x18
_VERSION, _EXTENSIONS, _DNS_NAME = 0xA0, 0xA3, 0x82
_SUBJECT_ALT_NAME: Final = "2.5.29.17"
_STRINGS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
# The registered short names of attribute types that certificates have (RFC 4514 section 3, RFC 4519 section 2).
_SHORT: Final = {
    "2.5.4.3": "CN",
    "2.5.4.4": "sn",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.42": "givenName",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.46": "dnQualifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}
_ESCAPED: Final = re.compile(r'[,+"\\<>;\x00]|^[ #]| $')


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is known of a certificate.

    `names` are its DNS names in lower case, `subject` its subject as RFC 4514 writes it, `expires` its end in seconds
    since the epoch, `digest` its SHA-256 in hexadecimal, `pem` itself.
    """

    names: tuple[str, ...]
    subject: str
    expires: float
    digest: str
    pem: str

    @classmethod
    def first(cls, pem: bytes) -> Self:
        """Return the first certificate in a PEM file; raises `ValueError`."""
        found = _PEM.search(pem)
        if found is None:
            raise ValueError("it holds no PEM certificate")
        return cls.read(b64decode(found[1]))

    @classmethod
    def read(cls, der: bytes) -> Self:
        """Return what the DER form of a certificate says; raises `ValueError`."""
        try:
            validity, subject, extensions = _parts(der)
            return cls(
                names=tuple(_dns_names(extensions)),
                subject=_name(subject),
                expires=_time(*list(_items(validity))[1]),
                digest=hashlib.sha256(der).hexdigest(),
                pem=ssl.DER_cert_to_PEM_cert(der),
            )
        except (IndexError, StopIteration, UnicodeDecodeError) as error:
            raise ValueError("it is not an X.509 certificate") from error

    def __str__(self) -> str:
        if not self.names:
            return self.subject or "without a name"
        more = len(self.names) - 1
        return self.names[0] + (f" and {more} more name{'' if more == 1 else 's'}" if more else "")


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, contents) of each element (X.690 section 8.1)."""
    place = 0
    while place < len(data):
        tag, size = data[place], data[place + 1]
        place += 2
        if size & 0x80:
            digits = size & 0x7F
            size = int.from_bytes(data[place : place + digits], "big")
            place += digits
        if place + size > len(data):
            raise ValueError("it is cut off")
        yield tag, data[place : place + size]
        place += size


def _parts(der: bytes) -> tuple[bytes, bytes, bytes]:
    """Return validity, subject and extensions of a Certificate (RFC 5280 section 4.1)."""
    _, certificate = next(_items(der))
    fields = list(_items(next(_items(certificate))[1]))
    if fields[0][0] == _VERSION:
        del fields[0]
    extensions = next((contents for tag, contents in fields[6:] if tag == _EXTENSIONS), b"")
    return fields[3][1], fields[4][1], next(_items(extensions))[1] if extensions else b""


def _dns_names(extensions: bytes) -> Iterator[str]:
    for _, extension in _items(extensions):
        fields = list(_items(extension))
        if _oid(fields[0][1]) == _SUBJECT_ALT_NAME:
            names = next(_items(fields[-1][1]))[1]
            yield from (name.decode("ascii").lower() for tag, name in _items(names) if tag == _DNS_NAME)


def _time(tag: int, text: bytes) -> float:
    """Return a time in seconds since the epoch (RFC 5280 section 4.1.2.5)."""
    digits = text.decode("ascii")
    if tag == _UTC_TIME:
        digits = ("19" if digits >= "5" else "20") + digits
    if tag not in {_UTC_TIME, _GENERALIZED_TIME} or not re.fullmatch("[0-9]{14}Z", digits):
        raise ValueError("it has no readable end")
    fields = (digits[:4], *(digits[place : place + 2] for place in range(4, 14, 2)))
    return float(calendar.timegm((*map(int, fields), 0, 0, 0)))


def _oid(data: bytes) -> str:
    """Return an object identifier in dotted form (X.690 section 8.19)."""
    numbers, number = [], 0
    for byte in data:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    top = min(numbers[0] // 40, 2)  # the first two are encoded as one
    return ".".join(map(str, (top, numbers[0] - 40 * top, *numbers[1:])))


def _name(data: bytes) -> str:
    """Return a distinguished name as text (RFC 4514 section 2): the last part first."""
    parts = ["+".join(_attribute(each) for _, each in _items(part)) for _, part in _items(data)]
    return ",".join(reversed(parts))


def _attribute(data: bytes) -> str:
    (_, oid), (tag, value) = _items(data)
    kind = _oid(oid)
    if kind not in _SHORT or tag not in _STRINGS:
        return f"{kind}=#{data[2 + len(oid) :].hex()}"  # its encoding, in hexadecimal (section 2.4)
    text = value.decode(_STRINGS[tag])
    return f"{_SHORT[kind]}={_ESCAPED.sub(_escape, text)}"


def _escape(found: re.Match[str]) -> str:
    return "\\00" if found[0] == "\0" else f"\\{found[0]}"
