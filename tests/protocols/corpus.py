"""Raw requests and what must become of them, each with the clause that decides.

An outcome is the list of answers: a status for a request that is refused, after which the connection closes, or what
the application was given, `(method, path, body)`. Clauses are RFC 9112's unless they name another.
"""

from __future__ import annotations

from typing import NamedTuple

Served = tuple[str, str, str]


class Case(NamedTuple):
    name: str
    clause: str
    raw: bytes
    outcome: list[int | Served]


H = b"Host: a\r\n"
G: Served = ("GET", "/", "")


def get(line: bytes = b"GET / HTTP/1.1", fields: bytes = H) -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + H + fields + b"\r\n" + body


def chunked(body: bytes, fields: bytes = b"") -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n" + fields, body)


def p(body: str) -> Served:
    return ("POST", "/", body)


NEXT = get(b"GET /next HTTP/1.1")
LONG: Served = ("GET", "/" + "a" * 16000, "")
N: Served = ("GET", "/next", "")

CASES = [
    # -- the request line
    Case("plain GET", "3", get(), [G]),
    Case("query", "3.2.1", get(b"GET /a?b=c HTTP/1.1"), [("GET", "/a?b=c", "")]),
    Case("percent-encoded path", "3.2.1", get(b"GET /%C3%A4%2F HTTP/1.1"), [("GET", "/\u00e4/", "")]),
    Case("path that is not UTF-8", "3.2.1", get(b"GET /%ff HTTP/1.1"), [("GET", "/\ufffd", "")]),
    Case("odd but printable target", "3.2.1", get(b'GET /{|}"<>\\^`[] HTTP/1.1'), [("GET", '/{|}"<>\\^`[]', "")]),
    Case("double slash", "3.2.1", get(b"GET //a HTTP/1.1"), [("GET", "//a", "")]),
    Case("empty lines before", "2.2", b"\r\n\r\n" + get(), [G]),
    Case("empty line between requests", "2.2", get() + b"\r\n" + NEXT, [G, N]),
    Case("bare LF before", "2.2", b"\n" + get(), [400]),
    Case("bare LF after the request line", "2.2", b"GET / HTTP/1.1\nHost: a\r\n\r\n", [400]),
    Case("bare LF everywhere", "2.2", b"GET / HTTP/1.1\nHost: a\n\n", [400]),
    Case("bare CR in the request line", "2.2", b"GET /\r HTTP/1.1\r\n" + H + b"\r\n", [400]),
    Case("two spaces", "3", get(b"GET  / HTTP/1.1"), [400]),
    Case("two spaces before the version", "3", get(b"GET /  HTTP/1.1"), [400]),
    Case("tab for space", "3", get(b"GET\t/ HTTP/1.1"), [400]),
    Case("trailing space", "3", get(b"GET / HTTP/1.1 "), [400]),
    Case("leading space", "3", get(b" GET / HTTP/1.1"), [400]),
    Case("no target", "3", get(b"GET HTTP/1.1"), [400]),
    Case("no version", "3", get(b"GET /"), [400]),
    Case("space in the target", "3.2", get(b"GET /a b HTTP/1.1"), [400]),
    Case("raw UTF-8 in the target", "3.2", get("GET /ä HTTP/1.1".encode()), [400]),
    Case("NUL in the target", "3.2", get(b"GET /\x00 HTTP/1.1"), [400]),
    Case("DEL in the target", "3.2", get(b"GET /\x7f HTTP/1.1"), [400]),
    Case("fragment", "3.2", get(b"GET /a#b HTTP/1.1"), [400]),
    Case("relative target", "3.2", get(b"GET a HTTP/1.1"), [400]),
    Case("asterisk for OPTIONS", "3.2.4", get(b"OPTIONS * HTTP/1.1"), [("OPTIONS", "*", "")]),
    Case("asterisk for GET", "3.2.4", get(b"GET * HTTP/1.1"), [400]),
    Case("absolute form", "3.2.2", get(b"GET http://b/x?y HTTP/1.1"), [("GET", "/x?y", "")]),
    Case("absolute form without path", "3.2.2", get(b"GET http://b HTTP/1.1"), [G]),
    Case("absolute form with userinfo", "RFC 9110 4.2.4", get(b"GET http://u@b/ HTTP/1.1"), [400]),
    Case("absolute form without authority", "RFC 9110 4.2.1", get(b"GET http:///x HTTP/1.1"), [400]),
    Case("CONNECT", "3.2.3", get(b"CONNECT a:80 HTTP/1.1"), [501]),
    Case("method of another protocol", "RFC 9110 9.1", get(b"BREW / HTTP/1.1"), [501]),
    Case("method in lower case", "RFC 9110 9.1", get(b"get / HTTP/1.1"), [501]),
    Case("method with odd characters", "RFC 9110 9.1", get(b"G!T / HTTP/1.1"), [501]),
    Case("method that is no token", "RFC 9110 9.1", get(b"G@T / HTTP/1.1"), [400]),
    Case("method M-SEARCH", "RFC 9110 9.1", get(b"M-SEARCH / HTTP/1.1"), [("M-SEARCH", "/", "")]),
    Case("method PATCH", "RFC 5789", get(b"PATCH / HTTP/1.1"), [("PATCH", "/", "")]),
    Case("version 1.2 counts as 1.1", "2.3", get(b"GET / HTTP/1.2"), [G]),
    Case("version 1.9 counts as 1.1", "2.3", get(b"GET / HTTP/1.9") + NEXT, [G, N]),
    Case("version 2.0", "2.3", get(b"GET / HTTP/2.0"), [505]),
    Case("version 0.9", "2.3", get(b"GET / HTTP/0.9"), [505]),
    Case("version with two digits", "2.3", get(b"GET / HTTP/1.10"), [400]),
    Case("version in lower case", "2.3", get(b"GET / http/1.1"), [400]),
    Case("another protocol", "2.3", get(b"GET / RTSP/1.0"), [400]),
    Case("a TLS hello", "2.2", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]),
    Case("request line too long", "3", get(b"GET /" + b"a" * 17000 + b" HTTP/1.1"), [414]),
    Case(
        "a long request line that is not",
        "3",
        get(b"GET /" + b"a" * 16000 + b" HTTP/1.1"),
        [("GET", "/" + "a" * 16000, "")],
    ),
    # -- fields
    Case("no Host", "3.2", get(fields=b""), [400]),
    Case("no Host on 1.0", "3.2", get(b"GET / HTTP/1.0", b""), [G]),
    Case("two Hosts", "3.2", get(fields=H + H), [400]),
    Case("two Hosts on 1.0", "3.2", get(b"GET / HTTP/1.0", H + H), [400]),
    Case("empty Host", "3.2", get(fields=b"Host:\r\n"), [G]),
    Case("Host with port", "3.2", get(fields=b"Host: a.b:8000\r\n"), [G]),
    Case("Host that is IPv6", "3.2", get(fields=b"Host: [::1]:8000\r\n"), [G]),
    Case("Host with a path", "3.2", get(fields=b"Host: a/b\r\n"), [400]),
    Case("Host with userinfo", "3.2", get(fields=b"Host: u@a\r\n"), [400]),
    Case("Host with a space", "3.2", get(fields=b"Host: a b\r\n"), [400]),
    Case("Host with a port of letters", "3.2", get(fields=b"Host: a:b\r\n"), [400]),
    Case("two Hosts in one field", "3.2", get(fields=b"Host: a, b\r\n"), [400]),
    Case("space before the colon", "5.1", get(fields=H + b"A : b\r\n"), [400]),
    Case("space before the name", "5.1", get(fields=H + b" A: b\r\n"), [400]),
    Case("obsolete folding", "5.2", get(fields=H + b"A: b\r\n c\r\n"), [400]),
    Case("obsolete folding with a tab", "5.2", get(fields=H + b"A: b\r\n\tc\r\n"), [400]),
    Case("no colon", "5", get(fields=H + b"A\r\n"), [400]),
    Case("no name", "5", get(fields=H + b": b\r\n"), [400]),
    Case("name that is no token", "5.1", get(fields=H + b"A(: b\r\n"), [400]),
    Case("raw UTF-8 in a name", "5.1", get(fields=H + "Ä: b\r\n".encode()), [400]),
    Case("underscore in a name", "5.1", get(fields=H + b"A_b: c\r\n"), [G]),
    Case("no value", "5", get(fields=H + b"A:\r\n"), [G]),
    Case("white space around a value", "5.1", get(fields=b"Host: \t a \t \r\n"), [G]),
    Case("raw UTF-8 in a value", "RFC 9110 5.5", get(fields=H + "A: ä\r\n".encode()), [G]),
    Case("NUL in a value", "RFC 9110 5.5", get(fields=H + b"A: b\x00c\r\n"), [400]),
    Case("control character in a value", "RFC 9110 5.5", get(fields=H + b"A: b\x01c\r\n"), [400]),
    Case("DEL in a value", "RFC 9110 5.5", get(fields=H + b"A: b\x7fc\r\n"), [400]),
    Case("BEL in a value", "RFC 9110 5.5", get(fields=H + b"A: b\x07c\r\n"), [400]),
    Case("tab in a value", "RFC 9110 5.5", get(fields=H + b"A: b\tc\r\n"), [G]),
    Case("bare LF in a value", "2.2", get(fields=H + b"A: b\nc: d\r\n"), [400]),
    Case("bare CR in a value", "2.2", get(fields=H + b"A: b\rc\r\n"), [400]),
    Case("LF alone ends the head", "2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\n", [400]),
    Case("two Content-Types", "RFC 9110 8.3", post(b"Content-Type: a/b\r\nContent-Type: a/b\r\n"), [400]),
    Case("256 fields", "RFC 9110 5.4", get(fields=H + b"A: b\r\n" * 255), [G]),
    Case("257 fields", "RFC 9110 5.4", get(fields=H + b"A: b\r\n" * 256), [431]),
    Case("head too large", "RFC 9110 5.4", get(fields=H + b"A: " + b"b" * 66000 + b"\r\n"), [431]),
    # -- framing
    Case("Content-Length", "6.2", post(b"Content-Length: 3\r\n", b"abc") + NEXT, [p("abc"), N]),
    Case("Content-Length 0", "6.2", post(b"Content-Length: 0\r\n") + NEXT, [p(""), N]),
    Case("POST without length", "6.3", post(b"") + NEXT, [p(""), N]),
    Case("GET with a body", "6.3", get(fields=H + b"Content-Length: 2\r\n") + b"ab" + NEXT, [("GET", "/", "ab"), N]),
    Case("leading zeros", "6.2", post(b"Content-Length: 003\r\n", b"abc"), [p("abc")]),
    Case("Content-Length with sign", "6.3", post(b"Content-Length: +3\r\n", b"abc"), [400]),
    Case("negative Content-Length", "6.3", post(b"Content-Length: -3\r\n", b"abc"), [400]),
    Case("Content-Length in hex", "6.3", post(b"Content-Length: 0x3\r\n", b"abc"), [400]),
    Case("Content-Length with letters", "6.3", post(b"Content-Length: 3a\r\n", b"abc"), [400]),
    Case("empty Content-Length", "6.3", post(b"Content-Length:\r\n", b"abc"), [400]),
    Case("Content-Length with a space inside", "6.3", post(b"Content-Length: 1 1\r\n", b"abc"), [400]),
    Case("list of Content-Lengths", "6.3", post(b"Content-Length: 3, 3\r\n", b"abc"), [400]),
    Case("two equal Content-Lengths", "6.3", post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), [400]),
    Case("two Content-Lengths", "6.3", post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abc"), [400]),
    Case("Content-Length beyond 64 bits", "6.3", post(b"Content-Length: 99999999999999999999\r\n"), [400]),
    Case("chunked", "7.1", chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") + NEXT, [p("abcde"), N]),
    Case("chunked, empty", "7.1", chunked(b"0\r\n\r\n") + NEXT, [p(""), N]),
    Case(
        "chunk sizes in both cases and with zeros",
        "7.1",
        chunked(b"00a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n"),
        [p("01234567890123456789a")],
    ),
    Case(
        "chunk that holds an empty line",
        "7.1",
        chunked(b"6\r\na\r\n\r\nb\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n") + NEXT,
        [p("a\r\n\r\nb\r\n\r\n"), N],
    ),
    Case("chunk that looks like an end", "7.1", chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n") + NEXT, [p("0\r\n\r\n"), N]),
    Case("chunk extension", "7.1.1", chunked(b"3;a=b;c\r\nabc\r\n0;d\r\n\r\n") + NEXT, [p("abc"), N]),
    Case(
        "trailers are discarded", "7.1.2", chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n") + NEXT, [p("abc"), N]
    ),
    Case("forbidden trailer", "RFC 9110 6.5.1", chunked(b"3\r\nabc\r\n0\r\nContent-Length: 1\r\n\r\n") + NEXT, [400]),
    Case("Host as trailer", "RFC 9110 6.5.1", chunked(b"3\r\nabc\r\n0\r\nHost: b\r\n\r\n"), [400]),
    Case("bare LFs end the trailers", "2.2", chunked(b"0\r\nX: y\n\n" + NEXT), [400]),
    Case("bare LF for the empty line", "2.2", chunked(b"1\r\na\r\n0\r\n\n" + NEXT), [400]),
    Case("bare LF after a trailer", "2.2", chunked(b"0\r\nX: y\n\r\n" + NEXT), [400]),
    Case("chunk size that is no number", "7.1", chunked(b"x\r\nabc\r\n0\r\n\r\n"), [400]),
    Case("chunk size with sign", "7.1", chunked(b"+3\r\nabc\r\n0\r\n\r\n"), [400]),
    Case("negative chunk size", "7.1", chunked(b"-3\r\nabc\r\n0\r\n\r\n"), [400]),
    Case("chunk size with 0x", "7.1", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), [400]),
    Case("empty chunk size", "7.1", chunked(b"\r\nabc\r\n0\r\n\r\n"), [400]),
    Case("chunk size of 21 digits", "7.1", chunked(b"f" * 21 + b"\r\nabc\r\n0\r\n\r\n"), [400]),
    Case("chunk longer than its size", "7.1", chunked(b"3\r\nabcd\r\n0\r\n\r\n"), [400]),
    Case("bare LF after a chunk size", "7.1", chunked(b"3\nabc\r\n0\r\n\r\n"), [400]),
    Case("bare LF after a chunk", "7.1", chunked(b"3\r\nabc\n0\r\n\r\n"), [400]),
    Case("endless chunk extension", "7.1.1", chunked(b"3;" + b"a" * 70000 + b"\r\nabc\r\n0\r\n\r\n"), [413]),
    Case("both lengths", "6.1", chunked(b"0\r\n\r\n", b"Content-Length: 5\r\n"), [400]),
    Case(
        "both lengths the other way",
        "6.1",
        post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        [400],
    ),
    Case("chunked on 1.0", "6.1", post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"1.0"), [400]),
    Case("chunked in capitals", "7", post(b"Transfer-Encoding: CHUNKED\r\n", b"1\r\na\r\n0\r\n\r\n"), [p("a")]),
    Case("unknown coding, then chunked", "6.1", post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), [501]),
    Case(
        "unknown coding, then chunked, in two fields",
        "6.1",
        post(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        [501],
    ),
    Case("chunked not last", "6.3", post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"), [400]),
    Case("chunked twice", "6.1", post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), [400]),
    Case(
        "chunked twice in two fields",
        "6.1",
        post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        [400],
    ),
    Case("only an unknown coding", "6.3", post(b"Transfer-Encoding: gzip\r\n", b"abc"), [400]),
    Case("coding identity", "6.1", post(b"Transfer-Encoding: identity\r\n", b"abc"), [400]),
    Case("empty coding", "6.1", post(b"Transfer-Encoding:\r\n", b"abc"), [400]),
    Case("vertical tab before chunked", "6.1", post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), [400]),
    Case("quoted chunked", "6.1", post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), [400]),
    Case("xchunked", "6.1", post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), [400]),
    # -- persistence
    Case("two requests", "9.3", get() + NEXT, [G, N]),
    Case(
        "three requests with bodies",
        "9.3.2",
        post(b"Content-Length: 1\r\n", b"a") + chunked(b"1\r\nb\r\n0\r\n\r\n") + NEXT,
        [p("a"), p("b"), N],
    ),
    Case("nothing after close", "9.6", get(fields=H + b"Connection: close\r\n") + NEXT, [G]),
    Case("garbage after close", "9.6", get(fields=H + b"Connection: close\r\n") + b"\x00garbage\n", [G]),
    Case("close among others", "9.3", get(fields=H + b"Connection: foo, Close\r\n") + NEXT, [G]),
    Case("close wins", "9.3", get(fields=H + b"Connection: keep-alive\r\nConnection: close\r\n") + NEXT, [G]),
    Case("1.0 closes", "9.3", get(b"GET / HTTP/1.0") + NEXT, [G]),
    Case("1.0 with keep-alive", "9.3", get(b"GET / HTTP/1.0", H + b"Connection: Keep-Alive\r\n") + NEXT, [G, N]),
    Case("Proxy-Connection is no option", "9.3", get(fields=H + b"Proxy-Connection: close\r\n") + NEXT, [G, N]),
    Case("a bad second request", "9.3.2", get() + b"GET / HTTP/1.1\r\n\r\n" + NEXT, [G, 400]),
    Case("a bad line after a good request", "9.3.2", get() + b"garbage\r\n\r\n", [G, 400]),
    # -- upgrade
    Case(
        "Upgrade: h2c keeps the body",
        "RFC 9110 7.8",
        post(
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nContent-Length: 3\r\n",
            b"abc",
        )
        + NEXT,
        [p("abc"), N],
    ),
    Case(
        "Upgrade with a chunked body",
        "RFC 9110 7.8",
        chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Connection: upgrade\r\nUpgrade: foo\r\n") + NEXT,
        [p("abc"), N],
    ),
    Case(
        "Upgrade with a body that looks like a request",
        "RFC 9110 7.8",
        post(b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n" % len(NEXT), NEXT),
        [p(NEXT.decode())],
    ),
    Case(
        "Upgrade without a body",
        "RFC 9110 7.8",
        get(fields=H + b"Connection: upgrade\r\nUpgrade: h2c\r\n") + NEXT,
        [G, N],
    ),
    Case(
        "Upgrade that is not a connection option",
        "RFC 9110 7.8",
        post(b"Upgrade: h2c\r\nContent-Length: 3\r\n", b"abc") + NEXT,
        [p("abc"), N],
    ),
    # -- what never becomes a request
    Case("half a request line", "8", b"GET / HT", []),
    Case("half a head", "8", b"GET / HTTP/1.1\r\nHost: a\r\n", []),
    Case("nothing", "8", b"", []),
]
