"""The address grammar: what `--bind` accepts, as values, and back to its canonical spelling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final

EXAMPLES: Final = "127.0.0.1:8000, [::1]:8000, :8000, unix:/run/app.sock, unix:@name, fd://3 or systemd:NAME"
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+")
_MODE: Final = re.compile(r"(?:0o?)?[0-7]{1,3}")
_FD_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TCP:
    """A TCP port; an empty `host` is every IPv4 interface, port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Unix:
    """A Unix socket in the file system; without `mode` its permissions are 0666 & ~umask."""

    path: str
    mode: int | None = None
    owner: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        mode = None if self.mode is None else f"{self.mode:04o}"
        options = {"mode": mode, "owner": self.owner, "group": self.group}
        return f"unix:{self.path}" + "".join(f",{key}={value}" for key, value in options.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Abstract:
    """A Unix socket in the abstract namespace of the network namespace (unix(7)); `name` is without the `@`."""

    name: str

    def __str__(self) -> str:
        return f"unix:@{self.name}"


@dataclass(frozen=True, slots=True)
class Inherited:
    """A descriptor number that the parent process left open."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"


@dataclass(frozen=True, slots=True)
class SystemdName:
    """Every socket that systemd passes under this FileDescriptorName= (sd_listen_fds_with_names(3))."""

    name: str

    def __str__(self) -> str:
        return f"systemd:{self.name}"


Bindable = TCP | Unix | Abstract
Address = Bindable | Inherited | SystemdName


def parse_address(text: str) -> Address:
    """Return the address that `text` spells.

    Raises ValueError with one line that quotes `text` and says what would be right.
    """
    scheme, _, rest = text.partition(":")
    match scheme:
        case "unix":
            return _parse_unix(text, rest)
        case "fd":
            return _parse_fd(text, rest)
        case "systemd":
            return _parse_systemd(text, rest)
        case "http" | "https" | "tcp" if rest.startswith("//"):
            raise _wrong(text, f"an address has no {scheme}://; write {rest.strip('/') or '127.0.0.1:8000'}")
        case _:
            return _parse_tcp(text)


def url(address: Address, *, scheme: str = "http") -> str:
    """Return `address` as the start-up line shows it: a URL for TCP, otherwise the canonical spelling."""
    if not isinstance(address, TCP):
        return str(address)
    return f"{scheme}://{TCP(address.host or '0.0.0.0', address.port)}"  # noqa: S104 - shown, not bound


def _wrong(text: str, reason: str) -> ValueError:
    return ValueError(f"bad address {text!r}: {reason}")


def _parse_tcp(text: str) -> TCP:
    host, colon, port = text.rpartition(":")
    if text.isdecimal():
        raise _wrong(text, f"a port alone is ambiguous; write 127.0.0.1:{text}, or :{text} for every interface")
    if not colon or text.endswith("]"):
        example = f"{text}:8000" if text.endswith("]") or _HOST.fullmatch(text) else EXAMPLES
        raise _wrong(text, f"the port is missing; write {example}")
    return TCP(_host(text, host), _port(text, port))


def _port(text: str, port: str) -> int:
    # int() would take signs, underscores and the digits of every script.
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise _wrong(text, f"{port!r} is no port; write a number from 0 to 65535 after the last colon")
    return int(port)


def _host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return _v6_host(text, host[1:-1])
    if ":" in host:
        raise _wrong(text, "an IPv6 address needs brackets; write [::1]:8000")
    if host and not _HOST.fullmatch(host):
        raise _wrong(text, f"{host!r} is no host; write {EXAMPLES}")
    return host


def _v6_host(text: str, host: str) -> str:
    try:
        IPv6Address(host)
    except AddressValueError as error:
        raise _wrong(text, f"{host!r} is no IPv6 address; write [::1]:8000") from error
    return host


def _parse_unix(text: str, rest: str) -> Unix | Abstract:
    if rest.startswith("@"):
        return _parse_abstract(text, rest[1:])
    # unix:///run/app.sock is how several peers and clients spell unix:/run/app.sock.
    path, *options = (rest.removeprefix("//") if rest.startswith("///") else rest).split(",")
    if not path or path.endswith("/") or path.startswith("//") or "\0" in path:
        raise _wrong(text, "the path of the socket is missing; write unix:/run/app.sock")
    values = _unix_options(text, options)
    return Unix(path, _mode(text, values.get("mode")), values.get("owner"), values.get("group"))


def _parse_abstract(text: str, name: str) -> Abstract:
    if not name or "\0" in name:
        raise _wrong(text, "the name is missing; write unix:@name")
    if "," in name:
        raise _wrong(text, "an abstract socket has no mode, owner or group; write unix:@name")
    return Abstract(name)


def _unix_options(text: str, options: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in {"mode", "owner", "group"} or not value or key in values:
            raise _wrong(
                text, f"{option!r} is wrong; after the path write ,mode=0660 ,owner=USER or ,group=GROUP, each once"
            )
        values[key] = value
    return values


def _mode(text: str, mode: str | None) -> int | None:
    if mode is None:
        return None
    if not _MODE.fullmatch(mode):
        raise _wrong(text, f"{mode!r} is no mode; write octal permissions, such as mode=0660")
    return int(mode, 8)


def _parse_fd(text: str, rest: str) -> Inherited:
    number = rest.removeprefix("//")
    if not (rest.startswith("//") and number.isascii() and number.isdecimal() and len(number) <= 7):
        raise _wrong(text, "write the number of an open descriptor, such as fd://3")
    if int(number) >= _FD_LIMIT:
        raise _wrong(text, f"a descriptor is below {_FD_LIMIT}; write fd://3")
    return Inherited(int(number))


def _parse_systemd(text: str, name: str) -> SystemdName:
    # systemd.socket(5), FileDescriptorName=: printable ASCII without the separator, at most 255 characters.
    if not name or ":" in name or len(name) > 255 or not (name.isascii() and name.isprintable()):
        raise _wrong(text, "write the FileDescriptorName= of a .socket unit, such as systemd:web")
    return SystemdName(name)
