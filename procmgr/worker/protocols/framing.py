"""The one policy on HTTP/1.1 requests: which request line and which fields are served, and where the message ends.

Neither parser is a policy: llhttp lets `RTSP/1.0` and a missing Host pass, h11 obsolete line folding and bare LF. So
the request line is matched here, on the raw bytes, before a parser sees them, and the fields that decide on framing are
judged here after it. A codec only has to agree on what the fields are; `tests/protocols` holds both to one corpus.

All refusals are `Refused`: a status, and a reason that may be shown to the peer. Section numbers are RFC 9112's unless
said otherwise.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sized

Headers = list[tuple[bytes, bytes]]

_TCHAR: Final = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_LINE: Final = re.compile(rb"([" + _TCHAR + rb"]+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
_VERSIONS: Final = {b"HTTP/1.1": b"1.1", b"HTTP/1.0": b"1.0"}
_TOKEN_START: Final = re.compile(rb"[" + _TCHAR + rb"]")
_FORBIDDEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_FIELDS: Final = re.compile(rb"(?:[" + _TCHAR + rb"]+:[\t \x21-\x7e\x80-\xff]*\r\n)*\r\n")
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://([^/?]*)(.*)")
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-fvV:.%_~!$&'()*+,;=\-]+\]|[A-Za-z0-9._~!$&'()*+,;=%\-]*)(?::[0-9]{0,5})?"
)  # RFC 3986 section 3.2.2
_CODINGS: Final = re.compile(rb"[ \t]*(?:[" + _TCHAR + rb"]+[ \t]*,[ \t]*)*chunked[ \t]*", re.IGNORECASE)

METHODS: Final = {
    name: name.decode()
    for name in (
        b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY "
        b"OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND "
        b"UNLINK UNLOCK UNSUBSCRIBE"
    ).split()
}
"""Methods that both parsers know, as text; any other well-formed one is answered with 501 (RFC 9110 section 9.1)."""

FORBIDDEN_TRAILERS: Final = frozenset(
    b"authorization content-encoding content-length content-range content-type cookie expect host max-forwards "
    b"proxy-authorization set-cookie te trailer transfer-encoding".split()
)
"""Fields that frame, route or authenticate must not come after the body (RFC 9110 section 6.5.1)."""

FORWARDING_FIELDS: Final = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"forwarded",
)
"""By which proxies tell of the client (RFC 7239)."""

CONFUSABLE_FIELDS: Final = frozenset(
    {
        *FORWARDING_FIELDS,
        *b"host content-length transfer-encoding connection expect upgrade te trailer x-real-ip".split(),
        *b"x-forwarded-server x-forwarded-ssl x-forwarded-protocol x-scheme client-ip proxy-authorization".split(),
    }
)
"""Fields that frame, route or say who the client is, to procmgr or to applications."""

_SINGLE: Final = frozenset(b"host content-length content-type expect".split())
_SPECIAL: Final = _SINGLE | {b"connection", b"transfer-encoding", b"upgrade", b"te", *FORWARDING_FIELDS}
_FORWARDED: Final = frozenset(FORWARDING_FIELDS)
_PLAIN: Final = _FORWARDED | {b"host", b"content-type", b"connection"}
_SLASH: Final = ord("/")
_MAX_LENGTH_DIGITS: Final = 18
_KNOWN_HOSTS: Final = 1024
END: Final = b"\r\n\r\n"
_EXCERPT: Final = 120


class Refused(Exception):  # noqa: N818 - a decision about the peer's request, not a fault of ours
    """A request that is not served, with the status that answers it and the header lines that go with it."""

    def __init__(self, status: int, reason: str, lines: bytes = b"") -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.lines = lines

    @property
    def level(self) -> int:
        """How serious it is: a client that is merely slow, or gave up, is no reason to look at a log."""
        return logging.INFO if self.status == 408 else logging.WARNING


class Request:
    """What one request line and its fields say. `version` is b"1.1" or b"1.0", `path` and `query` are raw bytes.

    `text` is the path as text, still percent-encoded. The fields are `plain` if they tell of nothing that comes after
    the head: no body, no expectation, no other protocol, no trailers of the response; `forwarded` if there may be a
    proxy's words among them.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "expect",
        "forwarded",
        "head",
        "headers",
        "keep_alive",
        "method",
        "path",
        "plain",
        "query",
        "target",
        "text",
        "version",
    )

    method: bytes
    target: bytes
    version: bytes
    path: bytes
    text: str
    query: bytes
    headers: Headers
    head: bytes
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect: bool
    forwarded: bool
    plain: bool


class Codec(Protocol):
    """What is asked of a parser: it is given a whole head and nothing else."""

    def read_head(self, request: Request) -> Headers:
        """Return the fields, names in lower case, values without surrounding white space. Raises `Refused`."""


def excerpt(head: bytes) -> str:
    """Return what a log may show of a head, escaped: the beginning of its line; query and fields may have secrets."""
    line = head[: 2 * _EXCERPT].lstrip(b"\r\n").partition(b"\n")[0].removesuffix(b"\r")
    return ascii(line.partition(b"?")[0][:_EXCERPT])[2:-1]


def read_line(head: bytes, limit: int) -> Request:
    """Return a request with its line read (section 3), of at most `limit` bytes. Raises `Refused`."""
    request = read_usual_line(head[: head.find(b"\r\n")], limit)
    if request is None:
        return _read_unusual_line(head, limit)
    request.head = head
    return request


def read_usual_line(line: bytes, limit: int) -> Request | None:
    """Return a request with its `line` read, if it is all right and in origin-form (section 3.2.1), else None."""
    try:
        method, target, version = line.split(b" ")
        usual = target[0] == _SLASH and target.isascii() and len(line) <= limit
    except (ValueError, IndexError):
        return None
    if not usual or method not in METHODS or version not in _VERSIONS:
        return None
    text = target.decode()
    if not text.isprintable() or "#" in text:
        return None
    request = Request()
    request.method = method
    request.target = target
    request.version = _VERSIONS[version]
    if "?" in text:
        request.path, _, request.query = target.partition(b"?")
        request.text = request.path.decode()
    else:
        request.path = target
        request.query = b""
        request.text = text
    return request


def _read_unusual_line(head: bytes, limit: int) -> Request:
    """Read what is no `origin-form` or not quite HTTP/1.1, and find the reason why a line is refused."""
    if len(head) > limit and head.find(b"\r\n", 0, limit + 2) < 0:
        raise Refused(414, "request line too long")
    match = _LINE.match(head)
    if match is None:
        raise Refused(400, "malformed request line")
    request = Request()
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Refused(505, "HTTP version not supported")
    if method not in METHODS:
        raise Refused(501, "method not implemented")
    request.method, request.target = method, target
    request.version = b"1.0" if minor == b"0" else b"1.1"  # section 2.3: a higher minor version counts as ours
    if target == b"*" and method == b"OPTIONS":  # section 3.2.4: asterisk-form
        request.path, request.query = target, b""
    elif b"#" in target:
        raise Refused(400, "fragment in the request target")
    elif target[0] == _SLASH:  # section 3.2.1: origin-form
        request.path, _, request.query = target.partition(b"?")
    elif absolute := _ABSOLUTE.fullmatch(target):  # section 3.2.2: absolute-form
        request.path, _, request.query = absolute[2].partition(b"?")
        request.path = request.path or b"/"
        target = b"%b?%b" % (request.path, request.query)  # parsers know few schemes, and read_fields the authority
    else:
        raise Refused(400, "malformed request target")
    request.head = b"%b %b HTTP/%b\r\n%b" % (method, target, request.version, head[match.end() :])
    request.text = request.path.decode()
    return request


def read_fields(request: Request, headers: Headers, hosts: set[bytes]) -> None:
    """Judge the fields that decide on host, framing and persistence; `hosts` remembers valid ones. Raises `Refused`."""
    special: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _SPECIAL:
            if name not in special:
                special[name] = value
            elif name in _SINGLE:  # section 3.2, section 6.3, RFC 9110 section 8.3
                raise Refused(400, f"more than one {name.decode().title()} field")
            else:  # RFC 9110 section 5.3
                special[name] += b"," + value
    request.headers = headers
    request.content_length = None
    request.chunked = request.expect = False
    _judge_host(request, special.get(b"host"), hosts)
    request.keep_alive = request.version == b"1.1"
    request.plain = special.keys() <= _PLAIN
    request.forwarded = False
    if len(special) > 1 or b"host" not in special:
        request.forwarded = not special.keys().isdisjoint(_FORWARDED)
        _judge_framing(request, special.get(b"content-length"), special.get(b"transfer-encoding"))
        if b"connection" in special:
            _judge_connection(request, special[b"connection"].lower())
        if b"expect" in special and special[b"expect"].lower() == b"100-continue":  # RFC 9110 section 10.1.1
            request.expect = request.version == b"1.1" and bool(request.chunked or request.content_length)


def without_underscores(headers: Headers, *, every: bool) -> Headers:
    """Return the fields without `every` one whose name has a `_`, or without those that could pass for a special one.

    CGI and WSGI write `-` and `_` alike, so `X_Forwarded_For` would be believed there where `X-Forwarded-For` is.
    """
    return [
        pair
        for pair in headers
        if b"_" not in pair[0] or not (every or pair[0].replace(b"_", b"-") in CONFUSABLE_FIELDS)
    ]


def _judge_host(request: Request, host: bytes | None, hosts: set[bytes]) -> None:
    if host is None:
        if request.version == b"1.1":
            raise Refused(400, "Host field is missing")  # section 3.2
    elif host not in hosts:
        if _HOST.fullmatch(host) is None:
            raise Refused(400, "malformed Host field")
        if len(hosts) >= _KNOWN_HOSTS:
            hosts.clear()
        hosts.add(host)
    if request.target[0] != _SLASH and (absolute := _ABSOLUTE.fullmatch(request.target)):
        if not absolute[1] or _HOST.fullmatch(absolute[1]) is None:  # userinfo too, RFC 9110 section 4.2.4
            raise Refused(400, "malformed authority in the request target")
        request.headers = [(b"host", absolute[1]), *(pair for pair in request.headers if pair[0] != b"host")]


def _judge_framing(request: Request, length: bytes | None, codings: bytes | None) -> None:
    """Section 6.1 and 6.3: a message whose end two recipients might see at different places is refused."""
    if codings is not None:
        if length is not None:
            raise Refused(400, "both Content-Length and Transfer-Encoding")
        if request.version == b"1.0":
            raise Refused(400, "Transfer-Encoding in HTTP/1.0")
        if codings.strip(b" \t").lower() != b"chunked":
            if _CODINGS.fullmatch(codings) and codings.lower().count(b"chunked") == 1:
                raise Refused(501, "transfer coding not implemented")
            raise Refused(400, "malformed Transfer-Encoding field")
        request.chunked = True
    elif length is not None:
        if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
            raise Refused(400, "malformed Content-Length field")
        request.content_length = int(length)


def _judge_connection(request: Request, value: bytes) -> None:
    """Section 9.3: `close` wins, HTTP/1.0 persists only if asked to."""
    options = {value} if b"," not in value else {option.strip(b" \t") for option in value.split(b",")}
    if b"close" in options:
        request.keep_alive = False
    elif b"keep-alive" in options:
        request.keep_alive = True


def check_fields(head: bytes, start: int) -> None:
    """Match the field lines of a whole head from `start` on, as strictly as llhttp (section 5). Raises `Refused`."""
    if _FIELDS.fullmatch(head, start) is None:
        raise Refused(400, "malformed header field")


def check_number(fields: Sized, limit: int) -> None:
    """Refuse more than `limit` fields."""
    if len(fields) > limit:
        raise Refused(431, "too many header fields")


def check_partial(data: bytes | bytearray, scanned: int, line_limit: int, head_limit: int) -> None:
    """Refuse what no further byte can mend in a head, as soon as it is there; `scanned` bytes were seen before.

    Otherwise a client that ends its lines with a bare LF, or speaks TLS, would wait for an answer for ever. What is
    wrong first is what is told, so that it depends not on how the head was cut into segments.
    """
    if _TOKEN_START.match(data) is None and data != b"\r":
        raise Refused(400, "malformed request line")
    first = data.find(b"\r\n", 0, line_limit + 2) + 2
    if first > scanned or first < 2:
        _check_bytes(data, scanned, line_limit + 2 if first < 2 else first)
        if first >= 2:
            read_line(bytes(data[:first]), line_limit)
        elif len(data) > line_limit + 1:
            raise Refused(414, "request line too long")
    _check_bytes(data, scanned, head_limit)
    if len(data) >= head_limit and data.find(END, 0, head_limit) < 0:
        raise Refused(431, "head too large")


def _check_bytes(data: bytes | bytearray, scanned: int, end: int) -> None:
    if _FORBIDDEN.search(data, max(0, scanned - 1), end):
        raise Refused(400, "control character, bare CR or bare LF in the head")


def classify(request: Request, hosts: set[bytes], limit: int, error: Refused) -> Refused:
    """Return this policy's refusal of a head that a parser refused with `error`, else `error`.

    Parsers name fewer reasons, and some before all fields are read; the answer must not depend on the parser.
    """
    head = request.head
    lines = head.split(b"\r\n")[1:-2]
    pairs = [line.partition(b":") for line in lines]
    try:
        check_fields(head, head.find(b"\r\n") + 2)
        check_number(lines, limit)
        read_fields(request, [(name.lower(), value.strip(b" \t")) for name, _, value in pairs], hosts)
    except Refused as refusal:
        return refusal
    return error
